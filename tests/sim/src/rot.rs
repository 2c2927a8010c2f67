//! Damage to data at rest: what the disk may do to bytes that nobody is writing.
//!
//! Owns: the kinds of damage and the atlas, which says where they may strike. Does not know: when, what the server
//! makes of it.
//!
//! Invariants
//! - I1: redundant damage leaves one intact copy of everything: it strikes one of two copies that are both whole, or
//!   bytes that were never written.
//! - I2: one call does one damage: two faults at once may lose what one may not.

use crate::disk::{BLOCK_BYTES, Disk, InodeId, SECTOR_BYTES};
use crate::rng::Rng;

/// Files of which there are two equal or alternating copies.
const PAIRS: [[&str; 2]; 2] = [["wal/hard-state-0", "wal/hard-state-1"], ["store/superblock-0", "store/superblock-1"]];

/// What happened, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The kind, for counting.
    pub what: &'static str,
    /// The file.
    pub name: String,
    /// The block's first byte.
    pub offset: u64,
}

/// Damages something that the server can do without, if there is anything.
pub fn damage_redundant(disk: &mut Disk, rng: &mut Rng) -> Option<Damage> {
    if rng.chance(600) {
        let pair = PAIRS[rng.index(PAIRS.len())];
        let files: Vec<InodeId> = pair.iter().filter_map(|name| disk.lookup(name)).collect();
        // A copy that was never written, or whose only write was lost, vouches for nothing.
        let is_good = |file: &InodeId| {
            disk.is_whole(*file, 0)
                && disk.visible(*file, 0, BLOCK_BYTES).is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0))
        };
        if files.len() < 2 || !files.iter().all(is_good) {
            return None;
        }
        let position = rng.index(2);
        return strike(disk, pair[position], files[position], 0, "(one copy damaged)", rng);
    }
    // What is fresh of a pair has to be zeros.
    let name = draw_file(disk, rng).filter(|name| !PAIRS.concat().contains(&name.as_str()))?;
    let file = disk.lookup(&name)?;
    let blocks = disk.len(file) / BLOCK_BYTES;
    let block = rng.index(blocks.max(1)) as u64;
    let offset = block * BLOCK_BYTES as u64;
    if block >= blocks as u64 || disk.was_written(file, offset) {
        return None;
    }
    strike(disk, &name, file, offset, "(free bytes damaged)", rng)
}

/// Damages any block that was written.
pub fn damage_anything(disk: &mut Disk, rng: &mut Rng) -> Option<Damage> {
    let name = draw_file(disk, rng)?;
    let file = disk.lookup(&name)?;
    let written = disk.written_blocks(file);
    if written.is_empty() {
        return None;
    }
    let offset = written[rng.index(written.len())] * BLOCK_BYTES as u64;
    strike(disk, &name, file, offset, "(anything damaged)", rng)
}

/// A file of the log or the store; of each family as often as of any other.
fn draw_file(disk: &Disk, rng: &mut Rng) -> Option<String> {
    let families = ["wal/hard-state", "wal/seg", "store/superblock", "store/index", "store/rows"];
    let names = disk.names_from(families[rng.index(families.len())]);
    if names.is_empty() { None } else { Some(names[rng.index(names.len())].clone()) }
}

fn strike(
    disk: &mut Disk,
    name: &str,
    file: InodeId,
    offset: u64,
    what: &'static str,
    rng: &mut Rng,
) -> Option<Damage> {
    let before = disk.visible(file, offset, BLOCK_BYTES)?.to_vec();
    let mut after = before.clone();
    match rng.below(6) {
        0 => {
            let bit = rng.index(8 * BLOCK_BYTES);
            after[bit / 8] ^= 1 << (bit % 8);
        }
        1 => {
            let sector = rng.index(BLOCK_BYTES / SECTOR_BYTES) * SECTOR_BYTES;
            after[sector..sector + SECTOR_BYTES].fill(0);
        }
        2 => after.fill(0),
        3 => after.iter_mut().for_each(|byte| *byte = rng.bits() as u8),
        // A write that was lost: what was there before it.
        4 => after = disk.previous(file, offset)?,
        // A write to another place of the file that landed here.
        _ => {
            let written = disk.written_blocks(file);
            if written.is_empty() {
                return None;
            }
            let other = written[rng.index(written.len())] * BLOCK_BYTES as u64;
            after = disk.visible(file, other, BLOCK_BYTES)?.to_vec();
        }
    }
    if after == before {
        return None;
    }
    disk.damage(file, offset, &after);
    Some(Damage { what, name: name.to_owned(), offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Barrier;

    fn write(disk: &mut Disk, file: InodeId, offset: u64, byte: u8, rng: &mut Rng) {
        let id = disk.begin_write(file, offset, vec![byte; BLOCK_BYTES], Barrier::AtCompletion, rng).expect("in range");
        disk.complete_write(file, id);
    }

    #[test]
    fn redundant_damage_spares_single_copies() {
        let mut strikes = 0;
        for seed in 0..400 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::default();
            disk.remember_previous();
            let copies = PAIRS[0].map(|name| disk.create(name, BLOCK_BYTES));
            let log = disk.create("wal/seg-0000", 4 * BLOCK_BYTES);
            for byte in 1..=2 {
                copies.iter().for_each(|copy| write(&mut disk, *copy, 0, byte, &mut rng));
                write(&mut disk, log, 0, byte, &mut rng);
            }
            strikes += u64::from(damage_redundant(&mut disk, &mut rng).is_some());
            let whole = |file, byte| disk.visible(file, 0, BLOCK_BYTES).unwrap().iter().all(|found| *found == byte);
            assert!(whole(log, 2), "the log has one copy");
            assert!(copies.iter().any(|copy| whole(*copy, 2)));
        }
        assert!(strikes > 100, "{strikes} strikes");
    }

    #[test]
    fn the_only_copy_that_was_ever_written_is_spared() {
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::default();
            disk.remember_previous();
            let copies = PAIRS[1].map(|name| disk.create(name, BLOCK_BYTES));
            write(&mut disk, copies[1], 0, 7, &mut rng);
            assert_eq!(damage_redundant(&mut disk, &mut rng), None);
        }
    }
}
