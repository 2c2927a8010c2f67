//! Reads on their way: gathered, waiting for a read index, waiting for apply.
//!
//! Owns: the stages and their order. Does not know: how a read is evaluated.
//!
//! Invariants
//! - I1: a read joins only the round that is issued after it arrived; rounds have fresh contexts.
//! - I2: a read is in exactly one stage.

use std::collections::{BTreeMap, VecDeque};

use trilith_engine::page_source::Block;

use crate::clients::Caller;
use crate::http::Probe;

/// What is read.
#[derive(Debug)]
pub(super) enum ReadKind {
    /// KV.Range.
    Range,
    /// KV.RangeStream.
    RangeStream,
    /// KV.Txn of ranges alone.
    Txn,
    /// Cluster.MemberList.
    MemberList,
    /// Maintenance.Alarm GET of one type, or of all (0).
    Alarms(u32),
    /// Maintenance.Alarm that names no alarm.
    NoAlarms,
    /// One request of Lease.LeaseKeepAlive: the lease.
    KeepAlive(i64),
    /// Lease.LeaseTimeToLive.
    TimeToLive,
    /// Lease.LeaseLeases.
    Leases,
    /// An HTTP health probe.
    Probe(Box<Probe>),
}

/// A read and who waits for it.
#[derive(Debug)]
pub(super) struct Read {
    /// Who waits.
    pub(super) caller: Caller,
    /// What is read.
    pub(super) kind: ReadKind,
    /// The request message, where the kind has one.
    pub(super) message: Vec<u8>,
    /// When it arrived.
    pub(super) started: u64,
}

#[derive(Debug)]
struct Round {
    context: u64,
    reads: VecDeque<Read>,
}

/// Order of arrival.
type Arrival = (u64, u64);

/// All reads that wait.
#[derive(Debug, Default)]
pub(super) struct Reads {
    gathering: VecDeque<Read>,
    issued: VecDeque<Round>,
    /// Confirmed, with the index that must be applied; both ascend.
    confirmed: VecDeque<(u64, Read)>,
    /// May be evaluated.
    ready: BTreeMap<Arrival, Read>,
    /// Were evaluated and lacked a page: this block.
    parked: BTreeMap<Arrival, (Block, Read)>,
    last_context: u64,
    last_number: u64,
}

impl Reads {
    /// Nothing waits.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.gathering.is_empty()
            && self.issued.is_empty()
            && self.confirmed.is_empty()
            && self.ready.is_empty()
            && self.parked.is_empty()
    }

    /// Takes a linearizable read into the round being gathered.
    pub(super) fn start(&mut self, read: Read) {
        self.gathering.push_back(read);
    }

    /// Takes a read that needs no confirmation.
    pub(super) fn start_local(&mut self, read: Read) {
        let arrival = self.arrival(&read);
        self.ready.insert(arrival, read);
    }

    /// Closes the round being gathered; its context, if it has reads.
    pub(super) fn issue(&mut self) -> Option<u64> {
        if self.gathering.is_empty() {
            return None;
        }
        self.last_context += 1;
        let reads = std::mem::take(&mut self.gathering);
        self.issued.push_back(Round { context: self.last_context, reads });
        Some(self.last_context)
    }

    /// A round's read index is known.
    pub(super) fn confirm(&mut self, context: u64, index: u64) {
        let reads = self.end_round(context);
        self.confirmed.extend(reads.into_iter().map(|read| (index, read)));
    }

    /// Ends a round, confirmed or not; its reads.
    pub(super) fn end_round(&mut self, context: u64) -> VecDeque<Read> {
        // Rounds end in their order, unless leadership is lost.
        let position = self.issued.iter().position(|round| round.context == context);
        position.and_then(|position| self.issued.remove(position)).map(|round| round.reads).unwrap_or_default()
    }

    /// Whether [`Self::take_ready`] would find one.
    pub(super) fn has_ready(&self, applied: u64) -> bool {
        !self.ready.is_empty() || self.confirmed.front().is_some_and(|(index, _)| *index <= applied)
    }

    /// The next read whose index is applied.
    pub(super) fn take_ready(&mut self, applied: u64) -> Option<Read> {
        while let Some((_, read)) = self.confirmed.pop_front_if(|(index, _)| *index <= applied) {
            self.start_local(read);
        }
        self.ready.pop_first().map(|(_, read)| read)
    }

    /// A read was taken out too early: it keeps its place.
    pub(super) fn put_back(&mut self, read: Read) {
        let arrival = (read.started, 0);
        let earlier = self.ready.insert(arrival, read);
        assert!(earlier.is_none(), "I2: one read at a time is taken out and put back");
    }

    /// A read lacks a block: it waits for [`Self::resume`].
    pub(super) fn park(&mut self, read: Read, block: Block) {
        let arrival = self.arrival(&read);
        self.parked.insert(arrival, (block, read));
    }

    /// Pages have come: who waits for none of those that are still awaited goes on.
    pub(super) fn resume(&mut self, is_awaited: impl Fn(Block) -> bool) {
        let come = self.parked.extract_if(.., |_, (block, _)| !is_awaited(*block));
        self.ready.extend(come.map(|(arrival, (_, read))| (arrival, read)));
    }

    /// Any read that arrived before `time`, whatever its stage.
    pub(super) fn take_started_before(&mut self, time: u64) -> Option<Read> {
        let early = |read: &Read| read.started < time;
        let round = self.issued.iter_mut().find(|round| !round.reads.is_empty());
        let mut taken = round.and_then(|round| round.reads.pop_front_if(|read| early(read)));
        taken = taken.or_else(|| self.gathering.pop_front_if(|read| early(read)));
        taken = taken.or_else(|| self.confirmed.pop_front_if(|(_, read)| early(read)).map(|(_, read)| read));
        taken = taken.or_else(|| {
            self.ready.first_key_value().filter(|(arrival, _)| arrival.0 < time)?;
            self.ready.pop_first().map(|(_, read)| read)
        });
        taken.or_else(|| {
            self.parked.first_key_value().filter(|(arrival, _)| arrival.0 < time)?;
            self.parked.pop_first().map(|(_, (_, read))| read)
        })
    }

    /// When the oldest waiting read arrived: each stage is in the order of arrival.
    #[must_use]
    pub(super) fn oldest(&self) -> Option<u64> {
        let issued = self.issued.iter().find_map(|round| round.reads.front());
        let queued = [issued, self.gathering.front(), self.confirmed.front().map(|(_, read)| read)];
        let keyed = [self.ready.keys().next(), self.parked.keys().next()].map(|first| first.map(|arrival| arrival.0));
        queued.into_iter().map(|read| read.map(|read| read.started)).chain(keyed).flatten().min()
    }

    fn arrival(&mut self, read: &Read) -> Arrival {
        self.last_number += 1;
        (read.started, self.last_number)
    }
}

#[cfg(test)]
mod tests {
    use trilith_engine::page_source::{FileKind, StoreFile};
    use trilith_reactor::ConnectionId;
    use trilith_wire::connection::StreamId;

    use super::*;

    fn read(started: u64) -> Read {
        let caller = Caller::new(0, ConnectionId(1), StreamId::default());
        Read { caller, kind: ReadKind::Range, message: Vec::new(), started }
    }

    fn starts(mut next: impl FnMut() -> Option<Read>) -> Vec<u64> {
        std::iter::from_fn(|| next().map(|read| read.started)).collect()
    }

    #[test]
    fn a_read_is_ready_once_its_own_round_is_applied() {
        let mut reads = Reads::default();
        reads.start(read(1));
        let first = reads.issue().unwrap();
        reads.start(read(2));
        let second = reads.issue().unwrap();
        assert_eq!(reads.issue(), None);
        reads.start_local(read(3));
        reads.confirm(first, 10);
        reads.confirm(second, 20);
        assert_eq!(starts(|| reads.take_ready(9)), [3], "a local read waits for no index");
        assert_eq!(starts(|| reads.take_ready(10)), [1]);
        assert!(starts(|| reads.take_ready(19)).is_empty());
        assert_eq!(starts(|| reads.take_ready(20)), [2]);
        assert!(reads.is_empty());
    }

    fn block(offset: u64) -> Block {
        Block { file: StoreFile { kind: FileKind::Rows, number: 0 }, offset, len: 1 }
    }

    #[test]
    fn a_parked_read_is_not_tried_again_before_its_own_page_came() {
        let mut reads = Reads::default();
        reads.park(read(1), block(7));
        reads.park(read(3), block(8));
        reads.start_local(read(2));
        assert_eq!(starts(|| reads.take_ready(0)), [2]);
        reads.resume(|awaited| awaited == block(8));
        assert_eq!(starts(|| reads.take_ready(0)), [1]);
        reads.resume(|_| false);
        assert_eq!(starts(|| reads.take_ready(0)), [3]);
    }

    #[test]
    fn time_finds_the_oldest_in_every_stage() {
        let mut reads = Reads::default();
        reads.start(read(5));
        reads.issue().unwrap();
        reads.start(read(4));
        let confirmed = reads.issue().unwrap();
        reads.confirm(confirmed, 99);
        reads.start(read(6));
        reads.start_local(read(2));
        reads.park(read(3), block(0));
        let mut order = Vec::new();
        while let Some(oldest) = reads.oldest() {
            assert!(reads.take_started_before(oldest).is_none());
            order.push(reads.take_started_before(oldest + 1).unwrap().started);
        }
        assert_eq!(order, [2, 3, 4, 5, 6]);
        assert_eq!(reads.end_round(1).len(), 0, "the round that is left holds nobody");
        assert!(reads.is_empty());
    }
}
