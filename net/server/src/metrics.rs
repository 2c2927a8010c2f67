//! Metrics of one core, and their text form.
//!
//! Owns: what the turn counts, and the order of the families in the text. The parts: [`histogram`] buckets,
//! [`exposition`] the syntax, [`calls`] gRPC and probes, [`applied`] commands, [`streams`] watch and lease, [`moment`]
//! what is asked for when a scraper comes. Does not know: sockets; who scrapes.
//!
//! Values are plain numbers in plain arrays: a core has its own, nothing is locked or hashed. Times are the turn's, so
//! a duration is as exact as a turn is short; where CPU time is meant, the name or the help says so.
//!
//! Invariants
//! - I1: every family of etcd that this server has is there before its first event, with value 0, but for the samples
//!   whose labels are not known before.

pub mod applied;
pub mod calls;
pub mod exposition;
pub mod histogram;
pub mod moment;
pub mod streams;

use std::collections::VecDeque;

use trilith_raftlog::Lsn;

use crate::front::FrontMetrics;
use applied::AppliedMetrics;
use calls::CallMetrics;
use exposition::{Exposition, Kind, Unit};
use histogram::{APPLY_BOUNDS, CPU_BOUNDS, DISK_BOUNDS, Histogram};
use moment::Moment;
pub use streams::WatchMetrics;

/// Room for the text: without `--metrics=extensive` it is about this long.
const TEXT_BYTES: usize = 160 << 10;

/// Kinds of work that a turn does in slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Committed commands.
    Apply,
    /// Ranges and read-only transactions, evaluated or measured.
    Read,
    /// Parts of long answers.
    Answer,
    /// Hash and HashKV.
    Hash,
    /// Merge work of a checkpoint.
    Checkpoint,
    /// What a compaction left.
    Reclaim,
    /// The scrubber.
    Scrub,
    /// Events for those who watch.
    Watch,
    /// Jobs of shards on connection cores.
    Shard,
}

impl StepKind {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Apply, "apply"),
        (Self::Read, "read"),
        (Self::Answer, "answer"),
        (Self::Hash, "hash"),
        (Self::Checkpoint, "checkpoint"),
        (Self::Reclaim, "reclaim"),
        (Self::Scrub, "scrub"),
        (Self::Watch, "watch"),
        (Self::Shard, "shard"),
    ];
}

/// What a core counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// CPU time of whole turns.
    pub turn: Histogram,
    steps: Vec<Histogram>,
    /// gRPC calls and probes.
    pub calls: CallMetrics,
    /// Watches.
    pub watch: WatchMetrics,
    /// The time from an append's submission to its completion: write and sync are one.
    append: Histogram,
    append_bytes: u64,
    /// Appends on their way: which, and since when.
    appends: VecDeque<(Lsn, u64)>,
    /// Syncs of the store.
    commit: Histogram,
    /// Syncs of the store on their way: their effects' tokens, and since when.
    commits: VecDeque<(u64, u64)>,
    range: [Histogram; 2],
    leader_changes: u64,
}

impl Metrics {
    /// Nothing counted yet. `is_extensive` adds a histogram for each method; unary calls longer than `slow_call_after`
    /// nanoseconds are kept for the log.
    #[must_use]
    pub fn new(is_extensive: bool, slow_call_after: u64) -> Self {
        Self {
            calls: CallMetrics::new(is_extensive, slow_call_after),
            turn: Histogram::new(CPU_BOUNDS),
            steps: vec![Histogram::new(CPU_BOUNDS); StepKind::ALL.len()],
            watch: WatchMetrics::default(),
            append: Histogram::new(DISK_BOUNDS),
            append_bytes: 0,
            appends: VecDeque::new(),
            commit: Histogram::new(DISK_BOUNDS),
            commits: VecDeque::new(),
            range: [Histogram::new(APPLY_BOUNDS), Histogram::new(APPLY_BOUNDS)],
            leader_changes: 0,
        }
    }

    /// Counts one step.
    pub fn observe_step(&mut self, kind: StepKind, nanoseconds: u64) {
        self.steps[kind as usize].observe(nanoseconds);
    }

    /// An append of the log was submitted.
    pub fn observe_append(&mut self, lsn: Lsn, bytes: usize, now: u64) {
        self.append_bytes += bytes as u64;
        self.appends.push_back((lsn, now));
    }

    /// An append is durable.
    pub fn observe_appended(&mut self, lsn: Lsn, now: u64) {
        if let Some(position) = self.appends.iter().position(|(pending, _)| *pending == lsn)
            && let Some((_, since)) = self.appends.remove(position)
        {
            self.append.observe(now.saturating_sub(since));
        }
    }

    /// A sync of the store was submitted.
    pub fn observe_sync(&mut self, token: u64, now: u64) {
        self.commits.push_back((token, now));
    }

    /// A store effect is done: a sync, if [`Self::observe_sync`] was told its token.
    pub fn observe_stored(&mut self, token: u64, now: u64) {
        if let Some(position) = self.commits.iter().position(|(pending, _)| *pending == token)
            && let Some((_, since)) = self.commits.remove(position)
        {
            self.commit.observe(now.saturating_sub(since));
        }
    }

    /// Reads were evaluated in a step that took so much CPU time: refused ones, and those that were answered.
    pub fn observe_reads(&mut self, counts: [u64; 2], nanoseconds: u64) {
        let all: u64 = counts.iter().sum();
        for (histogram, count) in self.range.iter_mut().zip(counts) {
            histogram.observe_many(nanoseconds.checked_div(all).unwrap_or(0), count);
        }
    }

    /// The role in raft changed.
    pub fn observe_role(&mut self, is_leader: bool) {
        self.leader_changes += u64::from(is_leader);
    }

    /// The text that a scraper gets; `others` is what the other cores have counted.
    #[must_use]
    pub fn render(&self, others: &FrontMetrics, applied: &AppliedMetrics, moment: &Moment) -> String {
        let (mut calls, mut turn) = (self.calls.clone(), self.turn.clone());
        calls.merge(&others.calls);
        turn.merge(&others.turn);
        let mut out = Exposition::with_capacity(TEXT_BYTES);
        moment.render(&mut out);
        self.render_raft(&mut out, &calls);
        self.render_disk(&mut out);
        applied.render(&mut out);
        let name = "etcd_server_range_duration_seconds";
        out.family(name, Kind::Histogram, "CPU time of evaluating a range, shared evenly within a step.");
        for (success, histogram) in [false, true].into_iter().zip(&self.range) {
            out.buckets(name, &format!("success=\"{success}\""), Unit::Seconds, histogram);
        }
        self.watch.render(&mut out);
        calls.render(&mut out);
        self.render_turns(&mut out, &turn, &others.shard);
        out.finish()
    }

    fn render_raft(&self, out: &mut Exposition, calls: &CallMetrics) {
        out.counter("etcd_server_leader_changes_seen_total", "Changes of the leader.", self.leader_changes);
        let name = "etcd_server_proposals_failed_total";
        out.counter(name, "Commands that were not committed in time.", calls.failed_commands());
        out.counter("etcd_server_slow_read_indexes_total", "Reads that waited too long for their round.", 0);
        out.counter("etcd_server_heartbeat_send_failures_total", "Heartbeats that could not be sent.", 0);
        out.counter("etcd_server_learner_promote_successes", "Learners that became voters.", 0);
        out.gauge("etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot is installed.", 0);
    }

    fn render_disk(&self, out: &mut Exposition) {
        let name = "etcd_disk_wal_fsync_duration_seconds";
        out.histogram(name, "Time of durable writes to the log: write and sync in one.", Unit::Seconds, &self.append);
        out.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log.", self.append_bytes);
        let name = "etcd_disk_backend_commit_duration_seconds";
        out.histogram(name, "Time of syncs of the store, by checkpoints.", Unit::Seconds, &self.commit);
    }

    fn render_turns(&self, out: &mut Exposition, turn: &Histogram, shard: &Histogram) {
        let name = "trilith_turn_cpu_seconds";
        out.histogram(name, "CPU time of the turns of all cores.", Unit::Seconds, turn);
        let name = "trilith_step_cpu_seconds";
        out.family(name, Kind::Histogram, "CPU time of the steps of a turn that work in slices.");
        for (kind, label) in StepKind::ALL {
            let steps = if kind == StepKind::Shard { shard } else { &self.steps[kind as usize] };
            out.buckets(name, &format!("kind=\"{label}\""), Unit::Seconds, steps);
        }
        let name = "trilith_turn_cpu_seconds_max";
        out.gauge(name, "The longest turn since the start.", exposition::seconds(turn.max()));
    }
}

#[cfg(test)]
mod tests;
