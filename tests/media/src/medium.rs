//! The rules by which a medium forgets: from a trace to every image that a power cut may leave.
//!
//! Owns: what is durable at a point of a trace, what is not yet, and the images between. Does not know: what any byte
//! means; it shares no code with what writes or reads these files.
//!
//! Invariants
//! - I1: a write that is not durable survives in any subset of its 512-byte sectors, whatever was written before or
//!   after it; sectors are never split.
//! - I2: a name that was made or removed since its directory was last synced is there or not, each for itself.
//! - I3: what is durable is in every image.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use trilith_sim::rng::Rng;

use crate::image::{Image, overlay};
use crate::trace::{FileNumber, Landed, Step, Ticket};

/// The unit in which a write survives.
pub const SECTOR_BYTES: usize = 512;
/// Up to so many writes that are not durable, every subset of them makes an image.
const SUBSET_WRITES_MAX: usize = 8;
/// Images with sampled subsets above that.
const SUBSETS_SAMPLED: u64 = 256;
/// Images with torn writes for each write that is not durable, and at most.
const TEARS_PER_WRITE: u64 = 6;
const TEARS_MAX: u64 = 24;

#[derive(Clone, Debug)]
struct Unsettled {
    file: FileNumber,
    offset: usize,
    bytes: Rc<Vec<u8>>,
    syncs_itself: bool,
    has_ended: bool,
    /// Per sector: may survive. Not so if something newer is durable there, or a killed process never brought it.
    alive: Vec<bool>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create { file: FileNumber, name: String },
    Unlink { name: String },
}

impl NameChange {
    fn name(&self) -> &str {
        match self {
            Self::Create { name, .. } | Self::Unlink { name } => name,
        }
    }

    fn outcome(&self) -> Option<FileNumber> {
        match self {
            Self::Create { file, .. } => Some(*file),
            Self::Unlink { .. } => None,
        }
    }
}

/// A medium at a point of a trace.
#[derive(Clone, Debug, Default)]
pub struct Medium {
    durable: BTreeMap<FileNumber, Rc<Vec<u8>>>,
    unsettled: BTreeMap<Ticket, Unsettled>,
    syncs: BTreeMap<Ticket, (FileNumber, Vec<Ticket>)>,
    changes: BTreeMap<Ticket, NameChange>,
    /// What a name may stand for after a power cut: the durable answer first, the one that processes see last.
    names: BTreeMap<String, Vec<Option<FileNumber>>>,
}

fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Medium {
    /// Takes the next step of a trace.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Mounted(image, numbers) => self.mount(image, numbers),
            Step::WriteBegun { ticket, file, offset, bytes, syncs_itself } => {
                let alive = vec![true; bytes.len().div_ceil(SECTOR_BYTES)];
                let (bytes, syncs_itself) = (Rc::clone(bytes), *syncs_itself);
                let write = Unsettled { file: *file, offset: *offset, bytes, syncs_itself, has_ended: false, alive };
                self.unsettled.insert(*ticket, write);
            }
            Step::WriteEnded { ticket } => self.end_write(*ticket),
            Step::SyncBegun { ticket, file } => {
                let covered = self.unsettled.iter().filter(|(_, write)| write.file == *file && write.has_ended);
                let covered = covered.map(|(ticket, _)| *ticket).collect();
                self.syncs.insert(*ticket, (*file, covered));
            }
            Step::SyncEnded { ticket } => {
                let (_, covered) = self.syncs.remove(ticket).expect("a sync begins before it ends");
                covered.into_iter().for_each(|write| self.settle(write));
            }
            Step::CreateBegun { ticket, file, name, bytes } => {
                // Contents are synced before the name is given.
                self.durable.insert(*file, Rc::new(vec![0; *bytes]));
                self.changes.insert(*ticket, NameChange::Create { file: *file, name: name.clone() });
            }
            Step::UnlinkBegun { ticket, name } => {
                self.changes.insert(*ticket, NameChange::Unlink { name: name.clone() });
            }
            Step::Named { ticket } => self.end_change(*ticket, false),
            Step::CreateEnded { ticket } | Step::UnlinkEnded { ticket } => self.end_change(*ticket, true),
            Step::DirectorySynced { directory } => self.sync_directory(directory),
            Step::Killed { landed } => self.kill(landed),
            Step::Mark(_) => {}
        }
    }

    fn mount(&mut self, image: &Image, numbers: &[FileNumber]) {
        *self = Self::default();
        for ((name, contents), &number) in image.files.iter().zip(numbers) {
            self.durable.insert(number, Rc::clone(contents));
            self.names.insert(name.clone(), vec![Some(number)]);
        }
    }

    fn end_write(&mut self, ticket: Ticket) {
        let write = self.unsettled.get_mut(&ticket).expect("a write begins before it ends");
        write.has_ended = true;
        if write.syncs_itself {
            self.settle(ticket);
        }
    }

    /// Makes a write durable, if that has not happened.
    fn settle(&mut self, ticket: Ticket) {
        let Some(write) = self.unsettled.remove(&ticket) else { return };
        let Some(contents) = self.durable.get_mut(&write.file) else { return };
        apply(Rc::make_mut(contents), &write, |_| true);
        let (start, end) = (write.offset, write.offset + write.bytes.len());
        for (_, older) in self.unsettled.range_mut(..ticket).filter(|(_, older)| older.file == write.file) {
            for (sector, alive) in older.alive.iter_mut().enumerate() {
                let place = older.offset + sector * SECTOR_BYTES;
                *alive &= place + SECTOR_BYTES <= start || place >= end;
            }
        }
    }

    fn end_change(&mut self, ticket: Ticket, syncs_directory: bool) {
        let change = self.changes.remove(&ticket).expect("a change begins before it ends");
        let candidates = self.names.entry(change.name().to_owned()).or_insert_with(|| vec![None]);
        candidates.push(change.outcome());
        if syncs_directory {
            self.sync_directory(directory_of(change.name()));
        }
    }

    fn sync_directory(&mut self, directory: &str) {
        for (_, candidates) in self.names.iter_mut().filter(|(name, _)| directory_of(name) == directory) {
            candidates.drain(..candidates.len() - 1);
        }
        self.names.retain(|_, candidates| *candidates != [None]);
    }

    fn kill(&mut self, landed: &[(Ticket, Landed)]) {
        self.syncs.clear();
        let mut landed: BTreeMap<Ticket, &Landed> = landed.iter().map(|(ticket, what)| (*ticket, what)).collect();
        self.unsettled.retain(|ticket, write| {
            if write.has_ended {
                return true;
            }
            let Some(Landed::Sectors(sectors)) = landed.get(ticket) else { return false };
            // Seen by a successor from now on, and durable with a later sync alone.
            (write.alive, write.has_ended, write.syncs_itself) = (sectors.clone(), true, false);
            true
        });
        for ticket in self.changes.keys().copied().collect::<Vec<_>>() {
            match landed.remove(&ticket) {
                Some(Landed::Name) => self.end_change(ticket, false),
                Some(Landed::NameAndDirectory) => self.end_change(ticket, true),
                _ => drop(self.changes.remove(&ticket)),
            }
        }
    }

    /// What processes see.
    #[must_use]
    pub fn visible(&self) -> Image {
        let names = self.names.iter().map(|(name, candidates)| (name, candidates.last().copied().flatten()));
        self.image(names, |write| write.has_ended, |_, _| true)
    }

    /// The files that processes see, by name.
    #[must_use]
    pub fn visible_numbers(&self) -> BTreeMap<String, FileNumber> {
        let newest = |candidates: &[Option<FileNumber>]| candidates.last().copied().flatten();
        self.names.iter().filter_map(|(name, found)| Some((name.clone(), newest(found)?))).collect()
    }

    /// What is certain to survive.
    #[must_use]
    pub fn durable(&self) -> Image {
        let names = self.names.iter().map(|(name, candidates)| (name, candidates[0]));
        self.image(names, |_| false, |_, _| false)
    }

    fn image<'a>(
        &'a self,
        names: impl Iterator<Item = (&'a String, Option<FileNumber>)>,
        keeps: impl Fn(&Unsettled) -> bool,
        keeps_sector: impl Fn(Ticket, usize) -> bool,
    ) -> Image {
        let mut image = Image::default();
        for (name, number) in names {
            let Some(number) = number else { continue };
            let mut contents = Rc::clone(&self.durable[&number]);
            for (ticket, write) in self.unsettled.iter().filter(|(_, write)| write.file == number && keeps(write)) {
                apply(Rc::make_mut(&mut contents), write, |sector| keeps_sector(*ticket, sector));
            }
            image.files.insert(name.clone(), contents);
        }
        image
    }

    /// The writes that may get lost.
    fn tickets(&self) -> Vec<Ticket> {
        let some = |write: &&Unsettled| write.alive.contains(&true);
        self.unsettled.iter().filter(|(_, write)| some(write)).map(|(ticket, _)| *ticket).collect()
    }

    /// The names that may stand for one thing or another, changes under way included.
    fn uncertain_names(&self) -> BTreeMap<String, Vec<Option<FileNumber>>> {
        let mut names = self.names.clone();
        for change in self.changes.values() {
            let candidates = names.entry(change.name().to_owned()).or_insert_with(|| vec![None]);
            candidates.push(change.outcome());
        }
        names.retain(|_, candidates| candidates.len() > 1);
        names
    }

    /// How many images [`Medium::power_cut`] offers.
    #[must_use]
    pub fn images(&self) -> u64 {
        let (writes, names) = (self.tickets().len(), self.uncertain_names().len());
        self.subsets(writes, names) + self.tears(writes)
    }

    /// Subsets of writes and names together.
    fn subsets(&self, writes: usize, names: usize) -> u64 {
        if writes + names <= SUBSET_WRITES_MAX { 1 << (writes + names) } else { SUBSETS_SAMPLED }
    }

    fn tears(&self, writes: usize) -> u64 {
        (writes as u64 * TEARS_PER_WRITE).min(TEARS_MAX)
    }

    /// One of the ways in which a power cut at this point may end, `number` of [`Medium::images`]. First every subset
    /// of the writes and names that are not durable (a sample, if they are many), then torn writes.
    #[must_use]
    pub fn power_cut(&self, number: u64, seed: u64) -> PowerCut {
        let (tickets, uncertain) = (self.tickets(), self.uncertain_names());
        let is_torn = number >= self.subsets(tickets.len(), uncertain.len());
        let mut rng = Rng::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let all = tickets.len() + uncertain.len();
        let bits: Vec<bool> = if is_torn {
            (0..all).map(|_| rng.chance(700)).collect()
        } else if all <= SUBSET_WRITES_MAX {
            (0..all).map(|bit| number >> bit & 1 == 1).collect()
        } else {
            draw_subset(number, all, &mut rng)
        };
        let mut cut = PowerCut::default();
        for (&ticket, _) in tickets.iter().zip(&bits).filter(|(_, keep)| **keep) {
            let sectors = self.unsettled[&ticket].alive.len();
            cut.kept.insert(ticket, if is_torn { draw_sectors(&mut rng, sectors) } else { vec![true; sectors] });
        }
        for ((name, candidates), newest) in uncertain.into_iter().zip(&bits[tickets.len()..]) {
            let number = if *newest { candidates[1 + rng.index(candidates.len() - 1)] } else { candidates[0] };
            cut.names.insert(name, number);
        }
        cut
    }

    /// The image that is left.
    #[must_use]
    pub fn image_after(&self, cut: &PowerCut) -> Image {
        let certain = self.names.iter().filter(|(name, _)| !cut.names.contains_key(*name));
        let names = certain.map(|(name, candidates)| (name, candidates[0]));
        let keeps = |ticket, sector: usize| cut.kept.get(&ticket).is_some_and(|sectors| sectors[sector]);
        self.image(names.chain(cut.names.iter().map(|(name, number)| (name, *number))), |_| true, keeps)
    }

    /// What became of every write and name that was not durable.
    #[must_use]
    pub fn describe(&self, cut: &PowerCut) -> String {
        let mut lines = Vec::new();
        for (ticket, write) in &self.unsettled {
            let digit = |keep: &bool| if *keep { '1' } else { '0' };
            let fate = match cut.kept.get(ticket) {
                None => "lost".to_owned(),
                Some(sectors) if sectors.iter().all(|keep| *keep) => "kept".to_owned(),
                Some(sectors) => format!("sectors {} kept", sectors.iter().map(digit).collect::<String>()),
            };
            let named = self.names.iter().find(|(_, candidates)| candidates.contains(&Some(write.file)));
            let name = named.map_or("an unnamed file", |(name, _)| name.as_str());
            lines.push(format!("{name} at {} +{}: {fate}", write.offset, write.bytes.len()));
        }
        for (name, number) in &cut.names {
            lines.push(format!("{name}: {}", if number.is_some() { "there" } else { "not there" }));
        }
        lines.join("; ")
    }
}

/// What survives of that which was not durable.
#[derive(Clone, Debug, Default)]
pub struct PowerCut {
    kept: BTreeMap<Ticket, Vec<bool>>,
    names: BTreeMap<String, Option<FileNumber>>,
}

fn apply(contents: &mut Vec<u8>, write: &Unsettled, keeps: impl Fn(usize) -> bool) {
    for (sector, bytes) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
        if write.alive[sector] && keeps(sector) {
            overlay(contents, write.offset + sector * SECTOR_BYTES, bytes);
        }
    }
}

/// Of very many subsets: none, all, each single one, each single one missing, and any.
fn draw_subset(number: u64, len: usize, rng: &mut Rng) -> Vec<bool> {
    let single = (number / 2) as usize;
    match number {
        0 => vec![false; len],
        1 => vec![true; len],
        _ if single <= len => (0..len).map(|bit| (bit + 1 == single) == number.is_multiple_of(2)).collect(),
        _ => {
            let per_mille = rng.below(1_001);
            (0..len).map(|_| rng.chance(per_mille)).collect()
        }
    }
}

/// Which sectors of a torn write survive: a prefix, a suffix, a hole, or each for itself.
pub fn draw_sectors(rng: &mut Rng, sectors: usize) -> Vec<bool> {
    let (a, b) = (rng.index(sectors + 1), rng.index(sectors + 1));
    let (low, high) = (a.min(b), a.max(b));
    match rng.below(4) {
        0 => (0..sectors).map(|sector| sector < a).collect(),
        1 => (0..sectors).map(|sector| sector >= a).collect(),
        2 => (0..sectors).map(|sector| sector < low || sector >= high).collect(),
        _ => {
            let per_mille = rng.below(1_001);
            (0..sectors).map(|_| rng.chance(per_mille)).collect()
        }
    }
}

/// Points of a trace, each the last one before the medium changes again: what may be left at points between is the
/// same, and less is promised there.
#[must_use]
pub fn cuts(steps: &[Step]) -> Vec<usize> {
    let mut cuts: Vec<usize> = (1..steps.len()).filter(|&at| steps[at].changes_medium()).chain([steps.len()]).collect();
    cuts.dedup();
    cuts
}

/// Names of all files that ever stood on the medium, with every content each 4 KiB block held, oldest first.
#[derive(Debug, Default)]
pub struct Chronicle {
    /// By name and block number.
    pub blocks: BTreeMap<(String, usize), Vec<Vec<u8>>>,
}

/// The unit of lost, stale and misdirected writes.
pub const BLOCK_BYTES: usize = 4096;

impl Chronicle {
    /// Follows a trace.
    #[must_use]
    pub fn of(steps: &[Step]) -> Self {
        let mut chronicle = Self::default();
        let mut names: BTreeMap<FileNumber, String> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Mounted(image, numbers) => {
                    names.extend(image.files.keys().zip(numbers).map(|(name, number)| (*number, name.clone())));
                }
                Step::CreateBegun { file, name, .. } => {
                    names.insert(*file, name.clone());
                }
                Step::WriteBegun { file, offset, bytes, .. } => {
                    for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                        let place = (names[file].clone(), offset / BLOCK_BYTES + number);
                        let versions = chronicle.blocks.entry(place).or_insert_with(|| vec![vec![0; BLOCK_BYTES]]);
                        versions.push(block.to_vec());
                    }
                }
                _ => {}
            }
        }
        chronicle
    }

    /// Names of the files that were written.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.blocks.keys().map(|(name, _)| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileNumber = FileNumber(1);

    fn created() -> Medium {
        let mut medium = Medium::default();
        medium.take(&Step::CreateBegun { ticket: Ticket(1), file: FILE, name: "d/f".to_owned(), bytes: 8192 });
        medium.take(&Step::CreateEnded { ticket: Ticket(1) });
        medium
    }

    fn begin(ticket: u32, byte: u8, syncs_itself: bool) -> Step {
        let bytes = Rc::new(vec![byte; 1024]);
        Step::WriteBegun { ticket: Ticket(ticket), file: FILE, offset: 4096, bytes, syncs_itself }
    }

    fn images(medium: &Medium) -> BTreeSet<Option<[u8; 2]>> {
        let sectors = |image: &Image| image.files.get("d/f").map(|bytes| [bytes[4096], bytes[4608]]);
        let image = |number| medium.image_after(&medium.power_cut(number, 7));
        (0..medium.images()).map(|number| sectors(&image(number))).collect()
    }

    #[test]
    fn a_name_is_certain_with_its_directory() {
        let mut medium = Medium::default();
        medium.take(&Step::CreateBegun { ticket: Ticket(1), file: FILE, name: "d/f".to_owned(), bytes: 8192 });
        assert_eq!(images(&medium), BTreeSet::from([None, Some([0, 0])]));
        medium.take(&Step::Killed { landed: vec![(Ticket(1), Landed::Name)] });
        assert_eq!(images(&medium), BTreeSet::from([None, Some([0, 0])]));
        medium.take(&Step::DirectorySynced { directory: "d".to_owned() });
        assert_eq!(images(&medium), BTreeSet::from([Some([0, 0])]));
    }

    #[test]
    fn a_write_is_torn_at_sectors_until_it_ended() {
        let mut medium = created();
        medium.take(&begin(2, 9, true));
        assert_eq!(images(&medium), [[0, 0], [9, 0], [0, 9], [9, 9]].map(Some).into());
        medium.take(&Step::WriteEnded { ticket: Ticket(2) });
        assert_eq!(images(&medium), BTreeSet::from([Some([9, 9])]));
    }

    #[test]
    fn a_sync_covers_what_had_ended_before_it_began() {
        let mut medium = created();
        medium.take(&begin(2, 5, false));
        medium.take(&Step::WriteEnded { ticket: Ticket(2) });
        medium.take(&Step::SyncBegun { ticket: Ticket(3), file: FILE });
        medium.take(&begin(4, 6, false));
        medium.take(&Step::SyncEnded { ticket: Ticket(3) });
        let left = images(&medium);
        assert!(left.contains(&Some([5, 5])) && left.contains(&Some([6, 6])) && left.contains(&Some([5, 6])));
        assert!(left.iter().flatten().flatten().all(|&byte| byte >= 5));
    }

    #[test]
    fn what_is_durable_supersedes_older_writes() {
        let mut medium = created();
        medium.take(&begin(2, 5, false));
        medium.take(&Step::WriteEnded { ticket: Ticket(2) });
        medium.take(&begin(3, 6, true));
        medium.take(&Step::WriteEnded { ticket: Ticket(3) });
        assert_eq!(images(&medium), BTreeSet::from([Some([6, 6])]));
    }

    #[test]
    fn a_killed_write_lands_in_part_and_is_durable_only_with_a_sync() {
        let mut medium = created();
        medium.take(&begin(2, 5, true));
        medium.take(&Step::Killed { landed: vec![(Ticket(2), Landed::Sectors(vec![false, true]))] });
        assert_eq!(images(&medium), [[0, 0], [0, 5]].map(Some).into());
        assert_eq!(medium.visible().files["d/f"][4608], 5);
        assert_eq!(medium.durable().files["d/f"][4608], 0);
    }
}
