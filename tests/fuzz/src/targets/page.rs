//! Pages of the key index, as they come from disk after their checksum was found right.

use trilith_engine::store::page::{HEADER_BYTES, Page, PageExpected, PageHeader, PageId, PageType, UNIT_BYTES};

use crate::Target;
use crate::targets::no_repair;

pub(crate) const TARGET: Target = Target { name: "page", run, seeds, repair: no_repair, cost: 4 };

/// A page whose check succeeds can be read everywhere; others must fail cleanly.
fn run(input: &[u8]) -> bool {
    let _ = PageHeader::decode(input);
    let Some(page) = Page::new(input) else { return false };
    let looked_at = page.count().min(1000);
    for index in 0..looked_at {
        let _ = (page.entry(index), page.child(index));
    }
    for key in [&b""[..], b"key-1", b"\xff"] {
        let _ = (page.search(key), page.child_index(key));
    }
    let Some(header) = PageHeader::decode(input) else { return false };
    let live = match header.level {
        0 => page.count() as u64,
        _ => (0..looked_at).filter_map(|index| page.child(index)).fold(0u64, |sum, child| sum.wrapping_add(child.live)),
    };
    let expected = PageExpected { page: header.page, tree: header.tree, level: header.level, live };
    if !page.check(&expected, |_| Some(true)) {
        return false;
    }
    for index in 0..page.count() {
        let (key, _) = page.entry(index).expect("a checked page is readable");
        assert_eq!(page.search(key), Some((index, true)));
        assert!(header.level == 0 || page.child(index).is_some());
    }
    true
}

/// A page by the documented layout: header, 16-bit slots, then entries of two lengths, key and value.
fn page(level: u8, entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let mut slots = Vec::new();
    let mut body = Vec::new();
    for (key, value) in entries {
        let start = HEADER_BYTES + 2 * entries.len() + body.len();
        slots.extend_from_slice(&(start as u16).to_le_bytes());
        body.push(key.len() as u8);
        body.push(value.len() as u8);
        body.extend_from_slice(key);
        body.extend_from_slice(value);
    }
    let used = HEADER_BYTES + slots.len() + body.len();
    let header = PageHeader {
        page_type: if level == 0 { PageType::Leaf } else { PageType::Branch },
        tree: 1,
        level,
        page: PageId(9),
        generation: 4,
        count: entries.len() as u32,
        used: used as u32,
    };
    let mut bytes = [&header.encode()[..], &slots, &body].concat();
    bytes.resize(used.next_multiple_of(UNIT_BYTES), 0);
    bytes
}

/// The documented bytes of a reference to a page of one unit: number, checksum, units, live entries.
fn reference(page: u32, live: u8) -> Vec<u8> {
    [&page.to_le_bytes()[..], &7_u32.to_le_bytes(), &1_u16.to_le_bytes(), &[live]].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let leaf: Vec<(&[u8], Vec<u8>)> =
        vec![(b"key-0", b"row".to_vec()), (b"key-1", vec![]), (b"key-2", vec![0; 100]), (b"l", b"x".to_vec())];
    let branch: Vec<(&[u8], Vec<u8>)> =
        vec![(b"", reference(1, 5)), (b"key-1", reference(2, 0)), (b"m", reference(3, 127))];
    vec![page(0, &leaf), page(1, &branch), page(0, &leaf[..1])]
}
