//! Watch and lease, as `/metrics` shows them.
//!
//! Owns: their counts and names. Does not know: watchers or leases; who has them counts here.

use super::exposition::{Exposition, Unit};
use super::histogram::{Histogram, LEASE_TTL_BOUNDS};

/// The watches of one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchMetrics {
    /// Open watch streams.
    pub streams: u64,
    /// Open watches.
    pub watchers: u64,
    /// Those of them that are behind the newest revision.
    pub watchers_behind: u64,
    /// Events that wait for slow clients.
    pub events_pending: u64,
    /// Events sent so far.
    pub events_sent: u64,
}

impl WatchMetrics {
    pub(super) fn render(&self, out: &mut Exposition) {
        out.gauge("etcd_debugging_mvcc_watch_stream_total", "Open watch streams.", self.streams);
        out.gauge("etcd_debugging_mvcc_watcher_total", "Open watches.", self.watchers);
        let name = "etcd_debugging_mvcc_slow_watcher_total";
        out.gauge(name, "Watches behind the newest revision.", self.watchers_behind);
        let name = "etcd_debugging_mvcc_pending_events_total";
        out.gauge(name, "Events that wait for slow clients.", self.events_pending);
        out.counter("etcd_debugging_mvcc_events_total", "Events sent to watches.", self.events_sent);
    }
}

/// The leases of one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseMetrics {
    granted: u64,
    ttls: Histogram,
    /// Leases ended, by a client or by time.
    pub ended: u64,
    /// Of these, by time.
    pub expired: u64,
    /// Keep-alives answered with a time to live.
    pub renewed: u64,
}

impl Default for LeaseMetrics {
    fn default() -> Self {
        Self { granted: 0, ttls: Histogram::new(LEASE_TTL_BOUNDS), ended: 0, expired: 0, renewed: 0 }
    }
}

impl LeaseMetrics {
    /// A lease was granted for so many seconds.
    pub fn observe_granted(&mut self, ttl: i64) {
        self.granted += 1;
        self.ttls.observe(u64::try_from(ttl).unwrap_or(0));
    }

    pub(super) fn render(&self, out: &mut Exposition) {
        out.counter("etcd_debugging_lease_granted_total", "Leases granted.", self.granted);
        out.counter("etcd_debugging_lease_revoked_total", "Leases ended, by a client or by time.", self.ended);
        out.counter("etcd_debugging_lease_renewed_total", "Keep-alives of leases.", self.renewed);
        out.counter("etcd_debugging_server_lease_expired_total", "Leases that expired.", self.expired);
        let name = "etcd_debugging_lease_ttl_total";
        out.histogram(name, "Times to live of granted leases, in seconds.", Unit::Whole, &self.ttls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_name() {
        let mut leases = LeaseMetrics { ended: 3, expired: 2, renewed: 4, ..LeaseMetrics::default() };
        leases.observe_granted(5);
        let watches = WatchMetrics { streams: 1, watchers: 20, watchers_behind: 3, events_pending: 4, events_sent: 50 };
        let mut out = Exposition::default();
        leases.render(&mut out);
        watches.render(&mut out);
        let text = out.finish();
        for line in [
            "etcd_debugging_lease_granted_total 1\n",
            "etcd_debugging_lease_revoked_total 3\n",
            "etcd_debugging_server_lease_expired_total 2\n",
            "etcd_debugging_lease_renewed_total 4\n",
            "etcd_debugging_lease_ttl_total_bucket{le=\"4\"} 0\n",
            "etcd_debugging_lease_ttl_total_bucket{le=\"8\"} 1\n",
            "etcd_debugging_mvcc_watch_stream_total 1\n",
            "etcd_debugging_mvcc_watcher_total 20\n",
            "etcd_debugging_mvcc_slow_watcher_total 3\n",
            "etcd_debugging_mvcc_pending_events_total 4\n",
            "etcd_debugging_mvcc_events_total 50\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
