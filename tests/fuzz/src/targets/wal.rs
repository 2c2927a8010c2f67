//! The write-ahead log: hard state, sectors, and the recovery scan followed by a start from what it found.
//!
//! Recovery's input is a list of sectors, 514 bytes each: slot, sector number, 512 bytes. All others are zeros, so that
//! mutations meet bytes that matter; a changed slot or number is a misdirected write, a repeated one a stale sector.
//! Slots 254 and 255 are the two copies of the hard state.

use std::sync::Arc;

use trilith_raftlog::wal::frame::{RecordHeader, SegmentHeader, SegmentSector};
use trilith_raftlog::wal::hard_state::HardStateCopy;
use trilith_raftlog::{
    Boot, ClusterId, HardState, Identity, Incarnation, Index, LogMedia, Lsn, MediaError, MemberId, Options, Raft,
    RaftEffect, RecoverOptions, SegmentFile, recover,
};

use crate::Target;

pub(crate) const HARD_STATE: Target =
    Target { name: "hard-state", run: run_hard_state, seeds: hard_state_seeds, repair: repair_sector, cost: 2 };
pub(crate) const SECTOR: Target =
    Target { name: "wal-sector", run: run_sector, seeds: sector_seeds, repair: repair_sector, cost: 1 };
pub(crate) const RECOVERY: Target =
    Target { name: "wal-recovery", run: run_recovery, seeds: recovery_seeds, repair: repair_sectors, cost: 40 };

const SECTOR_BYTES: usize = 512;
const CHUNK_BYTES: usize = 2 + SECTOR_BYTES;
const BLOCK_BYTES: usize = 4096;
const SEGMENT_BYTES: usize = 16 << 10;
const SLOTS: usize = 6;
const HARD_STATE_SLOT: u8 = 254;

/// The checksum of a sector stands in its last four bytes (docs/format/wal.md).
fn repair_sector(input: &mut [u8]) {
    if let Some(sector) = input.get_mut(..SECTOR_BYTES) {
        let crc = crc32fast::hash(&sector[..SECTOR_BYTES - 4]);
        sector[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Only headers have a checksum: all of them begin with letters of a magic.
fn repair_sectors(input: &mut [u8]) {
    for chunk in input.chunks_exact_mut(CHUNK_BYTES) {
        if chunk[2..].starts_with(b"TR") {
            repair_sector(&mut chunk[2..]);
        }
    }
}

fn run_hard_state(input: &[u8]) -> bool {
    let HardStateCopy::Valid(state) = HardState::decode(Some(input)) else { return false };
    assert_eq!(HardState::decode(Some(&state.encode())), HardStateCopy::Valid(state));
    true
}

fn run_sector(input: &[u8]) -> bool {
    let sector = &input[..input.len().min(SECTOR_BYTES)];
    if let SegmentSector::Valid(header) = SegmentHeader::decode(sector) {
        assert_eq!(SegmentHeader::decode(&header.encode()[..SECTOR_BYTES]), SegmentSector::Valid(header));
        return true;
    }
    let Some(header) = RecordHeader::decode(sector) else { return false };
    // Derived figures must not overflow, whatever the fields.
    let _ = (header.first_index(), header.last_position(), header.payload_bytes());
    assert_eq!(header.record_bytes() % BLOCK_BYTES as u64, 0);
    true
}

/// The files of one member, in memory.
#[derive(Debug, Default)]
struct Media {
    copies: [Option<Vec<u8>>; 2],
    segments: Vec<Option<Vec<u8>>>,
}

impl Media {
    fn new() -> Self {
        Self { copies: [None, None], segments: vec![None; SLOTS] }
    }

    fn from_sectors(input: &[u8]) -> Self {
        let mut media = Self::new();
        for chunk in input.chunks_exact(CHUNK_BYTES) {
            let (slot, number, sector) = (chunk[0], usize::from(chunk[1]), &chunk[2..]);
            let (file, file_bytes) = match slot.checked_sub(HARD_STATE_SLOT) {
                Some(copy) => (&mut media.copies[usize::from(copy)], BLOCK_BYTES),
                None => (&mut media.segments[usize::from(slot) % SLOTS], SEGMENT_BYTES),
            };
            let at = number * SECTOR_BYTES % file_bytes;
            let bytes = file.get_or_insert_with(|| vec![0; file_bytes]);
            bytes[at..at + SECTOR_BYTES].copy_from_slice(sector);
        }
        media
    }

    fn to_sectors(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let files =
            self.segments.iter().zip(0..HARD_STATE_SLOT).chain(self.copies.iter().zip(HARD_STATE_SLOT..=u8::MAX));
        for (file, slot) in files {
            for (number, sector) in file.iter().flat_map(|bytes| bytes.chunks(SECTOR_BYTES)).enumerate() {
                // The first sector stands for the file even when it is empty.
                if number == 0 || sector.iter().any(|byte| *byte != 0) {
                    out.extend_from_slice(&[slot, u8::try_from(number).expect("few sectors")]);
                    out.extend_from_slice(sector);
                }
            }
        }
        out
    }
}

impl LogMedia for Media {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, MediaError> {
        let present = self.segments.iter().zip(0..).filter_map(|(file, slot)| Some((file.as_ref()?, slot)));
        Ok(present.map(|(bytes, slot)| SegmentFile { slot, bytes: bytes.len() as u64 }).collect())
    }

    fn read(&mut self, slot: u32, offset: u64, len: usize) -> Result<Vec<u8>, MediaError> {
        let file =
            self.segments.get(slot as usize).and_then(Option::as_ref).expect("recovery reads what it was told of");
        let at = usize::try_from(offset).expect("within the file");
        Ok(file[at..at + len].to_vec())
    }

    fn read_hard_state(&mut self, copy: u8) -> Result<Option<Vec<u8>>, MediaError> {
        Ok(self.copies[usize::from(copy)].clone())
    }
}

fn identity() -> Identity {
    Identity { cluster_id: ClusterId(1), member_id: MemberId(2), incarnation: Incarnation(3) }
}

fn options() -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES as u64,
        batch_bytes_max: 2048,
        entry_bytes_max: 8192,
        log_bytes_max: 1 << 20,
        ..Options::standard()
    }
}

/// Recovers and boots, as the shell does; `None` if recovery refuses.
fn start(media: &mut Media, discard_from: Option<Lsn>) -> Option<Raft> {
    let recovered = recover(media, &RecoverOptions { after: Index(0), discard_from }).ok()?;
    let identity = recovered.hard_state.map_or_else(identity, |state| state.identity);
    let boot = Boot {
        identity,
        voters: vec![identity.member_id],
        configuration: b"configuration".to_vec(),
        applied: Index(0),
        recovered,
        seed: 1,
        now: 0,
    };
    Some(Raft::boot(options(), boot))
}

/// Carries out at most `effects_max` effects.
fn settle(raft: &mut Raft, media: &mut Media, now: u64, effects_max: usize) {
    for _ in 0..effects_max {
        let Some(effect) = raft.poll_effect() else { return };
        match effect {
            RaftEffect::WriteHardState { generation, copy, bytes } => {
                media.copies[usize::from(copy)] = Some(bytes);
                raft.handle_hard_state_complete(generation, copy, now);
            }
            RaftEffect::PrepareSegment(prepare) => {
                let mut bytes = vec![0; usize::try_from(prepare.file_bytes).expect("small files")];
                bytes[..prepare.header.len()].copy_from_slice(&prepare.header);
                let slot = prepare.slot as usize;
                if media.segments.len() <= slot {
                    media.segments.resize(slot + 1, None);
                }
                media.segments[slot] = Some(bytes);
                raft.handle_segment_prepared(prepare.sequence, now);
            }
            RaftEffect::Append(append) => {
                let at = usize::try_from(append.offset).expect("small files");
                let file = media.segments[append.slot as usize].as_mut().expect("appends follow preparation");
                file[at..at + append.bytes.len()].copy_from_slice(&append.bytes);
                raft.handle_append_complete(append.lsn, now);
            }
            RaftEffect::Commit { up_to, .. } => raft.handle_applied(up_to),
            _ => {}
        }
    }
}

/// What recovery accepts must be good to start from and to go on with.
fn run_recovery(input: &[u8]) -> bool {
    let mut accepted = false;
    for discard_from in [None, Some(Lsn(3))] {
        let mut media = Media::from_sectors(input);
        let Some(mut raft) = start(&mut media, discard_from) else { continue };
        settle(&mut raft, &mut media, 0, 100);
        let _ = raft.propose(Arc::new(b"one more".to_vec()));
        settle(&mut raft, &mut media, 1_000_000, 100);
        accepted = true;
    }
    accepted
}

/// A directory after `starts` starts with some entries each; stopped cleanly if `stops`.
fn directory(starts: usize, entries: usize, stops: bool) -> Media {
    let mut media = Media::new();
    for _ in 0..starts {
        let mut raft = start(&mut media, None).expect("an honest log is accepted");
        settle(&mut raft, &mut media, 0, 1000);
        for entry in 0..entries {
            let payload = vec![entry as u8; 1 + entry * 300];
            raft.propose(Arc::new(payload)).expect("a single voter leads");
            settle(&mut raft, &mut media, entry as u64, 1000);
        }
        if stops {
            raft.handle_stop(entries as u64);
            settle(&mut raft, &mut media, entries as u64, 1000);
        }
    }
    media
}

fn recovery_seeds() -> Vec<Vec<u8>> {
    let directories = [directory(1, 2, false), directory(1, 5, true), directory(2, 3, true), directory(3, 1, false)];
    directories.iter().map(Media::to_sectors).collect()
}

fn hard_state_seeds() -> Vec<Vec<u8>> {
    let media = directory(2, 1, true);
    media.copies.into_iter().map(|copy| copy.expect("both copies are written")).collect()
}

/// Every distinct header of a directory.
fn sector_seeds() -> Vec<Vec<u8>> {
    let sectors = directory(2, 4, true).to_sectors();
    let sectors = sectors.chunks_exact(CHUNK_BYTES).filter(|chunk| chunk[0] < HARD_STATE_SLOT);
    let headers = sectors.map(|chunk| chunk[2..].to_vec()).filter(|sector| sector.starts_with(b"TR"));
    let mut headers: Vec<Vec<u8>> = headers.collect();
    headers.sort();
    headers.dedup();
    headers
}
