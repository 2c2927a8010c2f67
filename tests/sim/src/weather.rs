//! What a seed switches on: latencies, stalls, fault kinds, workload shape and the limits given to the server.
//!
//! Owns: the draw of every parameter ("swarm" testing: each seed has its own subset of troubles), the length of a run.
//! Does not know: how they are carried out.
//!
//! Units: nanoseconds for times, per mille for probabilities.

use crate::rng::Rng;

/// Families of files that crashes aim at, since some of them are written rarely.
const AIMS: [&str; 5] = ["wal/hard-state", "wal/seg", "store/superblock", "store/index", "store/rows"];

/// A run, usually.
const USUAL_RUN: u64 = USUAL_SECONDS * SECOND;
/// The same in virtual seconds: the unit of a campaign.
pub const USUAL_SECONDS: u64 = 36;
/// A run of the plainest server.
const PLAIN_RUN: u64 = 5 * SECOND;
/// One run in a hundred.
const LONG_RUN: u64 = 600 * SECOND;
/// A read of everything takes about so many round trips at most: less than a virtual minute with the slowest network.
const ROUND_TRIPS_MAX: u64 = 1_000;
/// The window that a connection as a whole always has.
const WINDOW_MAX: u64 = 65_535;
/// What a pair takes in an answer besides its value, at most.
const PAIR_BYTES: u64 = 64;
/// Where the weight of requests about leases stands.
const LEASE_WEIGHT: usize = 9;
/// One put in so many is large, where large values are drawn at all.
pub(crate) const LARGE_EVERY: u64 = 60;

/// One virtual microsecond, in nanoseconds.
pub const MICROSECOND: u64 = 1_000;
/// One virtual millisecond, in nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;
/// One virtual second, in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// A latency: mostly near the low end, rarely a stall.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// The least.
    pub min: u64,
    /// The most, without a stall.
    pub max: u64,
    /// How often a stall comes instead, per mille.
    pub stall_per_mille: u64,
    /// The longest stall.
    pub stall_max: u64,
}

impl Latency {
    /// One draw.
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        if self.stall_per_mille > 0 && rng.chance(self.stall_per_mille) {
            return rng.log_between(self.max, self.stall_max.max(self.max));
        }
        rng.log_between(self.min, self.max)
    }

    fn steady(min: u64, max: u64) -> Self {
        Self { min, max, stall_per_mille: 0, stall_max: 0 }
    }
}

/// The disk and network of a run.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Durable writes of the log.
    pub log_write: Latency,
    /// Writes of store files.
    pub store_write: Latency,
    /// Syncs, creates, unlinks.
    pub sync: Latency,
    /// Reads and populates.
    pub read: Latency,
    /// One way through the network.
    pub network: Latency,
    /// From handing bytes to the kernel to its taking them.
    pub send: Latency,
    /// The CPU time of a turn.
    pub turn: Latency,
    /// How late timers fire.
    pub timer_late: Latency,
    /// Received bytes come in pieces of at most this many bytes.
    pub segment_bytes_max: usize,
    /// How often a sent batch has its media checked at once, per mille.
    pub witness_per_mille: u64,
    /// How often a client hangs up instead of sending its next request, per mille.
    pub hang_up_per_mille: u64,
    /// How often a client cancels a call or leaves one unfinished instead of sending its next request, per mille.
    pub disturb_per_mille: u64,
    /// By how much the wall clock runs fast.
    pub wall_drift_per_mille: i64,
    /// Log writes are reported complete before they are durable: the fault that the checker must find.
    pub early_acknowledgement: bool,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// kill -9: writes in flight land later.
    Kill,
    /// The power fails.
    PowerLoss,
}

/// Where within a submission's life a crash strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The submission is lost.
    BeforeSubmit,
    /// It is under way; nothing after it happens.
    AfterSubmit,
    /// It ended; its event is never delivered.
    AfterCompletion,
}

/// What ends one life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Fate {
    /// Nothing does.
    Survive,
    /// A crash at the submission of this number (from 1, boot included).
    CrashAt { number: u64, phase: Phase, kind: CrashKind },
    /// A crash at the submission of this number (from 1, boot included) among those to files whose names begin so.
    CrashOnFile { prefix: &'static str, number: u64, phase: Phase, kind: CrashKind },
    /// A crash between turns, so many nanoseconds after the start.
    CrashAfter { delay: u64, kind: CrashKind },
    /// A file operation at or after this submission fails, with EIO or because a write was short: the server has to
    /// stop.
    ErrorAt { number: u64 },
    /// No file can be created from so many nanoseconds after the start on, for so long.
    NoSpace { delay: u64, length: u64 },
    /// SIGTERM, so many nanoseconds after the start.
    StopAfter { delay: u64 },
}

/// What makes a life harder without ending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The process does not run for so long; everything piles up.
    Pause(u64),
    /// No file operation ends for so long.
    Stall(u64),
    /// Every turn takes fifty times as long, for so long.
    SlowCpu(u64),
    /// The wall clock jumps by so much.
    WallJump(i64),
}

/// What becomes of data at rest between two lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// Nothing.
    Never,
    /// One of two copies, or bytes that hold nothing: the server has to live with it.
    Redundant,
    /// Anything, after a graceful stop: the server may refuse, naming the place, but not lie.
    Anything,
}

/// Limits handed to the server, small enough that rare paths are common.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest request.
    pub request_bytes_max: usize,
    /// Longest payload of a log entry.
    pub entry_bytes_max: usize,
    /// Size of a WAL segment.
    pub wal_segment_bytes: u64,
    /// Size of a WAL batch, in payload bytes.
    pub batch_bytes_max: usize,
    /// WAL writes in flight.
    pub appends_in_flight_max: usize,
    /// Quiet time before a watermark record.
    pub quiet_delay: u64,
    /// Least election timeout.
    pub election_timeout: u64,
    /// Size of an index file.
    pub index_file_bytes: u64,
    /// Size of a row segment.
    pub row_segment_bytes: u64,
    /// Logical size of a row block.
    pub row_block_bytes: u32,
    /// Row blocks kept in memory.
    pub rows_resident_bytes_max: u64,
    /// Longest write of the store.
    pub store_write_bytes_max: u32,
    /// Writes of a checkpoint in flight.
    pub store_writes_in_flight_max: u32,
    /// Overlay changes that start a checkpoint.
    pub checkpoint_changes: usize,
    /// Overlay bytes that start a checkpoint.
    pub checkpoint_overlay_bytes: u64,
    /// Log bytes that start a checkpoint.
    pub checkpoint_log_bytes: u64,
    /// Quota; negative is none.
    pub quota_bytes: i64,
    /// Room for pages in memory.
    pub cache_bytes: u64,
    /// Size of the file that is given up when the disk is full; 0 for none.
    pub reserve_bytes: u64,
    /// Time in which everything stored is read once; 0 for never.
    pub scrub_interval: u64,
    /// Time between notices of progress to watchers that want them.
    pub watch_progress_interval: u64,
    /// Events that are handed to all who watch at once, in encoded bytes.
    pub watch_block_bytes_max: usize,
    /// Ranges of keys whose commands are evaluated apart.
    pub shards: usize,
}

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Connections kept open.
    pub clients: usize,
    /// Requests that a connection has under way at most.
    pub outstanding_max: usize,
    /// Distinct keys.
    pub keys: u64,
    /// Most bytes of a usual value.
    pub value_bytes_max: u64,
    /// Most bytes of a rare large value; 0 for none.
    pub large_value_bytes_max: u64,
    /// The server's limit.
    pub request_bytes_max: usize,
    /// Weights of put, range, delete-range, transaction, compaction, mistaken request, maintenance, bulk put, alarm
    /// and lease.
    pub weights: [u64; 10],
    /// Mean pause between two requests of a connection.
    pub think: Latency,
    /// Requests in a virtual second, over all connections and outages.
    pub rate: u64,
    /// Connections that watch.
    pub watch_clients: usize,
    /// Watchers of one of them, at most.
    pub watchers_max: usize,
    /// Leases that the clients know to live at one time, at most; 0: they have nothing to do with leases.
    pub leases_max: usize,
    /// How often a put attaches its key to a lease, per mille.
    pub attach_per_mille: u64,
}

impl Workload {
    /// The smallest receive window of a client's stream. An answer passes it piece by piece, one a round trip: through
    /// too small a window a read of the whole store takes minutes, and a server that answers in time seems to hang.
    #[must_use]
    pub fn window_min(&self) -> u64 {
        // Lengths are drawn by their logarithm: the mean is less than a sixth of the longest.
        let large_mean = self.large_value_bytes_max / 6 / LARGE_EVERY;
        let pairs = self.keys * (self.value_bytes_max + large_mean + PAIR_BYTES);
        let smallest = (pairs + self.large_value_bytes_max).div_ceil(ROUND_TRIPS_MAX);
        smallest.max(self.value_bytes_max / 16 + 16).min(WINDOW_MAX)
    }
}

/// Everything that a seed decides.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Disk and network.
    pub weather: Weather,
    /// The server's limits.
    pub limits: Limits,
    /// The clients.
    pub workload: Workload,
    /// Virtual time that a run takes at least.
    pub duration: u64,
    /// Mean length of a life that nothing ends earlier.
    pub life: u64,
    /// Troubles of a life at most.
    pub troubles_max: u64,
    /// What becomes of data at rest.
    pub rot: Rot,
    /// Weights of kill, power loss, EIO, graceful stop and lack of space.
    pub fate_weights: [u64; 5],
    /// Crash points are drawn up to this submission number.
    pub crash_number_max: u64,
    /// If set, every crash aims at this family of files, early: some failures take two crashes of a kind in a row.
    pub aim: Option<&'static str>,
}

impl Swarm {
    /// Draws a run's parameters.
    #[must_use]
    pub fn draw(rng: &mut Rng) -> Self {
        // Values beyond the flow-control windows need larger segments than the small ones that find most else.
        let large_values = rng.chance(50);
        let rot = match rng.below(100) {
            0..6 => Rot::Anything,
            6..36 => Rot::Redundant,
            _ => Rot::Never,
        };
        let stops = if rot == Rot::Anything { 10 } else { draw_weight(rng) / 2 };
        let limits = draw_limits(large_values, rng);
        let mut drawn = Self {
            weather: draw_weather(rng),
            limits,
            workload: draw_workload(large_values, &limits, rng),
            duration: if rng.chance(10) { LONG_RUN } else { USUAL_RUN },
            life: rng.log_between(SECOND, 8 * SECOND),
            troubles_max: rng.below(4),
            rot,
            fate_weights: [
                draw_weight(rng),
                draw_weight(rng) + 1,
                draw_weight(rng) / 2,
                stops,
                if rng.chance(700) { 0 } else { rng.between(1, 4) },
            ],
            crash_number_max: rng.log_between(40, 3_000),
            aim: rng.chance(250).then(|| AIMS[rng.index(AIMS.len())]),
        };
        drawn.draw_upkeep(rng);
        drawn
    }

    /// What the server does for its own sake, in a part of the runs each.
    fn draw_upkeep(&mut self, rng: &mut Rng) {
        if rng.chance(400) {
            // A quarter of it must hold the addresses of all rows twice.
            self.limits.cache_bytes = rng.log_between(64 << 10, 2 << 20).max(128 * self.workload.keys);
        }
        if rng.chance(400) {
            self.limits.reserve_bytes = 4096 * rng.between(1, 64);
        }
        if rng.chance(300) {
            self.limits.scrub_interval = rng.log_between(SECOND, 30 * SECOND);
        }
        if rng.chance(700) {
            self.workload.watch_clients = rng.between(1, 2) as usize;
            self.workload.watchers_max = rng.log_between(2, 12) as usize;
            self.limits.watch_progress_interval = rng.log_between(100 * MILLISECOND, 20 * SECOND);
        }
        if rng.chance(500) {
            self.workload.leases_max = rng.log_between(1, 12) as usize;
            self.workload.attach_per_mille = rng.between(30, 400);
            self.workload.weights[LEASE_WEIGHT] = rng.between(2, 12);
        }
        if rng.chance(500) {
            self.limits.watch_block_bytes_max = rng.log_between(200, 1 << 16) as usize;
        }
        if rng.chance(400) {
            self.limits.shards = rng.between(2, 5) as usize;
        }
    }

    /// Makes `seconds` the length of a usual run, and that of a long one in proportion.
    pub fn shorten(&mut self, seconds: u64) {
        self.duration = self.duration / SECOND * seconds / USUAL_SECONDS * SECOND;
    }

    /// Leaves out what only a whole server knows, and most of the time.
    pub fn make_plain(&mut self) {
        self.duration = PLAIN_RUN;
        self.life = self.life.min(2 * SECOND);
        self.rot = Rot::Never;
        self.fate_weights[4] = 0;
        self.workload.keys = self.workload.keys.min(900);
        self.workload.large_value_bytes_max = 0;
        self.workload.watch_clients = 0;
        (self.workload.leases_max, self.workload.attach_per_mille) = (0, 0);
        self.workload.weights[6..].fill(0);
        (self.limits.cache_bytes, self.limits.reserve_bytes, self.limits.scrub_interval) = (u64::MAX, 0, 0);
    }

    /// Draws what makes a life harder, and when (nanoseconds after its start).
    pub fn draw_troubles(&self, rng: &mut Rng) -> Vec<(u64, Trouble)> {
        let count = rng.below(self.troubles_max + 1);
        let mut troubles: Vec<(u64, Trouble)> = (0..count)
            .map(|_| {
                let trouble = match rng.below(6) {
                    0 => Trouble::Pause(rng.log_between(10 * MILLISECOND, 30 * SECOND)),
                    1 | 2 => Trouble::Stall(rng.log_between(50 * MILLISECOND, 5 * SECOND)),
                    3 | 4 => Trouble::SlowCpu(rng.log_between(100 * MILLISECOND, 2 * SECOND)),
                    _ => {
                        let distance = rng.log_between(SECOND, 3_600 * SECOND) as i64;
                        Trouble::WallJump(if rng.chance(500) { distance } else { -distance })
                    }
                };
                (rng.log_between(10 * MILLISECOND, self.life), trouble)
            })
            .collect();
        troubles.sort_by_key(|(at, _)| *at);
        troubles
    }

    /// Draws how the next life of the process ends.
    pub fn draw_fate(&self, rng: &mut Rng) -> Fate {
        let number = rng.log_between(1, self.crash_number_max);
        let delay = rng.log_between(MILLISECOND, self.life);
        match draw_weighted(rng, &self.fate_weights) {
            2 => Fate::ErrorAt { number },
            3 => Fate::StopAfter { delay },
            4 => Fate::NoSpace { delay, length: rng.log_between(10 * MILLISECOND, 2 * SECOND) },
            choice => {
                let kind = if choice == 0 { CrashKind::Kill } else { CrashKind::PowerLoss };
                let phases = [Phase::BeforeSubmit, Phase::AfterSubmit, Phase::AfterCompletion];
                let phase = phases[rng.index(phases.len())];
                if let Some(prefix) = self.aim {
                    return Fate::CrashOnFile { prefix, number: rng.log_between(1, 8), phase, kind };
                }
                match rng.below(5) {
                    0 => Fate::CrashAfter { delay, kind },
                    1 | 2 => {
                        let prefix = AIMS[rng.index(AIMS.len())];
                        Fate::CrashOnFile { prefix, number: rng.log_between(1, 30), phase, kind }
                    }
                    _ => Fate::CrashAt { number, phase, kind },
                }
            }
        }
    }
}

fn draw_weight(rng: &mut Rng) -> u64 {
    if rng.chance(300) { 0 } else { rng.between(1, 10) }
}

/// The position of one of `weights`, drawn in proportion.
pub fn draw_weighted(rng: &mut Rng, weights: &[u64]) -> usize {
    let total: u64 = weights.iter().sum();
    let mut draw = rng.below(total);
    for (position, &weight) in weights.iter().enumerate() {
        if draw < weight {
            return position;
        }
        draw -= weight;
    }
    unreachable!("the draw is below the sum of the weights")
}

fn draw_latency(rng: &mut Rng, min: u64, max: u64, stall_max: u64) -> Latency {
    let max = rng.log_between(min, max);
    let stall_per_mille = if rng.chance(600) { 0 } else { rng.between(1, 30) };
    Latency { min, max, stall_per_mille, stall_max: rng.log_between(max, stall_max.max(max)) }
}

fn draw_weather(rng: &mut Rng) -> Weather {
    Weather {
        log_write: draw_latency(rng, 20 * MICROSECOND, 20 * MILLISECOND, SECOND),
        store_write: draw_latency(rng, 20 * MICROSECOND, 50 * MILLISECOND, SECOND),
        sync: draw_latency(rng, 50 * MICROSECOND, 50 * MILLISECOND, SECOND),
        read: draw_latency(rng, 10 * MICROSECOND, 5 * MILLISECOND, 500 * MILLISECOND),
        network: draw_latency(rng, 10 * MICROSECOND, 10 * MILLISECOND, 500 * MILLISECOND),
        send: draw_latency(rng, MICROSECOND, MILLISECOND, 300 * MILLISECOND),
        turn: if rng.chance(300) {
            Latency { min: MICROSECOND, max: MILLISECOND, stall_per_mille: 3, stall_max: 500 * MILLISECOND }
        } else {
            Latency::steady(MICROSECOND, 200 * MICROSECOND)
        },
        timer_late: draw_latency(rng, MICROSECOND, MILLISECOND, 2 * SECOND),
        segment_bytes_max: rng.log_between(64, 64 * 1024) as usize + 15,
        witness_per_mille: if rng.chance(500) { 3 } else { 0 },
        hang_up_per_mille: if rng.chance(300) { rng.between(1, 10) } else { 0 },
        disturb_per_mille: if rng.chance(300) { rng.between(1, 10) } else { 0 },
        wall_drift_per_mille: rng.below(101) as i64 - 50,
        early_acknowledgement: false,
    }
}

fn draw_limits(large_values: bool, rng: &mut Rng) -> Limits {
    let request_bytes_max: usize = if large_values { 1_536 << 10 } else { 16 << 10 };
    let entry_bytes_max = 2 * request_bytes_max;
    let segment_blocks_min = entry_bytes_max as u64 / 2048;
    let segment_blocks_max = (2 * segment_blocks_min).max(256);
    Limits {
        request_bytes_max,
        entry_bytes_max,
        wal_segment_bytes: 4096 * rng.log_between(segment_blocks_min, segment_blocks_max),
        batch_bytes_max: rng.log_between(64, entry_bytes_max as u64) as usize,
        appends_in_flight_max: rng.between(1, 4) as usize,
        quiet_delay: rng.log_between(MILLISECOND, 50 * MILLISECOND),
        election_timeout: rng.log_between(100 * MILLISECOND, SECOND),
        index_file_bytes: if large_values { 16 << 20 } else { (256 << 10) * rng.between(1, 4) },
        row_segment_bytes: 4096 * rng.log_between(segment_blocks_min, segment_blocks_max),
        row_block_bytes: 4096 * rng.log_between(1, 8) as u32,
        rows_resident_bytes_max: rng.log_between(1, 1 << 20),
        store_write_bytes_max: 4096 * rng.log_between(1, 16) as u32,
        store_writes_in_flight_max: rng.between(1, 4) as u32,
        checkpoint_changes: rng.log_between(20, 2_000) as usize,
        checkpoint_overlay_bytes: rng.log_between(8 << 10, 1 << 20),
        checkpoint_log_bytes: 4096 * rng.log_between(32, 512),
        quota_bytes: if rng.chance(60) { rng.log_between(200 << 10, 4 << 20) as i64 } else { -1 },
        cache_bytes: u64::MAX,
        reserve_bytes: 0,
        scrub_interval: 0,
        watch_progress_interval: 600 * SECOND,
        watch_block_bytes_max: 1 << 20,
        shards: 1,
    }
}

fn draw_workload(large_values: bool, limits: &Limits, rng: &mut Rng) -> Workload {
    let keys = match rng.below(20) {
        0 => 10_000,
        1 | 2 => 900,
        3..8 => rng.between(1, 10),
        _ => rng.log_between(5, 80),
    };
    let alarms = if limits.quota_bytes >= 0 || rng.chance(100) { rng.between(1, 2) } else { 0 };
    Workload {
        clients: rng.between(2, 6) as usize,
        outstanding_max: rng.log_between(4, 32) as usize,
        keys,
        value_bytes_max: rng.log_between(24, 2_000),
        large_value_bytes_max: if large_values { 1_500_000 } else { 0 },
        request_bytes_max: limits.request_bytes_max,
        weights: [
            rng.between(10, 40),
            rng.between(1, 40),
            rng.between(0, 12),
            rng.between(0, 20),
            if rng.chance(300) { 0 } else { rng.between(1, 3) },
            rng.below(3),
            rng.below(2),
            if keys > 1_000 { 3 } else { 0 },
            alarms,
            0,
        ],
        think: draw_latency(rng, MICROSECOND, 20 * MILLISECOND, 200 * MILLISECOND),
        rate: rng.between(110, 160),
        watch_clients: 0,
        watchers_max: 0,
        leases_max: 0,
        attach_per_mille: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_stored_passes_the_smallest_window_in_time() {
        let (mut small, mut large) = (0, 0);
        for seed in 0..4_000 {
            let workload = Swarm::draw(&mut Rng::new(seed)).workload;
            let window = workload.window_min();
            assert!((16..=65_535).contains(&window), "seed {seed}: {window}");
            let everything = workload.keys * workload.value_bytes_max;
            for answer in [everything, workload.large_value_bytes_max] {
                assert!(answer <= 1_000 * window, "seed {seed}: {answer} bytes through {window}");
            }
            small += u64::from(window < 100);
            large += u64::from(workload.large_value_bytes_max > 0);
        }
        assert!(small > 1_000 && large > 100, "{small} of the windows are tiny, {large} runs have large values");
    }
}
