//! HashKV of the reference model: etcd's definition, computed from the history that the model remembers.
//!
//! Owns: the definition (CRC-32C over "key", then every kept row's key and serialized pair). Does not know: the
//! server's code for it, which it must not share.

use std::collections::BTreeMap;

use trilith_wire::proto::{Message, mvccpb};

use crate::history::{Answer, Request};
use crate::model::{Changes, KeyValue, Model};

/// Judges an answered HashKV: the hash must be that of the revision it names, over the compaction that it names. Nobody
/// knows the rows of `ambiguous` revisions.
pub(crate) fn check(
    model: &Model,
    ambiguous: &BTreeMap<i64, Vec<Changes>>,
    request: &Request,
    answer: &Answer,
) -> Result<(), String> {
    let Request::HashKv { revision: asked } = request else { unreachable!("called for this request alone") };
    let (revision, compacted) = answer.hashed;
    let wanted = if *asked > 0 { *asked } else { answer.revision };
    if revision != wanted || revision > answer.revision {
        return Err(format!("hashed at {revision}, not at {wanted}"));
    }
    match hash(model, ambiguous, revision, compacted) {
        Some(expected) if i64::from(expected) != answer.count => {
            Err(format!("hash {:x} at {revision} over {compacted}; the model: {expected:x}", answer.count))
        }
        _ => Ok(()),
    }
}

/// The hash of all rows up to `revision` when everything before `compacted` was compacted; `None` if a value's bytes
/// are not known any more, or if nobody knows which write made a row.
fn hash(model: &Model, ambiguous: &BTreeMap<i64, Vec<Changes>>, revision: i64, compacted: i64) -> Option<u32> {
    // What the compaction left, and of that what one at the hashed revision would leave; if that is nothing, it does
    // not count.
    let something_lives = model.keys().any(|key| kept_at(model.versions(key), revision).is_some());
    let mut crc = crc32c(!0, b"key");
    let mut next_of_key: BTreeMap<&[u8], usize> = BTreeMap::new();
    for main in 2..=revision {
        // A revision may change a key several times: its versions of that revision stand in the order of the changes.
        next_of_key.clear();
        for (sub, key) in model.changed_at(main).iter().enumerate() {
            let versions = model.versions(key);
            let next = next_of_key
                .entry(key.as_slice())
                .or_insert_with(|| versions.partition_point(|(changed_at, _)| *changed_at < main));
            let position = *next;
            *next += 1;
            let (changed_at, pair) = &versions[position];
            assert_eq!(*changed_at, main, "a change has its version");
            let is_gone = kept_at(versions, compacted) != Some(position)
                || (something_lives && kept_at(versions, revision) != Some(position));
            if main <= compacted && is_gone {
                continue;
            }
            if ambiguous.contains_key(&main) {
                return None;
            }
            crc = hash_row(crc, (main, sub), key, pair.as_ref())?;
        }
    }
    Some(!crc)
}

/// Of a key's versions, the one that a compaction keeps: the newest at or below, unless that is a deletion. (A deletion
/// at the compacted revision itself stays too, but never counts.)
fn kept_at(versions: &[(i64, Option<KeyValue>)], compacted: i64) -> Option<usize> {
    let newest = versions.partition_point(|(changed_at, _)| *changed_at <= compacted).checked_sub(1);
    newest.filter(|position| versions[*position].1.is_some())
}

fn hash_row(crc: u32, at: (i64, usize), key: &[u8], pair: Option<&KeyValue>) -> Option<u32> {
    let mut address = Vec::with_capacity(18);
    address.extend_from_slice(&at.0.to_be_bytes());
    address.push(b'_');
    address.extend_from_slice(&(at.1 as u64).to_be_bytes());
    if pair.is_none() {
        address.push(b't');
    }
    let value = match pair {
        Some(pair) => pair.value.bytes()?,
        None => Vec::new(),
    };
    let mut message = mvccpb::KeyValue { key, ..mvccpb::KeyValue::default() };
    if let Some(pair) = pair {
        message.create_revision = pair.create_revision;
        message.mod_revision = pair.mod_revision;
        message.version = pair.version;
        message.lease = pair.lease;
        message.value = &value;
    }
    Some(crc32c(crc32c(crc, &address), &message.encode_to_vec()))
}

/// CRC-32C (Castagnoli), reflected; takes and returns the register.
fn crc32c(register: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0x82f6_3b78 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    bytes
        .iter()
        .fold(register, |register, byte| TABLE[((register ^ u32::from(*byte)) & 0xff) as usize] ^ (register >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn castagnoli() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
