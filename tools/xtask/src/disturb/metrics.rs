//! What a server says about its turns and steps on `/metrics`.
//!
//! Owns: asking, reading the text form, and a record of when each kind of step was at work. Does not know: what a kind
//! means.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::timeline::Interval;

/// How often background work is looked for.
const PERIOD: Duration = Duration::from_millis(25);
const STEPS: &str = "trilith_step_cpu_seconds_count{kind=\"";

/// Series by name and labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Asks a server.
    pub(super) fn fetch(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        if !text.starts_with("HTTP/1.1 200") {
            bail!("/metrics answered '{}'", text.lines().next().unwrap_or_default());
        }
        Ok(Self::parse(&text))
    }

    /// The series of a text; other lines, those of the HTTP head among them, are none.
    fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| line.starts_with("trilith_"));
        Self(
            series
                .filter_map(|line| Some((line.rsplit_once(' ')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?)))
                .collect(),
        )
    }

    /// A series' value; 0 for one that is not there.
    pub(super) fn value(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// What came since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().map(|(series, value)| (series.clone(), value - before.value(series))).collect())
    }

    /// Observations of a histogram above `bound` (as its label says it). `labels`: empty, or like `kind="apply",`.
    pub(super) fn above(&self, histogram: &str, labels: &str, bound: &str) -> f64 {
        let below = self.value(&format!("{histogram}_bucket{{{labels}le=\"{bound}\"}}"));
        self.value(&format!("{histogram}_bucket{{{labels}le=\"+Inf\"}}")) - below
    }

    /// Kinds of steps and how many there were.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().filter_map(|(series, value)| Some((series.strip_prefix(STEPS)?.strip_suffix("\"}")?, *value)))
    }
}

/// When which kind of step was at work.
pub(super) type Activity = Vec<(String, Interval)>;

/// Looks at a server's steps until it is asked to stop.
pub(super) struct Recorder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Activity>>,
}

impl Recorder {
    /// Starts looking.
    pub(super) fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        Self { stop, thread: std::thread::spawn(move || record(address, &seen)) }
    }

    /// What was seen.
    pub(super) fn finish(self) -> Result<Activity> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the recorder does not panic")
    }
}

fn record(address: SocketAddr, stop: &AtomicBool) -> Result<Activity> {
    let mut activity = Activity::new();
    let (mut since, mut before) = (micros()?, Metrics::fetch(address)?);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PERIOD);
        let asked = micros()?;
        let metrics = Metrics::fetch(address)?;
        let seen = Interval { start: since, end: micros()? };
        let moved = metrics.since(&before);
        activity.extend(moved.steps().filter(|(_, count)| *count > 0.0).map(|(kind, _)| (kind.to_owned(), seen)));
        (since, before) = (asked, metrics);
    }
    Ok(activity)
}

/// Microseconds since 1970.
pub(super) fn micros() -> Result<u64> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    Ok(u64::try_from(since_epoch.as_micros())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n\
        # TYPE trilith_turn_cpu_seconds histogram\n\
        trilith_turn_cpu_seconds_bucket{le=\"0.01\"} 90\n\
        trilith_turn_cpu_seconds_bucket{le=\"+Inf\"} 92\n\
        trilith_step_cpu_seconds_bucket{kind=\"apply\",le=\"0.0005\"} 7\n\
        trilith_step_cpu_seconds_bucket{kind=\"apply\",le=\"+Inf\"} 8\n\
        trilith_step_cpu_seconds_count{kind=\"apply\"} 8\n\
        trilith_step_cpu_seconds_count{kind=\"scrub\"} 0\n";

    #[test]
    fn histograms_and_kinds_are_read() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.above("trilith_turn_cpu_seconds", "", "0.01"), 2.0);
        assert_eq!(metrics.above("trilith_step_cpu_seconds", "kind=\"apply\",", "0.0005"), 1.0);
        assert_eq!(metrics.steps().collect::<Vec<_>>(), [("apply", 8.0), ("scrub", 0.0)]);
        let later = Metrics::parse(&TEXT.replace("\"} 8\n", "\"} 11\n"));
        assert_eq!(later.since(&metrics).steps().collect::<Vec<_>>(), [("apply", 3.0), ("scrub", 0.0)]);
    }
}
