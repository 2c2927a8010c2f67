//! Tests of the scrubber: it finds every rotten block that a checkpoint names, and nothing else.

use super::*;
use crate::store::{Scrub, ScrubStep};

fn medium(disk: &Disk, block: Block) -> Option<Vec<u8>> {
    let start = block.offset as usize;
    disk.seen.get(&block.file)?.get(start..start + block.len as usize).map(<[u8]>::to_vec)
}

/// One whole pass: what it read, and what it found rotten.
fn pass(world: &World, disk: &Disk) -> (Vec<Block>, Vec<Block>) {
    let (mut scrub, mut read, mut rotten) = (Scrub::default(), Vec::new(), Vec::new());
    loop {
        // Branches are found in memory, which is sound.
        match scrub.next(&world.store, &world.rows, &world.disk) {
            ScrubStep::Read(block) => {
                let bytes = medium(disk, block);
                rotten.extend(scrub.handle_read(&world.store, &world.rows, bytes.as_deref()));
                read.push(block);
            }
            ScrubStep::NeedPages(Unavailable::Missing(_)) => {}
            ScrubStep::Done => return (read, rotten),
            step => panic!("{step:?}"),
        }
    }
}

fn units(block: Block) -> impl Iterator<Item = (StoreFile, u64)> {
    (block.offset / 4096..(block.offset + u64::from(block.len)).div_ceil(4096)).map(move |unit| (block.file, unit))
}

#[test]
fn rot_is_found_wherever_a_checkpoint_names_it() {
    let mut world = World::new(7);
    for _ in 0..6 {
        assert!(world.checkpoint(&mut u64::MAX.clone()));
    }
    world.crash_and_recover();
    let (read, rotten) = pass(&world, &world.disk);
    assert!(rotten.is_empty() && read.len() < 200, "{} reads", read.len());
    assert!(read.iter().any(|block| block.len > 3 * 4096) && read.iter().all(|block| block.len <= 256 << 10));
    let read: BTreeSet<(StoreFile, u64)> = read.into_iter().flat_map(units).collect();
    for page in world.store.extents().used_list() {
        let unit = (StoreFile { kind: FileKind::Index, number: page / 64 }, u64::from(page % 64));
        assert!(read.contains(&unit), "{unit:?} is in use");
    }
    let row_units = read.iter().filter(|(file, _)| file.kind == FileKind::Rows).count();
    assert!(row_units as u64 * 4096 > world.rows.used_bytes() / 2, "{row_units} units of rows");
    let mut found = 0;
    for (&file, bytes) in &world.disk.seen {
        for unit in 0..bytes.len() as u64 / 4096 {
            let mut disk = world.disk.clone();
            disk.seen.get_mut(&file).unwrap()[unit as usize * 4096 + 777] ^= 4;
            let (_, rotten) = pass(&world, &disk);
            assert_eq!(!rotten.is_empty(), read.contains(&(file, unit)), "{file:?} unit {unit}");
            assert!(rotten.iter().all(|&block| units(block).any(|other| other == (file, unit))), "{rotten:?}");
            found += rotten.len();
        }
    }
    assert!(found > 50, "{found}");
    // A file that cannot be read at all is as bad.
    let mut disk = world.disk.clone();
    disk.seen.remove(&superblock_file(1));
    let copy = Block { file: superblock_file(1), offset: 0, len: 4096 };
    assert_eq!(pass(&world, &disk).1, [copy]);
}

#[test]
fn what_fails_once_is_read_again() {
    let mut world = World::new(8);
    assert!(world.checkpoint(&mut u64::MAX.clone()));
    let mut scrub = Scrub::default();
    let mut reads = BTreeSet::new();
    loop {
        match scrub.next(&world.store, &world.rows, &world.disk) {
            ScrubStep::Read(block) => {
                let is_second = units(block).all(|unit| reads.contains(&unit));
                let bytes = medium(&world.disk, block).filter(|_| is_second);
                assert_eq!(scrub.handle_read(&world.store, &world.rows, bytes.as_deref()), []);
                reads.extend(units(block));
            }
            ScrubStep::NeedPages(_) => {}
            ScrubStep::Done => break,
            step => panic!("{step:?}"),
        }
    }
    assert!(reads.len() > 4);
}

/// A pass over a store that changes: a read ends some actions, or some checkpoints, after it began.
#[derive(Default)]
struct Running {
    scrub: Scrub,
    reading: Option<(Block, Option<Vec<u8>>)>,
    passes: u32,
    waits: u32,
    /// Reads of index pages that were overwritten meanwhile.
    stale: u32,
}

impl Running {
    fn step(&mut self, world: &mut World) {
        if let Some((block, bytes)) = self.reading.take() {
            let now = medium(&world.disk, block);
            self.stale += u32::from(block.file.kind == FileKind::Index && now != bytes);
            // Whatever the medium held in between.
            let bytes = if world.rng.below(2) == 0 { bytes } else { now };
            assert_eq!(self.scrub.handle_read(&world.store, &world.rows, bytes.as_deref()), []);
        }
        match self.scrub.next(&world.store, &world.rows, &world.disk) {
            ScrubStep::Read(block) => self.reading = Some((block, medium(&world.disk, block))),
            ScrubStep::NeedPages(_) => {}
            ScrubStep::Wait => self.waits += 1,
            ScrubStep::Done => (self.scrub, self.passes) = (Scrub::default(), self.passes + 1),
        }
    }
}

#[test]
fn what_is_replaced_meanwhile_is_not_rotten() {
    let mut running = Running::default();
    for seed in 0..40 {
        let mut world = World::new(seed);
        (running.scrub, running.reading) = (Scrub::default(), None);
        // Some passes are so slow that a read takes two checkpoints.
        let is_slow = seed % 2 == 0;
        for number in 0..10 {
            let (overlay, request) = world.change();
            world.checkpoints.insert(world.published + 1, world.model.clone());
            world.store.begin_checkpoint(request);
            while world.store.take_published().is_none() {
                world.act(&overlay);
                if !is_slow && world.rng.below(3) == 0 {
                    running.step(&mut world);
                }
            }
            world.published += 1;
            if is_slow && number % 3 == 0 {
                (0..9).for_each(|_| running.step(&mut world));
            }
        }
    }
    let Running { passes, waits, stale, .. } = running;
    assert!(passes > 20 && waits > 20 && stale > 5, "{passes} passes, {waits} waits, {stale} overtaken reads");
}
