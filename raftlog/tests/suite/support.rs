//! One member over media that remember every write, complete them in any order and crash at any moment.
//!
//! The image builder shares nothing with the writer: it knows files, offsets, and that a disk applies 512-byte sectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use trilith_raftlog::wal::{RecoverError, SegmentFile, hard_state_file_name, segment_file_name, segment_slot};
use trilith_raftlog::{
    Boot, ClusterId, Durability, Entry, Generation, Identity, Incarnation, Index, LogMedia, Lsn, MediaError, MemberId,
    Options, Raft, RaftEffect, RecoverOptions, Recovered, SegmentSequence, recover,
};

pub(crate) const IDENTITY: Identity =
    Identity { cluster_id: ClusterId(0xc1), member_id: MemberId(1), incarnation: Incarnation(0x1_5eed) };
const SECTOR: usize = 512;

/// A small generator, unlike the product's.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Seeds of a quick run, or of a campaign.
pub(crate) fn seeds(quick: u64) -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let first = number("TRILITH_RAFTLOG_SEED").unwrap_or(1);
    let count = number("TRILITH_RAFTLOG_SEEDS").unwrap_or(quick);
    first..first + count
}

/// Files as they would be read after a crash.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    fn write(&mut self, file: &str, offset: usize, bytes: &[u8]) {
        let contents = self.files.entry(file.to_owned()).or_default();
        if contents.len() < offset + bytes.len() {
            contents.resize(offset + bytes.len(), 0);
        }
        contents[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn recover(&self, after: Index) -> Result<Recovered, RecoverError> {
        self.recover_with(RecoverOptions { after, discard_from: None })
    }

    pub(crate) fn recover_with(&self, options: RecoverOptions) -> Result<Recovered, RecoverError> {
        recover(&mut self.clone(), &options)
    }
}

impl LogMedia for Image {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, MediaError> {
        let segments = self
            .files
            .iter()
            .filter_map(|(name, bytes)| segment_slot(name).map(|slot| SegmentFile { slot, bytes: bytes.len() as u64 }));
        // The order of a directory is nobody's promise.
        Ok(segments.rev().collect())
    }

    fn read(&mut self, slot: u32, offset: u64, len: usize) -> Result<Vec<u8>, MediaError> {
        let bytes = &self.files[&segment_file_name(slot)];
        let range = offset as usize..offset as usize + len;
        bytes.get(range).map(<[u8]>::to_vec).ok_or_else(|| MediaError { reason: "beyond the end".to_owned() })
    }

    fn read_hard_state(&mut self, copy: u8) -> Result<Option<Vec<u8>>, MediaError> {
        Ok(self.files.get(&hard_state_file_name(copy)).map(|bytes| bytes[..bytes.len().min(4096)].to_vec()))
    }
}

/// How a write in flight is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Append(Lsn),
    HardState(Generation, u8),
    Segment(SegmentSequence),
}

/// A write the disk has been given and not answered.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) answer: Answer,
    pub(crate) file: String,
    pub(crate) offset: usize,
    pub(crate) bytes: Vec<u8>,
    /// The file is made first, this long, of zeros.
    pub(crate) create: Option<usize>,
}

impl Flight {
    /// Applies all of it.
    pub(crate) fn land(&self, image: &mut Image) {
        if let Some(len) = self.create {
            image.files.insert(self.file.clone(), vec![0; len]);
        }
        image.write(&self.file, self.offset, &self.bytes);
    }

    /// Applies a part of it: of a creation some length, of a write any subset of sectors.
    pub(crate) fn tear(&self, image: &mut Image, rng: &mut Rng) {
        if let Some(len) = self.create {
            match rng.below(4) {
                0 => return,
                1 => {
                    image.files.insert(self.file.clone(), vec![0; rng.below(len)]);
                    return;
                }
                _ => {
                    image.files.insert(self.file.clone(), vec![0; len]);
                }
            }
        }
        let style = rng.below(4);
        let cut = rng.below(self.bytes.len() / SECTOR + 1);
        for (number, sector) in self.bytes.chunks(SECTOR).enumerate() {
            let lands = match style {
                0 => number < cut,
                1 => number >= cut,
                2 => rng.one_in(2),
                _ => number != cut,
            };
            if lands {
                image.write(&self.file, self.offset + number * SECTOR, sector);
            }
        }
    }
}

/// A member, its durable files, its writes in flight, and what it has promised.
pub(crate) struct Member {
    pub(crate) raft: Raft,
    pub(crate) image: Image,
    pub(crate) flights: Vec<Flight>,
    pub(crate) now: u64,
    /// Entries committed, hence acknowledged to clients, from index 1.
    pub(crate) committed: Vec<Entry>,
    /// What this test saw become durable, by itself.
    reached: Durability,
    completed: Vec<Lsn>,
    pub(crate) other_effects: Vec<RaftEffect>,
}

impl Member {
    pub(crate) fn boot(options: Options, image: Image, after: Index, committed: Vec<Entry>, now: u64) -> Self {
        let recovered = image.recover(after).expect("the log is sound");
        Self::boot_recovered(options, image, recovered, after, committed, now)
    }

    pub(crate) fn boot_recovered(
        options: Options,
        image: Image,
        recovered: Recovered,
        after: Index,
        committed: Vec<Entry>,
        now: u64,
    ) -> Self {
        let reached = Durability { lsn: recovered.last_lsn, generation: Generation::ZERO };
        let boot = Boot {
            identity: IDENTITY,
            voters: vec![IDENTITY.member_id],
            configuration: b"configuration".to_vec(),
            applied: after,
            recovered,
            seed: 7,
            now,
        };
        let raft = Raft::boot(options, boot);
        let (flights, completed, other_effects) = (Vec::new(), Vec::new(), Vec::new());
        let mut member = Self { raft, image, flights, now, committed, reached, completed, other_effects };
        member.pump();
        member
    }

    /// Boots on whatever recovery accepted.
    pub(crate) fn boot_unchecked(options: Options, image: Image, recovered: Recovered, after: Index) -> Self {
        let base = recovered.base;
        let mut known: Vec<Entry> = Vec::new();
        // Stand-ins for what lies behind the checkpoint; nobody reads them.
        for index in 1..=base.index.0.min(64) {
            known.push(Entry {
                index: Index(index),
                term: base.term,
                entry_type: trilith_raftlog::EntryType::NoOp,
                payload: Arc::default(),
                digest: base.digest,
            });
        }
        Self::boot_recovered(options, image, recovered, after, known, 0)
    }

    /// Drains the effects; checks that each was allowed by what this test itself saw complete.
    pub(crate) fn pump(&mut self) {
        while let Some(effect) = self.raft.poll_effect() {
            match effect {
                RaftEffect::Append(append) => {
                    self.assert_met(append.after);
                    assert!(append.bytes.len().is_multiple_of(4096) && append.offset.is_multiple_of(4096));
                    self.fly(Answer::Append(append.lsn), segment_file_name(append.slot), append.offset, append.bytes);
                }
                RaftEffect::WriteHardState { generation, copy, bytes } => {
                    assert_eq!(bytes.len(), 4096);
                    self.fly(Answer::HardState(generation, copy), hard_state_file_name(copy), 0, bytes);
                }
                RaftEffect::PrepareSegment(prepare) => {
                    self.assert_met(prepare.after);
                    let file = segment_file_name(prepare.slot);
                    let known = self.image.files.get(&file).map(Vec::len);
                    assert!(prepare.create || known == Some(prepare.file_bytes as usize), "recycled files exist");
                    self.fly(Answer::Segment(prepare.sequence), file, 0, prepare.header);
                    let flight = self.flights.last_mut().expect("just pushed");
                    flight.create = prepare.create.then_some(prepare.file_bytes as usize);
                }
                RaftEffect::Commit { up_to, after } => {
                    self.assert_met(after);
                    self.note_commit(up_to);
                }
                RaftEffect::ReadReady { after, .. } => {
                    self.assert_met(after);
                    self.other_effects.push(effect);
                }
                _ => self.other_effects.push(effect),
            }
        }
    }

    fn fly(&mut self, answer: Answer, file: String, offset: u64, bytes: Vec<u8>) {
        self.flights.push(Flight { answer, file, offset: offset as usize, bytes, create: None });
    }

    fn assert_met(&self, after: Durability) {
        assert!(after.is_met_by(self.reached), "effect after {after:?} left at {:?}", self.reached);
    }

    fn note_commit(&mut self, up_to: Index) {
        for index in 1..=up_to.0 {
            let Some(entry) = self.raft.entry(Index(index)) else {
                assert!(index <= self.committed.len() as u64, "a committed entry is readable until applied");
                continue;
            };
            match self.committed.get(index as usize - 1) {
                Some(known) => assert!(known == entry, "committed entry {index} changed"),
                None => self.committed.push(entry.clone()),
            }
        }
        assert_eq!(self.committed.len() as u64, up_to.0.max(self.committed.len() as u64));
    }

    /// Completes the n-th write in flight.
    pub(crate) fn complete(&mut self, n: usize) {
        let flight = self.flights.remove(n);
        flight.land(&mut self.image);
        match flight.answer {
            Answer::Append(lsn) => {
                self.completed.push(lsn);
                while self.completed.contains(&self.reached.lsn.next()) {
                    self.reached.lsn = self.reached.lsn.next();
                }
                self.raft.handle_append_complete(lsn, self.now);
            }
            Answer::HardState(generation, copy) => {
                let other = self.flights.iter().any(|f| matches!(f.answer, Answer::HardState(..)));
                assert!(!other, "the copies are written one after the other");
                let twin = self.image.files.get(&hard_state_file_name(1 - copy));
                let own = &self.image.files[&hard_state_file_name(copy)];
                if twin == Some(own) {
                    self.reached.generation = generation;
                }
                self.raft.handle_hard_state_complete(generation, copy, self.now);
            }
            Answer::Segment(sequence) => self.raft.handle_segment_prepared(sequence, self.now),
        }
        self.pump();
    }

    /// Completes everything, oldest first, until nothing is in flight.
    pub(crate) fn settle(&mut self) {
        while !self.flights.is_empty() {
            self.complete(0);
        }
    }

    pub(crate) fn propose(&mut self, payload: Vec<u8>) -> Index {
        let index = self.raft.propose(Arc::new(payload)).expect("a leader with room");
        self.pump();
        index
    }

    pub(crate) fn advance(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        self.raft.handle_tick(self.now);
        self.pump();
    }

    /// True once this life's first append is on its way.
    pub(crate) fn has_appended(&self) -> bool {
        !self.completed.is_empty() || self.flights.iter().any(|flight| matches!(flight.answer, Answer::Append(_)))
    }

    /// Applies what is committed.
    pub(crate) fn apply(&mut self) {
        self.raft.handle_applied(self.raft.commit());
        self.pump();
    }
}

/// Small segments, so that a few writes cross several.
pub(crate) fn small_options() -> Options {
    Options {
        segment_bytes: 32 * 1024,
        batch_bytes_max: 6_000,
        entry_bytes_max: 12_000,
        log_bytes_max: 1 << 20,
        ..Options::standard()
    }
}

/// A leader on fresh media with nothing in flight.
pub(crate) fn leader(options: Options) -> Member {
    let mut member = Member::boot(options, Image::default(), Index::ZERO, Vec::new(), 0);
    member.settle();
    assert_eq!(member.raft.role(), trilith_raftlog::Role::Leader);
    assert_eq!(member.raft.commit(), Index(2));
    member
}
