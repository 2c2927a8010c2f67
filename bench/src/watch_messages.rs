//! The messages of watching and leases that the generators speak, by hand, as [`messages`](crate::messages) does.

use crate::messages::{Value, put_bytes, put_varint, take_field};

/// `WatchRequest { create_request { key, range_end, start_revision } }`, replacing what `out` holds.
pub fn watch_request(out: &mut Vec<u8>, key: &[u8], range_end: &[u8], start_revision: u64) {
    let mut create = Vec::new();
    put_bytes(&mut create, 1, key);
    if !range_end.is_empty() {
        put_bytes(&mut create, 2, range_end);
    }
    if start_revision > 0 {
        create.push(3 << 3);
        put_varint(&mut create, start_revision);
    }
    out.clear();
    put_bytes(out, 1, &create);
}

/// `LeaseGrantRequest { ttl, id }`, replacing what `out` holds.
pub fn grant_request(out: &mut Vec<u8>, id: u64, ttl: u64) {
    out.clear();
    out.push(1 << 3);
    put_varint(out, ttl);
    out.push(2 << 3);
    put_varint(out, id);
}

/// `PutRequest { key, value, lease }`, replacing what `out` holds.
pub fn put_with_lease(out: &mut Vec<u8>, key: &[u8], value: &[u8], lease: u64) {
    crate::messages::put_request(out, key, value);
    out.push(3 << 3);
    put_varint(out, lease);
}

/// One event: its kind, and the key, value and revision of its pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    /// A deletion.
    pub is_delete: bool,
    /// The key.
    pub key: &'a [u8],
    /// Empty for a deletion.
    pub value: &'a [u8],
    /// `mod_revision`.
    pub revision: u64,
}

/// Visits the events of a `WatchResponse`; its watch id and whether the watcher was created by it. A cancellation is an
/// error.
pub fn read_watch<'a>(
    mut response: &'a [u8],
    visit: &mut impl FnMut(i64, Event<'a>) -> Result<(), String>,
) -> Result<(i64, bool), String> {
    let (mut id, mut created) = (0, false);
    while !response.is_empty() {
        match take_field(&mut response).ok_or("the response does not decode")? {
            (1, Value::Bytes(_)) | (7, Value::Number(_)) => {}
            (2, Value::Number(number)) => id = number.cast_signed(),
            (3, Value::Number(number)) => created = number != 0,
            // The id stands before the events, as every server encodes it.
            (11, Value::Bytes(event)) => visit(id, read_event(event).ok_or("an event does not decode")?)?,
            (field, _) => return Err(format!("unexpected field {field} in WatchResponse: it was cancelled")),
        }
    }
    Ok((id, created))
}

fn read_event(mut bytes: &[u8]) -> Option<Event<'_>> {
    let mut event = Event::default();
    while !bytes.is_empty() {
        match take_field(&mut bytes)? {
            (1, Value::Number(kind)) => event.is_delete = kind == 1,
            (2, Value::Bytes(mut pair)) => {
                while !pair.is_empty() {
                    match take_field(&mut pair)? {
                        (1, Value::Bytes(key)) => event.key = key,
                        (3, Value::Number(revision)) => event.revision = revision,
                        (5, Value::Bytes(value)) => event.value = value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_taken_apart() {
        let mut pair = Vec::new();
        put_bytes(&mut pair, 1, b"k");
        pair.extend_from_slice(&[0x10, 3, 0x18, 4, 0x20, 2]);
        put_bytes(&mut pair, 5, b"v");
        let (mut put, mut gone, mut response) = (Vec::new(), vec![0x08, 1], vec![0x10, 9]);
        put_bytes(&mut put, 2, &pair);
        put_bytes(&mut gone, 2, &[0x0a, 1, b'k', 0x18, 5]);
        put_bytes(&mut response, 11, &put);
        put_bytes(&mut response, 11, &gone);
        let mut events = Vec::new();
        let read = read_watch(&response, &mut |id, event| {
            events.push((id, event));
            Ok(())
        });
        assert_eq!(read, Ok((9, false)));
        let put = Event { is_delete: false, key: b"k", value: b"v", revision: 4 };
        assert_eq!(events, [(9, put), (9, Event { is_delete: true, key: b"k", value: b"", revision: 5 })]);
        assert_eq!(read_watch(&[0x10, 2, 0x18, 1], &mut |_, _| Ok(())), Ok((2, true)));
        assert!(read_watch(&[0x10, 2, 0x20, 1], &mut |_, _| Ok(())).is_err(), "cancelled");
    }
}
