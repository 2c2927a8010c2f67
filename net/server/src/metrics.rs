//! Metrics of one core, and their text form.
//!
//! Owns: the histograms that the turn fills, and the Prometheus text format (version 0.0.4). Does not know: sockets;
//! who scrapes.
//!
//! Values are plain numbers in plain arrays: a core has its own, nothing is locked or hashed. Buckets are cumulative
//! only in the text.
//!
//! Invariants
//! - I1: a histogram's buckets plus its overflow are its count.

use std::fmt::Write as _;

/// Upper bounds of CPU-time buckets, in nanoseconds: around the budgets of a step (500 us) and of a turn (10 ms).
const CPU_BOUNDS: [u64; 14] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    750_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];

/// CPU times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuHistogram {
    buckets: [u64; CPU_BOUNDS.len()],
    count: u64,
    sum: u64,
    max: u64,
}

impl CpuHistogram {
    /// Counts one observation.
    pub fn observe(&mut self, nanoseconds: u64) {
        let bucket = CPU_BOUNDS.partition_point(|&bound| bound < nanoseconds);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum = self.sum.wrapping_add(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    /// Observations so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Appends the series of a histogram called `name`, with `labels` (empty, or like `kind="apply",`).
    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut cumulative = 0;
        for (bound, bucket) in CPU_BOUNDS.iter().zip(self.buckets) {
            cumulative += bucket;
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{}\"}} {cumulative}", seconds(*bound));
        }
        let plain = labels.trim_end_matches(',');
        let braced = if plain.is_empty() { String::new() } else { format!("{{{plain}}}") };
        let _ = writeln!(out, "{name}_bucket{{{labels}le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{braced} {}", seconds(self.sum));
        let _ = writeln!(out, "{name}_count{braced} {}", self.count);
    }
}

/// Kinds of work that a turn does in slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Committed commands.
    Apply,
    /// Ranges and read-only transactions, evaluated or measured.
    Read,
    /// Parts of long answers.
    Answer,
    /// Hash and HashKV.
    Hash,
    /// Merge work of a checkpoint.
    Checkpoint,
    /// What a compaction left.
    Reclaim,
    /// The scrubber.
    Scrub,
    /// Events for those who watch.
    Watch,
}

impl StepKind {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Apply, "apply"),
        (Self::Read, "read"),
        (Self::Answer, "answer"),
        (Self::Hash, "hash"),
        (Self::Checkpoint, "checkpoint"),
        (Self::Reclaim, "reclaim"),
        (Self::Scrub, "scrub"),
        (Self::Watch, "watch"),
    ];
}

/// What a core counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// CPU time of whole turns.
    pub turn: CpuHistogram,
    steps: [CpuHistogram; StepKind::ALL.len()],
}

impl Metrics {
    /// Counts one step.
    pub fn observe_step(&mut self, kind: StepKind, nanoseconds: u64) {
        self.steps[kind as usize].observe(nanoseconds);
    }

    /// The text that a scraper gets.
    #[must_use]
    pub fn render(&self, gauges: &[Gauge]) -> String {
        let mut out = String::new();
        for gauge in gauges {
            let Gauge { name, help, value } = gauge;
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let name = "trilith_turn_cpu_seconds";
        let _ = writeln!(out, "# HELP {name} CPU time of the turns of a core.\n# TYPE {name} histogram");
        self.turn.render(&mut out, name, "");
        let name = "trilith_step_cpu_seconds";
        let _ = writeln!(out, "# HELP {name} CPU time of the steps of a turn that work in slices.");
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (kind, label) in StepKind::ALL {
            self.steps[kind as usize].render(&mut out, name, &format!("kind=\"{label}\","));
        }
        let name = "trilith_turn_cpu_seconds_max";
        let _ = writeln!(out, "# HELP {name} The longest turn since the start.\n# TYPE {name} gauge");
        let _ = writeln!(out, "{name} {}", seconds(self.turn.max));
        out
    }
}

/// One current value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub help: &'static str,
    /// The value.
    pub value: i64,
}

/// Nanoseconds as a decimal number of seconds, exactly.
fn seconds(nanoseconds: u64) -> String {
    let text = format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_in_the_text() {
        let mut metrics = Metrics::default();
        for nanoseconds in [0, 10_000, 10_001, 700_000, 2_000_000_000] {
            metrics.turn.observe(nanoseconds);
        }
        metrics.observe_step(StepKind::Reclaim, 400_000);
        let text = metrics.render(&[Gauge { name: "a_gauge", help: "A gauge.", value: -7 }]);
        for line in [
            "# TYPE a_gauge gauge\na_gauge -7\n",
            "trilith_turn_cpu_seconds_bucket{le=\"0.00001\"} 2\n",
            "trilith_turn_cpu_seconds_bucket{le=\"0.000025\"} 3\n",
            "trilith_turn_cpu_seconds_bucket{le=\"0.00075\"} 4\n",
            "trilith_turn_cpu_seconds_bucket{le=\"0.1\"} 4\n",
            "trilith_turn_cpu_seconds_bucket{le=\"+Inf\"} 5\n",
            "trilith_turn_cpu_seconds_sum 2.000720001\n",
            "trilith_turn_cpu_seconds_count 5\n",
            "trilith_step_cpu_seconds_bucket{kind=\"reclaim\",le=\"0.0005\"} 1\n",
            "trilith_step_cpu_seconds_bucket{kind=\"reclaim\",le=\"0.00025\"} 0\n",
            "trilith_step_cpu_seconds_count{kind=\"apply\"} 0\n",
            "trilith_turn_cpu_seconds_max 2\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn kinds_stand_in_their_own_place() {
        for (position, (kind, _)) in StepKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, position);
        }
    }
}
