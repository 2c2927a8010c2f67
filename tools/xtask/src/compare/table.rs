//! The table a comparison prints: medians per system and the ratios between them.

use super::Measurement;
use crate::servers::System;

/// Renders facts, one row per case, and what the columns mean.
pub(super) fn render(facts: &[String], cases: &[&str], measurements: &[Measurement]) -> String {
    let mut text = String::new();
    for fact in facts {
        text.push_str(&format!("{fact}\n"));
    }
    text.push_str(&format!(
        "\n{:<17} {:>9} {:>9} {:>9} {:>7} {:>8}   {:>17} {:>17}   {:>9} {:>9}\n",
        "operations/s", "trilith", "etcd", "floor", "x etcd", "x floor", "p50/p99 us", "etcd", "per cpu s", "etcd"
    ));
    for case in cases {
        text.push_str(&row(case, measurements));
    }
    text
}

fn row(case: &str, measurements: &[Measurement]) -> String {
    let of = |system: System, value: fn(&Measurement) -> f64| {
        let runs = measurements.iter().filter(|run| run.system == system && run.case == case);
        median(runs.map(value).collect())
    };
    let speed = |system| of(system, |run| run.operations_per_second);
    let latency = |system| match (of(system, |run| run.p50_us), of(system, |run| run.p99_us)) {
        (Some(p50), Some(p99)) => format!("{p50:.0}/{p99:.0}"),
        _ => "-".to_owned(),
    };
    let per_cpu = |system| of(system, |run| run.operations / run.server_cpu_seconds.max(0.01));
    let (trilith, etcd, floor) = (speed(System::Trilith), speed(System::Etcd), speed(System::Floor));
    format!(
        "{case:<17} {:>9} {:>9} {:>9} {:>7} {:>8}   {:>17} {:>17}   {:>9} {:>9}\n",
        whole(trilith),
        whole(etcd),
        whole(floor),
        ratio(trilith, etcd),
        ratio(trilith, floor),
        latency(System::Trilith),
        latency(System::Etcd),
        whole(per_cpu(System::Trilith)),
        whole(per_cpu(System::Etcd)),
    )
}

fn whole(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> String {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.2}", ours / theirs),
        _ => "-".to_owned(),
    }
}

/// The middle value, or the mean of the two middle ones.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_order_and_averages_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn a_row_shows_ratios_and_leaves_out_what_was_not_measured() {
        let run = |system, speed| Measurement {
            system,
            case: "put",
            operations_per_second: speed,
            p50_us: 1.0,
            p99_us: 2.0,
            server_cpu_seconds: 2.0,
            operations: 10.0,
        };
        let text = row("put", &[run(System::Trilith, 400.0), run(System::Etcd, 100.0)]);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[1..6], ["400", "100", "-", "4.00", "-"]);
    }
}
