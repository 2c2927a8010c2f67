//! Work that takes many steps: long reads, long answers, hashes, defragmentation.
//!
//! Owns: the jobs, who waits for each, what each waits for (its turn, a page, its client, the store), and the pins they
//! hold. Does not know: how a slice is evaluated; when a turn has time for one.
//!
//! A read that does not fit one step becomes a job: its cursor walks the pinned revision slice by slice and collects
//! addresses; the answer is measured; then it is sent in parts as the client takes them. An applied command whose
//! answer is long starts at the measuring.
//!
//! Invariants
//! - I1: a job is in exactly one queue; a job that ended has given back its pin.
//! - I2: a job that waits for its client is looked at again when the client took bytes; one that waits for its client
//!   or for the store, when the client reset the stream or is gone.
//! - I3: a job ends by [`AGE_MAX`] at the latest, and what all jobs hold in memory is bounded
//!   (`Admission::rows_held_max`), answers of writes included: a slow reader costs itself. Of those that go over the
//!   whole store there are [`WHOLE_STORE_JOBS_MAX`] at most.
//! - I4: a call has one job at most, so a turn finds those of a stream or a connection, and the oldest, without a look
//!   at all of them.

use std::collections::{BTreeMap, VecDeque};

use trilith_engine::mvcc::{HashCursor, Pin, RangeCursor, TxnCursor, TxnRange};
use trilith_engine::page_source::Block;
use trilith_reactor::ConnectionId;
use trilith_wire::api::status::Status;
use trilith_wire::connection::StreamId;

use crate::api::parts::{Answer, Parts};
use crate::clients::Caller;
use crate::metrics::StepKind;
pub(super) use crate::service::lease_lists::LeaseList;

/// Bytes of an answer handed to a connection in one step. More than the backlog at which a stream calls for more.
pub(super) const PART_BYTES: usize = 64 << 10;
/// An answer up to this length is sent in one step.
pub(super) const WHOLE_BYTES_MAX: usize = 256 << 10;
/// The longest message gRPC servers send (Go's `math.MaxInt32`, which etcd sets).
pub(super) const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;
/// A job that is not done after this long ends with an error, in nanoseconds.
pub(super) const AGE_MAX: u64 = 600 * 1_000_000_000;
/// Hashes and defragmentations at once: each holds a revision, or sends the store to work, and all of them share the
/// time that a turn has for jobs.
pub(super) const WHOLE_STORE_JOBS_MAX: usize = 64;
/// An address of a row.
pub(super) const ROW_ADDRESS_BYTES: usize = 16;

/// What a job does next.
#[derive(Debug)]
pub(super) enum Work {
    /// Walks a range.
    Range { message: Vec<u8>, cursor: RangeCursor, streams: bool },
    /// Evaluates a transaction of ranges.
    Txn { message: Vec<u8>, cursor: TxnCursor },
    /// Sums the length of an answer.
    Measure(Answer),
    /// Sends a measured answer.
    Send(Parts),
    /// Sends a range as messages of a stream.
    Stream(RangeStream),
    /// Lists the leases.
    Leases(LeaseList),
    /// Lists the keys of a lease, in their encoded form, from a key on.
    LeaseKeys { id: i64, from: Vec<u8>, encoded: Vec<u8> },
    /// Sends a message that is made, in two parts.
    SendBytes { parts: [Vec<u8>; 2], sent: Option<usize> },
    /// Computes a hash of the history: Maintenance.HashKV, or Hash.
    Hash { cursor: HashCursor, is_kv: bool },
    /// Waits until the store has given back what it can.
    Defragment { ticket: u64 },
    /// Waits until what a compaction at this revision left dead is gone; then its outcome is told (etcd's `physical`).
    Compact { revision: i64, outcome: Result<i64, Status> },
}

/// A range on its way in chunks (KV.RangeStream).
#[derive(Debug)]
pub(super) struct RangeStream {
    /// The rows to send.
    pub(super) range: TxnRange,
    /// The revision it shows.
    pub(super) read_at: i64,
    /// The next row.
    pub(super) next: usize,
    /// Rows of the next chunk.
    pub(super) rows_next: usize,
}

impl RangeStream {
    /// The first chunk is small, so that a client sees something soon (etcd: 10 keys).
    pub(super) fn new(range: TxnRange, read_at: i64) -> Self {
        Self { range, read_at, next: 0, rows_next: 10 }
    }

    /// The size of the next chunk follows the bytes of the last: doubled while short, halved when long, as in etcd.
    pub(super) fn adapt(&mut self, chunk_bytes: usize, target_bytes: usize) {
        if chunk_bytes < target_bytes / 2 {
            self.rows_next = self.rows_next.saturating_mul(2);
        } else if chunk_bytes > target_bytes.saturating_mul(2) {
            self.rows_next = (self.rows_next / 2).max(1);
        }
    }
}

impl Work {
    /// Under which name its steps are timed.
    pub(super) fn kind(&self) -> StepKind {
        match self {
            Self::Range { .. } | Self::Txn { .. } | Self::Measure(_) => StepKind::Read,
            Self::Leases(_) | Self::LeaseKeys { .. } => StepKind::Read,
            Self::Send(_) | Self::Stream(_) | Self::SendBytes { .. } => StepKind::Answer,
            Self::Hash { .. } => StepKind::Hash,
            Self::Defragment { .. } | Self::Compact { .. } => StepKind::Reclaim,
        }
    }

    /// Whether it goes over the whole store.
    fn is_of_whole_store(&self) -> bool {
        matches!(self, Self::Hash { .. } | Self::Defragment { .. })
    }

    /// Addresses it holds.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Range { cursor, .. } => cursor.rows_held(),
            Self::Txn { cursor, .. } => cursor.rows_held(),
            Self::Measure(answer) => answer.rows(),
            Self::Send(parts) => parts.rows(),
            Self::Stream(stream) => stream.range.rows.len(),
            Self::Leases(list) => list.rows(),
            Self::LeaseKeys { encoded, .. } => encoded.len() / ROW_ADDRESS_BYTES,
            Self::SendBytes { parts: [_, list], .. } => list.len() / ROW_ADDRESS_BYTES,
            Self::Hash { .. } | Self::Defragment { .. } | Self::Compact { .. } => 0,
        }
    }
}

/// One piece of long work.
#[derive(Debug)]
pub(super) struct Job {
    /// Who waits.
    pub(super) caller: Caller,
    /// What its rows hang on, if it reads any.
    pub(super) pin: Option<Pin>,
    /// When it began.
    pub(super) started: u64,
    /// What it does next.
    pub(super) work: Work,
}

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Its turn.
    Turn,
    /// This block.
    Page(Block),
    /// Its client.
    Client,
    /// The store.
    Store,
}

/// All jobs.
#[derive(Debug)]
pub(super) struct Jobs {
    ready: VecDeque<Job>,
    lacking: Vec<(Block, Job)>,
    /// By the names of their callers (I4).
    blocked: BTreeMap<(ConnectionId, StreamId), Job>,
    storing: BTreeMap<(ConnectionId, StreamId), Job>,
    /// When the jobs in the queues began, and how many at a time.
    starts: BTreeMap<u64, usize>,
    /// Those that go over the whole store.
    of_whole_store: usize,
    /// Addresses held by the jobs in the queues.
    rows_held: usize,
    /// And how many they may hold; no further one begins above.
    rows_held_max: usize,
}

impl Jobs {
    /// No jobs, which may hold so many addresses of rows.
    pub(super) fn new(rows_held_max: usize) -> Self {
        Self {
            ready: VecDeque::new(),
            lacking: Vec::new(),
            blocked: BTreeMap::new(),
            storing: BTreeMap::new(),
            starts: BTreeMap::new(),
            of_whole_store: 0,
            rows_held: 0,
            rows_held_max,
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// How many hold a revision.
    pub(super) fn pins(&self) -> usize {
        self.all().filter(|job| job.pin.is_some()).count()
    }

    /// Whether one could do something now.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether memory allows another one to begin.
    pub(super) fn has_room(&self) -> bool {
        self.rows_held < self.rows_held_max
    }

    /// Whether another one that goes over the whole store may begin.
    pub(super) fn has_room_for_whole_store(&self) -> bool {
        self.of_whole_store < WHOLE_STORE_JOBS_MAX
    }

    /// Whether a job that holds so many addresses, and was taken out, would hold too much together with the others.
    pub(super) fn is_too_much(&self, rows: usize) -> bool {
        self.rows_held.saturating_add(rows) > self.rows_held_max
    }

    /// Puts a job into the queue of what it waits for.
    pub(super) fn push(&mut self, job: Job, wait: Wait) {
        self.rows_held += job.work.rows();
        self.of_whole_store += usize::from(job.work.is_of_whole_store());
        *self.starts.entry(job.started).or_default() += 1;
        let earlier = match wait {
            Wait::Turn => {
                self.ready.push_back(job);
                None
            }
            Wait::Page(block) => {
                self.lacking.push((block, job));
                None
            }
            Wait::Client => self.blocked.insert(job.caller.key(), job),
            Wait::Store => self.storing.insert(job.caller.key(), job),
        };
        assert!(earlier.is_none(), "I4: a call has one job");
    }

    /// Takes the job whose turn it is.
    pub(super) fn take(&mut self) -> Option<Job> {
        let job = self.ready.pop_front()?;
        self.rows_held -= job.work.rows();
        self.of_whole_store -= usize::from(job.work.is_of_whole_store());
        let alike = self.starts.get_mut(&job.started).expect("a job in a queue is counted");
        *alike -= 1;
        if *alike == 0 {
            self.starts.remove(&job.started);
        }
        Some(job)
    }

    /// Pages have come: who waits for none of those that are still awaited goes on.
    pub(super) fn handle_loaded(&mut self, is_awaited: impl Fn(Block) -> bool) {
        let come = self.lacking.extract_if(.., |(block, _)| !is_awaited(*block));
        self.ready.extend(come.map(|(_, job)| job));
    }

    /// Whether any waits for the store.
    pub(super) fn has_storing(&self) -> bool {
        !self.storing.is_empty()
    }

    /// The store has moved on: who waits for what is done by now goes on.
    pub(super) fn handle_stored(&mut self, is_done: impl Fn(&Work) -> bool) {
        self.ready.extend(self.storing.extract_if(.., |_, job| is_done(&job.work)).map(|(_, job)| job));
    }

    /// A client took bytes of a stream, or gave it up.
    pub(super) fn handle_stream(&mut self, caller: Caller) {
        for queue in [&mut self.blocked, &mut self.storing] {
            self.ready.extend(queue.remove(&caller.key()));
        }
    }

    /// A connection is gone.
    pub(super) fn handle_closed(&mut self, connection: ConnectionId) {
        let first = (connection, StreamId::default());
        for queue in [&mut self.blocked, &mut self.storing] {
            while let Some((&key, _)) = queue.range(first..).next().filter(|(key, _)| key.0 == connection) {
                self.ready.extend(queue.remove(&key));
            }
        }
    }

    /// Lets every job that began before `time` be looked at, so that it can end.
    pub(super) fn wake_started_before(&mut self, time: u64) {
        if self.oldest().is_none_or(|oldest| oldest >= time) {
            return;
        }
        self.ready.extend(self.lacking.extract_if(.., |(_, job)| job.started < time).map(|(_, job)| job));
        for queue in [&mut self.blocked, &mut self.storing] {
            self.ready.extend(queue.extract_if(.., |_, job| job.started < time).map(|(_, job)| job));
        }
    }

    /// When the oldest job began.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.starts.first_key_value().map(|(&started, _)| started)
    }

    /// Takes all of them.
    pub(super) fn take_all(&mut self) -> Vec<Job> {
        let Self { ready, lacking, blocked, storing, .. } = std::mem::replace(self, Self::new(self.rows_held_max));
        let lacking = lacking.into_iter().map(|(_, job)| job);
        ready.into_iter().chain(lacking).chain(blocked.into_values()).chain(storing.into_values()).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Job> {
        let lacking = self.lacking.iter().map(|(_, job)| job);
        self.ready.iter().chain(lacking).chain(self.blocked.values()).chain(self.storing.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defragment(connection: u64, ticket: u64) -> Job {
        let caller = Caller::new(0, ConnectionId(connection), StreamId::default());
        Job { caller, pin: None, started: 0, work: Work::Defragment { ticket } }
    }

    fn taken(jobs: &mut Jobs) -> Vec<u64> {
        let ticket = |job: Job| if let Work::Defragment { ticket } = job.work { ticket } else { 0 };
        std::iter::from_fn(|| jobs.take()).map(ticket).collect()
    }

    #[test]
    fn who_waits_for_the_store_is_woken_by_what_it_waits_for_or_when_it_is_gone() {
        let mut jobs = Jobs::new(1);
        for ticket in 1..=4 {
            jobs.push(defragment(ticket, ticket), Wait::Store);
        }
        jobs.handle_stored(|_| false);
        assert!(!jobs.has_ready() && jobs.has_storing());
        jobs.handle_stored(|work| matches!(work, Work::Defragment { ticket } if *ticket <= 2));
        assert_eq!(taken(&mut jobs), [1, 2]);
        jobs.handle_closed(ConnectionId(4));
        assert_eq!(taken(&mut jobs), [4]);
        jobs.handle_stream(defragment(3, 0).caller);
        assert_eq!(taken(&mut jobs), [3]);
        assert!(jobs.is_empty());
    }
    #[test]
    fn those_over_the_whole_store_are_counted_and_the_oldest_is_known() {
        let mut jobs = Jobs::new(1);
        for number in 0..WHOLE_STORE_JOBS_MAX as u64 {
            assert!(jobs.has_room_for_whole_store(), "{number}");
            let job = Job { started: 7 + number / 2, ..defragment(number, number) };
            jobs.push(job, if number % 2 == 0 { Wait::Store } else { Wait::Turn });
        }
        assert!(!jobs.has_room_for_whole_store());
        assert_eq!(jobs.oldest(), Some(7));
        jobs.wake_started_before(7);
        jobs.handle_closed(ConnectionId(2));
        assert_eq!(taken(&mut jobs).len(), WHOLE_STORE_JOBS_MAX / 2 + 1);
        assert!(jobs.has_room_for_whole_store() && jobs.oldest() == Some(7), "of the first two, one waits");
        jobs.wake_started_before(8);
        assert_eq!((taken(&mut jobs), jobs.oldest()), (vec![0], Some(9)), "of the second two, both are taken");
    }
}
