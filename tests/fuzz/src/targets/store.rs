//! The store at boot: superblock copies, page map, trees and row log, as a disk hands them back.
//!
//! Recovery's input is a list of units, 4100 bytes each: kind of file, number of the file, number of the unit in two
//! bytes, 4096 bytes. All others are zeros, so that mutations meet bytes that matter; a changed number is a misdirected
//! write. Repair restores the checksums of the superblock and, in it, those of what it names, so that the map, the
//! roots and the segment table are parsed, not only compared.

use std::collections::BTreeMap;

use trilith_engine::mvcc::{KeyRange, KeyspaceState};
use trilith_engine::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use trilith_engine::store::key_entry::{Chain, KeyEntry, Revision};
use trilith_engine::store::overlay::Overlay;
use trilith_engine::store::page::PageRef;
use trilith_engine::store::row_log::{Row, RowLog, RowLogOptions};
use trilith_engine::store::{
    CheckpointRequest, Store, StoreEffect, StoreMedia, StoreOptions, Superblock, TreeId, recover,
};
use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, Index, LogPosition, MemberId, Term};

use crate::Target;

pub(crate) const SUPERBLOCK: Target =
    Target { name: "superblock", run: run_superblock, seeds: superblock_seeds, repair: seal_superblock, cost: 10 };
pub(crate) const RECOVERY: Target =
    Target { name: "store-recovery", run: run_recovery, seeds: recovery_seeds, repair: repair_units, cost: 100 };

const UNIT_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 4 + UNIT_BYTES;
const KINDS: [FileKind; 3] = [FileKind::Superblock, FileKind::Index, FileKind::Rows];
const FILE_UNITS: usize = 64;
const FILES_MAX: usize = 4;
const CHECKSUM_AT: usize = 12;

const IDENTITY: Identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(2), incarnation: Incarnation(3) };
const OPTIONS: StoreOptions = StoreOptions {
    index_file_bytes: (FILE_UNITS * UNIT_BYTES) as u64,
    index_files_max: FILES_MAX as u32,
    row_segment_bytes: 64 * 1024,
    write_bytes_max: 8192,
    writes_in_flight_max: 4,
};
const ROW_OPTIONS: RowLogOptions =
    RowLogOptions { segment_bytes: 64 * 1024, block_bytes: 4096, rows_resident_bytes_max: 8192, write_bytes_max: 4096 };

/// The files, in memory.
#[derive(Debug, Default)]
struct Disk(BTreeMap<StoreFile, Vec<u8>>);

impl Disk {
    fn from_units(input: &[u8]) -> Self {
        let mut disk = Self::default();
        for chunk in input.chunks_exact(CHUNK_BYTES) {
            let (file, at) = place(chunk);
            let bytes = disk.0.entry(file).or_default();
            bytes.resize(bytes.len().max(at + UNIT_BYTES), 0);
            bytes[at..at + UNIT_BYTES].copy_from_slice(&chunk[4..]);
        }
        disk
    }

    fn to_units(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (file, bytes) in &self.0 {
            let kind = KINDS.iter().position(|kind| *kind == file.kind).expect("all kinds are listed");
            for (unit, bytes) in bytes.chunks_exact(UNIT_BYTES).enumerate() {
                if bytes.iter().any(|byte| *byte != 0) {
                    out.extend_from_slice(&[kind as u8, file.number as u8]);
                    out.extend_from_slice(&(unit as u16).to_le_bytes());
                    out.extend_from_slice(bytes);
                }
            }
        }
        out
    }

    fn slice(&self, file: StoreFile, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.0.get(&file)?.get(start..start.checked_add(len)?)
    }

    fn perform(&mut self, effect: &StoreEffect) {
        match effect {
            StoreEffect::CreateFile { file, bytes, .. } => {
                self.0.insert(*file, vec![0; usize::try_from(*bytes).expect("small files")]);
            }
            StoreEffect::Write(write) => {
                let file = self.0.entry(write.file).or_default();
                let at = usize::try_from(write.offset).expect("small files");
                let bytes = write.bytes.as_slice();
                file.resize(file.len().max(at + bytes.len()), 0);
                file[at..at + bytes.len()].copy_from_slice(bytes);
            }
            StoreEffect::RemoveFile { file, .. } => drop(self.0.remove(file)),
            StoreEffect::Sync { .. } | StoreEffect::Populate { .. } | StoreEffect::Discard { .. } => {}
        }
    }
}

impl PageSource for Disk {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        self.slice(block.file, block.offset, block.len as usize).ok_or(Unavailable::Corrupt(block))
    }
}

impl StoreMedia for Disk {
    fn read(&mut self, file: StoreFile, offset: u64, len: usize) -> Result<Option<Vec<u8>>, String> {
        Ok(self.slice(file, offset, len).map(<[u8]>::to_vec))
    }
}

/// Where a unit of the input belongs: file and offset.
fn place(chunk: &[u8]) -> (StoreFile, usize) {
    let kind = KINDS[usize::from(chunk[0]) % KINDS.len()];
    let files = if kind == FileKind::Superblock { 2 } else { FILES_MAX };
    let file = StoreFile { kind, number: (usize::from(chunk[1]) % files) as u32 };
    let unit = match kind {
        FileKind::Superblock => 0,
        _ => usize::from(u16::from_le_bytes([chunk[2], chunk[3]])) % FILE_UNITS,
    };
    (file, unit * UNIT_BYTES)
}

fn seal_superblock(bytes: &mut [u8]) {
    if let Some(bytes) = bytes.get_mut(..UNIT_BYTES) {
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
        let checksum = crc32fast::hash(bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn repair_units(input: &mut [u8]) {
    let disk = Disk::from_units(input);
    for chunk in input.chunks_exact_mut(CHUNK_BYTES) {
        let (file, _) = place(chunk);
        if file.kind != FileKind::Superblock {
            continue;
        }
        seal_superblock(&mut chunk[4..]);
        let Ok(mut superblock) = Superblock::decode(&chunk[4..], file.number) else { continue };
        let checksum = |file: StoreFile, offset: u64, len: usize| disk.slice(file, offset, len).map(crc32fast::hash);
        let seal_page = |page: &mut PageRef| {
            let number = page.page.0 as usize / FILE_UNITS;
            let file = StoreFile { kind: FileKind::Index, number: number as u32 };
            let offset = (page.page.0 as usize % FILE_UNITS * UNIT_BYTES) as u64;
            page.checksum = checksum(file, offset, usize::from(page.units) * UNIT_BYTES).unwrap_or(page.checksum);
        };
        seal_page(&mut superblock.map);
        for root in [&mut superblock.keys, &mut superblock.leases, &mut superblock.tables].into_iter().flatten() {
            seal_page(&mut root.page);
        }
        let rows = superblock.rows;
        let table = StoreFile { kind: FileKind::Rows, number: rows.file };
        superblock.rows.checksum = checksum(table, rows.offset, rows.len as usize).unwrap_or(rows.checksum);
        chunk[4..].copy_from_slice(&superblock.encode());
    }
}

/// A superblock has one binary form.
fn run_superblock(input: &[u8]) -> bool {
    let mut accepted = false;
    for copy in 0..2 {
        if let Ok(superblock) = Superblock::decode(input, copy) {
            assert_eq!(superblock.encode(), input);
            accepted = true;
        }
    }
    accepted
}

/// What recovery accepts can be read from end to end: to the last entry, or to a page that is found corrupt.
fn run_recovery(input: &[u8]) -> bool {
    let mut disk = Disk::from_units(input);
    let Ok(store) = recover(OPTIONS, IDENTITY, &mut disk) else { return false };
    for id in TreeId::ALL {
        let tree = store.tree(id);
        let _ = tree.get(b"key-05", &disk);
        let _ = tree.count_live(KeyRange::new(b"key-02", b"key-07"), &disk);
        let Ok(mut scan) = tree.scan(b"", &disk) else { continue };
        let mut entries = 0;
        while let Ok(Some((_, entry))) = scan.next_entry() {
            let _ = KeyEntry::decode(entry);
            entries += 1;
            // Pages may be named more than once, but not without end: the entries of a page are counted in its parent.
            if entries > 10_000 {
                break;
            }
        }
    }
    if let Some(superblock) = store.superblock()
        && let Ok(rows) = RowLog::open(ROW_OPTIONS, superblock.rows, &disk)
    {
        read_rows(&rows, &disk);
    }
    true
}

fn read_rows(rows: &RowLog, disk: &Disk) {
    let mut at = Revision::NONE;
    for _ in 0..1000 {
        let Ok(Some(row)) = rows.row_from(at, disk) else { return };
        assert!(row.at >= at, "rows come in order");
        let Some(sub) = row.at.sub.checked_add(1) else { return };
        at = Revision { sub, ..row.at };
    }
}

/// A directory after some checkpoints of some changed keys each.
fn directory(checkpoints: i64, changes: i64) -> Disk {
    let mut disk = Disk::default();
    let mut store = Store::new(OPTIONS, IDENTITY);
    let mut rows = RowLog::new(ROW_OPTIONS);
    let mut revision = 1;
    for checkpoint in 1..=checkpoints {
        let mut overlay = Overlay::new();
        for change in 0..changes {
            revision += 1;
            let key = format!("key-{:02}", change * checkpoint % 100);
            let row = Revision { main: revision, sub: 0 };
            let (create, version, lease) = (revision, 1, 0);
            let (prev, jump) = (Revision::NONE, Revision::NONE);
            rows.append(&Row { at: row, key: key.as_bytes(), value: b"value", create, version, lease, prev, jump });
            let chain = Chain::link(None, -1).chain;
            overlay.put(key.as_bytes(), KeyEntry { row, create, version, lease, chain }, false);
        }
        store.begin_checkpoint(CheckpointRequest {
            position: LogPosition { index: Index(checkpoint.cast_unsigned()), term: Term(2), digest: Digest(7) },
            keyspace: KeyspaceState { revision, compacted: -1, digest: 3 },
            rows: rows.handle_checkpoint(),
            leases: std::sync::Arc::default(),
            tables: vec![(b"member".to_vec(), Some(b"value".to_vec()))],
        });
        while store.take_published().is_none() {
            let _ = store.step(1000, &overlay, &disk);
            while let Some(effect) = store.poll_effect(&mut rows) {
                disk.perform(&effect);
                store.handle_complete(effect.token(), &mut rows);
            }
        }
    }
    disk
}

fn recovery_seeds() -> Vec<Vec<u8>> {
    [directory(1, 3), directory(2, 60), directory(3, 1)].iter().map(Disk::to_units).collect()
}

fn superblock_seeds() -> Vec<Vec<u8>> {
    let disk = directory(2, 2);
    let copies = disk.0.iter().filter(|(file, _)| file.kind == FileKind::Superblock);
    copies.map(|(_, bytes)| bytes[..UNIT_BYTES].to_vec()).collect()
}
