//! The Prometheus text format, version 0.0.4.
//!
//! Owns: the syntax of families, samples and histograms, and the form of numbers. Does not know: what is counted.
//!
//! Invariants
//! - I1: a family's HELP and TYPE lines stand before its samples, once.
//! - I2: bounds are written as Go writes them (`0.0001`, `1.048576e+06`): a bound is a label, and a label is a text.

use std::fmt::{Display, Write as _};

use super::histogram::Histogram;

/// What a family's samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// What a histogram's values are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds, written in seconds.
    Seconds,
    /// Whole numbers, written as they are.
    Whole,
}

/// The text under construction.
#[derive(Debug, Default)]
pub struct Exposition {
    out: String,
}

impl Exposition {
    /// An empty text with room.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: String::with_capacity(bytes) }
    }

    /// The text.
    #[must_use]
    pub fn finish(self) -> String {
        self.out
    }

    /// Begins a family. `help` has neither backslash nor line break.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.out.push_str(part);
        }
    }

    /// One sample; `labels` as they stand between the braces, or nothing.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        self.out.push_str(name);
        if !labels.is_empty() {
            self.out.push('{');
            self.out.push_str(labels);
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help);
        self.sample(name, "", value);
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Kind::Gauge, help);
        self.sample(name, "", value);
    }

    /// A histogram without labels.
    pub fn histogram(&mut self, name: &str, help: &str, unit: Unit, histogram: &Histogram) {
        self.family(name, Kind::Histogram, help);
        self.buckets(name, "", unit, histogram);
    }

    /// The samples of a histogram.
    pub fn buckets(&mut self, name: &str, labels: &str, unit: Unit, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in histogram.cumulative() {
            let bound = bound_text(unit, bound);
            let _ = writeln!(self.out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(self.out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", histogram.count());
        for (suffix, value) in [("_sum", number(unit, histogram.sum())), ("_count", histogram.count().to_string())] {
            let _ = match labels {
                "" => writeln!(self.out, "{name}{suffix} {value}"),
                _ => writeln!(self.out, "{name}{suffix}{{{labels}}} {value}"),
            };
        }
    }
}

/// A value, exactly.
fn number(unit: Unit, value: u64) -> String {
    match unit {
        Unit::Seconds => seconds(value),
        Unit::Whole => value.to_string(),
    }
}

fn bound_text(unit: Unit, bound: u64) -> String {
    let digits = bound.to_string();
    if unit == Unit::Seconds || digits.len() < 7 {
        return number(unit, bound);
    }
    let (first, rest) = digits.split_at(1);
    let rest = rest.trim_end_matches('0');
    let point = if rest.is_empty() { "" } else { "." };
    format!("{first}{point}{rest}e+{:02}", digits.len() - 1)
}

/// Nanoseconds as a decimal number of seconds, exactly.
#[must_use]
pub fn seconds(nanoseconds: u64) -> String {
    let text = format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Escapes the value of a label.
#[must_use]
pub fn label_value(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::histogram::{APPLY_BOUNDS, LEASE_TTL_BOUNDS};
    use super::*;

    #[test]
    fn bounds_are_written_as_go_writes_them() {
        let mut text = Exposition::default();
        text.histogram("a", "A.", Unit::Whole, &Histogram::new(LEASE_TTL_BOUNDS));
        text.histogram("b", "B.", Unit::Seconds, &Histogram::new(APPLY_BOUNDS));
        let text = text.finish();
        for bound in ["524288", "1.048576e+06", "8.388608e+06", "0.0001", "0.8192", "52.4288", "+Inf"] {
            assert!(text.contains(&format!("le=\"{bound}\"}} 0\n")), "{bound} is missing in\n{text}");
        }
    }

    #[test]
    fn samples_and_labels() {
        let mut text = Exposition::default();
        text.family("c", Kind::Counter, "Counts.");
        text.sample("c", &format!("l=\"{}\"", label_value("a\"b\\c\nd")), 3);
        text.gauge("g", "A gauge.", -7);
        let mut histogram = Histogram::new(APPLY_BOUNDS);
        histogram.observe(1_500_000_000);
        text.family("h", Kind::Histogram, "Times.");
        text.buckets("h", "op=\"x\"", Unit::Seconds, &histogram);
        let text = text.finish();
        for part in [
            "# HELP c Counts.\n# TYPE c counter\nc{l=\"a\\\"b\\\\c\\nd\"} 3\n",
            "# TYPE g gauge\ng -7\n",
            "h_bucket{op=\"x\",le=\"1.6384\"} 1\n",
            "h_sum{op=\"x\"} 1.5\nh_count{op=\"x\"} 1\n",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
