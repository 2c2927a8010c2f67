//! Where wire messages and engine types meet: conversions both ways and the errors between them.
//!
//! Owns: [`request`], [`response`], [`parts`] and the mapping of engine errors to the one error table of
//! `trilith_wire`. Does not know: connections or who waits.

pub mod parts;
pub mod request;
pub mod response;

use trilith_engine::mvcc::MvccError;
use trilith_engine::replica::apply::ApplyError;
use trilith_wire::api::methods::{Kind, Method};
use trilith_wire::api::status::{self, Code, Status};
use trilith_wire::connection::{RequestShape, Route};

/// The client's error for an engine error.
#[must_use]
pub fn mvcc_status(error: MvccError) -> Status {
    match error {
        MvccError::EmptyKey => status::EMPTY_KEY,
        MvccError::KeyNotFound => status::KEY_NOT_FOUND,
        MvccError::ValueProvided => status::VALUE_PROVIDED,
        MvccError::LeaseProvided => status::LEASE_PROVIDED,
        MvccError::TooManyOperations => status::TOO_MANY_OPS,
        MvccError::DuplicateKey => status::DUPLICATE_KEY,
        MvccError::InvalidSortOption => status::INVALID_SORT_OPTION,
        MvccError::Compacted => status::COMPACTED,
        MvccError::FutureRevision => status::FUTURE_REVISION,
        MvccError::LeaseNotFound => status::LEASE_NOT_FOUND,
        MvccError::LeaseExists => status::LEASE_EXISTS,
        MvccError::LeaseTtlTooLarge => status::LEASE_TTL_TOO_LARGE,
    }
}

/// The client's error for a command that changed nothing.
#[must_use]
pub fn apply_status(error: ApplyError) -> Status {
    match error {
        ApplyError::Mvcc(error) => mvcc_status(error),
        ApplyError::NoSpace => status::NO_SPACE,
        ApplyError::Corrupt => status::CORRUPT,
        ApplyError::OtherTerm => status::LEADER_CHANGED,
    }
}

/// The answer of a known method that this version does not have (the text of Go's generated servers).
#[must_use]
pub fn not_implemented(method: Method) -> Status {
    Status::with_message(Code::Unimplemented, format!("method {} not implemented", method.name()))
}

/// Resolves a gRPC path for the connection layer.
#[must_use]
pub fn route(path: &[u8]) -> Option<Route> {
    let method = Method::from_path(path)?;
    let shape = match method.kind() {
        Kind::Unary | Kind::ServerStream => RequestShape::Single,
        Kind::BidiStream => RequestShape::Stream,
    };
    Some(Route { method: method as u16, shape })
}

/// The method behind a resolved route.
#[must_use]
pub fn method(route: Route) -> Method {
    Method::all().nth(usize::from(route.method)).expect("routes are made from the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_lead_back_to_their_methods() {
        for expected in Method::all() {
            let route = route(expected.path().as_bytes()).expect("a table path");
            assert_eq!(method(route), expected);
        }
        assert_eq!(route(b"/etcdserverpb.KV/Nope"), None);
    }
}
