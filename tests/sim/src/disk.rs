//! The simulated disk: what a running process sees, what survives a power loss, and everything between.
//!
//! Owns: files, names, unsettled writes, and the rules by which a crash settles them. Does not know: time (landing
//! times are given), descriptors, tokens.
//!
//! Invariants
//! - I1: a write is settled per 512-byte sector: at a power loss any subset of the sectors of a write that is not yet
//!   durable survives, whatever was written before or after it.
//! - I2: a write in `Log` mode is durable once completed; a write in `Store` mode once a sync that began after its
//!   completion has ended.
//! - I3: a kill keeps what the process saw; its writes in flight land later, and until then a successor waits for them.
//! - I4: a name that was created or removed, but whose directory was not synced since, may come back or vanish.
//! - I5: files never shrink, and bytes that nobody overwrote stay: a recycled segment shows its old contents.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::rng::Rng;

/// The unit in which a write survives a power loss.
pub const SECTOR_BYTES: usize = 512;
/// The unit in which data at rest is damaged.
pub const BLOCK_BYTES: usize = 4096;

/// Identifies a file whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InodeId(pub u64);

/// Identifies an unsettled write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub u64);

/// When a completed write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// At its completion (`O_DSYNC`).
    AtCompletion,
    /// At the end of a later sync.
    AtSync,
}

/// Which unsettled writes a power loss keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Any subset of sectors, drawn for each write.
    Drawn,
    /// Nothing that is not durable.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteState {
    InFlight,
    /// In flight when its process was killed; reaches the file at this time.
    LandsAt(u64),
    Completed,
    /// Reported as failed: reads show some of its sectors, and which survive is open until a later barrier.
    Failed,
}

#[derive(Clone, Debug)]
struct Write {
    id: WriteId,
    offset: usize,
    bytes: Rc<Vec<u8>>,
    barrier: Barrier,
    state: WriteState,
    /// Per sector, whether nothing newer is durable there.
    live: Vec<bool>,
}

impl Write {
    /// Another write of this range has become durable: what this one left there can no longer come back.
    fn supersede(&mut self, offset: usize, len: usize) {
        for (sector, live) in self.live.iter_mut().enumerate() {
            let start = self.offset + sector * SECTOR_BYTES;
            *live &= start + SECTOR_BYTES <= offset || offset + len <= start;
        }
    }

    /// Its sectors that nothing newer has replaced: number, place in the file, bytes.
    fn sectors(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>, &[u8])> {
        let chunks = self.bytes.chunks(SECTOR_BYTES).enumerate().filter(|(sector, _)| self.live[*sector]);
        chunks.map(|(sector, chunk)| {
            let start = self.offset + sector * SECTOR_BYTES;
            (sector, start..start + chunk.len(), chunk)
        })
    }

    fn overlaps(&self, offset: usize, len: usize) -> bool {
        self.offset < offset + len && offset < self.offset + self.bytes.len()
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What reads and mappings see.
    visible: Rc<Vec<u8>>,
    /// What is certain to survive, of the sectors that show something else. Few do, and a crash copies no file.
    durable: BTreeMap<usize, Rc<[u8]>>,
    /// Writes not yet in `durable`, in submission order.
    unsettled: Vec<Write>,
    /// Blocks that were ever written.
    written: BTreeSet<u64>,
    /// Blocks that may hold a part of a write.
    torn: BTreeSet<u64>,
    /// What blocks held before they were last written, if the disk remembers that.
    previous: BTreeMap<u64, Rc<Vec<u8>>>,
}

impl Inode {
    /// Readers see these sectors of a write from now on.
    fn show(&mut self, write: &Write, keep: impl Fn(usize) -> bool) {
        let bytes = Rc::make_mut(&mut self.visible);
        for (sector, range, chunk) in write.sectors().filter(|(sector, ..)| keep(*sector)) {
            let before = self.durable.entry(write.offset / SECTOR_BYTES + sector);
            before.or_insert_with(|| bytes[range.clone()].into());
            bytes[range].copy_from_slice(chunk);
        }
    }

    /// These sectors of a write survive from now on.
    fn harden(&mut self, write: &Write, keep: impl Fn(usize) -> bool) {
        for (sector, range, chunk) in write.sectors().filter(|(sector, ..)| keep(*sector)) {
            let position = write.offset / SECTOR_BYTES + sector;
            if self.visible[range] == *chunk {
                self.durable.remove(&position);
            } else {
                self.durable.insert(position, chunk.into());
            }
        }
    }

    /// A write is both seen and certain to survive.
    fn show_hardened(&mut self, write: &Write) {
        let bytes = Rc::make_mut(&mut self.visible);
        for (sector, range, chunk) in write.sectors() {
            self.durable.remove(&(write.offset / SECTOR_BYTES + sector));
            bytes[range].copy_from_slice(chunk);
        }
    }

    fn land(&mut self, id: WriteId) {
        let position = self.position(id);
        let write = &mut self.unsettled[position];
        write.state = WriteState::Completed;
        let write = write.clone();
        if !self.torn.is_empty() {
            let whole = blocks(write.offset, write.bytes.len());
            self.torn.retain(|block| !whole.contains(block));
        }
        if write.barrier == Barrier::AtCompletion {
            self.show_hardened(&write);
            self.unsettled.remove(position);
            for older in &mut self.unsettled[..position] {
                older.supersede(write.offset, write.bytes.len());
            }
        } else {
            self.show(&write, |_| true);
        }
    }

    fn position(&self, id: WriteId) -> usize {
        self.unsettled.iter().position(|write| write.id == id).expect("an unsettled write stays listed until it lands")
    }
}

/// Draws which sectors of a write survive: none, all, a prefix, a suffix, or each for itself.
fn draw_survivors(rng: &mut Rng, sectors: usize) -> Vec<bool> {
    match rng.below(5) {
        0 => vec![false; sectors],
        1 => vec![true; sectors],
        2 => {
            let cut = rng.index(sectors + 1);
            (0..sectors).map(|sector| sector < cut).collect()
        }
        3 => {
            let cut = rng.index(sectors + 1);
            (0..sectors).map(|sector| sector >= cut).collect()
        }
        _ => {
            let per_mille = rng.below(1_001);
            (0..sectors).map(|_| rng.chance(per_mille)).collect()
        }
    }
}

/// What a power loss took or damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Sectors that were written and are gone.
    pub sectors: u64,
    /// Writes of the log of which a part is left.
    pub torn_log: u64,
    /// Writes of the store of which a part is left.
    pub torn_store: u64,
    /// Writes of a superblock of which a part is left.
    pub torn_superblock: u64,
    /// Names that were there and are gone.
    pub names: u64,
    /// Names that were gone and are back.
    pub names_back: u64,
}

/// A change of a name that is under way.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum NameChange {
    /// A file of so many bytes is being made.
    Create { name: String, bytes: usize },
    /// A name is being removed.
    Unlink { name: String },
}

/// One disk. Cloning is cheap until either side writes.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inodes: BTreeMap<InodeId, Inode>,
    names: BTreeMap<String, InodeId>,
    durable_names: BTreeMap<String, InodeId>,
    directories: BTreeSet<String>,
    changes: BTreeMap<u64, NameChange>,
    next_id: u64,
    remembers_previous: bool,
    /// No write of a killed process lands before this time.
    landing_from: u64,
}

fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Disk {
    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn inode(&self, id: InodeId) -> &Inode {
        self.inodes.get(&id).expect("an open file's inode is kept")
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.get_mut(&id).expect("an open file's inode is kept")
    }

    /// Names of the files in `directory`, without it, sorted.
    #[must_use]
    pub fn list(&self, directory: &str) -> Vec<String> {
        let in_directory = self.names.keys().filter(|name| directory_of(name) == directory);
        in_directory.map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()).collect()
    }

    /// Adds a directory, durably.
    pub fn create_directory(&mut self, directory: &str) {
        self.directories.insert(directory.to_owned());
    }

    /// Whether a directory is there.
    #[must_use]
    pub fn has_directory(&self, directory: &str) -> bool {
        directory.is_empty() || self.directories.contains(directory)
    }

    /// The file of that name.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<InodeId> {
        self.names.get(name).copied()
    }

    /// Makes an empty file whose name is not synced.
    pub fn create_unsynced(&mut self, name: &str, bytes: usize) -> InodeId {
        let id = InodeId(self.fresh_id());
        self.inodes.insert(id, Inode { visible: Rc::new(vec![0; bytes]), ..Inode::default() });
        self.names.insert(name.to_owned(), id);
        id
    }

    /// Makes a file of zeros, with its name and contents durable.
    pub fn create(&mut self, name: &str, bytes: usize) -> InodeId {
        let id = self.create_unsynced(name, bytes);
        self.sync_directory(directory_of(name));
        id
    }

    /// Removes a name, durably. The file stays for those who have it open.
    pub fn unlink(&mut self, name: &str) {
        self.names.remove(name);
        self.sync_directory(directory_of(name));
    }

    /// Makes the names of a directory durable as they are.
    pub fn sync_directory(&mut self, directory: &str) {
        self.durable_names.retain(|name, _| directory_of(name) != directory);
        let names = self.names.iter().filter(|(name, _)| directory_of(name) == directory);
        self.durable_names.extend(names.map(|(name, id)| (name.clone(), *id)));
    }

    /// Begins a change of a name that a crash may interrupt.
    pub fn begin_change(&mut self, change: NameChange) -> u64 {
        let id = self.fresh_id();
        self.changes.insert(id, change);
        id
    }

    /// Ends a change; returns the file that was made.
    pub fn complete_change(&mut self, id: u64) -> Option<InodeId> {
        match self.changes.remove(&id).expect("a change ends once") {
            NameChange::Create { name, bytes } => Some(self.create(&name, bytes)),
            NameChange::Unlink { name } => {
                self.unlink(&name);
                None
            }
        }
    }

    /// Gives up a change, as a failed call does.
    pub fn abandon_change(&mut self, id: u64) {
        self.changes.remove(&id);
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self, file: InodeId) -> usize {
        self.inode(file).visible.len()
    }

    /// Whether there is no file at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// What a reader sees; `None` beyond the end.
    #[must_use]
    pub fn visible(&self, file: InodeId, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.inode(file).visible.get(start..start.checked_add(len)?)
    }

    /// Begins a write. A reader may see any of its sectors at once.
    ///
    /// # Errors
    /// The range is beyond the file or overlaps a write in flight: both are mistakes of the caller.
    pub fn begin_write(
        &mut self,
        file: InodeId,
        offset: u64,
        bytes: Vec<u8>,
        barrier: Barrier,
        rng: &mut Rng,
    ) -> Result<WriteId, &'static str> {
        let id = WriteId(self.fresh_id());
        let remembers = self.remembers_previous;
        let inode = self.inode_mut(file);
        let offset = usize::try_from(offset).map_err(|_| "write beyond any file")?;
        if !offset.is_multiple_of(SECTOR_BYTES) {
            return Err("write not at a sector");
        }
        if offset + bytes.len() > inode.visible.len() {
            return Err("write beyond the end of its file");
        }
        let in_flight = |write: &Write| matches!(write.state, WriteState::InFlight | WriteState::LandsAt(_));
        if inode.unsettled.iter().any(|write| in_flight(write) && write.overlaps(offset, bytes.len())) {
            return Err("write overlaps another one in flight");
        }
        let live = vec![true; bytes.len().div_ceil(SECTOR_BYTES)];
        let write = Write { id, offset, bytes: Rc::new(bytes), barrier, state: WriteState::InFlight, live };
        if barrier == Barrier::AtSync {
            let early = draw_survivors(rng, write.bytes.len().div_ceil(SECTOR_BYTES));
            inode.show(&write, |sector| early[sector]);
        }
        if remembers {
            for block in blocks(offset, write.bytes.len()) {
                let from = block as usize * BLOCK_BYTES;
                let held = inode.visible.get(from..from + BLOCK_BYTES).unwrap_or_default().to_vec();
                inode.previous.insert(block, Rc::new(held));
            }
        }
        inode.written.extend(blocks(offset, write.bytes.len()));
        inode.unsettled.push(write);
        Ok(id)
    }

    /// Ends a write: readers see it, and it is durable if its barrier says so.
    pub fn complete_write(&mut self, file: InodeId, id: WriteId) {
        self.inode_mut(file).land(id);
    }

    /// Ends a write with an error: a reader sees some of its sectors, and not even those are durable.
    pub fn fail_write(&mut self, file: InodeId, id: WriteId, rng: &mut Rng) {
        let inode = self.inode_mut(file);
        let position = inode.position(id);
        let write = &mut inode.unsettled[position];
        write.state = WriteState::Failed;
        let write = write.clone();
        let reached = draw_survivors(rng, write.live.len());
        inode.torn.extend(blocks(write.offset, write.bytes.len()));
        inode.show(&write, |sector| reached[sector]);
    }

    /// The writes that a sync which begins now will make durable: all that have ended.
    #[must_use]
    pub fn begin_sync(&self, file: InodeId) -> Vec<WriteId> {
        let ended = |write: &&Write| matches!(write.state, WriteState::Completed | WriteState::Failed);
        self.inode(file).unsettled.iter().filter(ended).map(|write| write.id).collect()
    }

    /// Ends a sync.
    pub fn complete_sync(&mut self, file: InodeId, covered: &[WriteId]) {
        let inode = self.inode_mut(file);
        let (settled, unsettled): (Vec<_>, Vec<_>) =
            std::mem::take(&mut inode.unsettled).into_iter().partition(|write| covered.contains(&write.id));
        inode.unsettled = unsettled;
        for mut write in settled {
            if write.state == WriteState::Failed {
                // Of a failed write, what reads show is what a barrier makes durable.
                write.bytes = Rc::new(inode.visible[write.offset..write.offset + write.bytes.len()].to_vec());
            }
            inode.harden(&write, |_| true);
            for older in inode.unsettled.iter_mut().filter(|older| older.id < write.id) {
                older.supersede(write.offset, write.bytes.len());
            }
        }
    }

    /// When the last write of a killed process reaches `file`; 0 if there is none.
    #[must_use]
    pub fn quiet_at(&self, file: InodeId) -> u64 {
        let landings = self.inode(file).unsettled.iter().map(|write| match write.state {
            WriteState::LandsAt(time) => time,
            _ => 0,
        });
        landings.max().unwrap_or(0)
    }

    /// Lands the writes of killed processes that are due.
    pub fn advance(&mut self, now: u64) {
        if now < self.landing_from {
            return;
        }
        self.landing_from = u64::MAX;
        for inode in self.inodes.values_mut() {
            let due =
                inode.unsettled.iter().filter(|write| matches!(write.state, WriteState::LandsAt(at) if at <= now));
            for id in due.map(|write| write.id).collect::<Vec<_>>() {
                inode.land(id);
            }
            for write in &inode.unsettled {
                if let WriteState::LandsAt(at) = write.state {
                    self.landing_from = self.landing_from.min(at);
                }
            }
        }
    }

    /// The process was killed: writes in flight land within `landing_max` nanoseconds or never began.
    pub fn kill(&mut self, now: u64, landing_max: u64, rng: &mut Rng) {
        self.landing_from = 0;
        for inode in self.inodes.values_mut() {
            inode.unsettled.retain_mut(|write| {
                if write.state != WriteState::InFlight {
                    return true;
                }
                write.state = WriteState::LandsAt(now + 1 + rng.below(landing_max));
                rng.chance(800)
            });
        }
        for change in std::mem::take(&mut self.changes).into_values() {
            // Not begun, begun without the directory's sync, or done: a file appears whole, by a rename.
            match (change, rng.below(3)) {
                (_, 0) => {}
                (NameChange::Create { name, bytes }, 1) => {
                    self.create_unsynced(&name, bytes);
                }
                (NameChange::Unlink { name }, 1) => {
                    self.names.remove(&name);
                }
                (NameChange::Create { name, bytes }, _) => {
                    self.create(&name, bytes);
                }
                (NameChange::Unlink { name }, _) => self.unlink(&name),
            }
        }
    }

    /// Whether a write to a file whose name begins so has not ended.
    #[must_use]
    pub fn is_writing(&self, prefix: &str) -> bool {
        let from = std::ops::Bound::Included(prefix);
        let names = self.names.range::<str, _>((from, std::ops::Bound::Unbounded));
        names
            .take_while(|(name, _)| name.starts_with(prefix))
            .any(|(_, id)| self.inode(*id).unsettled.iter().any(|write| write.state == WriteState::InFlight))
    }

    /// From now on, what blocks held before their last write is kept: a lost write leaves it.
    pub fn remember_previous(&mut self) {
        self.remembers_previous = true;
    }

    /// What a block held before its last write, if that is known.
    #[must_use]
    pub fn previous(&self, file: InodeId, offset: u64) -> Option<Vec<u8>> {
        self.inode(file).previous.get(&(offset / BLOCK_BYTES as u64)).map(|bytes| bytes.to_vec())
    }

    /// Names that begin so.
    #[must_use]
    pub fn names_from(&self, prefix: &str) -> Vec<String> {
        self.names.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// Blocks of a file that were ever written.
    #[must_use]
    pub fn written_blocks(&self, file: InodeId) -> Vec<u64> {
        self.inode(file).written.iter().copied().collect()
    }

    /// Whether the block at this offset was written whole and nothing of its file is unsettled.
    #[must_use]
    pub fn is_whole(&self, file: InodeId, offset: u64) -> bool {
        let inode = self.inode(file);
        inode.unsettled.is_empty()
            && self.was_written(file, offset)
            && !inode.torn.contains(&(offset / BLOCK_BYTES as u64))
    }

    /// Changes bytes at rest.
    pub fn damage(&mut self, file: InodeId, offset: u64, bytes: &[u8]) {
        let from = offset as usize;
        let inode = self.inode_mut(file);
        Rc::make_mut(&mut inode.visible)[from..from + bytes.len()].copy_from_slice(bytes);
        let to = (from + bytes.len()).div_ceil(SECTOR_BYTES);
        inode.durable.retain(|sector, _| !(from / SECTOR_BYTES..to).contains(sector));
        // Not whole before it is written again.
        inode.torn.extend(blocks(from, bytes.len()));
    }

    /// Whether the block at this offset was ever written.
    #[must_use]
    pub fn was_written(&self, file: InodeId, offset: u64) -> bool {
        self.inode(file).written.contains(&(offset / BLOCK_BYTES as u64))
    }

    /// The power failed: only what is durable is certain; of the rest, what `survival` keeps.
    pub fn power_loss(&mut self, survival: Survival, rng: &mut Rng) -> Losses {
        if survival == Survival::Drawn {
            // A change under way may have got as far as any point of its sequence.
            self.kill(u64::MAX / 2, 1, rng);
        }
        self.changes.clear();
        let mut losses = Losses::default();
        let names: BTreeMap<InodeId, &str> = self.names.iter().map(|(name, id)| (*id, name.as_str())).collect();
        for (id, inode) in &mut self.inodes {
            let name = names.get(id).copied().unwrap_or_default();
            inode.lose_power(name, survival, &mut losses, rng);
        }
        self.settle_names(survival, &mut losses, rng);
        let named: BTreeSet<InodeId> = self.names.values().copied().collect();
        self.inodes.retain(|id, _| named.contains(id));
        losses
    }

    fn settle_names(&mut self, survival: Survival, losses: &mut Losses, rng: &mut Rng) {
        let all: BTreeSet<String> = self.names.keys().chain(self.durable_names.keys()).cloned().collect();
        for name in all {
            let (seen, kept) = (self.names.get(&name).copied(), self.durable_names.get(&name).copied());
            let outcome = if survival == Survival::Drawn && rng.chance(500) { seen } else { kept };
            losses.names += u64::from(seen.is_some() && outcome.is_none());
            losses.names_back += u64::from(seen.is_none() && outcome.is_some());
            match outcome {
                Some(id) => self.names.insert(name.clone(), id),
                None => self.names.remove(&name),
            };
        }
        self.durable_names.clone_from(&self.names);
    }
}

impl Inode {
    /// Settles what was not durable; the file's name is for the count of losses.
    fn lose_power(&mut self, name: &str, survival: Survival, losses: &mut Losses, rng: &mut Rng) {
        for write in std::mem::take(&mut self.unsettled) {
            let sectors = write.bytes.len().div_ceil(SECTOR_BYTES);
            let kept = match survival {
                Survival::Drawn => draw_survivors(rng, sectors),
                Survival::Nothing => vec![false; sectors],
            };
            let count = kept.iter().filter(|kept| **kept).count();
            losses.sectors += (sectors - count) as u64;
            if count > 0 {
                self.harden(&write, |sector| kept[sector]);
            }
            if count > 0 && count < sectors {
                let torn = match name {
                    _ if name.starts_with("wal/") => &mut losses.torn_log,
                    _ if name.starts_with("store/superblock") => &mut losses.torn_superblock,
                    _ => &mut losses.torn_store,
                };
                *torn += 1;
                self.torn.extend(blocks(write.offset, write.bytes.len()));
            }
        }
        if !self.durable.is_empty() {
            let bytes = Rc::make_mut(&mut self.visible);
            for (sector, kept) in std::mem::take(&mut self.durable) {
                let start = sector * SECTOR_BYTES;
                bytes[start..start + kept.len()].copy_from_slice(&kept);
            }
        }
    }
}

/// The blocks that a range touches.
fn blocks(offset: usize, len: usize) -> std::ops::Range<u64> {
    (offset / BLOCK_BYTES) as u64..(offset + len).div_ceil(BLOCK_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_file() -> (Disk, InodeId) {
        let mut disk = Disk::default();
        let file = disk.create("wal/seg", 8192);
        (disk, file)
    }

    fn write(disk: &mut Disk, file: InodeId, barrier: Barrier, byte: u8) -> WriteId {
        disk.begin_write(file, 0, vec![byte; 4096], barrier, &mut Rng::new(1)).expect("in range, no overlap")
    }

    #[test]
    fn completed_log_write_survives_and_pending_one_may_not() {
        let (mut disk, file) = disk_with_file();
        let first = write(&mut disk, file, Barrier::AtCompletion, 1);
        disk.complete_write(file, first);
        write(&mut disk, file, Barrier::AtCompletion, 2);
        disk.power_loss(Survival::Nothing, &mut Rng::new(1));
        assert!(disk.visible(file, 0, 4096).unwrap().iter().all(|&byte| byte == 1));
    }

    #[test]
    fn store_write_needs_a_sync_that_began_after_it() {
        let (mut disk, file) = disk_with_file();
        let id = write(&mut disk, file, Barrier::AtSync, 1);
        let too_early = disk.begin_sync(file);
        disk.complete_write(file, id);
        disk.complete_sync(file, &too_early);
        let mut lost = disk.clone();
        lost.power_loss(Survival::Nothing, &mut Rng::new(1));
        assert_eq!(lost.visible(file, 0, 1).unwrap(), [0]);
        let covered = disk.begin_sync(file);
        disk.complete_sync(file, &covered);
        disk.power_loss(Survival::Nothing, &mut Rng::new(1));
        assert_eq!(disk.visible(file, 0, 1).unwrap(), [1]);
    }

    #[test]
    fn failed_write_never_replaces_a_newer_durable_one() {
        for seed in 0..50 {
            let (mut disk, file) = disk_with_file();
            let mut rng = Rng::new(seed);
            let failed = disk.begin_write(file, 0, vec![1; 8192], Barrier::AtCompletion, &mut rng).unwrap();
            disk.fail_write(file, failed, &mut rng);
            let newer = write(&mut disk, file, Barrier::AtCompletion, 2);
            disk.complete_write(file, newer);
            disk.power_loss(Survival::Drawn, &mut rng);
            assert!(disk.visible(file, 0, 4096).unwrap().iter().all(|&byte| byte == 2));
        }
    }

    #[test]
    fn power_loss_tears_at_sectors() {
        let mut patterns = BTreeSet::new();
        for seed in 0..200 {
            let (mut disk, file) = disk_with_file();
            write(&mut disk, file, Barrier::AtCompletion, 7);
            disk.power_loss(Survival::Drawn, &mut Rng::new(seed));
            let image = disk.visible(file, 0, 8192).unwrap();
            for sector in image.chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|&byte| byte == sector[0]), "a sector is never split");
            }
            patterns.insert(image.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect::<Vec<_>>());
        }
        assert!(patterns.len() > 20, "only {} patterns", patterns.len());
    }

    #[test]
    fn killed_write_lands_later() {
        let (mut landed, mut dropped) = (0, 0);
        for seed in 0..50 {
            let (mut disk, file) = disk_with_file();
            write(&mut disk, file, Barrier::AtCompletion, 7);
            disk.kill(1_000, 500, &mut Rng::new(seed));
            assert_eq!(disk.visible(file, 0, 1).unwrap(), [0]);
            let quiet_at = disk.quiet_at(file);
            disk.advance(quiet_at);
            if quiet_at == 0 {
                dropped += 1;
            } else {
                assert!((1_001..=1_500).contains(&quiet_at));
                assert_eq!(disk.visible(file, 4095, 1).unwrap(), [7]);
                landed += 1;
            }
        }
        assert!(landed > 20 && dropped > 0, "{landed} landed, {dropped} dropped");
    }

    #[test]
    fn interrupted_create_may_leave_a_name_that_vanishes() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..100 {
            let (mut disk, _) = disk_with_file();
            disk.begin_change(NameChange::Create { name: "wal/new".to_owned(), bytes: 16_384 });
            disk.kill(0, 1, &mut Rng::new(seed));
            let killed = disk.lookup("wal/new").map(|file| disk.len(file));
            disk.power_loss(Survival::Drawn, &mut Rng::new(seed + 1));
            outcomes.insert((killed, disk.lookup("wal/new").map(|file| disk.len(file))));
        }
        let whole = Some(16_384);
        assert_eq!(outcomes, [(None, None), (whole, None), (whole, whole)].into());
    }

    #[test]
    fn overlapping_writes_are_refused() {
        let (mut disk, file) = disk_with_file();
        write(&mut disk, file, Barrier::AtCompletion, 1);
        let mut rng = Rng::new(1);
        assert!(disk.begin_write(file, 0, vec![0; 8192], Barrier::AtCompletion, &mut rng).is_err());
        assert!(disk.begin_write(file, 4096, vec![0; 4096], Barrier::AtCompletion, &mut rng).is_ok());
        assert!(disk.begin_write(file, 8192, vec![0; 4096], Barrier::AtCompletion, &mut rng).is_err());
    }
}
