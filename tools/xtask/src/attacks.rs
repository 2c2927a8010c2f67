//! `cargo xtask attacks`: what well-behaved clients feel, and what a server's memory does, while hostile clients are at
//! work.
//!
//! Owns: the background load, the order of steps, the criteria, the table. The attacks are `trilith-attack`'s; their
//! rates are bounded, so that the same can be asked of etcd (`--peer etcd`).
//!
//! I1  Every answer to the background load is checked; an attack during which one was wrong has failed.
//! I2  Latency counts from the planned start of a request. Each attack is compared with the quiet time right before it.
//! I3  The server of a run is one process from the first attack to the last.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::drive::{Clients, Shape};
use crate::memory::{Resident, Watch};
use crate::options::Options;
use crate::process;
use crate::servers::{Server, Site, System};
use crate::workspace::Workspace;

/// Requests a second of each kind, put and linearizable range.
const RATE: &str = "500";
/// Connections of each kind.
const CONNECTIONS: &str = "2";
/// The background's keys and values.
const SHAPE: Shape = Shape { keys: 1_000, first_key: 0, key_bytes: 32, value_bytes: 256 };
/// The large values that some attacks read.
const LARGE: Shape = Shape { keys: 16, first_key: 90_000_000, key_bytes: 32, value_bytes: 1_000_000 };
/// The attack's latency may be so many times the quiet one.
const P99_RATIO_MAX: f64 = 3.0;
/// Below this many microseconds a latency is as good as any: the ratio counts from here.
const P99_FLOOR: f64 = 1_000.0;
/// What the server may grow by: assembly and output budgets, and the background's own writes.
const GROWTH_MIB_MAX: f64 = 256.0;
/// And what each connection may cost besides.
const CONNECTION_KIB_MAX: f64 = 20.0;
/// After an attack the server gets so long to close what is left and to give memory back.
const REST: Duration = Duration::from_secs(2);

/// `attacks [--seconds N] [--quiet N] [--rounds N] [--only NAME,..] [--peer etcd] [--json FILE]`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, &[], &["seconds", "quiet", "rounds", "only", "peer", "json"])?;
    options.no_arguments()?;
    let system = match options.text("peer") {
        None => System::Trilith,
        Some("etcd") => System::Etcd,
        Some(other) => bail!("--peer is etcd, not {other}"),
    };
    let workspace = Workspace::find()?;
    if system == System::Etcd {
        crate::peers::ensure(&workspace.peers(), &["etcd"])?;
    }
    workspace.build_release(&["trilith-server", "trilith-bench"])?;
    let attacks = chosen(&workspace, options.text("only"))?;
    let seconds = Seconds { attack: options.number("seconds", 10)?, quiet: options.number("quiet", 5)? };
    let rounds = options.number("rounds", 1)?.max(1);
    let site = Site::new(&workspace, system, None)?;
    let server = site.start(&[])?;
    let trial = Trial { workspace: &workspace, server: &server, seconds };
    trial.prepare()?;
    let mut reports = Vec::new();
    for attack in &attacks {
        let report = sum_up(&(0..rounds).map(|_| trial.run(attack)).collect::<Result<Vec<_>>>()?);
        eprintln!("{}: {}, failures: {}", attack["name"], report["outcome"]["verdict"], report["failures"]);
        reports.push(report);
    }
    let file = options
        .text("json")
        .map_or_else(|| workspace.target.join(format!("attacks-{}.json", system.name())), PathBuf::from);
    std::fs::write(&file, serde_json::to_string_pretty(&reports)?)?;
    println!(
        "{}: {RATE} puts and {RATE} linearizable ranges a second beside each attack of {} s, on {} processors; \
         latencies in ms, medians of {rounds} rounds; memory in MiB\n",
        system.name(),
        trial.seconds.attack,
        std::thread::available_parallelism()?
    );
    print!("{}", render(&reports));
    println!("details: {}", file.display());
    let failed = reports.iter().filter(|report| report["failures"] != json!([])).count();
    if failed > 0 && system == System::Trilith {
        bail!("{failed} of {} attacks did harm", reports.len());
    }
    Ok(())
}

/// The attacks to run, as `trilith-attack --list` describes them.
fn chosen(workspace: &Workspace, only: Option<&str>) -> Result<Vec<Value>> {
    let text = process::capture(Command::new(workspace.release("trilith-attack")).arg("--list"))?;
    let all: Vec<Value> = serde_json::from_str(&text)?;
    let Some(only) = only else { return Ok(all) };
    let names: Vec<&str> = only.split(',').collect();
    if let Some(name) = names.iter().find(|name| all.iter().all(|attack| attack["name"] != **name)) {
        bail!("no attack is {name}");
    }
    Ok(all.into_iter().filter(|attack| names.iter().any(|name| attack["name"] == *name)).collect())
}

/// How long to measure.
#[derive(Clone, Copy)]
struct Seconds {
    attack: u64,
    quiet: u64,
}

/// A server under trial.
struct Trial<'a> {
    workspace: &'a Workspace,
    server: &'a Server,
    seconds: Seconds,
}

/// What the background load found.
struct Background {
    put_p99: f64,
    range_p99: f64,
    /// What was wrong, if anything.
    failure: Option<String>,
}

impl Trial<'_> {
    fn clients(&self) -> Clients<'_> {
        Clients { workspace: self.workspace, address: self.server.address() }
    }

    fn prepare(&self) -> Result<()> {
        self.clients().fill(&SHAPE)?;
        self.clients().fill(&LARGE)
    }

    fn run(&self, attack: &Value) -> Result<Value> {
        let quiet = self.background(self.seconds.quiet);
        let process = self.server.process_id();
        let before = Resident::of(process)?;
        let watch = Watch::start(process, Duration::from_millis(100));
        let running = Running::start(self.workspace, self.server, attack, self.seconds.attack + 1)?;
        let during = self.background(self.seconds.attack);
        let outcome = running.finish();
        std::thread::sleep(REST);
        let after = Resident::of(process).context("the server is gone")?;
        let course = watch.finish();
        let peak = course.iter().map(|(_, resident)| resident.all).fold(before.all, f64::max);
        let alive = self.clients().load(&SHAPE, &["--requests", "100"]).map(drop);
        let mut report = json!({
            "attack": attack, "outcome": outcome.as_ref().cloned().unwrap_or_default(),
            "quiet_us": { "put": quiet.put_p99, "range": quiet.range_p99 },
            "during_us": { "put": during.put_p99, "range": during.range_p99 },
            "memory_mib": { "before": before.all, "peak": peak, "after": after.all },
        });
        let mut failures = Vec::new();
        failures.extend(quiet.failure.map(|error| format!("before it: {error}")));
        failures.extend(during.failure);
        failures.extend(outcome.err().map(|error| format!("{error:#}")));
        failures.extend(alive.err().map(|error| format!("after it: {error:#}")));
        report["failures"] = json!(failures);
        Ok(report)
    }

    /// Puts and ranges side by side for so long.
    fn background(&self, seconds: u64) -> Background {
        let clients = self.clients();
        let seconds = seconds.to_string();
        let load = |operation: &str| {
            let flags = ["--operation", operation, "--rate", RATE, "--connections", CONNECTIONS, "--seconds", &seconds];
            clients.load(&SHAPE, &flags)
        };
        let (put, range) = std::thread::scope(|scope| {
            let put = scope.spawn(|| load("put"));
            let range = load("range");
            (put.join().expect("a load does not panic"), range)
        });
        let p99 = |result: &Result<Value>| {
            result.as_ref().ok().and_then(|found| found["latency_us"]["p99"].as_f64()).unwrap_or(f64::NAN)
        };
        let (put_p99, range_p99) = (p99(&put), p99(&range));
        let failure = put.and(range).err().map(|error| format!("{error:#}"));
        Background { put_p99, range_p99, failure }
    }
}

/// An attack at work; it ends when its standard input does.
struct Running {
    child: Option<Child>,
}

impl Running {
    /// Starts it. It stands for clients on other machines, so it yields the processor to the server and the load.
    fn start(workspace: &Workspace, server: &Server, attack: &Value, seconds: u64) -> Result<Self> {
        let name = attack["name"].as_str().context("an attack has a name")?;
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n $(ulimit -Hn); exec nice -n 19 \"$@\"", "sh"]);
        command.arg(workspace.release("trilith-attack"));
        command.args(["--attack", name, "--seconds", &seconds.to_string()]);
        command.arg("--endpoint").arg(server.address().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self { child: Some(command.spawn().context("cannot start trilith-attack")?) })
    }

    /// Ends it; what became of it.
    fn finish(mut self) -> Result<Value> {
        let mut child = self.child.take().expect("it is finished once");
        drop(child.stdin.take());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("trilith-attack failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("trilith-attack prints JSON")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn number(value: &Value, path: &[&str]) -> f64 {
    path.iter().fold(value, |value, key| &value[*key]).as_f64().unwrap_or(f64::NAN)
}

/// One report of all rounds: the medians of the latencies, the round in which memory grew most, an outcome that was not
/// the wanted one if there is any; and what the criteria say against it.
fn sum_up(rounds: &[Value]) -> Value {
    let growth = |round: &&Value| number(round, &["memory_mib", "peak"]) - number(round, &["memory_mib", "before"]);
    let mut report =
        rounds.iter().max_by(|a, b| growth(a).total_cmp(&growth(b))).expect("one round at the least").clone();
    for (when, kind) in [("quiet_us", "put"), ("quiet_us", "range"), ("during_us", "put"), ("during_us", "range")] {
        let mut latencies: Vec<f64> = rounds.iter().map(|round| number(round, &[when, kind])).collect();
        latencies.sort_by(f64::total_cmp);
        report[when][kind] = json!(latencies[latencies.len() / 2]);
    }
    if let Some(round) = rounds.iter().find(|round| round["outcome"]["met"] != true) {
        report["outcome"] = round["outcome"].clone();
    }
    let mut failures: Vec<Value> = judge(&report).into_iter().map(Value::from).collect();
    failures.extend(rounds.iter().filter_map(|round| round["failures"].as_array()).flatten().cloned());
    report["failures"] = json!(failures);
    report
}

/// How much slower requests of a kind were than in quiet.
fn ratio(report: &Value, kind: &str) -> f64 {
    number(report, &["during_us", kind]) / number(report, &["quiet_us", kind]).max(P99_FLOOR)
}

/// What the criteria of reliability say against it.
fn judge(report: &Value) -> Vec<String> {
    let mut failures = Vec::new();
    for kind in ["put", "range"] {
        let ratio = ratio(report, kind);
        if ratio > P99_RATIO_MAX {
            failures.push(format!("p99 of {kind} is {ratio:.1} times the quiet one"));
        }
    }
    let growth = number(report, &["memory_mib", "peak"]) - number(report, &["memory_mib", "before"]);
    let connections = number(report, &["attack", "connections"]);
    if growth > GROWTH_MIB_MAX + connections * CONNECTION_KIB_MAX / 1_024.0 {
        failures.push(format!("memory grew by {growth:.0} MiB"));
    }
    if report["outcome"]["met"] != true {
        failures.push(report["outcome"]["verdict"].as_str().unwrap_or("the attack did not end").to_owned());
    }
    failures
}

fn render(reports: &[Value]) -> String {
    let mut text = String::from(
        "| attack | conns | pieces/s | put p99 | x quiet | range p99 | x quiet | RSS before | peak | after | \
         attacker | |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let failures: Vec<&str> =
            report["failures"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let verdict = if failures.is_empty() { "pass".to_owned() } else { format!("FAIL: {}", failures.join("; ")) };
        let ms = |kind| number(report, &["during_us", kind]) / 1_000.0;
        let mib = |when| number(report, &["memory_mib", when]);
        text.push_str(&format!(
            "| {} | {} | {} | {:.2} | {:.1} | {:.2} | {:.1} | {:.0} | {:.0} | {:.0} | {} | {verdict} |\n",
            report["attack"]["name"].as_str().unwrap_or_default(),
            report["attack"]["connections"],
            report["attack"]["pieces_per_second"],
            ms("put"),
            ratio(report, "put"),
            ms("range"),
            ratio(report, "range"),
            mib("before"),
            mib("peak"),
            mib("after"),
            fate(&report["outcome"]),
        ));
    }
    text
}

/// What became of the attacker, in a few words.
fn fate(outcome: &Value) -> String {
    let pairs = |key: &str| {
        let counts = outcome[key].as_object().into_iter().flatten();
        counts.map(|(what, times)| format!("{what} x {times}")).collect::<Vec<_>>().join(", ")
    };
    let (closed, answers) = (pairs("closed"), pairs("answers"));
    let longest = outcome["longest_seconds"].as_f64().unwrap_or_default();
    match (closed.is_empty(), answers.is_empty()) {
        (false, _) => format!("closed: {closed}; at most {longest:.1} s"),
        (true, false) => format!("stays; {answers}"),
        (true, true) => "stays".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        json!({
            "attack": { "name": "a", "connections": 1_024, "pieces_per_second": 7 },
            "outcome": { "met": true, "closed": { "goaway 11": 3 }, "answers": {}, "longest_seconds": 1.25 },
            "quiet_us": { "put": 2_000.0, "range": 100.0 },
            "during_us": { "put": 5_900.0, "range": 2_900.0 },
            "memory_mib": { "before": 30.0, "peak": 300.0, "after": 40.0 },
            "failures": [],
        })
    }

    #[test]
    fn the_criteria_are_latency_memory_and_fate() {
        assert_eq!(judge(&report()), [""; 0], "the floor counts for the range, the connections for memory");
        for (path, value, word) in [
            ("/during_us/put", json!(6_100.0), "put"),
            ("/during_us/range", json!(3_100.0), "range"),
            ("/memory_mib/peak", json!(310.0), "memory"),
            ("/outcome/met", json!(false), "did not end"),
        ] {
            let mut report = report();
            *report.pointer_mut(path).unwrap() = value;
            let failures = judge(&report);
            assert!(failures.len() == 1 && failures[0].contains(word), "{failures:?}");
        }
    }

    #[test]
    fn rounds_are_summed_up_by_medians_and_the_worst_of_the_rest() {
        let (mut slow, mut large, mut unmet) = (report(), report(), report());
        slow["during_us"]["put"] = json!(90_000.0);
        large["memory_mib"]["peak"] = json!(320.0);
        assert_eq!(sum_up(&[slow.clone(), report(), report()])["failures"], json!([]), "one slow round of three");
        assert!(sum_up(&[slow.clone(), slow, report()])["failures"][0].as_str().unwrap().contains("put"));
        assert!(sum_up(&[report(), large, report()])["failures"][0].as_str().unwrap().contains("memory"));
        unmet["outcome"]["met"] = json!(false);
        unmet["failures"] = json!(["the server is gone"]);
        assert_eq!(
            sum_up(&[unmet, report(), report()])["failures"],
            json!(["the attack did not end", "the server is gone"])
        );
    }

    #[test]
    fn a_row_says_what_became_of_the_attacker() {
        let text = render(&[report()]);
        assert!(text.contains("| a | 1024 | 7 | 5.90 | 3.0 | 2.90 | 2.9 | 30 | 300 | 40 |"), "{text}");
        assert!(text.contains("| closed: goaway 11 x 3; at most 1.2 s | pass |"), "{text}");
        let mut failed = report();
        failed["failures"] = json!(["p99 of put is 9 times the quiet one"]);
        assert!(render(&[failed]).contains("| FAIL: p99 of put"));
    }
}
