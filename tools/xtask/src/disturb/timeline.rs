//! What happened when: requests, calls and background work on one clock, and which request belongs to what.
//!
//! Owns: intervals and percentiles. Does not know: how anything was measured. Times are microseconds since 1970.
//!
//! Invariants
//! - I1: a request counts by its planned start, so one that a disturbance kept from being sent belongs to it.

/// From the first moment to before the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// One right answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// When its request was planned.
    pub(super) planned: u64,
    /// How long after that it was answered.
    pub(super) latency: u64,
}

impl Sample {
    /// Reads the lines that the load generator traces.
    pub(super) fn parse_all(text: &str) -> Option<Vec<Self>> {
        let line = |line: &str| {
            let (planned, latency) = line.split_once(' ')?;
            Some(Self { planned: planned.parse().ok()?, latency: latency.parse().ok()? })
        };
        text.lines().map(line).collect()
    }
}

/// Intervals that do not overlap, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intervals(Vec<Interval>);

impl Intervals {
    /// The union of `parts`, each made longer by `tail` at its end.
    pub(super) fn union(mut parts: Vec<Interval>, tail: u64) -> Self {
        parts.sort_unstable_by_key(|part| part.start);
        let mut joined: Vec<Interval> = Vec::new();
        for part in parts {
            let end = part.end + tail;
            match joined.last_mut() {
                Some(last) if part.start <= last.end => last.end = last.end.max(end),
                _ => joined.push(Interval { start: part.start, end }),
            }
        }
        Self(joined)
    }

    /// Whether a moment lies in one of them.
    pub(super) fn contain(&self, moment: u64) -> bool {
        let after = self.0.partition_point(|part| part.start <= moment);
        after.checked_sub(1).and_then(|index| self.0.get(index)).is_some_and(|part| moment < part.end)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them together, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.0.iter().map(|part| part.end - part.start).sum::<u64>() as f64 / 1e6
    }
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Latencies {
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Latencies {
    /// Of the samples for which `belongs` says so.
    pub(super) fn of(samples: &[Sample], belongs: impl Fn(u64) -> bool) -> Self {
        let mut latencies: Vec<u64> =
            samples.iter().filter(|sample| belongs(sample.planned)).map(|sample| sample.latency).collect();
        latencies.sort_unstable();
        let at = |quantile: f64| {
            let rank = (latencies.len() as f64 * quantile).ceil() as usize;
            latencies.get(rank.saturating_sub(1)).map_or(0.0, |&latency| latency as f64)
        };
        Self { count: latencies.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_join_where_they_touch() {
        let part = |start, end| Interval { start, end };
        let joined = Intervals::union(vec![part(30, 40), part(0, 10), part(12, 20)], 2);
        assert_eq!(joined.0, [part(0, 22), part(30, 42)]);
        assert_eq!((joined.len(), joined.seconds()), (2, 34e-6));
        for (moment, inside) in [(0, true), (21, true), (22, false), (29, false), (30, true), (42, false)] {
            assert_eq!(joined.contain(moment), inside, "{moment}");
        }
        assert!(!Intervals::default().contain(0));
    }

    #[test]
    fn percentiles_are_those_of_the_chosen_samples() {
        let mut samples: Vec<Sample> = (0..1000).map(|at| Sample { planned: at, latency: 1000 - at }).collect();
        samples.push(Sample { planned: 5000, latency: 9_999 });
        let latencies = Latencies::of(&samples, |planned| planned < 1000);
        assert_eq!(latencies, Latencies { count: 1000, p50: 500.0, p99: 990.0, p999: 999.0, max: 1000.0 });
        assert_eq!(Latencies::of(&samples, |_| false), Latencies::default());
    }

    #[test]
    fn a_trace_is_read_or_refused() {
        let sample = |planned, latency| Sample { planned, latency };
        assert_eq!(Sample::parse_all("7 8\n9 10\n"), Some(vec![sample(7, 8), sample(9, 10)]));
        assert_eq!(Sample::parse_all("7\n"), None);
    }
}
