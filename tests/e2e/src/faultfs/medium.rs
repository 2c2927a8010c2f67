//! What a disk holds, and what it would hold after a power cut.
//!
//! Owns files, folders and names in memory, each with what has changed since the sync that would have made it durable.
//! Does not know FUSE, nor when power is cut.
//!
//! I1  Reads see the newest state; [`Medium::cut_power`] is the only thing that brings an older one back.
//! I2  What a sync covered before it returned survives every cut: bytes and length of a file by the file's sync, names
//!     by the sync of the folder they stand in.
//! I3  What was not synced survives by chance: each 512-byte sector in one of the states it had since the sync, each
//!     change of names as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use crate::chance::Chance;
use crate::faultfs::sparse::{SECTOR_BYTES, Sparse};

/// The number of the root folder.
pub const ROOT: u64 = 1;

/// What becomes of changes that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survival {
    /// Chance of a sector (or a length) to be found in its newest state; otherwise in an older one by lot.
    pub sectors_percent: u64,
    /// Chance of a change of names to have happened.
    pub names_percent: u64,
    /// Changes of names survive up to some point in time, as in a journal; otherwise each by its own lot.
    pub names_in_order: bool,
}

/// What a cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Sectors that had unsynced changes.
    pub sectors_in_doubt: u64,
    /// Those of them that went back to an older state.
    pub sectors_lost: u64,
    /// Unsynced changes of names.
    pub names_in_doubt: u64,
    /// Those of them that did not happen.
    pub names_lost: u64,
}

#[derive(Debug)]
enum Undo {
    /// What stood at this offset, a multiple of the sector size, in whole sectors.
    Bytes {
        offset: u64,
        old: Vec<u8>,
    },
    Length(u64),
}

/// A file or a folder.
#[derive(Debug)]
pub struct Node {
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Permission bits.
    pub mode: u16,
    /// Path from the root as it was last named.
    pub path: String,
    /// Length in bytes.
    pub length: u64,
    content: Sparse,
    undo: Vec<Undo>,
}

/// One name in one folder, and what it stands for after a change.
type NameSet = (u64, OsString, Option<u64>);

/// Everything on the disk.
#[derive(Debug)]
pub struct Medium {
    nodes: BTreeMap<u64, Node>,
    names: BTreeMap<(u64, OsString), u64>,
    durable_names: BTreeMap<(u64, OsString), u64>,
    /// Changes of names that no folder sync covered, oldest first.
    unsynced_names: Vec<Vec<NameSet>>,
    next: u64,
}

/// A Linux error number.
pub type Errno = i32;

impl Default for Medium {
    fn default() -> Self {
        Self::new()
    }
}

impl Medium {
    /// An empty disk.
    pub fn new() -> Self {
        let root = Node::new(true, 0o755, String::new());
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            next: ROOT,
        }
    }

    /// A file or folder by number.
    pub fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(libc::ENOENT)
    }

    /// Sets permission bits; they are not part of what a cut may take.
    pub fn set_mode(&mut self, number: u64, mode: u16) -> Result<(), Errno> {
        self.file_or_folder(number)?.mode = mode;
        Ok(())
    }

    fn file_or_folder(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(libc::ENOENT)
    }

    fn file(&mut self, number: u64) -> Result<&mut Node, Errno> {
        match self.file_or_folder(number)? {
            node if node.is_folder => Err(libc::EISDIR),
            node => Ok(node),
        }
    }

    /// Sum of the lengths of all files that have a name.
    pub fn used_bytes(&self) -> u64 {
        self.names.values().filter_map(|number| self.nodes.get(number)).map(|node| node.length).sum()
    }

    /// What a name stands for.
    pub fn look_up(&self, folder: u64, name: &OsStr) -> Result<u64, Errno> {
        self.names.get(&(folder, name.to_owned())).copied().ok_or(libc::ENOENT)
    }

    /// Path from the root of an entry of a folder.
    pub fn path_of(&self, folder: u64, name: &OsStr) -> String {
        let folder = self.nodes.get(&folder).map_or("?", |node| node.path.as_str());
        format!("{folder}/{}", name.to_string_lossy())
    }

    /// The entries of a folder.
    pub fn entries(&self, folder: u64) -> Vec<(OsString, u64)> {
        let all = self.names.range((folder, OsString::new())..(folder + 1, OsString::new()));
        all.map(|((_, name), number)| (name.clone(), *number)).collect()
    }

    /// Makes a file or folder.
    pub fn create(&mut self, folder: u64, name: &OsStr, is_folder: bool, mode: u16) -> Result<u64, Errno> {
        if self.look_up(folder, name).is_ok() {
            return Err(libc::EEXIST);
        }
        self.next += 1;
        self.nodes.insert(self.next, Node::new(is_folder, mode, self.path_of(folder, name)));
        self.change_names(vec![(folder, name.to_owned(), Some(self.next))]);
        Ok(self.next)
    }

    /// Removes a name.
    pub fn remove(&mut self, folder: u64, name: &OsStr) -> Result<(), Errno> {
        let number = self.look_up(folder, name)?;
        if !self.entries(number).is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.change_names(vec![(folder, name.to_owned(), None)]);
        Ok(())
    }

    /// Renames, replacing what bears the new name.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        let number = self.look_up(from.0, from.1)?;
        let path = self.path_of(to.0, to.1);
        self.file_or_folder(number)?.path = path;
        self.change_names(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(number))]);
        Ok(())
    }

    fn change_names(&mut self, change: Vec<NameSet>) {
        set_names(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    /// Reads as far as the file goes.
    pub fn read(&self, number: u64, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let node = self.node(number)?;
        let rest = usize::try_from(node.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        Ok(node.content.read(offset, length.min(rest)))
    }

    /// Writes; the change is in doubt until the file's next sync.
    pub fn write(&mut self, number: u64, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let node = self.file(number)?;
        node.overwrite(offset, bytes);
        let end = offset + bytes.len() as u64;
        if end > node.length {
            node.set_length(end);
        }
        Ok(())
    }

    /// Cuts off or extends with zeros.
    pub fn set_length(&mut self, number: u64, length: u64) -> Result<(), Errno> {
        let node = self.file(number)?;
        if length < node.length {
            let cut = usize::try_from(node.length - length).map_err(|_| libc::EFBIG)?;
            node.overwrite(length, &vec![0; cut]);
        }
        if length != node.length {
            node.set_length(length);
        }
        Ok(())
    }

    /// Makes everything written to the file so far durable.
    pub fn sync(&mut self, number: u64) -> Result<(), Errno> {
        self.file_or_folder(number)?.undo.clear();
        Ok(())
    }

    /// Makes every change of names in the folder durable.
    pub fn sync_folder(&mut self, folder: u64) {
        let all = std::mem::take(&mut self.unsynced_names);
        let touches = |change: &Vec<NameSet>| change.iter().any(|(parent, ..)| *parent == folder);
        let (synced, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(touches);
        self.unsynced_names = rest;
        for change in synced {
            set_names(&mut self.durable_names, &change);
        }
    }

    /// Leaves what a disk could hold if power went now (I3).
    pub fn cut_power(&mut self, survival: Survival, chance: &mut Chance) -> Losses {
        let mut losses = Losses::default();
        for node in self.nodes.values_mut() {
            node.cut_power(survival.sectors_percent, chance, &mut losses);
        }
        self.cut_names(survival, chance, &mut losses);
        let mut reachable = BTreeSet::from([ROOT]);
        // A folder has a lower number than what was made in it, and nothing moves between folders here.
        for ((folder, _), number) in &self.names {
            if reachable.contains(folder) {
                reachable.insert(*number);
            }
        }
        self.names.retain(|(folder, _), _| reachable.contains(folder));
        self.durable_names = self.names.clone();
        self.nodes.retain(|number, _| reachable.contains(number));
        losses
    }

    fn cut_names(&mut self, survival: Survival, chance: &mut Chance, losses: &mut Losses) {
        let changes = std::mem::take(&mut self.unsynced_names);
        losses.names_in_doubt += changes.len() as u64;
        self.names = self.durable_names.clone();
        for change in changes {
            if chance.percent(survival.names_percent) {
                set_names(&mut self.names, &change);
                continue;
            }
            losses.names_lost += 1;
            if survival.names_in_order {
                break;
            }
        }
    }
}

fn set_names(names: &mut BTreeMap<(u64, OsString), u64>, change: &[NameSet]) {
    for (folder, name, number) in change {
        let key = (*folder, name.clone());
        match number {
            Some(number) => names.insert(key, *number),
            None => names.remove(&key),
        };
    }
}

impl Node {
    fn new(is_folder: bool, mode: u16, path: String) -> Self {
        Self { is_folder, mode, path, length: 0, content: Sparse::default(), undo: Vec::new() }
    }

    fn set_length(&mut self, length: u64) {
        self.undo.push(Undo::Length(self.length));
        self.length = length;
    }

    fn overwrite(&mut self, offset: u64, bytes: &[u8]) {
        let start = offset / SECTOR_BYTES * SECTOR_BYTES;
        let end = (offset + bytes.len() as u64).next_multiple_of(SECTOR_BYTES);
        let old = self.content.read(start, usize::try_from(end - start).expect("a write fits memory"));
        let skip = usize::try_from(offset - start).expect("below a sector");
        // Writing what stands there already leaves nothing in doubt.
        if old[skip..skip + bytes.len()] != *bytes {
            self.content.write(offset, bytes);
            self.undo.push(Undo::Bytes { offset: start, old });
        }
    }

    fn cut_power(&mut self, newest_percent: u64, chance: &mut Chance, losses: &mut Losses) {
        let mut lengths = Vec::new();
        let mut sectors: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for undo in std::mem::take(&mut self.undo) {
            match undo {
                Undo::Length(length) => lengths.push(length),
                Undo::Bytes { offset, old } => {
                    for (number, sector) in old.chunks(usize::try_from(SECTOR_BYTES).expect("512")).enumerate() {
                        sectors.entry(offset + number as u64 * SECTOR_BYTES).or_default().push(sector.to_vec());
                    }
                }
            }
        }
        for (offset, states) in sectors {
            losses.sectors_in_doubt += 1;
            if !chance.percent(newest_percent) {
                losses.sectors_lost += 1;
                let old: &Vec<u8> = chance.pick(&states);
                self.content.write(offset, old);
            }
        }
        if !lengths.is_empty() && !chance.percent(newest_percent) {
            self.length = *chance.pick(&lengths);
        }
        self.content.cut_off(self.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Survival = Survival { sectors_percent: 0, names_percent: 0, names_in_order: false };
    const ALL: Survival = Survival { sectors_percent: 100, names_percent: 100, names_in_order: false };
    const HALF: Survival = Survival { sectors_percent: 50, names_percent: 50, names_in_order: false };

    fn file(medium: &mut Medium) -> u64 {
        let file = medium.create(ROOT, OsStr::new("f"), false, 0o600).unwrap();
        medium.sync_folder(ROOT);
        file
    }

    fn cut(medium: &mut Medium, survival: Survival, seed: u64) -> Losses {
        medium.cut_power(survival, &mut Chance::new(seed, 0))
    }

    #[test]
    fn synced_bytes_survive_and_others_need_not() {
        for (survival, found) in [(NOTHING, &b"AAAA"[..]), (ALL, b"BBBB")] {
            let mut medium = Medium::new();
            let file = file(&mut medium);
            medium.write(file, 0, b"AAAA").unwrap();
            medium.sync(file).unwrap();
            medium.write(file, 0, b"BBBB").unwrap();
            assert_eq!(medium.read(file, 0, 10).unwrap(), b"BBBB", "reads see the newest state");
            cut(&mut medium, survival, 1);
            assert_eq!(medium.read(file, 0, 10).unwrap(), found);
        }
    }

    #[test]
    fn a_write_is_torn_at_sectors() {
        let mut torn = BTreeSet::new();
        for seed in 0..64 {
            let mut medium = Medium::new();
            let file = file(&mut medium);
            medium.write(file, 0, &[1; 1024]).unwrap();
            medium.sync(file).unwrap();
            medium.write(file, 0, &[2; 1024]).unwrap();
            let losses = cut(&mut medium, HALF, seed);
            assert_eq!(losses.sectors_in_doubt, 2);
            let bytes = medium.read(file, 0, 1024).unwrap();
            assert!(bytes[..512].iter().all(|byte| *byte == bytes[0]) && bytes[512..].iter().all(|b| *b == bytes[512]));
            torn.insert((bytes[0], bytes[512]));
        }
        assert_eq!(torn.len(), 4, "each sector has its own lot: {torn:?}");
    }

    #[test]
    fn lengths_and_cut_off_bytes_come_back_only_unsynced() {
        let mut medium = Medium::new();
        let file = file(&mut medium);
        medium.write(file, 0, &[7; 1000]).unwrap();
        medium.sync(file).unwrap();
        medium.set_length(file, 10).unwrap();
        medium.set_length(file, 20).unwrap();
        assert_eq!(medium.read(file, 0, 100).unwrap(), [[7; 10], [0; 10]].concat());
        cut(&mut medium, ALL, 1);
        assert_eq!(medium.node(file).unwrap().length, 20);
        medium.set_length(file, 0).unwrap();
        cut(&mut medium, NOTHING, 1);
        assert_eq!(medium.read(file, 0, 100).unwrap(), [[7; 10], [0; 10]].concat());
    }

    #[test]
    fn names_are_kept_by_the_sync_of_their_folder_alone() {
        let (a, b) = (OsStr::new("a"), OsStr::new("b"));
        let mut medium = Medium::new();
        let folder = medium.create(ROOT, OsStr::new("d"), true, 0o700).unwrap();
        let file = medium.create(folder, a, false, 0o600).unwrap();
        medium.sync(file).unwrap();
        medium.sync_folder(ROOT);
        medium.sync_folder(folder);
        medium.rename((folder, a), (folder, b)).unwrap();
        medium.sync(file).unwrap();
        assert_eq!(medium.look_up(folder, a), Err(libc::ENOENT));
        cut(&mut medium, NOTHING, 1);
        assert_eq!((medium.look_up(folder, a), medium.look_up(folder, b)), (Ok(file), Err(libc::ENOENT)));
        medium.rename((folder, a), (folder, b)).unwrap();
        medium.sync_folder(folder);
        cut(&mut medium, NOTHING, 1);
        assert_eq!((medium.look_up(folder, a), medium.look_up(folder, b)), (Err(libc::ENOENT), Ok(file)));
    }

    #[test]
    fn a_lost_folder_takes_its_files() {
        let mut medium = Medium::new();
        let folder = medium.create(ROOT, OsStr::new("d"), true, 0o700).unwrap();
        medium.create(folder, OsStr::new("a"), false, 0o600).unwrap();
        medium.sync_folder(folder);
        cut(&mut medium, NOTHING, 1);
        assert!(medium.entries(ROOT).is_empty() && medium.node(folder).is_err());
    }

    #[test]
    fn a_journal_loses_the_newest_names_only() {
        let survival = Survival { names_in_order: true, ..HALF };
        for seed in 0..64 {
            let mut medium = Medium::new();
            for name in ["a", "b", "c", "d"] {
                medium.create(ROOT, OsStr::new(name), false, 0o600).unwrap();
            }
            cut(&mut medium, survival, seed);
            let left: Vec<String> =
                medium.entries(ROOT).iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
            assert_eq!(left, ["a", "b", "c", "d"][..left.len()]);
        }
    }
}
