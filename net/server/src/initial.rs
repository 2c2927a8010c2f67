//! The options that begin with `initial-`: what a data directory without a member is made with.
//!
//! Owns: the identifiers they stand for, and what becomes of them where there is a member already. Does not know:
//! files, how a member is stored, the text forms of options.
//!
//! Operators drop these options after the first start, or change them later: the data says who a member is. Only a
//! cluster token is given on purpose to tell clusters apart, and one that contradicts the data means that the directory
//! is not the one that was meant.
//!
//! Invariants
//! - I1: nothing here changes what a directory with a member is served as.

use trilith_raftlog::{ClusterId, MemberId};

use crate::identity::{cluster_id, member_id};

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Initial {
    /// Peer URLs of a new member.
    pub peer_urls: Vec<String>,
    /// They were given, and are not the default.
    pub peer_urls_are_given: bool,
    /// `--initial-cluster`, if it was given.
    pub cluster: Option<String>,
    /// What is wrong with it; only a new member cares.
    pub cluster_fault: Option<String>,
    /// Cluster token.
    pub token: String,
    /// It was given, and is not the default.
    pub token_is_given: bool,
    /// `--initial-cluster-state=existing`: a directory without a member is to join a cluster.
    pub is_joining: bool,
}

impl Initial {
    /// The identifiers of a new member and its cluster.
    #[must_use]
    pub fn ids(&self) -> (ClusterId, MemberId) {
        ids(&self.peer_urls, &self.token)
    }

    /// Whether a token was given with which a member of these peer URLs would be another cluster's.
    #[must_use]
    pub fn means_another_cluster(&self, cluster: ClusterId, peer_urls: &[String]) -> bool {
        self.token_is_given && ids(peer_urls, &self.token).0 != cluster
    }

    /// The options that say something else than a member of these peer URLs, which is what counts.
    #[must_use]
    pub fn ignored(&self, peer_urls: &[String]) -> Vec<String> {
        let is_same = |urls: Vec<&str>| sorted(urls) == sorted(peer_urls.iter().map(String::as_str).collect());
        let mut ignored = Vec::new();
        if self.peer_urls_are_given && !is_same(self.peer_urls.iter().map(String::as_str).collect()) {
            ignored.push(format!("--initial-advertise-peer-urls={}", self.peer_urls.join(",")));
        }
        if let Some(cluster) = &self.cluster {
            let urls = cluster.split(',').map(|pair| pair.split_once('=').map_or(pair, |(_, url)| url).trim());
            if !is_same(urls.collect()) {
                ignored.push(format!("--initial-cluster={cluster}"));
            }
        }
        ignored
    }
}

fn ids(peer_urls: &[String], token: &str) -> (ClusterId, MemberId) {
    let member = member_id(peer_urls, token);
    (cluster_id(&[member]), member)
}

fn sorted(mut urls: Vec<&str>) -> Vec<&str> {
    urls.sort_unstable();
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    #[test]
    fn only_a_token_that_was_given_tells_clusters_apart() {
        let stored = urls(&["http://a:1"]);
        let given = Initial { token: "t".to_owned(), token_is_given: true, ..Initial::default() };
        let (cluster, _) = Initial { peer_urls: stored.clone(), ..given.clone() }.ids();
        assert!(!given.means_another_cluster(cluster, &stored), "whatever the peer URLs say now");
        let other = Initial { token: "other".to_owned(), ..given };
        assert!(other.means_another_cluster(cluster, &stored));
        assert!(!Initial { token_is_given: false, ..other }.means_another_cluster(cluster, &stored));
    }

    #[test]
    fn what_says_something_else_is_named() {
        let stored = urls(&["http://a:1", "http://b:1"]);
        let options = |peers: &[&str], cluster: Option<&str>| Initial {
            peer_urls: urls(peers),
            peer_urls_are_given: true,
            cluster: cluster.map(str::to_owned),
            ..Initial::default()
        };
        assert!(options(&["http://b:1", "http://a:1"], None).ignored(&stored).is_empty(), "in any order");
        let default = Initial { peer_urls_are_given: false, ..options(&["http://localhost:2380"], None) };
        assert!(default.ignored(&stored).is_empty(), "a default says nothing");
        let same = options(&["http://a:1", "http://b:1"], Some("n=http://a:1, n=http://b:1"));
        assert!(same.ignored(&stored).is_empty());
        let other = options(&["http://c:1"], Some("nonsense"));
        let expected = ["--initial-advertise-peer-urls=http://c:1", "--initial-cluster=nonsense"];
        assert_eq!(other.ignored(&stored), expected);
    }
}
