//! Which units of the index files are in use.
//!
//! Owns: allocation in contiguous extents, what was freed by which checkpoint, pins, the persisted map
//! (docs/format/store.md section 6), which free units gave their room back to the file system. Does not know: what
//! stands in a page, who writes it.
//!
//! A unit is free, in use, or in quarantine: freed by a checkpoint, but needed by the one before as long as that is the
//! older retained one, or by a pin. A running checkpoint allocates free units only; what it frees enters quarantine
//! when it is durable. A crash throws all of this away and starts from the persisted map.
//!
//! Invariants
//! - I1: a unit that the newest or the older durable checkpoint uses is never allocated.
//! - I2: units freed by checkpoint n become free at the earliest when n + 1 is durable, and never while a pin on a
//!   checkpoint before n stands.
//! - I3: no run crosses the end of a file; files are added one by one. Their number never falls: the room of free units
//!   is given back, the files stay.
//! - I4: units under discard are not allocated.

use std::collections::{BTreeMap, VecDeque};

use crate::store::page::{HEADER_BYTES, PageHeader, PageId, PageRef, PageType, UNIT_BYTES};

/// Shortest extent that is looked for first: one write of 256 KiB.
const EXTENT_UNITS: u32 = 64;

/// Shortest run whose room is given back.
const DISCARD_UNITS_MIN: u32 = 16;

/// A run of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first.
    pub page: PageId,
    /// How many.
    pub units: u32,
}

/// The use of the units of all index files.
#[derive(Debug)]
pub struct Extents {
    file_units: u32,
    files: u32,
    files_max: u32,
    /// One bit per unit: not free.
    taken: Vec<u64>,
    taken_units: u64,
    /// One bit per unit: free, and its room was given back by this process.
    hollow: Vec<u64>,
    /// Free, and their room is being given back; `taken` as far as allocation goes.
    discarding: Vec<Run>,
    /// Where the next units come from.
    extent_next: u32,
    extent_end: u32,
    /// Where the search for the next extent starts.
    search_from: u32,
    /// No long extent is left for this checkpoint that still has its room.
    only_hollow: bool,
    /// No long extent is left for this checkpoint.
    only_short: bool,
    /// By the running checkpoint.
    freed: Vec<Run>,
    /// By the checkpoint of this sequence.
    quarantine: VecDeque<(u64, Vec<Run>)>,
    /// Pins by checkpoint sequence.
    pins: BTreeMap<u64, u32>,
}

impl Extents {
    /// No file.
    #[must_use]
    pub fn new(file_units: u32, files_max: u32) -> Self {
        assert!(file_units > 0 && file_units.is_multiple_of(64), "an index file is a multiple of 256 KiB");
        Self {
            file_units,
            files: 0,
            files_max,
            taken: Vec::new(),
            taken_units: 0,
            hollow: Vec::new(),
            discarding: Vec::new(),
            extent_next: 0,
            extent_end: 0,
            search_from: 0,
            only_hollow: false,
            only_short: false,
            freed: Vec::new(),
            quarantine: VecDeque::new(),
            pins: BTreeMap::new(),
        }
    }

    /// Units of a file.
    #[must_use]
    pub fn file_units(&self) -> u32 {
        self.file_units
    }

    /// Files at most.
    #[must_use]
    pub fn files_max(&self) -> u32 {
        self.files_max
    }

    /// Files in use.
    #[must_use]
    pub fn files(&self) -> u32 {
        self.files
    }

    /// Units in use or in quarantine.
    #[must_use]
    pub fn taken_units(&self) -> u64 {
        self.taken_units
    }

    /// Units in use: those in quarantine left out.
    #[must_use]
    pub fn used_units(&self) -> u64 {
        let waiting: u64 = self.quarantine.iter().flat_map(|(_, runs)| runs).map(|run| u64::from(run.units)).sum();
        self.taken_units - waiting
    }

    /// Takes a run, which follows the one taken before where possible. May add a file.
    pub fn allocate(&mut self, units: u16) -> PageId {
        let units = u32::from(units);
        assert!(units > 0 && units <= self.file_units, "admission bounds a page by its file");
        if self.extent_end - self.extent_next < units {
            self.find_extent(units);
        }
        let page = PageId(self.extent_next);
        self.extent_next += units;
        self.set(Run { page, units });
        assert_eq!(page.0 / self.file_units, (page.0 + units - 1) / self.file_units, "I3: no run crosses a file's end");
        page
    }

    /// Gives up a run that the newest durable checkpoint uses.
    pub fn free(&mut self, run: Run) {
        assert!(self.is_taken(run.page), "only a used run is freed");
        match self.freed.last_mut() {
            Some(last) if last.page.0 + last.units == run.page.0 => last.units += run.units,
            _ => self.freed.push(run),
        }
    }

    /// Keeps the units of checkpoint `sequence`, which is the newest durable one.
    pub fn pin(&mut self, sequence: u64) {
        *self.pins.entry(sequence).or_insert(0) += 1;
    }

    /// Gives up a pin; its units become free with the next checkpoint.
    pub fn unpin(&mut self, sequence: u64) {
        let count = self.pins.get_mut(&sequence).expect("a pin is given up once");
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&sequence);
        }
    }

    /// Checkpoint `sequence`, which freed what was freed since the last call, is durable and the newest.
    pub fn publish(&mut self, sequence: u64) {
        assert!(self.quarantine.back().is_none_or(|(last, _)| *last < sequence), "checkpoints are numbered upwards");
        self.quarantine.push_back((sequence, std::mem::take(&mut self.freed)));
        let oldest_pin = self.pins.keys().next().copied().unwrap_or(u64::MAX);
        while let Some((freed_by, _)) = self.quarantine.front()
            && *freed_by < sequence
            && *freed_by <= oldest_pin
        {
            let (_, runs) = self.quarantine.pop_front().expect("it was just seen");
            runs.into_iter().for_each(|run| self.clear(run));
        }
        (self.extent_next, self.extent_end) = (0, 0);
        (self.only_hollow, self.only_short) = (false, false);
        // From the front, so that free room gathers at the end.
        self.search_from = 0;
    }

    /// Free runs whose room should be given back, from the end on, beyond what is kept at hand for the checkpoints to
    /// come: as much as is in use, and at least a file's worth; or, if the release is `thorough`, a quarter of that.
    pub fn take_discards(&mut self, thorough: bool) -> Vec<Run> {
        let at_least = if thorough { DISCARD_UNITS_MIN } else { self.file_units };
        let used = self.used_units();
        let keep = u64::from(at_least).max(if thorough { used / 4 } else { used });
        let hollow: u64 = self.hollow.iter().map(|word| u64::from(word.count_ones())).sum();
        let waiting: u64 = self.discarding.iter().map(|run| u64::from(run.units)).sum();
        let mut at_hand = u64::from(self.total_units()) - self.taken_units - hollow - waiting;
        let mut runs = Vec::new();
        if at_hand <= keep {
            return runs;
        }
        let full: Vec<u64> = self.taken.iter().zip(&self.hollow).map(|(taken, hollow)| !(taken | hollow)).collect();
        for run in self.within_files(runs_of(&full)).into_iter().rev() {
            let units = u64::from(run.units).min(at_hand.saturating_sub(keep)) as u32;
            if units < DISCARD_UNITS_MIN {
                continue;
            }
            at_hand -= u64::from(units);
            runs.push(Run { page: PageId(run.page.0 + run.units - units), units });
        }
        for run in &runs {
            fill(&mut self.taken, *run, true);
        }
        self.discarding.extend(&runs);
        runs
    }

    /// The room of a run is given back.
    pub fn end_discard(&mut self, run: Run) {
        let index = self.discarding.iter().position(|other| *other == run).expect("a discard ends once");
        self.discarding.swap_remove(index);
        fill(&mut self.taken, run, false);
        fill(&mut self.hollow, run, true);
    }

    /// Cuts runs at the ends of files.
    fn within_files(&self, runs: Vec<Run>) -> Vec<Run> {
        let mut out = Vec::new();
        for run in runs {
            let (mut at, end) = (run.page.0, run.page.0 + run.units);
            while at < end {
                let file_end = (at / self.file_units + 1) * self.file_units;
                out.push(Run { page: PageId(at), units: end.min(file_end) - at });
                at = end.min(file_end);
            }
        }
        out
    }

    /// Takes the run of the map itself, which may add the file that it stands in.
    pub fn allocate_map(&mut self) -> (PageId, u16) {
        loop {
            let units = self.map_units();
            let page = self.allocate(units);
            if self.map_units() == units {
                return (page, units);
            }
            self.clear(Run { page, units: u32::from(units) });
        }
    }

    /// Units that the map of all files takes.
    fn map_units(&self) -> u16 {
        let bytes = HEADER_BYTES + self.files as usize * 2 * self.file_bitmap_bytes();
        u16::try_from(bytes.div_ceil(UNIT_BYTES)).expect("the map of the most files allowed fits a page")
    }

    /// The map as of the running checkpoint: what it uses and what it freed.
    #[must_use]
    pub fn encode_map(&self, page: PageId, generation: u64) -> Vec<u8> {
        let mut used = self.taken.clone();
        let mut freed = vec![0; self.taken.len()];
        for run in self.quarantine.iter().flat_map(|(_, runs)| runs).chain(&self.discarding) {
            fill(&mut used, *run, false);
        }
        for run in &self.freed {
            fill(&mut used, *run, false);
            fill(&mut freed, *run, true);
        }
        let file_bytes = 2 * self.file_bitmap_bytes();
        let bytes_used = HEADER_BYTES + self.files as usize * file_bytes;
        let (page_type, tree, level) = (PageType::Map, 0, 0);
        let (count, bytes_used_field) = (self.files, bytes_used as u32);
        let header = PageHeader { page_type, tree, level, page, generation, count, used: bytes_used_field };
        let mut out = header.encode().to_vec();
        let words = (self.file_units / 64) as usize;
        for file in 0..self.files as usize {
            for bits in [&used, &freed] {
                for word in &bits[file * words..(file + 1) * words] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
        assert_eq!(out.len(), bytes_used, "the map has the length that was allocated");
        out.resize(usize::from(self.map_units()) * UNIT_BYTES, 0);
        out
    }

    /// The state after checkpoint `sequence`, from its map, whose checksum was verified. `None`: malformed.
    #[must_use]
    pub fn decode_map(
        file_units: u32,
        files_max: u32,
        map: PageRef,
        files: u32,
        sequence: u64,
        bytes: &[u8],
    ) -> Option<Self> {
        let mut extents = Self::new(file_units, files_max);
        let header = PageHeader::decode(bytes)?;
        extents.files = files;
        let used = HEADER_BYTES.checked_add((files as usize).checked_mul(2 * extents.file_bitmap_bytes())?)?;
        let found = (header.page_type, header.tree, header.level, header.page, header.count, header.used as usize);
        if found != (PageType::Map, 0, 0, map.page, files, used) || header.generation != sequence || files > files_max {
            return None;
        }
        if bytes.len() != used.next_multiple_of(UNIT_BYTES) || bytes[used..].iter().any(|&byte| byte != 0) {
            return None;
        }
        let mut freed = Vec::new();
        for file in bytes[HEADER_BYTES..used].chunks_exact(2 * extents.file_bitmap_bytes()) {
            let (in_use, freed_by) = file.split_at(extents.file_bitmap_bytes());
            for (used, freed_word) in words_of(in_use).zip(words_of(freed_by)) {
                if used & freed_word != 0 {
                    return None;
                }
                extents.taken.push(used | freed_word);
                freed.push(freed_word);
            }
        }
        extents.hollow = vec![0; extents.taken.len()];
        extents.taken_units = extents.taken.iter().map(|word| u64::from(word.count_ones())).sum();
        extents.quarantine.push_back((sequence, runs_of(&freed)));
        let whole = extents.is_taken(map.page);
        whole.then_some(extents)
    }

    /// Whether a run lies inside one file in use, every unit of it taken.
    #[must_use]
    pub fn holds(&self, run: Run) -> bool {
        let end = u64::from(run.page.0) + u64::from(run.units);
        let total = u64::from(self.files) * u64::from(self.file_units);
        run.units > 0
            && end <= total
            && u64::from(run.page.0 / self.file_units) == (end - 1) / u64::from(self.file_units)
            && (run.page.0..run.page.0 + run.units).all(|unit| self.is_taken(PageId(unit)))
    }

    /// Units that the newest durable checkpoint uses, while none runs.
    #[cfg(test)]
    pub(crate) fn used_list(&self) -> Vec<u32> {
        let mut used = self.taken.clone();
        let apart = self.quarantine.iter().flat_map(|(_, runs)| runs).chain(&self.discarding);
        apart.for_each(|run| fill(&mut used, *run, false));
        runs_of(&used).into_iter().flat_map(|run| run.page.0..run.page.0 + run.units).collect()
    }

    fn file_bitmap_bytes(&self) -> usize {
        (self.file_units / 8) as usize
    }

    fn total_units(&self) -> u32 {
        self.files * self.file_units
    }

    fn is_taken(&self, page: PageId) -> bool {
        self.taken.get((page.0 / 64) as usize).is_some_and(|word| word >> (page.0 % 64) & 1 == 1)
    }

    fn set(&mut self, run: Run) {
        assert!((run.page.0..run.page.0 + run.units).all(|unit| !self.is_taken(PageId(unit))), "I1");
        fill(&mut self.taken, run, true);
        fill(&mut self.hollow, run, false);
        self.taken_units += u64::from(run.units);
    }

    fn clear(&mut self, run: Run) {
        fill(&mut self.taken, run, false);
        self.taken_units -= u64::from(run.units);
    }

    /// Makes the extent one that holds `units`: a long free one that has its room; or any long one; or, if a quarter of
    /// all is free, a short one; or the start of a new file.
    fn find_extent(&mut self, units: u32) {
        let free = u64::from(self.total_units()) - self.taken_units;
        if !self.only_hollow {
            if self.search(units.max(EXTENT_UNITS), false) {
                return;
            }
            self.only_hollow = true;
        }
        if !self.only_short {
            if self.search(units.max(EXTENT_UNITS), true) {
                return;
            }
            self.only_short = true;
        }
        if free >= u64::from(self.total_units()) / 4 && self.search(units, true) {
            return;
        }
        assert!(self.files < self.files_max, "admission bounds the store by the files allowed");
        let start = self.total_units();
        self.files += 1;
        self.taken.resize((self.total_units() / 64) as usize, 0);
        self.hollow.resize(self.taken.len(), 0);
        (self.extent_next, self.extent_end) = (start, start + self.file_units);
        (self.search_from, self.only_hollow, self.only_short) = (start, false, false);
    }

    /// Looks for a free run of at least `units`, from where the last one was found and around.
    fn search(&mut self, units: u32, hollow: bool) -> bool {
        let (middle, total) = (self.search_from.min(self.total_units()), self.total_units());
        let found = self.search_between(middle, total, units, hollow);
        let Some((start, end)) = found.or_else(|| self.search_between(0, middle, units, hollow)) else { return false };
        (self.extent_next, self.extent_end, self.search_from) = (start, end, end);
        true
    }

    fn search_between(&self, from: u32, to: u32, units: u32, hollow: bool) -> Option<(u32, u32)> {
        let mut at = from;
        while at < to {
            let start = self.next_bit(at, to, false, hollow);
            let file_end = (start / self.file_units).saturating_add(1).saturating_mul(self.file_units);
            let end = self.next_bit(start, file_end.min(to), true, hollow);
            if start < to && end - start >= units {
                return Some((start, end));
            }
            at = end.max(at + 1);
        }
        None
    }

    /// The first unit in `from..to` that is taken, or free; `to` if there is none. Units whose room was given back
    /// count as free if `hollow`, else as taken.
    fn next_bit(&self, from: u32, to: u32, taken: bool, hollow: bool) -> u32 {
        let mut at = from;
        while at < to {
            let index = (at / 64) as usize;
            let word = self.taken[index] | if hollow { 0 } else { self.hollow[index] };
            let rest = (if taken { word } else { !word }) >> (at % 64);
            if rest != 0 {
                return (at + rest.trailing_zeros()).min(to);
            }
            at = at / 64 * 64 + 64;
        }
        to
    }
}

fn fill(bits: &mut [u64], run: Run, value: bool) {
    for unit in run.page.0..run.page.0 + run.units {
        let (word, bit) = ((unit / 64) as usize, 1 << (unit % 64));
        if value {
            bits[word] |= bit;
        } else {
            bits[word] &= !bit;
        }
    }
}

fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

fn runs_of(bits: &[u64]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, &word) in bits.iter().enumerate() {
        let mut rest = word;
        while rest != 0 {
            let unit = index as u32 * 64 + rest.trailing_zeros();
            rest &= rest - 1;
            match runs.last_mut() {
                Some(run) if run.page.0 + run.units == unit => run.units += 1,
                _ => runs.push(Run { page: PageId(unit), units: 1 }),
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_ref(page: PageId, units: u16) -> PageRef {
        PageRef { page, units, checksum: 0, live: 0 }
    }

    #[test]
    fn runs_are_contiguous_and_never_cross_a_file() {
        let mut extents = Extents::new(64, 10);
        let pages: Vec<_> = (0..10).map(|_| extents.allocate(6).0).collect();
        assert_eq!(pages, (0..10).map(|n| n * 6).collect::<Vec<_>>());
        assert_eq!(extents.allocate(6).0, 64, "four units do not hold six");
        assert_eq!(extents.allocate(64).0, 128);
        assert_eq!(extents.files(), 3);
        assert_eq!(extents.taken_units(), 60 + 6 + 64);
    }

    #[test]
    fn freed_units_wait_for_the_next_checkpoint_and_for_pins() {
        let mut extents = Extents::new(64, 10);
        let page = extents.allocate(64);
        extents.publish(1);
        extents.pin(1);
        extents.free(Run { page, units: 64 });
        assert_ne!(extents.allocate(1), page, "checkpoint 1 uses it");
        extents.publish(2);
        assert_ne!(extents.allocate(32).0 / 64, 0, "checkpoint 1 is the older retained one");
        extents.publish(3);
        assert_ne!(extents.allocate(32).0 / 64, 0, "a pin holds checkpoint 1");
        extents.unpin(1);
        extents.publish(4);
        assert_eq!(extents.allocate(64), page);
    }

    #[test]
    fn short_extents_are_used_before_a_file_is_added() {
        let mut extents = Extents::new(64, 10);
        let pages: Vec<_> = (0..64).map(|_| extents.allocate(1)).collect();
        extents.publish(1);
        pages.iter().filter(|page| page.0.is_multiple_of(2)).for_each(|&page| extents.free(Run { page, units: 1 }));
        extents.publish(2);
        extents.publish(3);
        let again: Vec<_> = (0..16).map(|_| extents.allocate(1).0).collect();
        assert_eq!((extents.files(), again), (1, (0..32).step_by(2).collect()));
        assert_eq!(extents.allocate(2).0, 64, "no two neighbours are free");
    }

    #[test]
    fn the_map_round_trips_and_damage_is_refused() {
        let mut extents = Extents::new(128, 10);
        let pages: Vec<_> = (0..40).map(|_| extents.allocate(5)).collect();
        extents.publish(1);
        pages[3..9].iter().for_each(|&page| extents.free(Run { page, units: 5 }));
        let (page, units) = extents.allocate_map();
        let bytes = extents.encode_map(page, 2);
        extents.publish(2);
        let (map, files) = (map_ref(page, units), extents.files());
        let back = Extents::decode_map(128, 10, map, files, 2, &bytes).unwrap();
        assert_eq!((&back.taken, back.taken_units), (&extents.taken, extents.taken_units));
        assert_eq!(back.quarantine.back(), extents.quarantine.back());
        assert_eq!(back.used_list(), extents.used_list());
        assert!(back.holds(Run { page, units: 1 }) && !back.holds(Run { page: PageId(127), units: 2 }));
        assert!(
            !back.holds(Run { page: PageId(files * 128 - 1), units: 9 })
                && !back.holds(Run { page: PageId(u32::MAX), units: 9 })
        );
        assert!(Extents::decode_map(128, 10, map, files, 3, &bytes).is_none(), "another generation");
        assert!(Extents::decode_map(128, 10, map, files + 1, 2, &bytes).is_none(), "another number of files");
        assert!(Extents::decode_map(128, 10, map_ref(PageId(1), units), files, 2, &bytes).is_none(), "another place");
        for at in (0..24).chain([3000]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            assert!(Extents::decode_map(128, 10, map, files, 2, &damaged).is_none(), "byte {at}");
        }
        let mut both = bytes.clone();
        both[24 + 16] |= both[24];
        assert!(Extents::decode_map(128, 10, map, files, 2, &both).is_none(), "used and freed at once");
    }
}
