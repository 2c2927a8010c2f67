//! Rounds, medians and tables of `disturb`.
//!
//! I1  The ratio of a disturbance is the median over rounds of its p99.9 over that of the round's quiet stretches.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Kind;
use super::metrics::Metrics;
use super::timeline::Latencies;

const TURN: &str = "trilith_turn_cpu_seconds";
const STEP: &str = "trilith_step_cpu_seconds";

/// What one kind of stretch came to in one round.
struct Line {
    round: u64,
    /// `None` is quiet.
    kind: Option<Kind>,
    latencies: Latencies,
    seconds: f64,
    /// Turns, and those above 10 ms of CPU.
    turns: (f64, f64),
    /// By kind: steps, and those above 500 us of CPU.
    steps: BTreeMap<String, (f64, f64)>,
}

/// Everything that was measured.
#[derive(Default)]
pub(super) struct Report {
    lines: Vec<Line>,
    /// Disturbances that did not take place, and why.
    pub(super) failures: Vec<String>,
}

impl Report {
    /// Takes in the quiet stretches of a round.
    pub(super) fn quiet<'a>(
        &mut self,
        round: u64,
        latencies: Latencies,
        seconds: f64,
        metrics: impl Iterator<Item = &'a Metrics>,
    ) {
        self.add(round, None, latencies, seconds, metrics);
    }

    /// Takes in a disturbance of a round.
    pub(super) fn disturbed<'a>(
        &mut self,
        round: u64,
        kind: Kind,
        latencies: Latencies,
        seconds: f64,
        metrics: impl Iterator<Item = &'a Metrics>,
    ) {
        self.add(round, Some(kind), latencies, seconds, metrics);
    }

    fn add<'a>(
        &mut self,
        round: u64,
        kind: Option<Kind>,
        latencies: Latencies,
        seconds: f64,
        metrics: impl Iterator<Item = &'a Metrics>,
    ) {
        let (mut turns, mut steps) = ((0.0, 0.0), BTreeMap::<String, (f64, f64)>::new());
        for gained in metrics {
            turns.0 += gained.value(&format!("{TURN}_count"));
            turns.1 += gained.above(TURN, "", "0.01");
            for (step, count) in gained.steps().filter(|(_, count)| *count > 0.0) {
                let sum = steps.entry(step.to_owned()).or_default();
                sum.0 += count;
                sum.1 += gained.above(STEP, &format!("kind=\"{step}\","), "0.0005");
            }
        }
        self.lines.push(Line { round, kind, latencies, seconds, turns, steps });
    }

    fn of(&self, kind: Option<Kind>) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.kind == kind)
    }

    /// p99.9 of a disturbance over that of the quiet stretches of its round, by round.
    fn ratios(&self, kind: Kind) -> Vec<f64> {
        let quiet = |round| self.of(None).find(|line| line.round == round).map(|line| line.latencies.p999);
        let lines = self.of(Some(kind)).filter(|line| line.latencies.count > 0);
        lines.filter_map(|line| Some(line.latencies.p999 / quiet(line.round)?)).filter(|it| it.is_finite()).collect()
    }

    /// Both tables.
    pub(super) fn render(&self, facts: &[String]) -> String {
        let mut text: String = facts.iter().map(|fact| format!("{fact}\n")).collect();
        text.push_str("\n| during | puts | p50 us | p99 us | p99.9 us | max us | p99.9 / quiet, median (rounds) |\n");
        text.push_str("|---|---|---|---|---|---|---|\n");
        let kinds = || std::iter::once(None).chain(Kind::ALL.iter().map(|(kind, _)| Some(*kind)));
        for kind in kinds() {
            let lines: Vec<&Line> = self.of(kind).collect();
            if lines.is_empty() {
                continue;
            }
            let middle =
                |value: fn(&Latencies) -> f64| median(lines.iter().map(|line| value(&line.latencies)).collect());
            let ratio = kind.map_or_else(|| "1".to_owned(), |kind| spread(self.ratios(kind)));
            text.push_str(&format!(
                "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {ratio} |\n",
                kind.map_or("nothing", Kind::name),
                lines.iter().map(|line| line.latencies.count).sum::<usize>(),
                middle(|it| it.p50),
                middle(|it| it.p99),
                middle(|it| it.p999),
                lines.iter().map(|line| line.latencies.max).fold(0.0, f64::max),
            ));
        }
        text.push_str(
            "\n| during | turns | above 10 ms of CPU | steps: above 500 us of CPU / all |\n|---|---|---|---|\n",
        );
        for kind in kinds() {
            text.push_str(&self.cpu_row(kind));
        }
        for failure in &self.failures {
            text.push_str(&format!("did not take place: {failure}\n"));
        }
        text
    }

    fn cpu_row(&self, kind: Option<Kind>) -> String {
        let (mut turns, mut steps) = ((0.0, 0.0), BTreeMap::<&str, (f64, f64)>::new());
        for line in self.of(kind) {
            turns = (turns.0 + line.turns.0, turns.1 + line.turns.1);
            for (step, (all, long)) in &line.steps {
                let sum = steps.entry(step).or_default();
                *sum = (sum.0 + all, sum.1 + long);
            }
        }
        if self.of(kind).next().is_none() {
            return String::new();
        }
        let steps: Vec<String> = steps.iter().map(|(step, (all, long))| format!("{step} {long:.0}/{all:.0}")).collect();
        format!("| {} | {:.0} | {:.0} | {} |\n", kind.map_or("nothing", Kind::name), turns.0, turns.1, steps.join(", "))
    }

    /// Every round.
    pub(super) fn json(&self) -> Value {
        let lines = self.lines.iter().map(|line| {
            let Latencies { count, p50, p99, p999, max } = line.latencies;
            let steps: serde_json::Map<String, Value> =
                line.steps.iter().map(|(step, (all, long))| (step.clone(), json!([long, all]))).collect();
            json!({
                "round": line.round, "during": line.kind.map_or("nothing", Kind::name), "seconds": line.seconds,
                "puts": count, "p50_us": p50, "p99_us": p99, "p99.9_us": p999, "max_us": max,
                "turns": line.turns.0, "turns_above_10_ms": line.turns.1, "steps_above_500_us": steps,
            })
        });
        json!({ "rounds": lines.collect::<Vec<_>>(), "failures": self.failures })
    }
}

fn spread(ratios: Vec<f64>) -> String {
    if ratios.is_empty() {
        return "-".to_owned();
    }
    let all: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    format!("{:.2} ({})", median(ratios), all.join(", "))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        let latencies = |p999| Latencies { count: 10, p999, ..Latencies::default() };
        let mut report = Report::default();
        for (round, quiet, disturbed) in [(1, 100.0, 150.0), (2, 1000.0, 3000.0), (3, 10.0, 20.0)] {
            report.quiet(round, latencies(quiet), 1.0, [].iter());
            report.disturbed(round, Kind::Range, latencies(disturbed), 1.0, [].iter());
        }
        report.disturbed(4, Kind::Range, latencies(9.0), 1.0, [].iter());
        assert_eq!(report.ratios(Kind::Range), [1.5, 3.0, 2.0]);
        assert!(report.render(&[]).contains("| 2.00 (1.50, 3.00, 2.00) |"), "{}", report.render(&[]));
    }
}
