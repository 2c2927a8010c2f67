//! The few messages of `etcdserverpb` the load generator speaks, by hand: an encoder and a checker that share nothing
//! with the server's codec.

/// A value of a protobuf field.
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// `PutRequest { key, value }`, replacing what `out` holds.
pub fn put_request(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.clear();
    put_bytes(out, 1, key);
    put_bytes(out, 2, value);
}

/// `RangeRequest { key, serializable }`, replacing what `out` holds.
pub fn range_request(out: &mut Vec<u8>, key: &[u8], serializable: bool) {
    out.clear();
    put_bytes(out, 1, key);
    if serializable {
        out.extend_from_slice(&[7 << 3, 1]);
    }
}

/// `RangeRequest { key, range_end }` or `DeleteRangeRequest { key, range_end }`, which look alike.
pub fn span_request(out: &mut Vec<u8>, key: &[u8], range_end: &[u8]) {
    put_request(out, key, range_end);
}

/// `RangeRequest { key, range_end, count_only }`.
pub fn count_request(out: &mut Vec<u8>, key: &[u8], range_end: &[u8]) {
    span_request(out, key, range_end);
    out.extend_from_slice(&[9 << 3, 1]);
}

/// `CompactionRequest { revision }` or `HashKVRequest { revision }`, which look alike.
pub fn revision_request(out: &mut Vec<u8>, revision: u64) {
    out.clear();
    out.push(1 << 3);
    put_varint(out, revision);
}

fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The next (field number, value).
pub(crate) fn take_field<'a>(input: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = take_varint(input)?;
    let value = match tag & 7 {
        0 => Value::Number(take_varint(input)?),
        2 => {
            let len = usize::try_from(take_varint(input)?).ok()?;
            let (bytes, rest) = input.split_at_checked(len)?;
            *input = rest;
            Value::Bytes(bytes)
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

/// The revision in a `ResponseHeader` with a cluster and a member id; `None` if any of them is missing.
fn header_revision(mut header: &[u8]) -> Option<u64> {
    let (mut cluster, mut member, mut revision) = (0, 0, None);
    while !header.is_empty() {
        match take_field(&mut header)? {
            (1, Value::Number(id)) => cluster = id,
            (2, Value::Number(id)) => member = id,
            (3, Value::Number(number)) => revision = Some(number),
            _ => {}
        }
    }
    if cluster == 0 || member == 0 { None } else { revision.filter(|&number| number > 0 && number <= i64::MAX as u64) }
}

/// The revision in the header of any response; `None` if there is none.
pub fn header_revision_of(mut response: &[u8]) -> Option<u64> {
    match take_field(&mut response)? {
        (1, Value::Bytes(header)) => header_revision(header),
        _ => None,
    }
}

/// The revision of a `PutResponse` without a previous pair.
pub fn check_put(mut response: &[u8]) -> Result<u64, &'static str> {
    let mut revision = None;
    while !response.is_empty() {
        match take_field(&mut response).ok_or("the response does not decode")? {
            (1, Value::Bytes(header)) => revision = header_revision(header),
            _ => return Err("an unexpected field in PutResponse"),
        }
    }
    revision.ok_or("no positive revision in the header")
}

/// The revision of a `RangeResponse` that must hold exactly `key`, with a value of `value_bytes` bytes that begins with
/// the key (as [`value_for`] makes it).
pub fn check_range(mut response: &[u8], key: &[u8], value_bytes: usize) -> Result<u64, &'static str> {
    let (mut revision, mut pairs, mut count) = (None, 0, 0);
    while !response.is_empty() {
        match take_field(&mut response).ok_or("the response does not decode")? {
            (1, Value::Bytes(header)) => revision = header_revision(header),
            (2, Value::Bytes(pair)) => {
                check_pair(pair, key, value_bytes)?;
                pairs += 1;
            }
            (4, Value::Number(number)) => count = number,
            _ => return Err("an unexpected field in RangeResponse"),
        }
    }
    if pairs != 1 || count != 1 {
        return Err("not exactly one pair");
    }
    revision.ok_or("no positive revision in the header")
}

/// What an answer that names many keys says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Of the header.
    pub revision: u64,
    /// Pairs that came along.
    pub pairs: u64,
    /// `count`, `deleted`, or zero where an answer has neither.
    pub count: u64,
}

/// What a `RangeResponse` of many keys says; its pairs must ascend and hold values of `value_bytes` bytes that begin
/// with their keys.
pub fn check_span(mut response: &[u8], value_bytes: usize) -> Result<Summary, &'static str> {
    let (mut revision, mut pairs, mut count, mut last) = (None, 0, 0, &[][..]);
    while !response.is_empty() {
        match take_field(&mut response).ok_or("the response does not decode")? {
            (1, Value::Bytes(header)) => revision = header_revision(header),
            (2, Value::Bytes(pair)) => {
                // The key is the first field of a pair as every server encodes it.
                let Some((1, Value::Bytes(key))) = take_field(&mut &*pair) else { return Err("a pair without a key") };
                if key <= last {
                    return Err("the keys do not ascend");
                }
                check_pair(pair, key, value_bytes)?;
                (last, pairs) = (key, pairs + 1);
            }
            (4, Value::Number(number)) => count = number,
            _ => return Err("an unexpected field in RangeResponse"),
        }
    }
    Ok(Summary { revision: revision.ok_or("no positive revision in the header")?, pairs, count })
}

/// What a `DeleteRangeResponse`, `CompactionResponse`, `HashKVResponse` or `DefragmentResponse` says. Only the first
/// has a count.
pub fn check_plain(mut response: &[u8], is_delete: bool) -> Result<Summary, &'static str> {
    let (mut revision, mut count) = (None, 0);
    while !response.is_empty() {
        match take_field(&mut response).ok_or("the response does not decode")? {
            (1, Value::Bytes(header)) => revision = header_revision(header),
            (2, Value::Number(number)) if is_delete => count = number,
            (2..=4, Value::Number(_)) if !is_delete => {}
            _ => return Err("an unexpected field"),
        }
    }
    Ok(Summary { revision: revision.ok_or("no positive revision in the header")?, pairs: 0, count })
}

fn check_pair(mut pair: &[u8], key: &[u8], value_bytes: usize) -> Result<(), &'static str> {
    let (mut found_key, mut value, mut revisions) = (&[][..], &[][..], [0; 3]);
    while !pair.is_empty() {
        match take_field(&mut pair).ok_or("the pair does not decode")? {
            (1, Value::Bytes(bytes)) => found_key = bytes,
            (field @ 2..=4, Value::Number(number)) => revisions[field as usize - 2] = number,
            (5, Value::Bytes(bytes)) => value = bytes,
            (6, Value::Number(_)) => {}
            _ => return Err("an unexpected field in KeyValue"),
        }
    }
    let [created, modified, version] = revisions;
    if found_key != key {
        return Err("another key");
    }
    if value.len() != value_bytes || !value.starts_with(&key[..key.len().min(value_bytes)]) {
        return Err("another value");
    }
    if created == 0 || modified < created || version == 0 {
        return Err("impossible revisions of the pair");
    }
    Ok(())
}

/// The key with this number, `key_bytes` long, replacing what `out` holds.
pub fn key_for(out: &mut Vec<u8>, number: u64, key_bytes: usize) {
    out.clear();
    out.resize(key_bytes, b'0');
    let mut rest = number;
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    assert!(rest == 0, "{key_bytes} digits hold key number {number}");
}

/// The value of a key: the key itself, then filling, cut to `value_bytes`.
pub fn value_for(out: &mut Vec<u8>, key: &[u8], value_bytes: usize) {
    out.clear();
    out.extend_from_slice(&key[..key.len().min(value_bytes)]);
    out.resize(value_bytes, b'v');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(revision: u64) -> Vec<u8> {
        let mut header = vec![0x08, 1, 0x10, 2, 0x18];
        put_varint(&mut header, revision);
        header
    }

    fn range(key: &[u8], value: &[u8], count: u8) -> Vec<u8> {
        let mut pair = Vec::new();
        put_bytes(&mut pair, 1, key);
        pair.extend_from_slice(&[0x10, 3, 0x18, 4, 0x20, 2]);
        put_bytes(&mut pair, 5, value);
        let mut response = Vec::new();
        put_bytes(&mut response, 1, &header(9));
        put_bytes(&mut response, 2, &pair);
        response.extend_from_slice(&[0x20, count]);
        response
    }

    #[test]
    fn right_responses_pass_and_wrong_ones_do_not() {
        let mut response = Vec::new();
        put_bytes(&mut response, 1, &header(300));
        assert_eq!(check_put(&response), Ok(300));
        assert!(check_put(&[]).is_err());
        let mut response = Vec::new();
        put_bytes(&mut response, 1, &header(0));
        assert!(check_put(&response).is_err(), "revision 0");

        assert_eq!(check_range(&range(b"k1", b"k1vv", 1), b"k1", 4), Ok(9));
        for (response, why) in [
            (range(b"k2", b"k1vv", 1), "another key"),
            (range(b"k1", b"k2vv", 1), "another value"),
            (range(b"k1", b"k1v", 1), "another value"),
            (range(b"k1", b"k1vv", 2), "not exactly one pair"),
        ] {
            assert_eq!(check_range(&response, b"k1", 4), Err(why));
        }
        let whole = range(b"k1", b"k1vv", 1);
        for len in 0..whole.len() {
            assert!(check_range(&whole[..len], b"k1", 4).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn answers_about_many_keys_are_summed_up_and_checked() {
        let mut both = range(b"k1", b"k1vv", 2);
        let second = range(b"k2", b"k2vv", 2);
        let header = 2 + header(9).len();
        both.splice(both.len() - 2.., second[header..].iter().copied());
        assert_eq!(check_span(&both, 4), Ok(Summary { revision: 9, pairs: 2, count: 2 }));
        assert!(check_span(&both, 3).is_err(), "other values");
        let mut swapped = second;
        swapped.splice(swapped.len() - 2.., range(b"k1", b"k1vv", 2)[header..].iter().copied());
        assert_eq!(check_span(&swapped, 4), Err("the keys do not ascend"));

        let mut deleted = both[..header].to_vec();
        deleted.extend_from_slice(&[0x10, 5]);
        assert_eq!(check_plain(&deleted, true), Ok(Summary { revision: 9, pairs: 0, count: 5 }));
        assert_eq!(check_plain(&deleted, false).map(|it| it.count), Ok(0), "a hash is no count");
        assert!(check_plain(&[], false).is_err());
    }

    #[test]
    fn keys_and_values_have_the_asked_lengths() {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        key_for(&mut key, 1234, 8);
        assert_eq!(key, b"00001234");
        value_for(&mut value, &key, 11);
        assert_eq!(value, b"00001234vvv");
        value_for(&mut value, &key, 3);
        assert_eq!(value, b"000");
    }
}
