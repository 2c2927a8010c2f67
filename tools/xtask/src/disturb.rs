//! `cargo xtask disturb`: the tail of puts while maintenance or a heavy read goes on, beside the same puts in quiet
//! stretches of the same run.
//!
//! Owns: the disturbances, how each is brought about, and the table. One server, preloaded; one load generator in an
//! open loop, whose latencies count from the planned start; quiet stretches and disturbances take turns. Which request
//! belongs to which is decided afterwards, by its planned start: from when calls began and ended, and from when the
//! server's own counters of steps moved.
//!
//! Does not know: how the server does any of it.
//!
//! I1  A ratio compares a disturbance with the quiet stretches of its own round.
//! I2  Quiet is where no disturbance and no background step was at work. Requests that are neither (while a disturbance
//!     is being prepared) count nowhere.

mod metrics;
mod report;
mod timeline;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::drive::{Clients, Shape};
use crate::options::Options;
use crate::servers::{Site, System};
use crate::workspace::Workspace;
use metrics::{Activity, Metrics, Recorder, micros};
use report::Report;
use timeline::{Interval, Intervals, Latencies, Sample};

/// What disturbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Checkpoint,
    Compaction,
    Scrub,
    Range,
    DeleteRange,
    HashKv,
}

impl Kind {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Checkpoint, "checkpoint"),
        (Self::Compaction, "compaction"),
        (Self::Range, "range"),
        (Self::HashKv, "hash-kv"),
        (Self::DeleteRange, "delete-range"),
        (Self::Scrub, "scrub"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).expect("all are listed").1
    }
}

/// Keys of 64 bytes and values of 256, as many as are asked for.
const KEY_BYTES: u32 = 64;
const VALUE_BYTES: u32 = 256;
/// Random overwrites before a checkpoint: just below the number that starts one.
const CHECKPOINT_CHANGES: u64 = 300_000;
/// Random overwrites before a compaction.
const COMPACTION_CHANGES: u64 = 500_000;
/// A call's trace may begin to be felt, and goes on being felt, a little beside its own times.
const TAIL_US: u64 = 20_000;
/// Background work counts as over when nothing of it was seen for so long.
const REST: Duration = Duration::from_millis(1_000);
/// Longest wait for background work to begin, and to end.
const BACKGROUND_MAX: Duration = Duration::from_secs(180);
/// Steps that are background work.
const BACKGROUND: &[&str] = &["checkpoint", "reclaim", "scrub"];

/// How much is measured.
struct Plan<'a> {
    workspace: &'a Workspace,
    rounds: u64,
    /// Of a quiet stretch, and of a disturbance that can be repeated.
    seconds: f64,
    rate: u64,
    shape: Shape,
    kinds: Vec<Kind>,
}

impl Plan<'_> {
    /// Keys that are there to be deleted.
    fn doomed(&self) -> Shape {
        Shape { first_key: 5_000_000, ..self.shape }
    }
}

/// `disturb [--rounds N] [--seconds N] [--keys N] [--rate N] [--only KIND,..] [--json FILE]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["rounds", "seconds", "keys", "rate", "only", "json"])?;
    options.no_arguments()?;
    let workspace = Workspace::find()?;
    let keys = options.number("keys", 1_000_000)?;
    let plan = Plan {
        workspace: &workspace,
        rounds: options.number("rounds", 3)?,
        seconds: options.number("seconds", 10)? as f64,
        rate: options.number("rate", 2_000)?,
        shape: Shape { keys, first_key: 0, key_bytes: KEY_BYTES, value_bytes: VALUE_BYTES },
        kinds: select(options.text("only"))?,
    };
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    let site = Site::new(&workspace, System::Trilith, None)?;
    let mut report = Report::default();
    for round in 1..=plan.rounds {
        run_round(&plan, &site, round, &mut report)?;
    }
    let file = options.text("json").map_or_else(|| workspace.target.join("disturb.json"), PathBuf::from);
    std::fs::write(&file, serde_json::to_string_pretty(&report.json())?)?;
    print!("{}", report.render(&plan.facts()?));
    println!("every round: {}", file.display());
    match report.failures.len() {
        0 => Ok(()),
        count => bail!("{count} disturbances did not take place"),
    }
}

impl Plan<'_> {
    /// What must stand beside the figures.
    fn facts(&self) -> Result<Vec<String>> {
        let cores = std::thread::available_parallelism()?;
        Ok(vec![
            format!("one member; {cores} cores shared by server, load generator and the client that disturbs"),
            format!(
                "{} keys of {KEY_BYTES} bytes, values of {VALUE_BYTES} bytes; every put is durable",
                self.shape.keys
            ),
            format!("{} random puts a second in an open loop; latency from the planned start", self.rate),
            format!("{} rounds; quiet stretches of {} s", self.rounds, self.seconds),
        ])
    }
}

fn select(only: Option<&str>) -> Result<Vec<Kind>> {
    let Some(only) = only else { return Ok(Kind::ALL.iter().map(|(kind, _)| *kind).collect()) };
    let find = |name: &str| Kind::ALL.iter().find(|(_, it)| *it == name).map(|(kind, _)| *kind);
    only.split(',').map(|name| find(name).with_context(|| format!("there is no disturbance '{name}'"))).collect()
}

/// A stretch of the round; `None` is quiet.
struct Stretch {
    kind: Option<Kind>,
    whole: Interval,
    /// When the disturbing calls ran.
    calls: Vec<Interval>,
    /// What the server's counters gained.
    metrics: Metrics,
}

/// All disturbances once: those that calls make or that puts bring about on one server, then the scrubber on another,
/// because it runs all the time or never.
fn run_round(plan: &Plan<'_>, site: &Site, round: u64, report: &mut Report) -> Result<()> {
    let (scrub, others): (Vec<Kind>, Vec<Kind>) = plan.kinds.iter().partition(|kind| **kind == Kind::Scrub);
    for (kinds, interval) in [(others, "0s"), (scrub, "20s")] {
        let scrubs = interval != "0s";
        if scrubs && kinds.is_empty() {
            continue;
        }
        let server = site.start(&[format!("--scrub-interval={interval}")])?;
        let clients = Clients { workspace: plan.workspace, address: server.address() };
        if round == 1 && clients.call("count", &plan.shape, &[]).is_err() {
            clients.fill(&plan.shape).context("filling the server")?;
        }
        let trace = site.folder().join("trace");
        let recorder = Recorder::start(server.address());
        let (rate, trace_name) = (plan.rate.to_string(), trace.display().to_string());
        let flags = ["--rate", &rate, "--seconds", "86400", "--connections", "4", "--trace", &trace_name];
        let load = clients.start_load(&plan.shape, &flags)?;
        let mut stretches = Vec::new();
        if !scrubs && kinds.is_empty() {
            stretches.push(quiet(plan, &clients)?);
        }
        for kind in kinds {
            eprintln!("round {round}: {}", kind.name());
            if let Err(error) = disturb(plan, &clients, kind, &mut stretches) {
                eprintln!("round {round}: {}: {error:#}", kind.name());
                report.failures.push(format!("{}: {error:#}", kind.name()));
            }
        }
        load.finish().context("the open loop")?;
        let activity = recorder.finish()?;
        let samples = Sample::parse_all(&std::fs::read_to_string(&trace)?).context("the trace is malformed")?;
        judge(round, &stretches, &activity, &samples, report);
    }
    Ok(())
}

/// Prepares a disturbance, lets the server come to rest, measures a quiet stretch, and disturbs.
fn disturb(plan: &Plan<'_>, clients: &Clients<'_>, kind: Kind, stretches: &mut Vec<Stretch>) -> Result<()> {
    prepare(plan, clients, kind)?;
    if kind != Kind::Scrub {
        stretches.push(quiet(plan, clients)?);
    }
    let seconds = plan.seconds.to_string();
    let disturbed = stretch(clients, Some(kind), || match kind {
        Kind::Range => clients.call("range", &plan.shape, &["--seconds", &seconds]),
        Kind::HashKv => clients.call("hash-kv", &plan.shape, &["--seconds", &seconds]),
        Kind::DeleteRange => clients.call("delete", &plan.doomed(), &[]),
        Kind::Compaction => {
            let counted = clients.call("count", &plan.shape, &[])?;
            let revision = counted.first().context("a call was made")?["revision"].to_string();
            let calls = clients.call("compact", &plan.shape, &["--revision", &revision])?;
            await_rest(clients, &["reclaim"])?;
            Ok(calls)
        }
        Kind::Checkpoint => {
            await_rest(clients, &["checkpoint"])?;
            Ok(Vec::new())
        }
        Kind::Scrub => {
            std::thread::sleep(Duration::from_secs_f64(2.0 * plan.seconds));
            Ok(Vec::new())
        }
    })?;
    stretches.push(disturbed);
    Ok(())
}

/// Nothing but the puts, once the server has come to rest.
fn quiet(plan: &Plan<'_>, clients: &Clients<'_>) -> Result<Stretch> {
    await_rest(clients, &[])?;
    stretch(clients, None, || {
        std::thread::sleep(Duration::from_secs_f64(plan.seconds));
        Ok(Vec::new())
    })
}

fn stretch(clients: &Clients<'_>, kind: Option<Kind>, work: impl FnOnce() -> Result<Vec<Value>>) -> Result<Stretch> {
    let (start, before) = (micros()?, Metrics::fetch(clients.address)?);
    let calls = work()?;
    let metrics = Metrics::fetch(clients.address)?.since(&before);
    let interval = |call: &Value| Some(Interval { start: call["start_us"].as_u64()?, end: call["end_us"].as_u64()? });
    let calls = calls.iter().map(interval).collect::<Option<Vec<_>>>().context("a call says when it ran")?;
    Ok(Stretch { kind, whole: Interval { start, end: micros()? }, calls, metrics })
}

/// What has to be there to be worked on.
fn prepare(plan: &Plan<'_>, clients: &Clients<'_>, kind: Kind) -> Result<()> {
    let overwrite = |changes: u64| {
        let requests = (changes * plan.shape.keys / 1_000_000).max(1).to_string();
        clients.load(&plan.shape, &["--requests", &requests, "--seed", "77"]).map(drop)
    };
    match kind {
        Kind::Compaction => overwrite(COMPACTION_CHANGES),
        Kind::DeleteRange => clients.fill(&plan.doomed()),
        Kind::Checkpoint | Kind::Scrub | Kind::Range | Kind::HashKv => Ok(()),
    }?;
    if kind == Kind::Checkpoint {
        // A checkpoint that just ended leaves the whole budget of changes to the next.
        await_rest(clients, &[])?;
        overwrite(CHECKPOINT_CHANGES)?;
    }
    Ok(())
}

/// Waits until no background step was seen for a while. Kinds in `wanted` must have been seen first.
fn await_rest(clients: &Clients<'_>, wanted: &[&str]) -> Result<()> {
    let begun = Instant::now();
    let first = Metrics::fetch(clients.address)?;
    let (mut before, mut last_seen, mut seen) = (first.clone(), Instant::now(), wanted.is_empty());
    while !seen || last_seen.elapsed() < REST {
        if begun.elapsed() > BACKGROUND_MAX {
            match seen {
                true => bail!("background work did not end within {BACKGROUND_MAX:?}"),
                false => bail!("no step of {wanted:?} within {BACKGROUND_MAX:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        let now = Metrics::fetch(clients.address)?;
        let moved = |kind: &str| now.since(&before).steps().any(|(step, count)| step == kind && count > 0.0);
        // The scrubber, once on, does not rest.
        if BACKGROUND.iter().any(|kind| *kind != "scrub" && moved(kind)) {
            last_seen = Instant::now();
        }
        seen = seen || wanted.iter().any(|kind| moved(kind));
        before = now;
    }
    Ok(())
}

/// Which requests belong to what, and what follows.
fn judge(round: u64, stretches: &[Stretch], activity: &Activity, samples: &[Sample], report: &mut Report) {
    let steps = |names: &[&str]| {
        let parts = activity.iter().filter(|(kind, _)| names.contains(&kind.as_str())).map(|(_, part)| *part);
        Intervals::union(parts.collect(), TAIL_US)
    };
    let (checkpoint, reclaim, scrub) = (steps(&["checkpoint"]), steps(&["reclaim"]), steps(&["scrub"]));
    let of = |kind: Option<Kind>| stretches.iter().filter(move |stretch| stretch.kind == kind);
    let whole = |kind| Intervals::union(of(kind).map(|stretch| stretch.whole).collect(), 0);
    let calls = |kind| Intervals::union(of(Some(kind)).flat_map(|stretch| stretch.calls.clone()).collect(), TAIL_US);
    let background = |moment| checkpoint.contain(moment) || reclaim.contain(moment);
    let quiet = whole(None);
    let quiet_latencies =
        Latencies::of(samples, |moment| quiet.contain(moment) && !background(moment) && !scrub.contain(moment));
    if quiet.len() > 0 {
        report.quiet(round, quiet_latencies, quiet.seconds(), of(None).map(|stretch| &stretch.metrics));
    }
    for (kind, _) in Kind::ALL {
        if of(Some(kind)).next().is_none() {
            continue;
        }
        let (stretch, called) = (whole(Some(kind)), calls(kind));
        let belongs = |moment: u64| match kind {
            // Checkpoints that happened to fall into quiet stretches are as good as any.
            Kind::Checkpoint => (stretch.contain(moment) || quiet.contain(moment)) && checkpoint.contain(moment),
            Kind::Compaction => called.contain(moment) || (stretch.contain(moment) && reclaim.contain(moment)),
            Kind::Scrub => stretch.contain(moment) && scrub.contain(moment) && !background(moment),
            // What a delete brings about is its own doing; other calls are measured alone.
            Kind::DeleteRange => called.contain(moment),
            Kind::Range | Kind::HashKv => called.contain(moment) && !background(moment),
        };
        let latencies = Latencies::of(samples, belongs);
        report.disturbed(round, kind, latencies, stretch.seconds(), of(Some(kind)).map(|stretch| &stretch.metrics));
    }
}
