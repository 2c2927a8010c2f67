//! Deadlines of an HTTP/2 connection, and its graceful stop.
//!
//! Owns: what is due when. Does not know: a clock.
//!
//! Deadlines that every read or write would push back (keepalive, stalled writes) are armed once and looked at again
//! when they come up, so that a busy connection's deadline stands still and costs its owner nothing.
//!
//! Invariants
//! - I1: `deadline` is no later than the earliest time at which something is due, and `handle_timer` moves or removes a
//!   deadline that has passed.

use std::collections::VecDeque;

use crate::connection::limits::GATHERING_PATIENCE;
use crate::connection::{ConnectionLimits, StreamId};
use crate::h2::frame::{self, ErrorCode, kind};
use crate::h2::server::{Phase, Server};
use crate::h2::streams::Closed;

/// Payload of the ping that separates the two GOAWAYs of a graceful stop.
const DRAIN_PING: [u8; 8] = *b"trildrai";
/// Payload of a keepalive ping.
const KEEPALIVE_PING: [u8; 8] = *b"trilkeep";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    No,
    /// The first GOAWAY is out; its ping is awaited until then.
    Announced(u64),
    /// The final GOAWAY is out.
    Final,
}

/// What is due when; times in nanoseconds.
#[derive(Debug)]
pub(super) struct Timers {
    preface_by: Option<u64>,
    block_by: Option<u64>,
    /// When to look for requests that are slow to arrive, if any is arriving.
    gathering_check_at: Option<u64>,
    received_at: u64,
    ping_sent_at: Option<u64>,
    /// When to look at the two above.
    keepalive_check_at: u64,
    /// When output was handed over that the kernel has not taken yet.
    handed_over_at: Option<u64>,
    /// Since when the connection's send window has held everything back.
    stalled_at: Option<u64>,
    /// When to look at the two above, if any of them was set since the last look.
    write_check_at: Option<u64>,
    /// Finished streams whose own window blocks their queue, oldest first; may hold outdated entries.
    blocked: VecDeque<(u64, StreamId)>,
    drain: Drain,
    header_timeout: u64,
    write_timeout: u64,
    keepalive_interval: u64,
    keepalive_timeout: u64,
}

impl Timers {
    pub(super) fn new(limits: &ConnectionLimits, accepted_at: u64, now: u64) -> Self {
        Self {
            preface_by: Some(accepted_at.saturating_add(limits.preface_timeout)),
            block_by: None,
            gathering_check_at: None,
            received_at: now,
            ping_sent_at: None,
            keepalive_check_at: now.saturating_add(limits.keepalive_interval),
            handed_over_at: None,
            stalled_at: None,
            write_check_at: None,
            blocked: VecDeque::new(),
            drain: Drain::No,
            header_timeout: limits.header_timeout,
            write_timeout: limits.write_timeout,
            keepalive_interval: limits.keepalive_interval,
            keepalive_timeout: limits.keepalive_timeout,
        }
    }

    pub(super) fn preface_done(&mut self) {
        self.preface_by = None;
    }

    pub(super) fn block_begun(&mut self, now: u64) {
        self.block_by = Some(now.saturating_add(self.header_timeout));
    }

    pub(super) fn block_ended(&mut self) {
        self.block_by = None;
    }

    pub(super) fn gathering_begun(&mut self, now: u64) {
        self.gathering_check_at.get_or_insert_with(|| now.saturating_add(GATHERING_PATIENCE));
    }

    pub(super) fn stream_blocked(&mut self, id: StreamId, since: u64) {
        self.blocked.push_back((since, id));
    }

    pub(super) fn output_taken(&mut self, any: bool, window_blocks: bool, now: u64) {
        if any {
            self.handed_over_at.get_or_insert(now);
        }
        self.stalled_at = if window_blocks { Some(self.stalled_at.unwrap_or(now)) } else { None };
        if any || window_blocks {
            self.write_check_at.get_or_insert_with(|| now.saturating_add(self.write_timeout));
        }
    }

    pub(super) fn is_drain_ping(&self, payload: [u8; 8]) -> bool {
        payload == DRAIN_PING && matches!(self.drain, Drain::Announced(_))
    }

    pub(super) fn is_drained(&self) -> bool {
        self.drain == Drain::Final
    }

    fn keepalive_due(&self) -> u64 {
        match self.ping_sent_at {
            Some(sent) => sent.saturating_add(self.keepalive_timeout),
            None => self.received_at.saturating_add(self.keepalive_interval),
        }
    }

    fn write_due(&self) -> Option<u64> {
        let since = self.handed_over_at.into_iter().chain(self.stalled_at).min()?;
        Some(since.saturating_add(self.write_timeout))
    }

    fn blocked_due(&self) -> Option<u64> {
        self.blocked.front().map(|(since, _)| since.saturating_add(self.write_timeout))
    }

    fn drain_due(&self) -> Option<u64> {
        if let Drain::Announced(by) = self.drain { Some(by) } else { None }
    }
}

impl Server {
    /// Bytes arrived: the client lives.
    #[inline]
    pub(crate) fn note_received(&mut self, now: u64) {
        self.timers.received_at = now;
        self.timers.ping_sent_at = None;
    }

    /// The kernel has taken the output handed over last.
    #[inline]
    pub(crate) fn note_sent(&mut self, now: u64) {
        self.timers.handed_over_at = None;
        self.handed_over_bytes = 0;
        if let Some(since) = &mut self.timers.stalled_at {
            // The peer could not open its window for bytes it had not seen.
            *since = now;
        }
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        let timers = &self.timers;
        if self.phase == Phase::Closed {
            // Last words must be taken in time too.
            return if self.out.is_empty() { None } else { timers.write_check_at };
        }
        let begun = [timers.preface_by, timers.block_by, timers.gathering_check_at];
        let sending = [timers.write_due(), timers.blocked_due(), timers.drain_due()];
        begun.into_iter().chain(sending).flatten().chain([timers.keepalive_due()]).min()
    }

    pub(crate) fn handle_timer(&mut self, now: u64) {
        let due = |deadline: Option<u64>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.timers.write_due()) {
            self.abandon();
            return;
        }
        if due(self.timers.write_check_at) {
            self.timers.write_check_at = self.timers.write_due();
        }
        if self.phase == Phase::Closed {
            return;
        }
        if due(self.timers.preface_by) || due(self.timers.block_by) {
            self.abandon();
            return;
        }
        if due(self.timers.gathering_check_at) {
            // What the budget allows is known to the next poll.
            self.timers.gathering_check_at = None;
            self.gathering_due = true;
        }
        if due(self.timers.drain_due()) {
            self.finish_drain();
        }
        if self.timers.keepalive_due() <= now {
            if self.timers.ping_sent_at.is_some() {
                self.abandon();
                return;
            }
            self.timers.ping_sent_at = Some(now);
            frame::put_ping(&mut self.out, 0, KEEPALIVE_PING);
        }
        self.timers.keepalive_check_at = self.timers.keepalive_due();
        while due(self.timers.blocked_due()) {
            let Some((since, id)) = self.timers.blocked.pop_front() else { break };
            if self.streams.peek(id).is_some_and(|stream| stream.blocked_at == Some(since)) {
                frame::put_number(&mut self.out, kind::RST_STREAM, id.number(), ErrorCode::Cancel as u32);
                self.close_stream(id, Closed::ByUs);
            }
        }
    }

    /// First half of a graceful stop: no stream is refused yet, since the client has not heard of it.
    pub(crate) fn start_drain(&mut self, now: u64) {
        if self.phase == Phase::Closed || self.timers.drain != Drain::No {
            return;
        }
        frame::put_goaway(&mut self.out, 0x7fff_ffff, ErrorCode::NoError, "");
        frame::put_ping(&mut self.out, 0, DRAIN_PING);
        self.timers.drain = Drain::Announced(now.saturating_add(self.limits.drain_ping_timeout));
    }

    /// Second half: everything that was sent before the client heard of the first half has been seen.
    pub(super) fn finish_drain(&mut self) {
        self.timers.drain = Drain::Final;
        frame::put_goaway(&mut self.out, self.last_stream, ErrorCode::NoError, "");
    }
}
