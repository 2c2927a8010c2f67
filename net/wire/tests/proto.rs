//! Protobuf messages against the rules of the encoding: hand-made bytes, and random ones for every message.
//!
//! The expected bytes were written by hand from the encoding's specification, not taken from any encoder.

use trilith_wire::proto::codec::Reencode;
use trilith_wire::proto::etcdserverpb::{
    AlarmMember, AlarmResponse, AlarmType, Compare, CompareResult, CompareTarget, CompareTargetUnion, HashKVResponse,
    LeaseTimeToLiveResponse, Member, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, RequestOpRequest,
    ResponseHeader, ResponseOp, SortOrder, SortTarget, StatusRequest, StatusResponse, TxnRequest, WatchCreateRequest,
    WatchRequest, WatchRequestRequestUnion,
};
use trilith_wire::proto::health::{HealthCheckResponse, ServingStatus};
use trilith_wire::proto::mvccpb::{Event, EventType, KeyValue};
use trilith_wire::proto::{DecodeError, Limits, Message, authpb, etcdserverpb, health, mvccpb, v3electionpb, v3lockpb};

/// The message encodes to `bytes` and decodes from them.
#[track_caller]
fn check<'a, M: Message<'a> + PartialEq + std::fmt::Debug>(message: &M, bytes: &'a [u8]) {
    assert_eq!(message.encode_to_vec(), bytes);
    assert_eq!(message.encoded_len(), bytes.len());
    assert_eq!(&M::decode(bytes).expect("hand-made bytes are valid"), message);
}

#[test]
fn put_request() {
    check(&PutRequest::default(), b"");
    check(&PutRequest { key: b"foo", value: b"bar", ..PutRequest::default() }, b"\x0a\x03foo\x12\x03bar");
    let all = PutRequest { key: b"k", value: b"v", lease: 300, prev_kv: true, ignore_value: true, ignore_lease: true };
    check(&all, b"\x0a\x01k\x12\x01v\x18\xac\x02\x20\x01\x28\x01\x30\x01");
}

#[test]
fn put_request_borrows_from_its_bytes() {
    let bytes = b"\x0a\x03foo\x12\x03bar".to_vec();
    let request = PutRequest::decode(&bytes).unwrap();
    assert_eq!(request.key.as_ptr(), bytes[2..].as_ptr());
    assert_eq!(request.value.as_ptr(), bytes[7..].as_ptr());
}

#[test]
fn range_request() {
    let request = RangeRequest {
        key: b"a",
        range_end: b"\0",
        limit: -1,
        revision: 1 << 62,
        sort_order: SortOrder::DESCEND,
        sort_target: SortTarget::VALUE,
        serializable: true,
        keys_only: true,
        count_only: true,
        min_mod_revision: 1,
        max_mod_revision: 127,
        min_create_revision: 128,
        max_create_revision: i64::MIN,
    };
    let bytes = b"\x0a\x01a\x12\x01\0\
        \x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\
        \x20\x80\x80\x80\x80\x80\x80\x80\x80\x40\
        \x28\x02\x30\x04\x38\x01\x40\x01\x48\x01\
        \x50\x01\x58\x7f\x60\x80\x01\
        \x68\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01";
    check(&request, bytes);
}

#[test]
fn enums_are_open() {
    let request = RangeRequest::decode(b"\x28\x07\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").unwrap();
    assert_eq!((request.sort_order, request.sort_order.name()), (SortOrder(7), None));
    assert_eq!(request.sort_target, SortTarget(-1));
    check(&request, b"\x28\x07\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    assert_eq!(SortTarget::VALUE.name(), Some("VALUE"));
    // Only the low 32 bits count.
    assert_eq!(RangeRequest::decode(b"\x28\x82\x80\x80\x80\x10").unwrap().sort_order, SortOrder::DESCEND);
}

#[test]
fn range_response_whole_and_in_parts() {
    let header = ResponseHeader { cluster_id: u64::MAX, member_id: 1, revision: 5, raft_term: 2 };
    let pair = KeyValue { key: b"k", create_revision: 2, mod_revision: 5, version: 3, value: b"v", lease: 0 };
    let bytes = b"\x0a\x11\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x10\x01\x18\x05\x20\x02\
        \x12\x0c\x0a\x01k\x10\x02\x18\x05\x20\x03\x2a\x01v\
        \x12\x0c\x0a\x01k\x10\x02\x18\x05\x20\x03\x2a\x01v\
        \x18\x01\x20\x09";
    check(&RangeResponse { header: Some(header), kvs: vec![pair, pair], more: true, count: 9 }, bytes);

    let mut parts = Vec::new();
    RangeResponse::write_header(&mut parts, &header);
    for _ in 0..2 {
        RangeResponse::write_kvs(&mut parts, &pair);
    }
    RangeResponse::write_more(&mut parts, true);
    RangeResponse::write_count(&mut parts, 9);
    assert_eq!(parts, bytes);

    let mut defaults = Vec::new();
    RangeResponse::write_more(&mut defaults, false);
    RangeResponse::write_count(&mut defaults, 0);
    assert!(defaults.is_empty());
}

#[test]
fn an_empty_sub_message_is_present() {
    check(&PutResponse { header: Some(ResponseHeader::default()), prev_kv: None }, b"\x0a\x00");
    check(&PutResponse { header: None, prev_kv: Some(KeyValue::default()) }, b"\x12\x00");
    check(&PutResponse::default(), b"");
}

#[test]
fn compare_has_tag_64_and_keeps_defaults_of_its_oneof() {
    let compare = Compare {
        result: CompareResult::NOT_EQUAL,
        target: CompareTarget::LEASE,
        key: b"k",
        target_union: Some(CompareTargetUnion::Lease(0)),
        range_end: b"l",
    };
    check(&compare, b"\x08\x03\x10\x04\x1a\x01k\x40\x00\x82\x04\x01l");
    let empty_value = Compare { target_union: Some(CompareTargetUnion::Value(b"")), ..Compare::default() };
    check(&empty_value, b"\x3a\x00");
}

#[test]
fn txn_request() {
    let put = |key| RequestOp { request: Some(RequestOpRequest::Put(PutRequest { key, ..PutRequest::default() })) };
    let inner = TxnRequest { compare: vec![], success: vec![put(b"b")], failure: vec![RequestOp::default()] };
    let outer = TxnRequest {
        compare: vec![Compare::default()],
        success: vec![RequestOp { request: Some(RequestOpRequest::Txn(inner)) }],
        failure: vec![put(b"a"), put(b"c")],
    };
    check(
        &outer,
        b"\x0a\x00\x12\x0b\x22\x09\x12\x05\x12\x03\x0a\x01b\x1a\x00\x1a\x05\x12\x03\x0a\x01a\x1a\x05\x12\x03\x0a\x01c",
    );
}

#[test]
fn other_messages() {
    check(&StatusRequest {}, b"");
    check(
        &StatusResponse { version: "3.7.3", db_size: 20480, errors: vec!["a", ""], ..StatusResponse::default() },
        b"\x12\x053.7.3\x18\x80\xa0\x01\x42\x01a\x42\x00",
    );
    let alarm = AlarmMember { member_id: 0x8e9e_05c5_2164_694d, alarm: AlarmType::CORRUPT };
    check(
        &AlarmResponse { header: None, alarms: vec![alarm] },
        b"\x12\x0d\x08\xcd\xd2\x91\x8b\xd2\xb8\x81\xcf\x8e\x01\x10\x02",
    );
    let member = Member { id: 1, peer_urls: vec!["http://a:2380"], is_learner: true, ..Member::default() };
    check(&member, b"\x08\x01\x1a\x0dhttp://a:2380\x28\x01");
    check(&HashKVResponse { hash: u32::MAX, ..HashKVResponse::default() }, b"\x10\xff\xff\xff\xff\x0f");
    check(&HealthCheckResponse { status: ServingStatus::SERVING }, b"\x08\x01");
    check(
        &LeaseTimeToLiveResponse { ttl: -1, keys: vec![b"a", b""], ..LeaseTimeToLiveResponse::default() },
        b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x2a\x01a\x2a\x00",
    );
    let event =
        Event { event_type: EventType::DELETE, kv: Some(KeyValue { key: b"k", ..KeyValue::default() }), prev_kv: None };
    check(&event, b"\x08\x01\x12\x03\x0a\x01k");
}

#[test]
fn repeated_numbers_are_read_packed_and_unpacked_and_written_packed() {
    let filters = |bytes| WatchCreateRequest::decode(bytes).unwrap().filters.iter().map(|f| f.0).collect::<Vec<_>>();
    assert_eq!(filters(b"\x28\x01\x28\x00"), [1, 0]);
    assert_eq!(filters(b"\x2a\x02\x01\x00"), [1, 0]);
    assert_eq!(filters(b"\x28\x01\x2a\x03\x00\x81\x01\x28\x05"), [1, 0, 129, 5], "mixed");
    assert_eq!(filters(b"\x2a\x00"), [0; 0]);
    assert_eq!(WatchCreateRequest::decode(b"\x2a\x01\x80"), Err(DecodeError::Truncated));
    check(&WatchCreateRequest::decode(b"\x28\x01\x28\x00").unwrap(), b"\x2a\x02\x01\x00");
}

#[test]
fn repeated_occurrences_of_a_field_merge() {
    let last = PutRequest::decode(b"\x0a\x01a\x18\x01\x0a\x01b\x18\x02").unwrap();
    assert_eq!((last.key, last.lease), (&b"b"[..], 2), "the last scalar wins");
    let merged = PutResponse::decode(b"\x0a\x02\x08\x01\x0a\x04\x10\x02\x18\x05\x0a\x02\x18\x06").unwrap();
    let header = ResponseHeader { cluster_id: 1, member_id: 2, revision: 6, raft_term: 0 };
    assert_eq!(merged.header, Some(header), "sub-messages merge");
    let lists = RangeResponse::decode(b"\x12\x03\x0a\x01a\x12\x03\x0a\x01b").unwrap();
    assert_eq!(lists.kvs.len(), 2, "repeated fields append");
}

#[test]
fn the_last_member_of_a_oneof_wins_and_equal_members_merge() {
    let op = |bytes| RequestOp::decode(bytes).unwrap().request;
    let put = |key, lease| RequestOpRequest::Put(PutRequest { key, lease, ..PutRequest::default() });
    assert_eq!(op(b"\x0a\x03\x0a\x01a\x12\x03\x0a\x01b"), Some(put(b"b", 0)), "range, then put");
    assert_eq!(op(b"\x12\x03\x0a\x01a\x12\x02\x18\x07"), Some(put(b"a", 7)), "put, then put");
    assert_eq!(op(b"\x12\x03\x0a\x01a\x0a\x00\x12\x02\x18\x07"), Some(put(b"", 7)), "put, range, put");
    let compare = Compare::decode(b"\x20\x05\x3a\x01v\x28\x06").unwrap();
    assert_eq!(compare.target_union, Some(CompareTargetUnion::CreateRevision(6)));
    let watch = WatchRequest::decode(b"\x1a\x00\x12\x02\x08\x09").unwrap();
    assert!(matches!(watch.request_union, Some(WatchRequestRequestUnion::Cancel(cancel)) if cancel.watch_id == 9));
}

#[test]
fn unknown_fields_of_every_wire_type_are_skipped() {
    let known = PutRequest { key: b"k", lease: 5, ..PutRequest::default() };
    for unknown in [
        &b"\x78\x96\x01"[..],
        b"\x79\x01\x02\x03\x04\x05\x06\x07\x08",
        b"\x7a\x03abc",
        b"\x7b\x08\x01\x13\x7a\x01x\x14\x7c",
        b"\x7d\x01\x02\x03\x04",
        b"\xfa\xff\xff\xff\x0f\x00",
    ] {
        assert_eq!(PutRequest::decode(&[b"\x0a\x01k", unknown, b"\x18\x05"].concat()), Ok(known), "{unknown:x?}");
    }
    // The wrong wire type for a known number is unknown too, as in Go: key as varint, lease as fixed64 and as bytes.
    for unknown in [&b"\x08\x01"[..], b"\x19\x01\x02\x03\x04\x05\x06\x07\x08", b"\x1a\x01\x09"] {
        assert_eq!(PutRequest::decode(&[b"\x0a\x01k", unknown, b"\x18\x05"].concat()), Ok(known), "{unknown:x?}");
    }
}

#[test]
fn malformed_bytes_are_errors() {
    for (bytes, expected) in [
        (&b"\x0a"[..], DecodeError::Truncated),
        (b"\x0a\x02k", DecodeError::Truncated),
        (b"\x18", DecodeError::Truncated),
        (b"\x18\x80", DecodeError::Truncated),
        (b"\x79\x01", DecodeError::Truncated),
        (b"\x7d\x01\x02\x03", DecodeError::Truncated),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", DecodeError::Truncated),
        (b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", DecodeError::VarintOverflow),
        (b"\x00\x00", DecodeError::InvalidTag),
        (b"\x0f", DecodeError::InvalidTag),
        (b"\x0c", DecodeError::InvalidTag),
    ] {
        assert_eq!(PutRequest::decode(bytes), Err(expected), "{bytes:x?}");
    }
    assert_eq!(Member::decode(b"\x12\x02a\xff"), Err(DecodeError::InvalidUtf8));
    assert_eq!(Member::decode(b"\x1a\x01\xc0"), Err(DecodeError::InvalidUtf8), "repeated strings too");
    assert_eq!(PutRequest::decode(b"\x0a\x01\xff").unwrap().key, b"\xff", "bytes need not be UTF-8");
    // A sub-message may not reach beyond its own end.
    assert_eq!(PutResponse::decode(b"\x0a\x01\x08\x01"), Err(DecodeError::Truncated));
}

/// `levels` transactions, each in the success branch of the one before.
fn nested_txn(levels: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..levels {
        let mut op = Vec::new();
        trilith_wire::proto::codec::put_bytes_field(&mut op, 0x22, &bytes);
        bytes.clear();
        trilith_wire::proto::codec::put_bytes_field(&mut bytes, 0x12, &op);
    }
    bytes
}

#[test]
fn nesting_is_bounded_and_fits_a_small_stack() {
    let levels_max = Limits::DEFAULT.depth_max as usize / 2;
    assert!(levels_max >= 100);
    let work = move || {
        let deep = nested_txn(levels_max);
        let request = TxnRequest::decode(&deep).unwrap();
        assert_eq!(request.encode_to_vec(), deep);
        drop(request);
        assert_eq!(TxnRequest::decode(&nested_txn(levels_max + 1)), Err(DecodeError::TooDeep));
        assert_eq!(TxnRequest::decode(&nested_txn(20_000)), Err(DecodeError::TooDeep));
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn elements_are_bounded() {
    let limits = Limits { depth_max: 10, elements_max: 3 };
    let decode = |bytes| TxnRequest::decode_within(bytes, limits).map(|txn| txn.success.len());
    assert_eq!(decode(b"\x12\x00\x12\x00\x12\x00"), Ok(3));
    assert_eq!(decode(b"\x12\x00\x12\x00\x12\x00\x12\x00"), Err(DecodeError::TooManyElements));
    // Elements of nested messages count against the same budget.
    assert_eq!(decode(b"\x12\x06\x22\x04\x12\x00\x12\x00"), Ok(1));
    assert_eq!(decode(b"\x12\x06\x22\x04\x12\x00\x12\x00\x12\x00"), Err(DecodeError::TooManyElements));
    let filters = |bytes| WatchCreateRequest::decode_within(bytes, limits).map(|watch| watch.filters.len());
    assert_eq!(filters(b"\x2a\x03\x00\x00\x00"), Ok(3));
    assert_eq!(filters(b"\x2a\x03\x00\x00\x00\x28\x00"), Err(DecodeError::TooManyElements));
    assert_eq!(filters(b"\x28\x00\x2a\x03\x00\x00\x00"), Err(DecodeError::TooManyElements));
}

#[test]
fn a_hostile_length_allocates_nothing_before_it_is_checked() {
    // Claims 2^31 bytes of packed values and of elements.
    assert_eq!(WatchCreateRequest::decode(b"\x2a\x80\x80\x80\x80\x08\x00"), Err(DecodeError::Truncated));
    assert_eq!(RangeResponse::decode(b"\x12\x80\x80\x80\x80\x08\x00"), Err(DecodeError::Truncated));
}

fn all_messages() -> impl Iterator<Item = &'static (&'static str, Reencode)> {
    [
        etcdserverpb::MESSAGES,
        mvccpb::MESSAGES,
        authpb::MESSAGES,
        v3lockpb::MESSAGES,
        v3electionpb::MESSAGES,
        health::MESSAGES,
    ]
    .into_iter()
    .flatten()
}

#[test]
fn random_fields_reach_a_fixed_point_in_every_message() {
    let mut random = Random(0x5eed);
    for (name, reencode) in all_messages() {
        let mut accepted = 0;
        for _ in 0..400 {
            let mut bytes = Vec::new();
            random.fields(&mut bytes, 3);
            let Ok(once) = reencode(&bytes) else { continue };
            accepted += 1;
            assert_eq!(reencode(&once).as_ref(), Ok(&once), "{name} of {bytes:x?}");
        }
        assert!(accepted >= 20, "{name}: only {accepted} of 400 were valid, so little was checked");
    }
}

#[test]
fn random_bytes_and_cut_messages_do_not_panic() {
    let mut random = Random(0xbad);
    for (_, reencode) in all_messages() {
        for _ in 0..200 {
            let mut bytes = Vec::new();
            random.fields(&mut bytes, 3);
            let cut = random.below(bytes.len() + 1);
            let _ = reencode(&bytes[..cut]);
            for _ in 0..random.below(8) {
                let index = random.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(index) {
                    *byte = random.next() as u8;
                }
            }
            let _ = reencode(&bytes);
        }
    }
}

#[test]
fn concatenation_is_merging() {
    // The central law of the encoding: decoding a concatenation equals merging what its parts decode to.
    let header = ResponseHeader { cluster_id: 3, member_id: 4, revision: 5, raft_term: 6 };
    let first = PutResponse { header: Some(header), prev_kv: None };
    let pair = KeyValue { key: b"k", version: 2, ..KeyValue::default() };
    let second = PutResponse { header: None, prev_kv: Some(pair) };
    let both = [first.encode_to_vec(), second.encode_to_vec(), first.encode_to_vec()].concat();
    assert_eq!(PutResponse::decode(&both), Ok(PutResponse { header: Some(header), prev_kv: Some(pair) }));
    let op = ResponseOp::decode(b"\x0a\x02\x18\x01\x0a\x02\x20\x02").unwrap();
    assert_eq!(op.encode_to_vec(), b"\x0a\x04\x18\x01\x20\x02");
}

/// Xorshift64*, enough to spread cases.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 33) as usize) % bound
    }

    fn varint(&mut self) -> u64 {
        let bits = self.below(64);
        self.next() >> bits
    }

    /// A few fields with mostly valid numbers, wire types and contents.
    fn fields(&mut self, out: &mut Vec<u8>, depth: usize) {
        use trilith_wire::proto::codec::{put_bytes_field, put_varint, put_varint_field};
        for _ in 0..self.below(5) {
            let number = if self.below(12) == 0 { 64 } else { 1 + self.below(13) } as u32;
            match self.below(16) {
                0..=5 => {
                    let value = self.varint();
                    put_varint_field(out, number << 3, value);
                }
                6..=9 => put_bytes_field(out, number << 3 | 2, &b"some text"[..self.below(10)]),
                10..=13 if depth > 0 => {
                    let mut body = Vec::new();
                    self.fields(&mut body, depth - 1);
                    put_bytes_field(out, number << 3 | 2, &body);
                }
                14 => {
                    put_varint(out, u64::from(number << 3 | 5));
                    out.extend_from_slice(&(self.next() as u32).to_le_bytes());
                }
                15 => {
                    put_varint(out, u64::from(number << 3 | 3));
                    if depth > 0 {
                        self.fields(out, depth - 1);
                    }
                    put_varint(out, u64::from(number << 3 | 4));
                }
                _ => {
                    put_varint(out, u64::from(number << 3 | 1));
                    out.extend_from_slice(&self.next().to_le_bytes());
                }
            }
        }
    }
}
