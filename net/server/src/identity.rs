//! Member and cluster identifiers, computed as etcd computes them.
//!
//! Owns: the SHA-1 rules of etcd's membership package. Does not know: where URLs come from.
//!
//! Invariants
//! - I1: the same initial URLs and token give the same identifiers as etcd, so that clients, dashboards and backups
//!   that store them keep working.

use sha1::{Digest as _, Sha1};
use trilith_raftlog::{ClusterId, MemberId};

/// First eight bytes (big-endian) of SHA-1 over the sorted peer URLs, concatenated, and the cluster token.
#[must_use]
pub fn member_id(peer_urls: &[String], token: &str) -> MemberId {
    let mut sorted: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut hash = Sha1::new();
    for url in sorted {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    MemberId(leading_u64(&hash.finalize()))
}

/// First eight bytes (big-endian) of SHA-1 over the sorted member identifiers (eight bytes each, big-endian).
#[must_use]
pub fn cluster_id(members: &[MemberId]) -> ClusterId {
    let mut sorted: Vec<u64> = members.iter().map(|member| member.0).collect();
    sorted.sort_unstable();
    let mut hash = Sha1::new();
    for id in sorted {
        hash.update(big_endian(id));
    }
    ClusterId(leading_u64(&hash.finalize()))
}

fn big_endian(id: u64) -> [u8; 8] {
    id.to_be_bytes()
}

fn leading_u64(digest: &[u8]) -> u64 {
    digest[..8].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_match_etcd() {
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster");
        assert_eq!(format!("{:x}", member.0), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id(&[member]).0), "cdf818194e3a8c32");
    }

    #[test]
    fn url_order_does_not_matter() {
        let urls = ["http://b:2380".to_owned(), "http://a:2380".to_owned()];
        let swapped = [urls[1].clone(), urls[0].clone()];
        assert_eq!(member_id(&urls, "t"), member_id(&swapped, "t"));
    }
}
