//! The server side of an HTTP/2 connection: its state and its control frames.
//!
//! Owns: the frame loop, SETTINGS, PING, GOAWAY, RST_STREAM, WINDOW_UPDATE, PRIORITY. Does not know: where input comes
//! from; ranges in events are relative to the buffer the caller passed in.
//!
//! Invariants
//! - I1: frames are taken only when complete, so events do not depend on how input was cut.
//! - I2: while a header block is open, nothing but its CONTINUATION is accepted.
//! - I3: `held_bytes` is what the assembly budget has charged for this connection; `owed_bytes` of it are free again.
//! - I4: after `fail` no frame is read and no event leaves.

use std::collections::VecDeque;

use crate::connection::limits::{
    BUFFER_KEPT_BYTES_MAX, CONNECTION_CREDIT_BYTES, CONNECTION_WINDOW_BYTES, CONTROL_FRAMES_BURST_MAX,
    CONTROL_FRAMES_PER_SECOND, EXPANSION_KIB_BURST_MAX, EXPANSION_KIB_PER_SECOND, FRAME_BYTES_MAX,
    HEADER_TABLE_BYTES_MAX, OUTPUT_BACKLOG_BYTES_MAX, RESETS_BURST_MAX, RESETS_PER_SECOND, RESPONSE_BACKLOG_BYTES_MAX,
};
use crate::connection::{AssemblyBudget, ConnectionLimits, OutputBudget, Route, StreamId};
use crate::h2::frame::{self, ErrorCode, FrameHeader, HEADER_BYTES, flag, kind, setting};
use crate::h2::heads::{HeadRef, HeadStore};
use crate::h2::meter::{Meter, PingPolicy};
use crate::h2::streams::{Closed, Response, Streams};
use crate::h2::timers::Timers;
use crate::hpack::{Decoder, ResponseEncoder};

/// Visiting so many streams counts as one more control frame.
const STREAMS_PER_CONTROL_FRAME: u64 = 64;
/// The largest window (section 6.9.1).
const WINDOW_MAX: i64 = (1 << 31) - 1;

/// Where the bytes of an event are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: there are none.
    Empty,
    /// In the input buffer, from start to end.
    Input(usize, usize),
    /// In the server's `delivered` buffer, from an offset to its end.
    Delivered(usize),
}

/// An event without borrows; the connection resolves it into a `ConnectionEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    GrpcRequest { stream: StreamId, route: Option<Route>, message: Place },
    GrpcMessage { stream: StreamId, message: Place },
    GrpcHalfClose { stream: StreamId },
    HttpRequest { stream: StreamId, body: Place },
    StreamReset { stream: StreamId },
    StreamWritable { stream: StreamId },
}

/// A violation that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fatal {
    pub(super) code: ErrorCode,
    pub(super) text: &'static str,
}

pub(super) const fn fatal<T>(code: ErrorCode, text: &'static str) -> Result<T, Fatal> {
    Err(Fatal { code, text })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client's first SETTINGS frame is due.
    AwaitSettings,
    Open,
    Closed,
}

/// A header block whose CONTINUATION frames are still coming.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenBlock {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) self_dependent: bool,
    pub(super) frames: u32,
}

/// A DATA frame whose payload is being read, from the input position on.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenPayload {
    pub(super) stream: StreamId,
    pub(super) left: usize,
    pub(super) padding: usize,
    pub(super) end_stream: bool,
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) limits: ConnectionLimits,
    pub(super) phase: Phase,
    pub(super) streams: Streams,
    pub(super) heads: HeadStore,
    pub(super) decoder: Decoder,
    pub(super) last_stream: u32,

    pub(super) open_block: Option<OpenBlock>,
    pub(super) block: Vec<u8>,
    pub(super) open_data: Option<OpenPayload>,
    pub(super) receive_window: i64,
    /// The message or body of the event that is being looked at, and its head.
    pub(super) delivered: Vec<u8>,
    pub(super) delivered_head: Option<HeadRef>,
    pub(super) events: VecDeque<Event>,
    /// Streams whose declared message waits for the budget, in order of arrival.
    pub(super) waiting: VecDeque<StreamId>,
    pub(super) held_bytes: usize,
    pub(super) owed_bytes: usize,

    pub(super) out: Vec<u8>,
    pub(super) encoder: ResponseEncoder,
    pub(super) send_window: i64,
    pub(super) initial_send_window: i64,
    pub(super) peer_frame_bytes: usize,
    pub(super) ready: VecDeque<StreamId>,
    pub(super) backlog_bytes: usize,
    /// Bytes the kernel was given and has not taken yet.
    pub(super) handed_over_bytes: usize,
    /// What the account of output knows of, and what it allows.
    output_settled_bytes: usize,
    pub(super) output_bytes_max: usize,

    /// When it was last polled.
    pub(super) polled_at: u64,
    /// Slow requests are to be looked for.
    pub(super) gathering_due: bool,

    pub(super) control: Meter,
    /// KiB that messages were longer than what was sent.
    pub(super) expansions: Meter,
    pub(super) resets: Meter,
    pub(super) pings: PingPolicy,
    pub(super) timers: Timers,
}

impl Server {
    /// A connection whose preface has just been read; our SETTINGS are the first output.
    pub(crate) fn new(limits: ConnectionLimits, accepted_at: u64, now: u64) -> Self {
        let mut out = Vec::new();
        let mut parameters = [(setting::MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max as u32), (0, 0)];
        let mut count = 1;
        if let Some(streams) = limits.concurrent_streams_announced {
            parameters[count] = (setting::MAX_CONCURRENT_STREAMS, streams);
            count += 1;
        }
        frame::put_settings(&mut out, &parameters[..count]);
        let default_window = 65_535;
        frame::put_number(&mut out, kind::WINDOW_UPDATE, 0, (CONNECTION_WINDOW_BYTES - default_window) as u32);
        Self {
            phase: Phase::AwaitSettings,
            streams: Streams::default(),
            heads: HeadStore::new(limits.route, limits.header_list_bytes_max),
            decoder: Decoder::new(HEADER_TABLE_BYTES_MAX),
            last_stream: 0,
            open_block: None,
            block: Vec::new(),
            open_data: None,
            receive_window: CONNECTION_WINDOW_BYTES,
            delivered: Vec::new(),
            delivered_head: None,
            events: VecDeque::new(),
            waiting: VecDeque::new(),
            held_bytes: 0,
            owed_bytes: 0,
            out,
            encoder: ResponseEncoder::default(),
            send_window: default_window,
            initial_send_window: default_window,
            peer_frame_bytes: 16_384,
            ready: VecDeque::new(),
            backlog_bytes: 0,
            handed_over_bytes: 0,
            output_settled_bytes: 0,
            output_bytes_max: RESPONSE_BACKLOG_BYTES_MAX,
            polled_at: now,
            gathering_due: false,
            control: Meter::new(CONTROL_FRAMES_BURST_MAX, CONTROL_FRAMES_PER_SECOND, now),
            resets: Meter::new(RESETS_BURST_MAX, RESETS_PER_SECOND, now),
            expansions: Meter::new(EXPANSION_KIB_BURST_MAX, EXPANSION_KIB_PER_SECOND, now),
            pings: PingPolicy::new(limits.ping_interval_min),
            timers: Timers::new(&limits, accepted_at, now),
            limits,
        }
    }

    /// The next event from `input[*at..]`, or `None` when it needs more input, output room or budget.
    pub(crate) fn poll(
        &mut self,
        input: &[u8],
        at: &mut usize,
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Option<Event> {
        self.polled_at = now;
        self.settle(budget);
        let event = self.poll_frames(input, at, budget, now);
        if event.is_none() && self.owed_bytes > 0 {
            // Nothing is borrowed, and it may be long until the next poll.
            self.settle(budget);
        }
        event
    }

    fn poll_frames(&mut self, input: &[u8], at: &mut usize, budget: &mut AssemblyBudget, now: u64) -> Option<Event> {
        loop {
            if self.phase == Phase::Closed {
                *at = input.len();
                return None;
            }
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.open_data.is_some() {
                if let Some(event) = self.continue_data(input, at, budget) {
                    return Some(event);
                }
                continue;
            }
            if self.is_backlogged() {
                return None;
            }
            let header = FrameHeader::parse(&input[*at..])?;
            if header.length > FRAME_BYTES_MAX {
                self.fail(Fatal { code: ErrorCode::FrameSizeError, text: "frame too large" });
                continue;
            }
            let start = *at + HEADER_BYTES;
            let payload = input.get(start..start + header.length)?;
            *at = start + header.length;
            match self.handle_frame(header, payload, budget, now) {
                Ok(None) => {}
                Ok(Some(event)) => return Some(event),
                Err(violation) => self.fail(violation),
            }
            if let Some(data) = self.open_data {
                // The payload is read by `continue_data`, message by message.
                *at -= data.left + data.padding;
            }
        }
    }

    /// The head of the request event that was polled last.
    pub(crate) fn delivered_head(&self) -> &crate::connection::RequestHead {
        let head = self.delivered_head.expect("a request event has a head");
        &self.heads.get(head).head
    }

    /// The bytes behind [`Place::Delivered`].
    pub(crate) fn delivered(&self) -> &[u8] {
        &self.delivered
    }

    /// Frees what the last event borrowed and returns budget.
    #[inline]
    fn settle(&mut self, budget: &mut AssemblyBudget) {
        if let Some(head) = self.delivered_head.take() {
            self.heads.release(head);
        }
        self.delivered.clear();
        if self.delivered.capacity() > BUFFER_KEPT_BYTES_MAX {
            self.delivered = Vec::new();
        }
        if self.gathering_due {
            self.end_slow_requests(budget);
        }
        if self.owed_bytes > 0 {
            budget.release(self.owed_bytes);
            self.held_bytes -= self.owed_bytes;
            self.owed_bytes = 0;
        }
        if !self.waiting.is_empty() {
            self.grant_waiting(budget);
        }
    }

    /// See `Connection::settle_output`.
    #[inline]
    pub(crate) fn settle_output(&mut self, output: &mut OutputBudget) {
        let unsent = self.backlog_bytes + self.out.len() + self.handed_over_bytes;
        self.output_bytes_max = output.settle(self.output_settled_bytes, unsent);
        self.output_settled_bytes = unsent;
    }

    /// See `Connection::release_output`.
    pub(crate) fn release_output(&mut self, output: &mut OutputBudget) {
        output.settle(std::mem::take(&mut self.output_settled_bytes), 0);
    }

    /// Returns everything held of the budget.
    pub(crate) fn release(&mut self, budget: &mut AssemblyBudget) {
        budget.release(self.held_bytes);
        self.held_bytes = 0;
        self.owed_bytes = 0;
        self.phase = Phase::Closed;
    }

    pub(crate) fn waits_for_budget(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether parsing stands still until the kernel takes output.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.out.len() >= OUTPUT_BACKLOG_BYTES_MAX.min(self.output_bytes_max)
    }

    pub(crate) fn is_finished(&self) -> bool {
        let ended = self.phase == Phase::Closed || (self.timers.is_drained() && self.streams.is_empty());
        ended && self.out.is_empty()
    }

    /// Whether input is of no use any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Ends the connection: GOAWAY, then silence (I4).
    pub(super) fn fail(&mut self, violation: Fatal) {
        if self.phase != Phase::Closed {
            frame::put_goaway(&mut self.out, self.last_stream, violation.code, violation.text);
            self.phase = Phase::Closed;
            self.events.clear();
        }
    }

    /// Ends the connection without a word: nobody listens, or nobody spoke HTTP/2.
    pub(super) fn abandon(&mut self) {
        self.out.clear();
        self.phase = Phase::Closed;
        self.events.clear();
    }

    #[inline]
    fn handle_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Result<Option<Event>, Fatal> {
        if self.phase == Phase::AwaitSettings && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return fatal(ErrorCode::ProtocolError, "the first frame must be SETTINGS");
        }
        if self.open_block.is_some() {
            // I2
            if header.kind != kind::CONTINUATION {
                return fatal(ErrorCode::ProtocolError, "a header block was interrupted");
            }
            return self.handle_continuation(header, payload, budget, now);
        }
        match header.kind {
            kind::HEADERS => return self.handle_headers(header, payload, budget, now),
            kind::DATA => return self.handle_data(header, payload, now).map(|()| None),
            kind::CONTINUATION => return fatal(ErrorCode::ProtocolError, "CONTINUATION without HEADERS"),
            _ => {}
        }
        if !self.control.spend(now) {
            return fatal(ErrorCode::EnhanceYourCalm, "too many control frames");
        }
        match header.kind {
            kind::WINDOW_UPDATE => self.handle_window_update(header, payload, now),
            kind::PING => self.handle_ping(header, payload, now),
            kind::SETTINGS => self.handle_settings(header, payload, now),
            kind::RST_STREAM => return self.handle_rst_stream(header, payload, now),
            kind::PRIORITY => self.handle_priority(header, payload, now),
            kind::GOAWAY if header.stream != 0 => fatal(ErrorCode::ProtocolError, "GOAWAY on a stream"),
            kind::GOAWAY if payload.len() < 8 => fatal(ErrorCode::FrameSizeError, "short GOAWAY"),
            kind::PUSH_PROMISE => fatal(ErrorCode::ProtocolError, "PUSH_PROMISE from a client"),
            // A client's GOAWAY forbids pushes, which we never make; unknown types are ignored (section 5.5).
            _ => Ok(()),
        }
        .map(|()| None)
    }

    fn handle_settings(&mut self, header: FrameHeader, payload: &[u8], now: u64) -> Result<(), Fatal> {
        if header.stream != 0 {
            return fatal(ErrorCode::ProtocolError, "SETTINGS on a stream");
        }
        if header.has(flag::ACK) {
            return if payload.is_empty() {
                Ok(())
            } else {
                fatal(ErrorCode::FrameSizeError, "SETTINGS ack with data")
            };
        }
        if !payload.len().is_multiple_of(6) {
            return fatal(ErrorCode::FrameSizeError, "SETTINGS of odd length");
        }
        let window_before = self.initial_send_window;
        for parameter in payload.as_chunks::<6>().0 {
            let &[i0, i1, v0, v1, v2, v3] = parameter;
            self.apply_setting(u16::from_be_bytes([i0, i1]), u32::from_be_bytes([v0, v1, v2, v3]))?;
        }
        self.shift_stream_windows(self.initial_send_window - window_before, now)?;
        frame::put_header(&mut self.out, 0, kind::SETTINGS, flag::ACK, 0);
        if self.phase == Phase::AwaitSettings {
            self.phase = Phase::Open;
            self.timers.preface_done();
        }
        Ok(())
    }

    fn apply_setting(&mut self, identifier: u16, value: u32) -> Result<(), Fatal> {
        match identifier {
            setting::HEADER_TABLE_SIZE => self.encoder.set_table_size(value as usize),
            setting::ENABLE_PUSH if value > 1 => return fatal(ErrorCode::ProtocolError, "ENABLE_PUSH above 1"),
            setting::INITIAL_WINDOW_SIZE if i64::from(value) > WINDOW_MAX => {
                return fatal(ErrorCode::FlowControlError, "INITIAL_WINDOW_SIZE too large");
            }
            setting::INITIAL_WINDOW_SIZE => self.initial_send_window = i64::from(value),
            setting::MAX_FRAME_SIZE if !(16_384..1 << 24).contains(&value) => {
                return fatal(ErrorCode::ProtocolError, "MAX_FRAME_SIZE out of range");
            }
            setting::MAX_FRAME_SIZE => self.peer_frame_bytes = value as usize,
            // Our responses have a handful of short fields; unknown parameters are ignored (section 6.5.2).
            _ => {}
        }
        Ok(())
    }

    /// Section 6.9.2: a changed initial window applies to every open stream. That costs time, hence allowance.
    fn shift_stream_windows(&mut self, difference: i64, now: u64) -> Result<(), Fatal> {
        if difference == 0 {
            return Ok(());
        }
        let ids: Vec<StreamId> = self.streams.ids().collect();
        if !self.control.spend_many(ids.len() as u64 / STREAMS_PER_CONTROL_FRAME, now) {
            return fatal(ErrorCode::EnhanceYourCalm, "too many changes of the initial window");
        }
        for id in ids {
            let stream = self.streams.get(id).expect("ids are of open streams");
            stream.send_window += difference;
            if stream.send_window > WINDOW_MAX {
                return fatal(ErrorCode::FlowControlError, "stream window overflow");
            }
            self.update_ready(id, now);
        }
        Ok(())
    }

    fn handle_ping(&mut self, header: FrameHeader, payload: &[u8], now: u64) -> Result<(), Fatal> {
        if header.stream != 0 {
            return fatal(ErrorCode::ProtocolError, "PING on a stream");
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return fatal(ErrorCode::FrameSizeError, "PING of wrong length");
        };
        if header.has(flag::ACK) {
            if self.timers.is_drain_ping(payload) {
                self.finish_drain();
            }
            return Ok(());
        }
        frame::put_ping(&mut self.out, flag::ACK, payload);
        if !self.pings.accept(!self.streams.is_empty(), now) {
            return fatal(ErrorCode::EnhanceYourCalm, "too_many_pings");
        }
        Ok(())
    }

    fn handle_window_update(&mut self, header: FrameHeader, payload: &[u8], now: u64) -> Result<(), Fatal> {
        let Ok(increment) = <[u8; 4]>::try_from(payload) else {
            return fatal(ErrorCode::FrameSizeError, "WINDOW_UPDATE of wrong length");
        };
        let increment = i64::from(u32::from_be_bytes(increment) & 0x7fff_ffff);
        if header.stream == 0 {
            if increment == 0 {
                return fatal(ErrorCode::ProtocolError, "WINDOW_UPDATE of zero");
            }
            self.send_window += increment;
            if self.send_window > WINDOW_MAX {
                return fatal(ErrorCode::FlowControlError, "connection window overflow");
            }
            return Ok(());
        }
        let Some(id) = self.find_not_idle(header.stream, "WINDOW_UPDATE on an idle stream")? else { return Ok(()) };
        let stream = self.streams.get(id).expect("found open");
        stream.send_window += increment;
        if increment == 0 {
            return self.stream_error(id, ErrorCode::ProtocolError, now);
        }
        if stream.send_window > WINDOW_MAX {
            return self.stream_error(id, ErrorCode::FlowControlError, now);
        }
        self.update_ready(id, now);
        Ok(())
    }

    fn handle_rst_stream(&mut self, header: FrameHeader, payload: &[u8], now: u64) -> Result<Option<Event>, Fatal> {
        if payload.len() != 4 {
            return fatal(ErrorCode::FrameSizeError, "RST_STREAM of wrong length");
        }
        let Some(id) = self.find_not_idle(header.stream, "RST_STREAM on an idle stream")? else { return Ok(None) };
        if !self.resets.spend(now) {
            return fatal(ErrorCode::EnhanceYourCalm, "too many resets");
        }
        Ok(self.drop_stream(id, Closed::ByClient))
    }

    fn handle_priority(&mut self, header: FrameHeader, payload: &[u8], now: u64) -> Result<(), Fatal> {
        if header.stream == 0 {
            return fatal(ErrorCode::ProtocolError, "PRIORITY on stream 0");
        }
        let code = match payload.first_chunk::<4>() {
            Some(dependency) if payload.len() == 5 => {
                if u32::from_be_bytes(*dependency) & 0x7fff_ffff != header.stream {
                    return Ok(());
                }
                ErrorCode::ProtocolError
            }
            _ => ErrorCode::FrameSizeError,
        };
        match self.streams.find(header.stream) {
            Some(id) => self.stream_error(id, code, now),
            None => self.reset_unopened(header.stream, code, now),
        }
    }

    /// The open stream, `None` if it is closed, an error if it never was opened (section 5.1).
    pub(super) fn find_not_idle(&self, number: u32, text: &'static str) -> Result<Option<StreamId>, Fatal> {
        if number == 0 || number > self.last_stream {
            return fatal(ErrorCode::ProtocolError, text);
        }
        Ok(self.streams.find(number))
    }

    /// Ends a stream for its client's violation. The owner hears of it if it knew the stream.
    pub(super) fn stream_error(&mut self, id: StreamId, code: ErrorCode, now: u64) -> Result<(), Fatal> {
        let event = self.drop_stream(id, Closed::ByUs);
        self.events.extend(event);
        self.charge_reset(id.number, code, now)
    }

    /// Refuses a stream that was never opened here.
    pub(super) fn reset_unopened(&mut self, number: u32, code: ErrorCode, now: u64) -> Result<(), Fatal> {
        self.streams.remember_closed(number, Closed::ByUs);
        self.charge_reset(number, code, now)
    }

    fn charge_reset(&mut self, number: u32, code: ErrorCode, now: u64) -> Result<(), Fatal> {
        frame::put_number(&mut self.out, kind::RST_STREAM, number, code as u32);
        if self.resets.spend(now) { Ok(()) } else { fatal(ErrorCode::EnhanceYourCalm, "too many resets") }
    }

    /// Removes a stream; the event for an owner that still works on it.
    pub(super) fn drop_stream(&mut self, id: StreamId, how: Closed) -> Option<Event> {
        let stream = self.streams.peek(id).expect("dropped streams are open");
        let owner_works = stream.delivered && stream.response != Response::Ending;
        self.close_stream(id, how);
        owner_works.then_some(Event::StreamReset { stream: id })
    }

    /// Frees a stream and everything that hangs on it.
    #[inline]
    pub(super) fn close_stream(&mut self, id: StreamId, how: Closed) {
        let stream = self.streams.get(id).expect("closed streams were open");
        self.owed_bytes += stream.held_bytes + stream.head_bytes;
        self.backlog_bytes -= stream.queued_bytes();
        if let Some(head) = stream.head.take() {
            self.heads.release(head);
        }
        self.streams.close(id, how);
    }

    /// Returns connection credit once enough has arrived (design: on arrival).
    #[inline]
    pub(super) fn take_connection_window(&mut self, bytes: usize) -> Result<(), Fatal> {
        self.receive_window -= bytes as i64;
        if self.receive_window < 0 {
            return fatal(ErrorCode::FlowControlError, "connection window exceeded");
        }
        if self.receive_window <= CONNECTION_WINDOW_BYTES - CONNECTION_CREDIT_BYTES {
            let credit = CONNECTION_WINDOW_BYTES - self.receive_window;
            frame::put_number(&mut self.out, kind::WINDOW_UPDATE, 0, credit as u32);
            self.receive_window = CONNECTION_WINDOW_BYTES;
        }
        Ok(())
    }
}
