//! What a request may cost before it enters the log.
//!
//! Owns: the size limit of a replicated request and the quota estimate, both as etcd computes them, and what long
//! answers may hold in memory. Does not know: what happens to a refused request.
//!
//! Invariants
//! - I1: the size that is limited is that of etcd's replicated request: the message, its field in the envelope, and the
//!   envelope's header with a request id. A value of exactly the limit is too large, as in etcd.

use trilith_engine::command::{Op, Put, Txn};
use trilith_wire::api::status::{self, Status};

/// Limits of admission.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// `--max-request-bytes`.
    pub request_bytes_max: usize,
    /// `--max-txn-ops`.
    pub txn_ops_max: usize,
    /// `--quota-backend-bytes`; negative is no quota.
    pub quota_bytes: i64,
    /// Identifier of this member: its low 16 bits lead every request id.
    pub member_id: u64,
    /// Addresses of rows that all long answers together may hold; see [`rows_held_max`].
    pub rows_held_max: usize,
}

/// What long answers may hold of a budget for memory: a quarter, at most 256 MiB, in addresses of 16 bytes.
#[must_use]
pub fn rows_held_max(cache_bytes: u64) -> usize {
    usize::try_from((cache_bytes / 64).min(16 << 20)).expect("the address space holds 16 Mi addresses")
}

/// Fixed estimate of what a put adds besides key and value (etcd's `kvOverhead`).
const PUT_OVERHEAD_BYTES: u64 = 256;

impl Admission {
    /// Checks the replicated size of a request message.
    ///
    /// # Errors
    /// `etcdserver: request is too large`.
    pub fn check_size(&self, message_bytes: usize) -> Result<(), Status> {
        // Request ids are `low 16 bits of the member << 48 | counter`.
        let id_bits = 64 - ((self.member_id & 0xffff) << 48 | 1 << 47).leading_zeros() as usize;
        let header = 2 + 1 + 1 + id_bits.div_ceil(7);
        let field = 1 + varint_bytes(message_bytes);
        if message_bytes + field + header > self.request_bytes_max {
            return Err(status::REQUEST_TOO_LARGE);
        }
        Ok(())
    }

    /// Whether a request of this cost fits the quota.
    #[must_use]
    pub fn fits_quota(&self, store_bytes: u64, cost: u64) -> bool {
        u64::try_from(self.quota_bytes).map_or(true, |quota| store_bytes.saturating_add(cost) < quota)
    }
}

/// etcd's estimate of a put, in bytes.
#[must_use]
pub(super) fn put_cost(put: &Put<'_>) -> u64 {
    PUT_OVERHEAD_BYTES + put.key.len() as u64 + put.value.len() as u64
}

/// etcd's estimate of a transaction: the dearer branch, nested ones included.
#[must_use]
pub(super) fn txn_cost(txn: &Txn<'_>) -> u64 {
    let branch = |ops: &[Op<'_>]| {
        ops.iter()
            .map(|op| match op {
                Op::Put(put) => put_cost(put),
                Op::Txn(nested) => txn_cost(nested),
                _ => 0,
            })
            .fold(0, u64::saturating_add)
    };
    branch(&txn.success).max(branch(&txn.failure))
}

fn varint_bytes(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADMISSION: Admission = Admission {
        request_bytes_max: 1_572_864,
        txn_ops_max: 128,
        quota_bytes: 1_000,
        member_id: 0x8e9e_05c5_2164_694d,
        rows_held_max: 1,
    };

    #[test]
    fn the_envelope_counts() {
        // 1 + 3 bytes of field, 2 + 1 + 1 + 9 bytes of header.
        assert!(ADMISSION.check_size(1_572_864 - 17).is_ok());
        assert_eq!(ADMISSION.check_size(1_572_864 - 16), Err(status::REQUEST_TOO_LARGE));
    }

    #[test]
    fn quota_is_reached_at_equality_and_negative_is_none() {
        assert!(ADMISSION.fits_quota(500, 499));
        assert!(!ADMISSION.fits_quota(500, 500));
        assert!(Admission { quota_bytes: -1, ..ADMISSION }.fits_quota(u64::MAX, 1));
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch() {
        let put = |value: &'static [u8]| Op::Put(Put { key: b"k", value, ..Put::default() });
        let nested = Txn { failure: vec![put(b"12345"), put(b"")], ..Txn::default() };
        let txn = Txn { success: vec![put(b"1")], failure: vec![Op::Txn(nested)], ..Txn::default() };
        assert_eq!(txn_cost(&txn), 2 * 257 + 5);
    }
}
