//! Wire requests to engine requests.
//!
//! Owns: the translation of decoded KV messages into the syntax tree of `engine::command`, borrowed from the same
//! bytes. Does not know: checks of arguments (`engine::mvcc::check`), errors, replies.
//!
//! Invariants
//! - I1: nothing is dropped: every field of a message that etcd acts on has its place in the tree.
//! - I2: unknown enum numbers stay recognizable, because etcd treats each in its own way.

use trilith_engine::command::{
    Compare, CompareResult, CompareTarget, DeleteRange, Op, Put, RangeQuery, SortOrder, SortTarget, Txn,
};
use trilith_wire::proto::etcdserverpb as pb;

/// `etcdserverpb.RangeRequest`.
#[must_use]
pub fn range<'a>(request: &pb::RangeRequest<'a>) -> RangeQuery<'a> {
    RangeQuery {
        key: request.key,
        range_end: request.range_end,
        limit: request.limit,
        revision: request.revision,
        sort_order: match request.sort_order {
            pb::SortOrder::NONE => SortOrder::None,
            pb::SortOrder::ASCEND => SortOrder::Ascend,
            pb::SortOrder::DESCEND => SortOrder::Descend,
            _ => SortOrder::Unknown,
        },
        sort_target: match request.sort_target {
            pb::SortTarget::KEY => SortTarget::Key,
            pb::SortTarget::VERSION => SortTarget::Version,
            pb::SortTarget::CREATE => SortTarget::Create,
            pb::SortTarget::MOD => SortTarget::Mod,
            pb::SortTarget::VALUE => SortTarget::Value,
            _ => SortTarget::Unknown,
        },
        serializable: request.serializable,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    }
}

/// `etcdserverpb.PutRequest`.
#[must_use]
pub fn put<'a>(request: &pb::PutRequest<'a>) -> Put<'a> {
    Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

/// `etcdserverpb.DeleteRangeRequest`.
#[must_use]
pub fn delete_range<'a>(request: &pb::DeleteRangeRequest<'a>) -> DeleteRange<'a> {
    DeleteRange { key: request.key, range_end: request.range_end, prev_kv: request.prev_kv }
}

/// `etcdserverpb.TxnRequest`; its depth is bounded by the decoder.
#[must_use]
pub fn txn<'a>(request: &pb::TxnRequest<'a>) -> Txn<'a> {
    Txn {
        compares: request.compare.iter().map(compare).collect(),
        success: request.success.iter().map(op).collect(),
        failure: request.failure.iter().map(op).collect(),
    }
}

fn op<'a>(request: &pb::RequestOp<'a>) -> Op<'a> {
    match &request.request {
        None => Op::Unset,
        Some(pb::RequestOpRequest::Range(inner)) => Op::Range(range(inner)),
        Some(pb::RequestOpRequest::Put(inner)) => Op::Put(put(inner)),
        Some(pb::RequestOpRequest::DeleteRange(inner)) => Op::DeleteRange(delete_range(inner)),
        Some(pb::RequestOpRequest::Txn(inner)) => Op::Txn(txn(inner)),
    }
}

/// A union member that does not belong to the target leaves the reference value zero or empty, as in etcd.
fn compare<'a>(request: &pb::Compare<'a>) -> Compare<'a> {
    use pb::CompareTargetUnion as Union;
    let number = |pick: fn(&Union<'a>) -> Option<i64>| request.target_union.as_ref().and_then(pick).unwrap_or(0);
    let target = match request.target {
        pb::CompareTarget::VERSION => {
            CompareTarget::Version(number(|u| if let Union::Version(v) = u { Some(*v) } else { None }))
        }
        pb::CompareTarget::CREATE => {
            CompareTarget::Create(number(|u| if let Union::CreateRevision(v) = u { Some(*v) } else { None }))
        }
        pb::CompareTarget::MOD => {
            CompareTarget::Mod(number(|u| if let Union::ModRevision(v) = u { Some(*v) } else { None }))
        }
        pb::CompareTarget::LEASE => {
            CompareTarget::Lease(number(|u| if let Union::Lease(v) = u { Some(*v) } else { None }))
        }
        pb::CompareTarget::VALUE => match request.target_union {
            Some(Union::Value(value)) => CompareTarget::Value(value),
            _ => CompareTarget::Value(b""),
        },
        _ => CompareTarget::Unknown,
    };
    let result = match request.result {
        pb::CompareResult::EQUAL => CompareResult::Equal,
        pb::CompareResult::GREATER => CompareResult::Greater,
        pb::CompareResult::LESS => CompareResult::Less,
        pb::CompareResult::NOT_EQUAL => CompareResult::NotEqual,
        _ => CompareResult::Unknown,
    };
    Compare { key: request.key, range_end: request.range_end, result, target }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatched_union_compares_with_zero() {
        let wire = pb::Compare {
            target: pb::CompareTarget::VERSION,
            target_union: Some(pb::CompareTargetUnion::ModRevision(9)),
            key: b"k",
            ..pb::Compare::default()
        };
        assert_eq!(compare(&wire).target, CompareTarget::Version(0));
        let value = pb::Compare { target: pb::CompareTarget::VALUE, target_union: None, ..wire };
        assert_eq!(compare(&value).target, CompareTarget::Value(b""));
    }

    #[test]
    fn unknown_enum_numbers_stay_unknown() {
        let wire = pb::RangeRequest {
            sort_order: pb::SortOrder(7),
            sort_target: pb::SortTarget(-1),
            ..pb::RangeRequest::default()
        };
        let query = range(&wire);
        assert_eq!((query.sort_order, query.sort_target), (SortOrder::Unknown, SortTarget::Unknown));
        let wire = pb::Compare { result: pb::CompareResult(9), target: pb::CompareTarget(9), ..pb::Compare::default() };
        assert_eq!((compare(&wire).result, compare(&wire).target), (CompareResult::Unknown, CompareTarget::Unknown));
    }

    #[test]
    fn an_empty_oneof_is_unset() {
        let wire = pb::TxnRequest { success: vec![pb::RequestOp { request: None }], ..pb::TxnRequest::default() };
        assert_eq!(txn(&wire).success, [Op::Unset]);
    }
}
