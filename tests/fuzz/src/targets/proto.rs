//! Protobuf messages: the first byte chooses the message, the rest is its encoding.

use trilith_wire::proto::codec::Reencode;
use trilith_wire::proto::etcdserverpb::{
    Compare, CompareTargetUnion, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, RequestOpRequest, TxnRequest,
    WatchCreateRequest, WatchRequest, WatchRequestRequestUnion,
};
use trilith_wire::proto::{Message, authpb, etcdserverpb, health, mvccpb, v3electionpb, v3lockpb};

use crate::Target;
use crate::targets::no_repair;

pub(crate) const TARGET: Target = Target { name: "proto", run, seeds, repair: no_repair, cost: 1 };

fn messages() -> impl Iterator<Item = &'static (&'static str, Reencode)> {
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

/// What is accepted has a canonical form, which is accepted unchanged.
fn run(input: &[u8]) -> bool {
    let Some((first, bytes)) = input.split_first() else { return false };
    let Some((name, reencode)) = messages().nth(usize::from(*first)) else { return false };
    let Ok(canonical) = reencode(bytes) else { return false };
    assert_eq!(reencode(&canonical).as_ref(), Ok(&canonical), "{name}");
    true
}

fn seed<'a, M: Message<'a>>(message: &M) -> Vec<u8> {
    let number = messages().position(|(name, _)| *name == M::NAME).expect("the message is listed");
    let mut bytes = vec![u8::try_from(number).expect("fewer than 256 messages")];
    message.encode_into(&mut bytes);
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let put = PutRequest { key: b"key", value: b"value", lease: -1, prev_kv: true, ..PutRequest::default() };
    let range = RangeRequest { key: b"a", range_end: b"\0", limit: 10, revision: 1 << 40, ..RangeRequest::default() };
    let op = |request| RequestOp { request: Some(request) };
    let inner = TxnRequest { success: vec![op(RequestOpRequest::Put(put))], ..TxnRequest::default() };
    let compare = Compare {
        key: b"k",
        target_union: Some(CompareTargetUnion::Value(b"v")),
        range_end: b"l",
        ..Compare::default()
    };
    let txn = TxnRequest {
        compare: vec![compare],
        success: vec![op(RequestOpRequest::Txn(inner)), op(RequestOpRequest::Range(range))],
        failure: vec![RequestOp::default()],
    };
    let create =
        WatchCreateRequest { key: b"w", filters: vec![Default::default(); 3], ..WatchCreateRequest::default() };
    let watch = WatchRequest { request_union: Some(WatchRequestRequestUnion::Create(create)) };
    let member = etcdserverpb::Member { id: 7, name: "a", peer_urls: vec!["http://a", "b"], ..Default::default() };
    let kv = mvccpb::KeyValue { key: b"k", value: b"v", mod_revision: 5, ..Default::default() };
    let response = etcdserverpb::RangeResponse { kvs: vec![kv, kv], count: 2, ..Default::default() };
    vec![
        seed(&put),
        seed(&range),
        seed(&txn),
        seed(&watch),
        seed(&member),
        seed(&response),
        seed(&LeaseGrantRequest { ttl: 5, id: i64::MIN }),
        seed(&health::HealthCheckRequest { service: "kv" }),
    ]
}
