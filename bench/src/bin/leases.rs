//! `trilith-leases`: many leases, each with a key, that all run out at about the same time; how late each key goes.
//! Prints one JSON object.
//!
//! Leases are granted in batches, some seconds apart, each batch with so much less time to live: they are due together,
//! however long granting them all takes. A watcher of all keys sees the ends.
//!
//! I1  A lease is due its time to live after its grant was *sent*, at the earliest: an end before that is an error. How
//!     late an end is counts from there, too.

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trilith_bench::arguments;
use trilith_bench::board::{Board, Done, SILENCE_MAX};
use trilith_bench::watch_messages::{grant_request, put_with_lease, read_watch, watch_request};

const HELP: &str = "\
trilith-leases: leases that run out together; prints one JSON object

  --endpoint HOST:PORT   server (127.0.0.1:2379)
  --leases N             leases, each with a key (200000)
  --batches N            batches they are granted in (10)
  --apart S              seconds from one batch to the next (2)
  --ttl S                time to live of the last batch (20)
  --streams N            requests outstanding (400)
  --wait S               when to give up on those that are still there, from when they were due (60)
";
const PREFIX: &[u8] = b"lease/";

struct Options {
    endpoint: String,
    leases: u64,
    batches: u64,
    apart: u64,
    ttl: u64,
    streams: usize,
    wait: u64,
}

fn main() -> ExitCode {
    arguments::exit_with(run())
}

fn run() -> Result<()> {
    let Some(options) = parse(std::env::args().skip(1))? else {
        print!("{HELP}");
        return Ok(());
    };
    let mut run = Run::begin(&options)?;
    run.grant_all()?;
    run.put_all()?;
    println!("{}", run.wait_for_the_ends()?);
    Ok(())
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let endpoint = "127.0.0.1:2379".to_owned();
    let mut options = Options { endpoint, leases: 200_000, batches: 10, apart: 2, ttl: 20, streams: 400, wait: 60 };
    let is_run = arguments::read(arguments, |name, value| {
        match name {
            "--endpoint" => options.endpoint = value()?,
            "--leases" => options.leases = value()?.parse()?,
            "--batches" => options.batches = value()?.parse()?,
            "--apart" => options.apart = value()?.parse()?,
            "--ttl" => options.ttl = value()?.parse()?,
            "--streams" => options.streams = value()?.parse()?,
            "--wait" => options.wait = value()?.parse()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(is_run.then_some(options))
}

struct Run<'a> {
    options: &'a Options,
    board: Board,
    grants: usize,
    puts: usize,
    /// When each lease is due.
    due: Vec<Option<Instant>>,
    /// When each key went.
    gone: Vec<Option<Instant>>,
    gone_count: u64,
}

impl<'a> Run<'a> {
    fn begin(options: &'a Options) -> Result<Self> {
        let fail = |error: String| anyhow!(error);
        let mut board = Board::new(&options.endpoint).map_err(fail)?;
        let watches = board.connect_watches().map_err(fail)?;
        let grants = board.connect_calls("/etcdserverpb.Lease/LeaseGrant").map_err(fail)?;
        let puts = board.connect_puts().map_err(fail)?;
        let stream = board.open(watches);
        let mut request = Vec::new();
        watch_request(&mut request, PREFIX, b"lease0", 0);
        board.send(watches, stream, &request);
        let count = usize::try_from(options.leases)?;
        Ok(Self { options, board, grants, puts, due: vec![None; count], gone: vec![None; count], gone_count: 0 })
    }

    fn pump(&mut self, timeout: Duration, done: &mut Vec<Done>) -> Result<bool> {
        let Self { board, due, gone, gone_count, .. } = self;
        let now = Instant::now();
        let mut hear = |_: usize, _: u32, message: &[u8]| {
            let mut see = |_, event: trilith_bench::watch_messages::Event<'_>| {
                if !event.is_delete {
                    return Ok(());
                }
                let place = place_of(event.key).ok_or("another key")?;
                let due = due.get(place).copied().flatten().ok_or("a lease that is none")?;
                let now = Instant::now();
                if now < due {
                    return Err(format!("lease {place} ended {:?} early", due - now));
                }
                *gone_count += 1;
                match gone[place].replace(now) {
                    Some(_) => Err(format!("the key of lease {place} went twice")),
                    None => Ok(()),
                }
            };
            read_watch(message, &mut see).map(drop)
        };
        let came = board.pump(timeout, &mut hear, done).map_err(|error| anyhow!(error))?;
        if !came && now.elapsed() >= SILENCE_MAX {
            bail!("nothing came for {SILENCE_MAX:?}");
        }
        Ok(came)
    }

    /// Makes calls for some leases, many at a time, until all are answered.
    fn make(
        &mut self,
        slot: usize,
        leases: std::ops::Range<u64>,
        mut request: impl FnMut(&mut Vec<u8>, u64),
    ) -> Result<()> {
        let (mut next, mut done, mut message) = (leases.start, Vec::new(), Vec::new());
        loop {
            let (outstanding, has_room) = self.board.outstanding(slot);
            if next == leases.end && outstanding == 0 {
                return Ok(());
            }
            if next < leases.end && has_room && outstanding < self.options.streams {
                request(&mut message, next);
                self.board.call(slot, &message, Instant::now(), next);
                next += 1;
                continue;
            }
            self.pump(SILENCE_MAX, &mut done)?;
            done.clear();
        }
    }

    fn grant_all(&mut self) -> Result<()> {
        let &Options { leases, batches, apart, ttl, .. } = self.options;
        let begin = Instant::now();
        for batch in 0..batches {
            let at = begin + Duration::from_secs(batch * apart);
            while Instant::now() < at {
                self.pump(at.saturating_duration_since(Instant::now()), &mut Vec::new())?;
            }
            let ttl = ttl + (batches - 1 - batch) * apart;
            let mut due = std::mem::take(&mut self.due);
            let range = leases * batch / batches..leases * (batch + 1) / batches;
            self.make(self.grants, range, |message, lease| {
                grant_request(message, lease + 1, ttl);
                due[lease as usize] = Some(Instant::now() + Duration::from_secs(ttl));
            })?;
            self.due = due;
        }
        Ok(())
    }

    fn put_all(&mut self) -> Result<()> {
        self.make(self.puts, 0..self.options.leases, |message, lease| {
            put_with_lease(message, &key_of(lease), b"value", lease + 1);
        })
    }

    fn wait_for_the_ends(&mut self) -> Result<Value> {
        let attached = Instant::now();
        let first_due = self.due.iter().flatten().min().copied().context("no leases")?;
        let last_due = self.due.iter().flatten().max().copied().context("no leases")?;
        if first_due < attached {
            bail!("the first lease was due {:?} before the last had its key: --ttl is too short", attached - first_due);
        }
        let limit = last_due + Duration::from_secs(self.options.wait);
        while self.gone_count < self.options.leases && Instant::now() < limit {
            self.pump(
                limit.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)),
                &mut Vec::new(),
            )?;
        }
        let mut late = Histogram::<u64>::new_with_bounds(1, 600_000, 3)?;
        for (due, gone) in self.due.iter().zip(&self.gone) {
            if let (Some(due), Some(gone)) = (due, gone) {
                late.saturating_record(gone.saturating_duration_since(*due).as_millis() as u64);
            }
        }
        let last_gone = self.gone.iter().flatten().max().copied();
        let at = |quantile| late.value_at_quantile(quantile);
        Ok(json!({
            "leases": self.options.leases, "gone": self.gone_count,
            "attached_us": micros(attached)?, "first_due_us": micros(first_due)?, "last_due_us": micros(last_due)?,
            "last_gone_us": last_gone.map(micros).transpose()?,
            "late_ms": { "p50": at(0.5), "p99": at(0.99), "max": at(1.0) },
        }))
    }
}

fn key_of(lease: u64) -> Vec<u8> {
    [PREFIX, format!("{lease:08}").as_bytes()].concat()
}

fn place_of(key: &[u8]) -> Option<usize> {
    std::str::from_utf8(key.strip_prefix(PREFIX)?).ok()?.parse().ok()
}

/// Microseconds since 1970.
fn micros(at: Instant) -> Result<u64> {
    let (now, since) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let since = since + at.saturating_duration_since(now) - now.saturating_duration_since(at);
    Ok(u64::try_from(since.as_micros())?)
}
