//! Latency at a pace that etcd can keep: an open load of four fifths of what it did at most, for both servers.
//!
//! Owns the pace and its table. A request's latency counts from the moment it was planned for, so a server that stalls
//! pays for everything that queued behind the stall.
//!
//! I1  The pace of a case is taken from etcd in the same run, and the systems take turns under it.

use anyhow::Result;

use super::{Case, Drive, Operation, Plan, drive, facts, fill, measure_one, number, table};
use crate::servers::{Server, Site, System};

/// Of etcd's highest speed.
const SHARE: f64 = 0.8;
const PERCENTILES: [&str; 3] = ["p50", "p99", "p99.9"];

/// Measures and prints every case of the plan.
pub(super) fn run(plan: &Plan<'_>) -> Result<()> {
    for fact in facts(plan)? {
        println!("{fact}");
    }
    println!(
        "open loop at {SHARE} of etcd's speed in a closed one; latency in us from the planned time; p50/p99/p99.9\n"
    );
    println!("{:<17} {:>9} {:>22} {:>26} {:>10}", "case", "pace /s", "trilith", "etcd", "p99 ratio");
    for case in &plan.cases {
        let pace = SHARE * top_speed(plan, case)?;
        let mut latencies = [Vec::new(), Vec::new()];
        for _ in 0..plan.rounds {
            for (system, runs) in [System::Trilith, System::Etcd].into_iter().zip(&mut latencies) {
                runs.push(paced_run(plan, case, system, pace)?);
            }
        }
        let [ours, theirs] = latencies.map(|runs| medians(&runs));
        let text = |[p50, p99, p999]: [f64; 3]| format!("{p50:.0}/{p99:.0}/{p999:.0}");
        let ratio = ours[1] / theirs[1];
        println!("{:<17} {pace:>9.0} {:>22} {:>26} {ratio:>10.2}", case.name, text(ours), text(theirs));
    }
    Ok(())
}

/// What etcd does of a case at most, a second.
fn top_speed(plan: &Plan<'_>, case: &'static Case) -> Result<f64> {
    let speeds = (0..plan.rounds).map(|_| {
        on_fresh_server(plan, case, System::Etcd, |server| {
            Ok(measure_one(plan, server, case, System::Etcd)?.operations_per_second)
        })
    });
    Ok(table::median(speeds.collect::<Result<_>>()?).unwrap_or_default())
}

/// Measures on a server of its own, which holds every key if the case reads them.
fn on_fresh_server<T>(
    plan: &Plan<'_>,
    case: &'static Case,
    system: System,
    measure: impl FnOnce(&Server) -> Result<T>,
) -> Result<T> {
    let site = Site::new(plan.workspace, system, None)?;
    let server = site.start(&[])?;
    if case.operation == Operation::Range {
        fill(plan, &server, case)?;
    }
    measure(&server)
}

/// One run at a pace: its percentiles.
fn paced_run(plan: &Plan<'_>, case: &'static Case, system: System, pace: f64) -> Result<[f64; 3]> {
    let result = on_fresh_server(plan, case, system, |server| {
        let drive_for = |seconds| drive(plan, server, &Drive { seconds, rate: Some(pace), ..Drive::of(case) });
        drive_for(plan.warmup_seconds)?;
        drive_for(plan.seconds)
    })?;
    let mut percentiles = [0.0; 3];
    for (value, name) in percentiles.iter_mut().zip(PERCENTILES) {
        *value = number(&result["latency_us"][name], name)?;
    }
    Ok(percentiles)
}

fn medians(runs: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|at| table::median(runs.iter().map(|run| run[at]).collect()).unwrap_or_default())
}
