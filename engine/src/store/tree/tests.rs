//! Model tests of the tree: many generations of merges against an ordered map, with every structural rule checked.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::page_source::Block;
use crate::store::extents::{Extents, Run};
use crate::store::page::{PageId, UNIT_BYTES};
use crate::store::page_writer::{PageWriter, Sink};

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Index files in memory; a block may have to be asked for twice.
#[derive(Default)]
struct Files {
    bytes: Vec<Vec<u8>>,
    /// Blocks not in `loaded` are missed once.
    cold: Cell<bool>,
    loaded: RefCell<BTreeSet<Block>>,
}

impl PageSource for Files {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        if self.cold.get() && self.loaded.borrow_mut().insert(block) {
            return Err(Unavailable::Missing(block));
        }
        let file = self.bytes.get(block.file.number as usize).ok_or(Unavailable::Corrupt(block))?;
        let start = block.offset as usize;
        file.get(start..start + block.len as usize).ok_or(Unavailable::Corrupt(block))
    }
}

type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

struct Stream<'a>(
    std::iter::Peekable<std::collections::btree_map::Iter<'a, Vec<u8>, Option<Vec<u8>>>>,
    Option<Change<'a>>,
);

impl<'a> Stream<'a> {
    fn new(changes: &'a Changes) -> Self {
        let mut stream = Self(changes.iter().peekable(), None);
        stream.advance();
        stream
    }
}

impl ChangeStream for Stream<'_> {
    fn peek(&self) -> Option<Change<'_>> {
        self.1
    }

    fn advance(&mut self) {
        self.1 = self.0.next().map(|(key, value)| Change { key, value: value.as_deref() });
    }
}

/// A tree with everything around it, and its model. A value counts as live unless it begins with a tombstone's flags.
struct Grove {
    tree: Tree,
    extents: Extents,
    verified: Arc<Verified>,
    files: Files,
    model: BTreeMap<Vec<u8>, Vec<u8>>,
    sequence: u64,
    write_bytes_max: u32,
    bytes_written: u64,
}

fn is_live(value: &[u8]) -> bool {
    TreeId::Keys.weigh()(value).unwrap()
}

impl Grove {
    fn new(file_units: u32, write_bytes_max: u32) -> Self {
        let files_max = (1 << 20) / file_units;
        let verified = Arc::new(Verified::new(file_units, files_max));
        Self {
            tree: Tree::new(TreeId::Keys, None, Arc::clone(&verified)),
            extents: Extents::new(file_units, files_max),
            verified,
            files: Files::default(),
            model: BTreeMap::new(),
            sequence: 0,
            write_bytes_max,
            bytes_written: 0,
        }
    }

    fn merge(&mut self, changes: &Changes, mut budgets: impl FnMut() -> u32) {
        self.sequence += 1;
        let mut writer = PageWriter::new(self.write_bytes_max, self.extents.file_units());
        let mut merge = Merge::new(TreeId::Keys, self.tree.root());
        let mut stream = Stream::new(changes);
        let root = loop {
            let sink = &mut Sink {
                extents: &mut self.extents,
                verified: &self.verified,
                writer: &mut writer,
                generation: self.sequence,
            };
            match merge.step(&mut budgets(), &mut stream, &self.verified, &self.files, sink) {
                Ok(MergeStep::Done(root)) => break root,
                Ok(MergeStep::More) | Err(Unavailable::Missing(_)) => {}
                Err(Unavailable::Corrupt(block)) => panic!("{block:?}"),
            }
        };
        writer.seal();
        let file_bytes = self.extents.file_units() as usize * UNIT_BYTES;
        self.files.bytes.resize(self.extents.files() as usize, vec![0xee; file_bytes]);
        while let Some((page, bytes)) = writer.pop() {
            assert!(bytes.len() <= self.write_bytes_max as usize && !bytes.is_empty());
            let units = (bytes.len() / UNIT_BYTES) as u32;
            let marked = (page.0..page.0 + units).any(|unit| self.verified.is_marked(PageId(unit)));
            assert!(!marked, "a page written anew is verified anew");
            let block = self.verified.block(page, 1);
            self.bytes_written += bytes.len() as u64;
            self.files.bytes[block.file.number as usize][block.offset as usize..][..bytes.len()]
                .copy_from_slice(&bytes);
        }
        self.extents.publish(self.sequence);
        self.tree = Tree::new(TreeId::Keys, root, Arc::clone(&self.verified));
        for (key, value) in changes {
            match value {
                Some(value) => drop(self.model.insert(key.clone(), value.clone())),
                None => drop(self.model.remove(key)),
            }
        }
    }

    fn all(&self) -> Vec<(&[u8], &[u8])> {
        let mut scan = retry(|| self.tree.scan(b"", &self.files));
        std::iter::from_fn(|| retry(|| scan.next_entry())).collect()
    }

    /// Contents, counts and the use of pages.
    fn check(&self) {
        let model: Vec<_> = self.model.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
        assert!(self.all() == model, "generation {}: contents differ", self.sequence);
        assert_eq!(self.tree.entries(), model.len() as u64);
        assert_eq!(self.tree.live(), model.iter().filter(|(_, value)| is_live(value)).count() as u64);
        let mut in_use = BTreeSet::new();
        let visit = &mut |page: PageRef| {
            for unit in page.page.0..page.page.0 + u32::from(page.units) {
                assert!(in_use.insert(unit), "a unit is in one page");
                assert!(self.extents.holds(Run { page: PageId(unit), units: 1 }), "a page in use is taken");
            }
        };
        let cold = self.files.cold.replace(false);
        self.tree.visit_pages(&self.files, visit).unwrap();
        self.files.cold.set(cold);
        let used = self.extents.used_list();
        assert!(used == in_use.into_iter().collect::<Vec<_>>(), "what no page uses is free or in quarantine");
    }

    fn check_reads(&self, rng: &mut Rng, keys: &[Vec<u8>]) {
        for key in keys {
            assert_eq!(retry(|| self.tree.get(key, &self.files)), self.model.get(key).map(Vec::as_slice));
            let end = &keys[rng.below(keys.len() as u64) as usize];
            let expected = if key < end { self.live_between(Some(key), Some(end)) } else { 0 };
            assert_eq!(retry(|| self.tree.count_live(KeyRange::Between(key, end), &self.files)), expected);
            let from = self.live_between(Some(key), None);
            assert_eq!(retry(|| self.tree.count_live(KeyRange::From(key), &self.files)), from);
            let single = self.model.get(key).is_some_and(|value| is_live(value));
            assert_eq!(retry(|| self.tree.count_live(KeyRange::Single(key), &self.files)), u64::from(single));
            let mut scan = retry(|| self.tree.scan(key, &self.files));
            for (key, value) in self.model.range(key.clone()..).take(5) {
                assert_eq!(retry(|| scan.next_entry()), Some((key.as_slice(), value.as_slice())));
            }
        }
    }

    fn live_between(&self, from: Option<&Vec<u8>>, to: Option<&Vec<u8>>) -> u64 {
        let range = self.model.iter().filter(|(key, _)| from.is_none_or(|from| *key >= from));
        range.filter(|(key, value)| to.is_none_or(|to| *key < to) && is_live(value)).count() as u64
    }
}

fn retry<T>(mut read: impl FnMut() -> Result<T, Unavailable>) -> T {
    loop {
        match read() {
            Ok(value) => return value,
            Err(Unavailable::Missing(_)) => {}
            Err(Unavailable::Corrupt(block)) => panic!("{block:?}"),
        }
    }
}

fn random_value(rng: &mut Rng) -> Vec<u8> {
    let flags = if rng.below(4) == 0 { 4 } else { 0 };
    let mut value = vec![flags];
    value.extend((0..rng.below(16)).map(|byte| byte as u8));
    value
}

/// Keys of many shapes: short, with long shared prefixes, and longer than a page.
fn random_key(rng: &mut Rng, space: u64, long: u64) -> Vec<u8> {
    let number = rng.below(space);
    match rng.below(40) {
        0 if long > 0 => {
            let mut key = vec![b'l'; (rng.below(long) + 1) as usize];
            key.extend_from_slice(format!("{number}").as_bytes());
            key
        }
        1..10 => format!("/registry/pods/namespace-{:03}/pod-{number}", number % 7).into_bytes(),
        10..13 => number.to_be_bytes().to_vec(),
        13 => Vec::from(&number.to_le_bytes()[..(number % 3) as usize]),
        _ => format!("key/{number:08}").into_bytes(),
    }
}

fn random_generations(seed: u64, generations: u32, file_units: u32, long: u64) -> Grove {
    let mut rng = Rng(seed);
    let mut grove = Grove::new(file_units, [4096, 16384, 1 << 18][rng.below(3) as usize]);
    grove.files.cold.set(rng.below(2) == 0);
    for _ in 0..generations {
        let space = [20, 2000, 1_000_000][rng.below(3) as usize];
        let count = [1, 10, 300, 2000][rng.below(4) as usize];
        let deletes = [0, 1, 5, 10][rng.below(4) as usize];
        let mut changes = Changes::new();
        for _ in 0..rng.below(count) {
            let key = random_key(&mut rng, space, long);
            let value = if rng.below(10) < deletes { None } else { Some(random_value(&mut rng)) };
            changes.insert(key, value);
        }
        if deletes == 10 {
            // Whole stretches go, so that pages vanish and neighbours join.
            let keys: Vec<_> = grove.model.keys().skip(rng.below(100) as usize).cloned().collect();
            let keep = rng.below(20) as usize;
            let gone = keys.len().saturating_sub(keep) * rng.below(3) as usize / 2;
            changes.extend(keys.into_iter().take(gone).map(|key| (key, None)));
        }
        let budget = [1, 7, 1000, u32::MAX][rng.below(4) as usize];
        grove.merge(&changes, || budget);
        grove.files.loaded.borrow_mut().clear();
        grove.check();
        let keys: Vec<_> = changes.into_keys().take(40).chain([random_key(&mut rng, space, long)]).collect();
        grove.check_reads(&mut rng, &keys);
    }
    grove
}

#[test]
fn generations_of_merges_match_an_ordered_map() {
    for seed in 0..24 {
        random_generations(seed, 25, 64, 0);
    }
}

#[test]
fn keys_longer_than_pages_match_an_ordered_map() {
    for seed in 100..115 {
        random_generations(seed, 12, 64, 30_000);
    }
}

#[test]
fn the_longest_keys_of_etcd_fit_and_share_long_prefixes() {
    let mut grove = Grove::new(16384, 1 << 18);
    let key = |number: u32| [vec![b'x'; 1_500_000], number.to_be_bytes().to_vec()].concat();
    for generation in 0..3 {
        let changes = (0..6).map(|n| (key(n * 3 + generation), Some(vec![0]))).chain([(vec![b'a'], Some(vec![0]))]);
        grove.merge(&changes.collect(), || 3);
        grove.check();
    }
    assert!(grove.tree.root().unwrap().height >= 1);
    grove.check_reads(&mut Rng(1), &[key(0), key(4), key(17), vec![b'a'], vec![b'y']]);
    let all: Changes = grove.model.keys().map(|key| (key.clone(), None)).collect();
    grove.merge(&all, || u32::MAX);
    grove.check();
    assert_eq!(grove.tree.root(), None, "an empty tree has no page");
}

#[test]
fn deleting_everything_and_nothing() {
    let mut grove = Grove::new(64, 1 << 18);
    grove.merge(&Changes::new(), || 1);
    grove.check();
    assert_eq!(grove.extents.files(), 0, "nothing was written");
    let number = |n: u32| n.to_be_bytes().to_vec();
    grove.merge(&(0..5000).map(|n| (number(n), Some(vec![0]))).collect(), || u32::MAX);
    let root = grove.tree.root();
    grove.merge(&Changes::new(), || 1);
    assert_eq!(grove.tree.root(), root, "without changes the tree is the same");
    grove.merge(&(5000..6000).map(|n| (number(n), None)).collect(), || u32::MAX);
    grove.check();
    grove.merge(&(0..5000).map(|n| (number(n), None)).collect(), || u32::MAX);
    grove.check();
    assert_eq!(grove.tree.root(), None);
    grove.merge(&(0..3).map(|n| (number(n), Some(vec![0]))).collect(), || u32::MAX);
    grove.check();
}

#[test]
fn only_pages_on_paths_to_changes_are_rewritten() {
    let mut grove = Grove::new(16384, 1 << 18);
    let key = |n: u64| format!("{:064}", n * 2).into_bytes();
    grove.merge(&(0..50_000).map(|n| (key(n), Some(vec![0; 9]))).collect(), || u32::MAX);
    let bulk = grove.bytes_written;
    assert!(bulk < 50_000 * 85, "a bulk load fills its pages: {bulk}");
    let height = u64::from(grove.tree.root().unwrap().height);
    grove.merge(&Changes::from([(key(25_000), Some(vec![0; 12]))]), || u32::MAX);
    let one = grove.bytes_written - bulk;
    assert!(one <= (height + 2) * UNIT_BYTES as u64, "one change rewrites one path, with a split: {one}");
    // Appends leave full pages behind.
    for batch in 0..50 {
        let first = 50_000 + batch * 100;
        grove.merge(&(first..first + 100).map(|n| (key(n), Some(vec![0; 9]))).collect(), || u32::MAX);
    }
    grove.check();
    let mut pages = 0_u64;
    grove.tree.visit_pages(&grove.files, &mut |page| pages += u64::from(page.units)).unwrap();
    assert!(pages * (UNIT_BYTES as u64) < 55_000 * 90, "{pages} pages");
    assert!(grove.extents.files() == 1, "freed pages are reused");
}

#[test]
fn deletions_leave_no_crowd_of_small_pages() {
    let mut grove = Grove::new(16384, 1 << 18);
    let key = |n: u64| format!("{n:064}").into_bytes();
    grove.merge(&(0..20_000).map(|n| (key(n), Some(vec![0; 9]))).collect(), || u32::MAX);
    for round in 0..19 {
        grove.merge(&(0..20_000).filter(|n| n % 20 == round).map(|n| (key(n), None)).collect(), || u32::MAX);
    }
    grove.check();
    let mut pages = 0_u64;
    grove.tree.visit_pages(&grove.files, &mut |page| pages += u64::from(page.units)).unwrap();
    assert!(pages * (UNIT_BYTES as u64) < 1000 * 80 * 4, "{pages} pages for a thousand keys");
}

#[test]
fn what_mass_deletes_leave_is_no_taller_than_it_has_to_be() {
    let key = |n: u32| format!("{n:0500}").into_bytes();
    let without = |keys: std::ops::Range<u32>| keys.map(|n| (key(n), None)).collect::<Changes>();
    let (mut taken_over, mut last) = (0, 400);
    for from in (100..390).step_by(10) {
        let mut grove = Grove::new(16384, 1 << 18);
        last += 1;
        grove.merge(&(0..last).map(|n| (key(n), Some(vec![0; 9]))).collect(), || u32::MAX);
        // The right edge shrinks to a branch of one child, which is taken over when all before it goes.
        grove.merge(&without(from..last - 2), || u32::MAX);
        let right = grove.tree.root().map(|root| root.height);
        grove.files.cold.set(true);
        grove.merge(&without(0..from), || 50);
        grove.files.cold.set(false);
        grove.check();
        let mut pages = 0;
        grove.tree.visit_pages(&grove.files, &mut |_| pages += 1).unwrap();
        let height = grove.tree.root().unwrap().height;
        assert!(
            pages == 1 || height == 1 && pages == 3,
            "two keys stand in {pages} pages, {height} levels above leaves"
        );
        taken_over += usize::from(right > Some(1));
    }
    assert!(taken_over > 10);
}

#[test]
fn rot_is_found_at_the_first_read_and_named() {
    let mut grove = random_generations(7, 12, 64, 0);
    grove.files.cold.set(false);
    let mut pages = Vec::new();
    grove.tree.visit_pages(&grove.files, &mut |page| pages.push(page)).unwrap();
    let mut rng = Rng(5);
    for page in pages {
        let block = grove.verified.block(page.page, u32::from(page.units));
        let (at, bit) = (block.offset + rng.below(u64::from(block.len)), 1 << rng.below(8));
        grove.files.bytes[block.file.number as usize][at as usize] ^= bit;
        let tree = Tree::new(TreeId::Keys, grove.tree.root(), Arc::new(Verified::new(64, 1000)));
        assert_eq!(tree.visit_pages(&grove.files, &mut |_| {}), Err(Unavailable::Corrupt(block)));
        grove.files.bytes[block.file.number as usize][at as usize] ^= bit;
    }
}

/// Damage under a right checksum (a forged or broken writer) is refused or harmless, never a panic.
#[test]
fn malformed_pages_never_panic() {
    let mut rng = Rng(3);
    let mut grove = Grove::new(64, 1 << 18);
    grove.merge(&(0..300_u32).map(|n| (n.to_be_bytes().repeat(4), Some(vec![0; 3]))).collect(), || u32::MAX);
    let root = grove.tree.root().unwrap();
    let mut refused = 0;
    for _ in 0..10_000 {
        let block = grove.verified.block(root.page.page, 1);
        let page = &mut grove.files.bytes[0][block.offset as usize..][..UNIT_BYTES];
        let whole = page.to_vec();
        for _ in 0..=rng.below(3) {
            let within = if rng.below(2) == 0 { 300 } else { 4096 };
            page[rng.below(within) as usize] = rng.next() as u8;
        }
        let checksum = crc32fast::hash(page);
        let forged = TreeRoot { page: PageRef { checksum, ..root.page }, ..root };
        let tree = Tree::new(TreeId::Keys, Some(forged), Arc::new(Verified::new(64, 1000)));
        let key = rng.below(300).to_be_bytes()[4..].repeat(4);
        let files = &grove.files;
        refused += u32::from(tree.get(&key, files).is_err());
        // Unchecked use of damaged bytes, as after memory rot.
        tree.verified.mark(root.page.page);
        let _ = tree.get(&key, files);
        let _ = tree.count_live(KeyRange::From(&key), files);
        if let Ok(mut scan) = tree.scan(&key, files) {
            for _ in 0..400 {
                if !matches!(scan.next_entry(), Ok(Some(_))) {
                    break;
                }
            }
        }
        grove.files.bytes[0][block.offset as usize..][..UNIT_BYTES].copy_from_slice(&whole);
    }
    assert!(refused > 9_000, "nearly every damage is refused: {refused}");
    for _ in 0..20_000 {
        let len = [0, 3, 24, 40, 4096][rng.below(5) as usize];
        let bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
        let Some(page) = Page::new(&bytes) else { continue };
        let expected = PageExpected { page: PageId(0), tree: 1, level: 0, live: 0 };
        assert!(!page.check(&expected, TreeId::Keys.weigh()));
        let _ = (page.search(b"k"), page.child(0), page.child_index(b"k"), page.entry(page.count() / 2));
    }
}
