//! `trilith-watchers`: many watchers on one server, and what they cost it. Prints one JSON object.
//!
//! `--mode memory`: watchers of distinct keys on some streams; the server's resident memory before and after, and
//! whether a put of a key reaches its watcher and no other. `--mode stall`: readers of one key, one of which reads
//! nothing for a while; what the others notice, and whether it misses anything.

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use trilith_bench::arguments;
use trilith_bench::board::{Board, Done, SILENCE_MAX};
use trilith_bench::messages;
use trilith_bench::watch_messages::{read_watch, watch_request};

const HELP: &str = "\
trilith-watchers: many watchers on one server; prints one JSON object

  --endpoint HOST:PORT   server (127.0.0.1:2379)
  --pid N                its process, whose memory is read
  --mode memory|stall    what is measured (memory)
  --connections N        connections of watch streams (memory: 4; stall: one per reader)
  --streams N            watch streams in all (100)
  --watchers N           watchers in all (100000), or readers (stall: 100)
  --key-bytes N          length of a watched key (32)
  --value-bytes N        length of a value (stall: 512)
  --sample N             watched keys that are put (1000)
  --rate N               puts a second (stall: 500)
  --seconds S            length of each stretch (stall: 8)
  --settle S             rest before memory is read (memory: 2)
";
/// Watchers that were asked for and not confirmed: the server's buffers are not what is measured.
const UNCONFIRMED_MAX: usize = 500;

struct Options {
    endpoint: String,
    pid: u32,
    mode: String,
    connections: usize,
    streams: usize,
    watchers: Option<usize>,
    key_bytes: usize,
    value_bytes: usize,
    sample: usize,
    rate: f64,
    seconds: f64,
    settle: f64,
}

fn main() -> ExitCode {
    arguments::exit_with(run())
}

fn run() -> Result<()> {
    let Some(options) = parse(std::env::args().skip(1))? else {
        print!("{HELP}");
        return Ok(());
    };
    let report = match options.mode.as_str() {
        "memory" => memory(&options)?,
        "stall" => stall(&options)?,
        other => bail!("--mode is none of those --help lists: {other}"),
    };
    println!("{report}");
    Ok(())
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        endpoint: "127.0.0.1:2379".to_owned(),
        pid: 0,
        mode: "memory".to_owned(),
        connections: 4,
        streams: 100,
        watchers: None,
        key_bytes: 32,
        value_bytes: 512,
        sample: 1000,
        rate: 500.0,
        seconds: 8.0,
        settle: 2.0,
    };
    let is_run = arguments::read(arguments, |name, value| {
        match name {
            "--endpoint" => options.endpoint = value()?,
            "--pid" => options.pid = value()?.parse()?,
            "--mode" => options.mode = value()?,
            "--connections" => options.connections = value()?.parse()?,
            "--streams" => options.streams = value()?.parse()?,
            "--watchers" => options.watchers = Some(value()?.parse()?),
            "--key-bytes" => options.key_bytes = value()?.parse()?,
            "--value-bytes" => options.value_bytes = value()?.parse()?,
            "--sample" => options.sample = value()?.parse()?,
            "--rate" => options.rate = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--settle" => options.settle = value()?.parse()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(is_run.then_some(options))
}

/// Resident memory of the server, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = value.and_then(|value| value.trim().strip_suffix("kB")).context("no VmRSS")?.trim().parse()?;
    Ok(kib * 1024)
}

/// Every watcher by the place of its stream and its id, which count from 0.
struct Watching {
    board: Board,
    streams: Vec<(usize, u32)>,
    /// Place of a stream by connection and stream.
    places: BTreeMap<(usize, u32), usize>,
    /// Confirmed watchers of each stream.
    confirmed: Vec<i64>,
    /// Watchers that saw a put, in order.
    seen: Vec<(usize, i64, Vec<u8>)>,
}

impl Watching {
    fn open(options: &Options) -> Result<Self> {
        let mut board = Board::new(&options.endpoint).map_err(|error| anyhow!(error))?;
        let mut slots = Vec::new();
        for _ in 0..options.connections {
            slots.push(board.connect_watches().map_err(|error| anyhow!(error))?);
        }
        let slot = |place: usize| slots[place % slots.len()];
        let streams: Vec<(usize, u32)> =
            (0..options.streams).map(|place| (slot(place), board.open(slot(place)))).collect();
        let places = streams.iter().enumerate().map(|(place, &key)| (key, place)).collect();
        Ok(Self { board, confirmed: vec![0; streams.len()], streams, places, seen: Vec::new() })
    }

    /// Asks for the next watcher of a stream.
    fn ask(&mut self, place: usize, key: &[u8], request: &mut Vec<u8>) {
        watch_request(request, key, b"", 0);
        let (slot, stream) = self.streams[place];
        self.board.send(slot, stream, request);
    }

    /// Takes in what comes next.
    fn pump(&mut self, done: &mut Vec<Done>) -> Result<()> {
        let Self { board, places, confirmed, seen, .. } = self;
        let mut hear = |slot: usize, stream: u32, message: &[u8]| {
            let place = places[&(slot, stream)];
            let (id, created) = read_watch(message, &mut |id, event| {
                seen.push((place, id, event.key.to_vec()));
                Ok(())
            })?;
            if created {
                if id != confirmed[place] {
                    return Err(format!("stream {place} got watcher {id} for {}", confirmed[place]));
                }
                confirmed[place] += 1;
            }
            Ok(())
        };
        match board.pump(SILENCE_MAX, &mut hear, done) {
            Ok(true) => Ok(()),
            Ok(false) => bail!("nothing came for {SILENCE_MAX:?}"),
            Err(error) => bail!(error),
        }
    }
}

fn memory(options: &Options) -> Result<Value> {
    let (total, per_stream) =
        (options.watchers.unwrap_or(100_000), options.watchers.unwrap_or(100_000) / options.streams);
    let mut watching = Watching::open(options)?;
    let (mut key, mut request, mut done) = (Vec::new(), Vec::new(), Vec::new());
    let mut asked = 0;
    // One on each stream first: calls and buffers are there when the measurement begins.
    let begin = options.streams;
    let (mut before, started) = (0, Instant::now());
    while watching.confirmed.iter().sum::<i64>() < total as i64 {
        let confirmed = watching.confirmed.iter().sum::<i64>() as usize;
        if confirmed == begin && before == 0 {
            thread::sleep(Duration::try_from_secs_f64(options.settle)?);
            before = resident(options.pid)?;
        }
        let limit = if before == 0 { begin } else { total };
        while asked < limit && asked - confirmed < UNCONFIRMED_MAX {
            messages::key_for(&mut key, key_number(asked, options.streams, per_stream), options.key_bytes);
            watching.ask(asked % options.streams, &key, &mut request);
            asked += 1;
        }
        watching.pump(&mut done)?;
    }
    let created_seconds = started.elapsed().as_secs_f64() - options.settle;
    thread::sleep(Duration::try_from_secs_f64(options.settle)?);
    let after = resident(options.pid)?;
    let latencies = put_sample(options, &mut watching, per_stream)?;
    let bytes = after.saturating_sub(before) as f64 / (total - begin) as f64;
    Ok(json!({
        "mode": "memory", "watchers": total, "streams": options.streams, "connections": options.connections,
        "key_bytes": options.key_bytes, "resident_before": before, "resident_after": after,
        "bytes_per_watcher": bytes.round(), "created_seconds": created_seconds,
        "events": latencies.len(), "event_us": quantiles(&latencies),
    }))
}

/// Keys of one stream stand together.
fn key_number(asked: usize, streams: usize, per_stream: usize) -> u64 {
    ((asked % streams) * per_stream + asked / streams) as u64
}

/// Puts some of the watched keys, one after the other; each must reach its watcher, and no other.
fn put_sample(options: &Options, watching: &mut Watching, per_stream: usize) -> Result<Histogram<u64>> {
    let puts = watching.board.connect_puts().map_err(|error| anyhow!(error))?;
    let mut latencies = histogram();
    let (mut key, mut request, mut done) = (Vec::new(), Vec::new(), Vec::new());
    let watched = per_stream * options.streams;
    for number in 0..options.sample.min(watched) {
        // Spread over all of them.
        let number = number * watched / options.sample.min(watched);
        messages::key_for(&mut key, number as u64, options.key_bytes);
        messages::put_request(&mut request, &key, b"value");
        watching.seen.clear();
        let sent = Instant::now();
        watching.board.call(puts, &request, sent, number as u64);
        let mut is_seen = false;
        while watching.seen.is_empty() || done.is_empty() {
            watching.pump(&mut done)?;
            if !watching.seen.is_empty() && !std::mem::replace(&mut is_seen, true) {
                latencies.saturating_record(sent.elapsed().as_micros() as u64);
            }
        }
        done.clear();
        let wanted = (number / per_stream, (number % per_stream) as i64, key.clone());
        if watching.seen != [wanted.clone()] {
            bail!("the put of {wanted:?} was seen by {:?}", watching.seen);
        }
    }
    Ok(latencies)
}

/// A reader of the stalled kind of run.
#[derive(Clone, Debug, Default)]
struct Reader {
    /// The next number it must be handed.
    next: u64,
}

/// A stretch of the stalled run: latencies of all readers but the first, and the server's memory.
struct Stretch {
    latencies: Histogram<u64>,
    resident_max: u64,
}

fn stall(options: &Options) -> Result<Value> {
    let readers = options.watchers.unwrap_or(100);
    let fail = |error: String| anyhow!(error);
    let mut board = Board::new(&options.endpoint).map_err(fail)?;
    let (mut request, mut slots) = (Vec::new(), Vec::new());
    watch_request(&mut request, b"stall", b"", 0);
    // What comes while a connection is made is not listened to, so all are made first.
    for _ in 0..readers {
        slots.push(board.connect_watches().map_err(fail)?);
    }
    let puts = board.connect_puts().map_err(fail)?;
    for &slot in &slots {
        let stream = board.open(slot);
        board.send(slot, stream, &request);
    }
    let mut created = 0;
    while created < readers {
        let mut hear = |_: usize, _: u32, message: &[u8]| {
            created += usize::from(read_watch(message, &mut |_, _| Ok(()))?.1);
            Ok(())
        };
        board.pump(SILENCE_MAX, &mut hear, &mut Vec::new()).map_err(fail)?;
    }
    let mut run = Stalling { options, board, slots, puts, readers: vec![Reader::default(); readers], sent: 0 };
    run.stretch(None)?;
    let quiet = run.stretch(None)?;
    let stalled = run.stretch(Some(0))?;
    let behind = run.sent - run.readers[0].next;
    let caught_up = run.go_on(0)?;
    let after = run.stretch(None)?;
    Ok(json!({
        "mode": "stall", "readers": readers, "rate": options.rate, "value_bytes": options.value_bytes,
        "puts": run.sent, "quiet_us": quantiles(&quiet.latencies), "stalled_us": quantiles(&stalled.latencies),
        "after_us": quantiles(&after.latencies), "behind": behind, "caught_up_seconds": caught_up,
        "resident_quiet": quiet.resident_max, "resident_stalled": stalled.resident_max,
        "resident_after": after.resident_max,
    }))
}

struct Stalling<'a> {
    options: &'a Options,
    board: Board,
    slots: Vec<usize>,
    puts: usize,
    readers: Vec<Reader>,
    /// Puts sent.
    sent: u64,
}

impl Stalling<'_> {
    /// Puts at the given rate until the time is over and everybody who reads has everything.
    fn stretch(&mut self, unread: Option<usize>) -> Result<Stretch> {
        let mut stretch = Stretch { latencies: histogram(), resident_max: 0 };
        unread.into_iter().for_each(|reader| self.board.stop_reading(self.slots[reader]));
        let (begin, first) = (Instant::now(), self.sent);
        let planned = |number: u64| begin + Duration::from_secs_f64((number - first) as f64 / self.options.rate);
        let count = (self.options.rate * self.options.seconds) as u64;
        let (mut request, mut looked) = (Vec::new(), begin);
        let mut value = vec![b'v'; self.options.value_bytes.max(16)];
        loop {
            let now = Instant::now();
            while self.sent < first + count && planned(self.sent) <= now {
                value[..16].copy_from_slice(format!("{:016}", self.sent).as_bytes());
                messages::put_request(&mut request, b"stall", &value);
                self.board.call(self.puts, &request, planned(self.sent), self.sent);
                self.sent += 1;
            }
            if now.saturating_duration_since(looked) > Duration::from_millis(200) {
                looked = now;
                stretch.resident_max = stretch.resident_max.max(resident(self.options.pid)?);
            }
            let all = first + count;
            let is_done = |(place, reader): (usize, &Reader)| reader.next >= all || Some(place) == unread;
            if self.sent == all && self.readers.iter().enumerate().all(is_done) {
                return Ok(stretch);
            }
            let due = if self.sent < all { planned(self.sent).saturating_duration_since(now) } else { SILENCE_MAX };
            let came = self.pump(due, &mut |number, now| {
                if number >= first {
                    let latency = now.saturating_duration_since(planned(number));
                    stretch.latencies.saturating_record(latency.as_micros() as u64);
                }
            })?;
            if !came && due == SILENCE_MAX {
                bail!("nothing came for {SILENCE_MAX:?}");
            }
        }
    }

    /// Takes in what comes; every reader must be handed the next number. Of all but the first, it is told when.
    fn pump(&mut self, timeout: Duration, note: &mut impl FnMut(u64, Instant)) -> Result<bool> {
        let Self { board, slots, readers, .. } = self;
        let mut hear = |slot: usize, _: u32, message: &[u8]| hear_numbers(slots, readers, slot, message, note);
        board.pump(timeout, &mut hear, &mut Vec::new()).map_err(|error| anyhow!(error))
    }

    /// The reader reads again, until it has everything; the seconds that takes.
    fn go_on(&mut self, reader: usize) -> Result<f64> {
        let begin = Instant::now();
        let Self { board, slots, readers, .. } = self;
        let slot = slots[reader];
        let mut hear =
            |slot: usize, _: u32, message: &[u8]| hear_numbers(slots, readers, slot, message, &mut |_, _| {});
        board.go_on_reading(slot, &mut hear, &mut Vec::new()).map_err(|error| anyhow!(error))?;
        while self.readers[reader].next < self.sent {
            if !self.pump(SILENCE_MAX, &mut |_, _| {})? {
                bail!("the stalled reader is not handed what it missed");
            }
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}

fn hear_numbers(
    slots: &[usize],
    readers: &mut [Reader],
    slot: usize,
    message: &[u8],
    note: &mut impl FnMut(u64, Instant),
) -> Result<(), String> {
    let place = slots.iter().position(|&it| it == slot).ok_or("a stream that is none")?;
    let now = Instant::now();
    read_watch(message, &mut |_, event| {
        let text = event.value.get(..16).and_then(|text| std::str::from_utf8(text).ok());
        let number: u64 = text.and_then(|text| text.parse().ok()).ok_or("another value")?;
        let reader = &mut readers[place];
        if number != reader.next {
            return Err(format!("reader {place} was handed {number} instead of {}", reader.next));
        }
        reader.next += 1;
        if place > 0 {
            note(number, now);
        }
        Ok(())
    })
    .map(drop)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("valid bounds")
}

fn quantiles(latencies: &Histogram<u64>) -> Value {
    let at = |quantile| latencies.value_at_quantile(quantile);
    json!({ "p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0) })
}
