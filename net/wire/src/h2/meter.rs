//! Meters against floods: a refilling allowance, and grpc-go's ping policy.
//!
//! Owns: counting. Does not know: which frames cost what, nor what happens when an allowance is spent.

use crate::connection::limits::{PING_IDLE_INTERVAL, PING_STRIKES_MAX, SECOND};

/// A number of events allowed in a burst, regained with time and with useful work.
#[derive(Debug)]
pub(super) struct Meter {
    left: u64,
    burst_max: u64,
    per_second: u64,
    refilled_at: u64,
}

impl Meter {
    pub(super) fn new(burst_max: u64, per_second: u64, now: u64) -> Self {
        Self { left: burst_max, burst_max, per_second, refilled_at: now }
    }

    /// Takes one; false when the allowance is spent.
    pub(super) fn spend(&mut self, now: u64) -> bool {
        self.spend_many(1, now)
    }

    /// Takes `count`; false when less than that was left.
    pub(super) fn spend_many(&mut self, count: u64, now: u64) -> bool {
        let regained = now.saturating_sub(self.refilled_at) / (SECOND / self.per_second);
        if regained > 0 {
            self.earn(regained);
            self.refilled_at = now;
        }
        let allowed = self.left >= count;
        self.left = self.left.saturating_sub(count);
        allowed
    }

    /// Gives some back for useful work.
    pub(super) fn earn(&mut self, count: u64) {
        self.left = self.left.saturating_add(count).min(self.burst_max);
    }
}

/// Judges client pings as grpc-go does (keepalive enforcement): a ping that follows the last one too soon is a strike,
/// unless HEADERS or DATA went out in between; those forgive everything.
#[derive(Debug)]
pub(super) struct PingPolicy {
    interval_min: u64,
    last_at: Option<u64>,
    strikes: u32,
    sent_since: bool,
}

impl PingPolicy {
    pub(super) fn new(interval_min: u64) -> Self {
        Self { interval_min, last_at: None, strikes: 0, sent_since: false }
    }

    /// HEADERS or DATA went out.
    #[inline]
    pub(super) fn note_sent(&mut self) {
        self.sent_since = true;
    }

    /// A ping arrived; false when the client must go.
    pub(super) fn accept(&mut self, has_streams: bool, now: u64) -> bool {
        let last_at = self.last_at.replace(now);
        if std::mem::take(&mut self.sent_since) {
            self.strikes = 0;
            return true;
        }
        let interval = if has_streams { self.interval_min } else { PING_IDLE_INTERVAL };
        if last_at.is_some_and(|last| now < last.saturating_add(interval)) {
            self.strikes += 1;
        }
        self.strikes <= PING_STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_allows_a_burst_and_refills_with_time_and_work() {
        let mut meter = Meter::new(10, 100, 0);
        assert!((0..10).all(|_| meter.spend(0)));
        assert!(!meter.spend(0));
        assert!(!meter.spend(SECOND / 100 - 1));
        assert!(meter.spend(SECOND / 100));
        assert!(!meter.spend(SECOND / 100));
        meter.earn(2);
        assert!(meter.spend(SECOND / 100) && meter.spend(SECOND / 100) && !meter.spend(SECOND / 100));
        assert_eq!((0..100).filter(|_| meter.spend(50 * SECOND)).count(), 10, "never above the burst");
    }

    #[test]
    fn the_third_early_ping_is_too_many() {
        let mut policy = PingPolicy::new(5 * SECOND);
        assert!(policy.accept(true, 0), "the first has no predecessor");
        assert!(policy.accept(true, SECOND) && policy.accept(true, 2 * SECOND));
        assert!(!policy.accept(true, 3 * SECOND));
    }

    #[test]
    fn pings_at_the_interval_or_between_responses_are_no_strikes() {
        let mut policy = PingPolicy::new(5 * SECOND);
        assert!((0..100).all(|round| policy.accept(true, round * 5 * SECOND)));
        for round in 0..100 {
            policy.note_sent();
            assert!(policy.accept(false, 500 * SECOND + round));
        }
        assert!(policy.accept(false, 501 * SECOND) && policy.accept(false, 506 * SECOND));
        assert!(!policy.accept(false, 511 * SECOND), "without streams the interval is two hours");
    }
}
