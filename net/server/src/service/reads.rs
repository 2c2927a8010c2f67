//! Reads on their way: gathered, waiting for a read index, waiting for apply.
//!
//! Owns: the stages and their order. Does not know: how a read is evaluated.
//!
//! Invariants
//! - I1: a read joins only the round that is issued after it arrived; rounds have fresh contexts.
//! - I2: a read is in exactly one stage.

use std::collections::VecDeque;

use crate::clients::Caller;
use crate::http::Probe;

/// What is read.
#[derive(Debug)]
pub(super) enum ReadKind {
    /// KV.Range.
    Range,
    /// KV.Txn of ranges alone.
    Txn,
    /// Cluster.MemberList.
    MemberList,
    /// Maintenance.Alarm GET of one type, or of all (0).
    Alarms(u32),
    /// Maintenance.Alarm that names no alarm.
    NoAlarms,
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
    reads: Vec<Read>,
}

/// All reads that wait.
#[derive(Debug, Default)]
pub(super) struct Reads {
    gathering: Vec<Read>,
    issued: VecDeque<Round>,
    /// Confirmed or local reads with the index that must be applied.
    ready: VecDeque<(u64, Read)>,
    aborted: Vec<Read>,
    last_context: u64,
}

impl Reads {
    /// Nothing waits.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.gathering.is_empty() && self.issued.is_empty() && self.ready.is_empty() && self.aborted.is_empty()
    }

    /// Takes a linearizable read into the round being gathered.
    pub(super) fn start(&mut self, read: Read) {
        self.gathering.push(read);
    }

    /// Takes a read that needs no confirmation.
    pub(super) fn start_local(&mut self, read: Read) {
        self.ready.push_back((0, read));
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
        for read in self.take_round(context) {
            self.ready.push_back((index, read));
        }
    }

    /// A round will not be confirmed.
    pub(super) fn abort(&mut self, context: u64) {
        let reads = self.take_round(context);
        self.aborted.extend(reads);
    }

    /// The next read of an aborted round.
    pub(super) fn take_aborted(&mut self) -> Option<Read> {
        self.aborted.pop()
    }

    /// The next read whose index is applied.
    pub(super) fn take_ready(&mut self, applied: u64) -> Option<Read> {
        let position = self.ready.iter().position(|(index, _)| *index <= applied)?;
        self.ready.remove(position).map(|(_, read)| read)
    }

    /// Any read that arrived before `time`, whatever its stage.
    pub(super) fn take_started_before(&mut self, time: u64) -> Option<Read> {
        let early = |read: &Read| read.started < time;
        if let Some(position) = self.gathering.iter().position(early) {
            return Some(self.gathering.swap_remove(position));
        }
        for round in &mut self.issued {
            if let Some(position) = round.reads.iter().position(early) {
                return Some(round.reads.swap_remove(position));
            }
        }
        let position = self.ready.iter().position(|(_, read)| early(read))?;
        self.ready.remove(position).map(|(_, read)| read)
    }

    /// When the oldest waiting read arrived.
    #[must_use]
    pub(super) fn oldest(&self) -> Option<u64> {
        let issued = self.issued.iter().flat_map(|round| &round.reads);
        self.gathering
            .iter()
            .chain(issued)
            .chain(self.ready.iter().map(|(_, read)| read))
            .map(|read| read.started)
            .min()
    }

    fn take_round(&mut self, context: u64) -> Vec<Read> {
        match self.issued.iter().position(|round| round.context == context) {
            Some(position) => self.issued.remove(position).map(|round| round.reads).unwrap_or_default(),
            None => Vec::new(),
        }
    }
}
