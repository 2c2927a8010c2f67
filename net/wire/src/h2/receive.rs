//! Requests in: HEADERS, CONTINUATION and DATA.
//!
//! Owns: opening streams, assembling messages and bodies, receive credit of streams. Does not know: responses, beyond
//! asking for a refusal.
//!
//! A message that lies whole in one DATA frame is delivered from the input buffer without a copy. Otherwise its bytes
//! are gathered; once the prefix is known, the window is opened for exactly what is missing, if the budget allows.
//!
//! Invariants
//! - I1: `assembly` starts with a message's prefix (or body) and never holds more than one message.
//! - I2: `held_bytes` of a stream covers its gathered bytes and those granted ahead; `head_bytes` covers its head until
//!   delivery.
//! - I3: a stream is in `waiting` exactly while `waits_for_budget` is set.

use crate::connection::limits::{
    CONTINUATION_FRAMES_MAX, EXPANSION_FREE, GATHERING_BYTES_PER_SECOND, GATHERING_PATIENCE, GRANT_PATIENCE,
    HEADER_BLOCK_LISTS_MAX, HELD_BYTES_FREE, SECOND, STREAM_WINDOW_BYTES,
};
use crate::connection::{AssemblyBudget, Known, RequestShape, StreamId};
use crate::grpc::{self, PREFIX_BYTES, Refusal};
use crate::h2::frame::{self, ErrorCode, FrameHeader, flag, kind};
use crate::h2::heads::{self, HeadKind, HeadRef};
use crate::h2::server::{Event, Fatal, OpenBlock, OpenPayload, Place, Server, fatal};
use crate::h2::streams::{Closed, Intake, Stream};

/// The `grpc-encoding` whose messages are understood.
const GZIP: &[u8] = b"gzip";

/// What looking for a message in new bytes found.
enum Found {
    /// A message in the input, prefix excluded, from start to end.
    InInput(usize, usize),
    /// The message in `assembly` is complete.
    Assembled,
    /// All bytes are gathered; the message is not complete.
    Partial,
}

/// Splits padding off a payload (section 6.1); `None` if it does not fit.
fn unpad(header: FrameHeader, payload: &[u8]) -> Option<(&[u8], usize)> {
    if !header.has(flag::PADDED) {
        return Some((payload, 0));
    }
    let (&padding, rest) = payload.split_first()?;
    let content = rest.len().checked_sub(usize::from(padding))?;
    Some((&rest[..content], usize::from(padding)))
}

impl Server {
    pub(super) fn handle_headers(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Result<Option<Event>, Fatal> {
        if header.stream.is_multiple_of(2) {
            return fatal(ErrorCode::ProtocolError, "HEADERS on an even stream");
        }
        let Some((mut fragment, _)) = unpad(header, payload) else {
            return fatal(ErrorCode::ProtocolError, "padding exceeds the frame");
        };
        let mut self_dependent = false;
        if header.has(flag::PRIORITY) {
            let Some((&dependency, rest)) = fragment.split_first_chunk::<4>() else {
                return fatal(ErrorCode::FrameSizeError, "HEADERS too short for its priority");
            };
            let Some((_weight, rest)) = rest.split_first() else {
                return fatal(ErrorCode::FrameSizeError, "HEADERS too short for its priority");
            };
            self_dependent = u32::from_be_bytes(dependency) & 0x7fff_ffff == header.stream;
            fragment = rest;
        }
        let end_stream = header.has(flag::END_STREAM);
        let block = OpenBlock { stream: header.stream, end_stream, self_dependent, frames: 0 };
        if header.has(flag::END_HEADERS) {
            return self.handle_block(block, fragment, budget, now);
        }
        self.block = fragment.to_vec();
        self.open_block = Some(block);
        self.timers.block_begun(now);
        Ok(None)
    }

    pub(super) fn handle_continuation(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Result<Option<Event>, Fatal> {
        let open = self.open_block.as_mut().expect("called only within a block");
        if header.stream != open.stream {
            return fatal(ErrorCode::ProtocolError, "CONTINUATION on another stream");
        }
        open.frames += 1;
        if open.frames > CONTINUATION_FRAMES_MAX {
            return fatal(ErrorCode::EnhanceYourCalm, "too many CONTINUATION frames");
        }
        if self.block.len() + payload.len() > HEADER_BLOCK_LISTS_MAX * self.limits.header_list_bytes_max {
            return fatal(ErrorCode::EnhanceYourCalm, "header block too long");
        }
        self.block.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(None);
        }
        let open = self.open_block.take().expect("checked above");
        self.timers.block_ended();
        let block = std::mem::take(&mut self.block);
        self.handle_block(open, &block, budget, now)
    }

    /// A complete header block: the start of a request, its trailers, or a violation. It is decoded in every case that
    /// keeps the connection, since the table depends on it.
    fn handle_block(
        &mut self,
        open: OpenBlock,
        block: &[u8],
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Result<Option<Event>, Fatal> {
        let bad_block = Fatal { code: ErrorCode::CompressionError, text: "header block" };
        if open.stream <= self.last_stream {
            let limit = self.limits.header_list_bytes_max;
            let valid = heads::decode_trailers(&mut self.decoder, block, limit).map_err(|_| bad_block)?;
            return self.handle_trailers(open, valid, now);
        }
        let head = self.heads.decode(&mut self.decoder, block).map_err(|_| bad_block)?;
        self.last_stream = open.stream;
        let refused = self.streams.len() >= self.limits.streams_max
            || self.limits.concurrent_streams_announced.is_some_and(|max| self.streams.len() >= max as usize)
            || (budget.is_exhausted() && self.held_bytes >= HELD_BYTES_FREE)
            || self.backlog_bytes >= self.output_bytes_max
            || self.timers.is_drained();
        if refused || open.self_dependent {
            self.heads.release(head);
            let code = if refused { ErrorCode::RefusedStream } else { ErrorCode::ProtocolError };
            return self.reset_unopened(open.stream, code, now).map(|()| None);
        }
        self.open_stream(open, head, budget, now)
    }

    fn handle_trailers(&mut self, open: OpenBlock, valid: bool, now: u64) -> Result<Option<Event>, Fatal> {
        let Some(id) = self.streams.find(open.stream) else {
            return match self.streams.closed(open.stream) {
                Some(Closed::ByUs) => Ok(None),
                Some(Closed::ByClient) => fatal(ErrorCode::StreamClosed, "HEADERS on a closed stream"),
                None => fatal(ErrorCode::ProtocolError, "stream numbers must grow"),
            };
        };
        let stream = self.streams.get(id).expect("found open");
        if stream.request_ended {
            return self.stream_error(id, ErrorCode::StreamClosed, now).map(|()| None);
        }
        if !open.end_stream || !valid || open.self_dependent {
            return self.stream_error(id, ErrorCode::ProtocolError, now).map(|()| None);
        }
        self.end_request(id, now)
    }

    #[inline]
    fn open_stream(
        &mut self,
        open: OpenBlock,
        head: HeadRef,
        budget: &mut AssemblyBudget,
        now: u64,
    ) -> Result<Option<Event>, Fatal> {
        let id = self.streams.open(open.stream);
        self.control.earn(2);
        let decoded = self.heads.get(head);
        let (kind, content_length) = (decoded.kind, decoded.content_length);
        let head_bytes = decoded.head.size_bytes();
        let is_head_request = decoded.head.known(Known::Method) == Some(b"HEAD");
        let is_gzip = decoded.head.known(Known::GrpcEncoding) == Some(GZIP);
        let stream = self.streams.get(id).expect("just opened");
        stream.head = Some(head);
        stream.is_gzip = is_gzip;
        stream.request_ended = false;
        stream.is_head_request = is_head_request;
        stream.receive_window = STREAM_WINDOW_BYTES;
        stream.send_window = self.initial_send_window;
        stream.content_left = content_length;
        stream.intake = match kind {
            HeadKind::Call(Some(route)) if route.shape == RequestShape::Single => Intake::SingleMessage,
            HeadKind::Call(Some(_)) => Intake::Messages,
            HeadKind::Http => Intake::Body,
            HeadKind::Call(None) | HeadKind::Malformed | HeadKind::TooLarge | HeadKind::RefusedCall => Intake::Discard,
        };
        if !open.end_stream {
            stream.head_bytes = head_bytes;
            stream.arriving_since = Some(now);
            self.timers.gathering_begun(now);
            self.held_bytes += head_bytes;
            budget.charge(head_bytes);
        }
        match kind {
            HeadKind::Malformed => return self.stream_error(id, ErrorCode::ProtocolError, now).map(|()| None),
            HeadKind::TooLarge => self.refuse_head(id, open.end_stream, 431, None),
            HeadKind::RefusedCall => {
                let (status, refusal) = heads::grpc_refusal(&self.heads.get(head).head)
                    .expect("the head was classified as refused for a reason");
                self.refuse_head(id, open.end_stream, status, Some(&refusal));
            }
            HeadKind::Call(route) => {
                let at_head = route.is_none_or(|route| route.shape == RequestShape::Stream);
                if at_head {
                    if open.end_stream {
                        let ended = self.end_request(id, now)?;
                        // The half-close must not overtake the request.
                        let follows = ended.filter(|event| matches!(event, Event::GrpcHalfClose { .. }));
                        self.events.extend(follows);
                    }
                    return Ok(self.deliver_call(id, Place::Empty));
                }
                return if open.end_stream { self.end_request(id, now) } else { Ok(None) };
            }
            HeadKind::Http if content_length.is_some_and(|length| length > self.limits.http_body_bytes_max as u64) => {
                self.refuse_head(id, open.end_stream, 413, None);
            }
            HeadKind::Http => return if open.end_stream { self.end_request(id, now) } else { Ok(None) },
        }
        Ok(None)
    }

    /// Hands a call to the owner; its head stays readable until the next poll.
    #[inline]
    fn deliver_call(&mut self, id: StreamId, message: Place) -> Option<Event> {
        let stream = self.streams.get(id)?;
        stream.delivered = true;
        stream.arriving_since = None;
        let head = stream.head.take().expect("a request is delivered once");
        self.owed_bytes += std::mem::take(&mut stream.held_bytes) + std::mem::take(&mut stream.head_bytes);
        self.delivered_head = Some(head);
        let route = match self.heads.get(head).kind {
            HeadKind::Call(route) => route,
            _ => None,
        };
        Some(Event::GrpcRequest { stream: id, route, message })
    }

    /// Moves a stream's gathered bytes to where events borrow from.
    fn deliver_assembly(&mut self, id: StreamId) {
        let stream = self.streams.get(id).expect("the stream gathers a message");
        self.owed_bytes += std::mem::take(&mut stream.held_bytes);
        stream.arriving_since = None;
        self.delivered.clear();
        std::mem::swap(&mut self.delivered, &mut stream.assembly);
    }

    /// Where a whole message lies once it is expanded, if it came compressed. `None`: its call is refused.
    #[inline]
    fn expand(&mut self, id: StreamId, place: Place, input: &[u8]) -> Option<Place> {
        let format = match place {
            Place::Input(start, _) => input[start - PREFIX_BYTES],
            Place::Delivered(start) => self.delivered[start - PREFIX_BYTES],
            Place::Empty => 0,
        };
        if format == 0 { Some(place) } else { self.expand_gzip(id, place, input) }
    }

    #[cold]
    fn expand_gzip(&mut self, id: StreamId, place: Place, input: &[u8]) -> Option<Place> {
        let gathered = std::mem::take(&mut self.delivered);
        let packed = match place {
            Place::Input(start, end) => &input[start..end],
            Place::Delivered(start) => &gathered[start..],
            Place::Empty => &[],
        };
        match grpc::gzip::expand(packed, self.limits.message_bytes_max, &mut self.delivered) {
            Ok(()) => {
                let surplus = self.delivered.len().saturating_sub(EXPANSION_FREE * packed.len());
                if self.expansions.spend_many((surplus >> 10) as u64, self.polled_at) {
                    return Some(Place::Delivered(0));
                }
                let text = "grpc: received too many messages that are much longer after decompression";
                self.refuse(id, &Refusal::new(grpc::RESOURCE_EXHAUSTED, text));
            }
            Err(refusal) => self.refuse(id, &refusal),
        }
        None
    }

    /// Checks a DATA frame and accounts for it; `continue_data` then reads it.
    #[inline]
    pub(super) fn handle_data(&mut self, header: FrameHeader, payload: &[u8], now: u64) -> Result<(), Fatal> {
        self.take_connection_window(payload.len())?;
        let Some((content, padding)) = unpad(header, payload) else {
            return fatal(ErrorCode::ProtocolError, "padding exceeds the frame");
        };
        let Some(id) = self.find_not_idle(header.stream, "DATA on an idle stream")? else {
            return match self.streams.closed(header.stream) {
                Some(Closed::ByUs) => Ok(()),
                _ => self.reset_unopened(header.stream, ErrorCode::StreamClosed, now),
            };
        };
        let end_stream = header.has(flag::END_STREAM);
        if content.is_empty() && !end_stream && !self.control.spend(now) {
            return fatal(ErrorCode::EnhanceYourCalm, "too many empty DATA frames");
        }
        let stream = self.streams.get(id).expect("found open");
        if stream.request_ended {
            return self.stream_error(id, ErrorCode::StreamClosed, now);
        }
        stream.receive_window -= payload.len() as i64;
        if stream.receive_window < 0 {
            return self.stream_error(id, ErrorCode::FlowControlError, now);
        }
        if let Some(left) = stream.content_left {
            let Some(left) = left.checked_sub(content.len() as u64) else {
                return self.stream_error(id, ErrorCode::ProtocolError, now);
            };
            stream.content_left = Some(left);
            if end_stream && left != 0 {
                return self.stream_error(id, ErrorCode::ProtocolError, now);
            }
        }
        self.open_data = Some(OpenPayload { stream: id, left: content.len(), padding, end_stream });
        Ok(())
    }

    /// Reads on in the open DATA frame until an event or its end.
    #[inline]
    pub(super) fn continue_data(&mut self, input: &[u8], at: &mut usize, budget: &mut AssemblyBudget) -> Option<Event> {
        let data = self.open_data.expect("called with an open frame");
        let start = *at;
        let Some(stream) = self.streams.get(data.stream) else {
            // Finished by the owner between two messages of this frame.
            *at = start + data.left + data.padding;
            self.open_data = None;
            return None;
        };
        let mut rest = &input[start..start + data.left];
        let before = rest.len();
        let event = match stream.intake {
            Intake::SingleMessage | Intake::Messages => self.read_message(&data, input, start, &mut rest, budget),
            Intake::Body => {
                self.gather_body(data.stream, &mut rest, budget);
                None
            }
            Intake::Discard => {
                rest = &[];
                None
            }
        };
        let left = rest.len();
        *at = start + before - left;
        self.open_data = Some(OpenPayload { left, ..data });
        if left > 0 && event.is_some() {
            return event;
        }
        if left == 0 {
            *at += data.padding;
            self.open_data = None;
            self.renew_window(data.stream, data.end_stream, budget);
            let ended = if data.end_stream { self.end_stream_of(data.stream, event) } else { None };
            return match (event, ended) {
                (Some(event), follows) => {
                    self.events.extend(follows);
                    Some(event)
                }
                (None, ended) => ended,
            };
        }
        event
    }

    /// The end of the request as its DATA frame says; an event that already delivered everything counts.
    #[inline]
    fn end_stream_of(&mut self, id: StreamId, event: Option<Event>) -> Option<Event> {
        let stream = self.streams.get(id)?;
        if let Some(Event::GrpcRequest { .. }) = event {
            stream.request_ended = true;
            return None;
        }
        self.complete_request(id)
    }

    /// Finds the next message in `rest`, advancing it.
    #[inline]
    fn read_message(
        &mut self,
        data: &OpenPayload,
        input: &[u8],
        frame_start: usize,
        rest: &mut &[u8],
        budget: &mut AssemblyBudget,
    ) -> Option<Event> {
        let id = data.stream;
        let total = data.left;
        let position = |rest: &[u8]| frame_start + total - rest.len();
        while !rest.is_empty() {
            let stream = self.streams.get(id)?;
            if stream.message_complete {
                self.refuse(id, &Refusal::several_messages());
                return None;
            }
            let found = match find_message(stream, rest, position(rest), &self.heads, &self.limits) {
                Ok(found) => found,
                Err(refusal) => {
                    self.refuse(id, &refusal);
                    return None;
                }
            };
            let single = self.streams.get(id)?.intake == Intake::SingleMessage;
            match found {
                Found::InInput(start, end) if !single => {
                    let message = self.expand(id, Place::Input(start, end), input)?;
                    return Some(Event::GrpcMessage { stream: id, message });
                }
                Found::InInput(start, end) if rest.is_empty() && data.end_stream => {
                    let message = self.expand(id, Place::Input(start, end), input)?;
                    return self.deliver_call(id, message);
                }
                Found::InInput(start, end) => {
                    // Complete, but the end of the request is still to come.
                    self.gather(id, &input[start - PREFIX_BYTES..end], budget);
                    self.streams.get(id)?.message_complete = true;
                }
                Found::Assembled if !single => {
                    // It is delivered at once: nothing more is held.
                    self.deliver_assembly(id);
                    let message = self.expand(id, Place::Delivered(PREFIX_BYTES), input)?;
                    return Some(Event::GrpcMessage { stream: id, message });
                }
                Found::Assembled => {
                    self.settle_gathered(id, budget);
                    self.streams.get(id)?.message_complete = true;
                }
                Found::Partial => self.settle_gathered(id, budget),
            }
        }
        None
    }

    /// Appends to a stream's assembly and accounts for it (I2).
    fn gather(&mut self, id: StreamId, bytes: &[u8], budget: &mut AssemblyBudget) {
        let stream = self.streams.get(id).expect("gathering streams are open");
        stream.assembly.extend_from_slice(bytes);
        self.settle_gathered(id, budget);
    }

    /// Brings `held_bytes` up to the gathered bytes: what was granted ahead counts first, the rest is charged. Where
    /// the budget has no room and the connection holds a good deal, the stream ends instead.
    fn settle_gathered(&mut self, id: StreamId, budget: &mut AssemblyBudget) {
        let stream = self.streams.get(id).expect("gathering streams are open");
        if stream.arriving_since.is_none() {
            stream.arriving_since = Some(self.polled_at);
            self.timers.gathering_begun(self.polled_at);
        }
        let missing = stream.assembly.len().saturating_sub(stream.held_bytes);
        if missing > 0 && budget.would_exceed(missing) && self.held_bytes + missing > HELD_BYTES_FREE {
            let code = if stream.delivered { ErrorCode::EnhanceYourCalm } else { ErrorCode::RefusedStream };
            return self.give_up(id, code);
        }
        stream.held_bytes += missing;
        self.held_bytes += missing;
        budget.charge(missing);
    }

    /// Ends a stream for want of memory.
    fn give_up(&mut self, id: StreamId, code: ErrorCode) {
        if let Err(violation) = self.stream_error(id, code, self.polled_at) {
            self.fail(violation);
        }
    }

    /// While memory for partly received requests is short, ends those that keep it and hardly send.
    #[cold]
    pub(super) fn end_slow_requests(&mut self, budget: &AssemblyBudget) {
        self.gathering_due = false;
        let now = self.polled_at;
        let ids: Vec<StreamId> = self.streams.ids().collect();
        for id in ids {
            let stream = self.streams.peek(id).expect("ids are of open streams");
            let Some(since) = stream.arriving_since else { continue };
            let patience = if stream.waits_for_budget {
                GRANT_PATIENCE
            } else {
                GATHERING_PATIENCE + stream.assembly.len() as u64 * SECOND / GATHERING_BYTES_PER_SECOND
            };
            if budget.is_pressed() && since.saturating_add(patience) <= now {
                self.give_up(id, ErrorCode::EnhanceYourCalm);
            } else {
                self.timers.gathering_begun(now);
            }
        }
    }

    fn gather_body(&mut self, id: StreamId, rest: &mut &[u8], budget: &mut AssemblyBudget) {
        let stream = self.streams.get(id).expect("bodies belong to open streams");
        if stream.assembly.len() + rest.len() > self.limits.http_body_bytes_max {
            let ended = stream.request_ended;
            self.refuse_head(id, ended, 413, None);
        } else {
            self.gather(id, rest, budget);
        }
        *rest = &[];
    }

    /// Opens a stream's window for what it needs next: the rest of a declared message, or a fresh default window.
    fn renew_window(&mut self, id: StreamId, ended: bool, budget: &mut AssemblyBudget) {
        if ended {
            return;
        }
        let Some(stream) = self.streams.get(id) else { return };
        if let Some(missing) = missing_bytes(stream, self.limits.http_body_bytes_max) {
            if stream.receive_window < missing && !stream.waits_for_budget {
                stream.waits_for_budget = true;
                self.waiting.push_back(id);
                self.grant_waiting(budget);
            }
        } else if stream.receive_window <= STREAM_WINDOW_BYTES / 2 && stream.intake != Intake::Discard {
            let credit = STREAM_WINDOW_BYTES - stream.receive_window;
            stream.receive_window = STREAM_WINDOW_BYTES;
            frame::put_number(&mut self.out, kind::WINDOW_UPDATE, id.number, credit as u32);
        }
    }

    /// Grants declared messages in order of arrival while the budget allows.
    pub(super) fn grant_waiting(&mut self, budget: &mut AssemblyBudget) {
        while let Some(&id) = self.waiting.front() {
            if let Some(stream) = self.streams.get(id)
                && let Some(missing) = missing_bytes(stream, self.limits.http_body_bytes_max)
            {
                let credit = missing - stream.receive_window;
                if credit > 0 {
                    // The whole of it, so that whoever has a grant can finish; padding is not charged again.
                    let whole = stream.assembly.len() + missing as usize;
                    let charge = whole.saturating_sub(stream.held_bytes);
                    if !budget.try_grant(charge) {
                        return;
                    }
                    stream.held_bytes += charge;
                    self.held_bytes += charge;
                    stream.arriving_since = Some(self.polled_at);
                    stream.receive_window = missing;
                    frame::put_number(&mut self.out, kind::WINDOW_UPDATE, id.number, credit as u32);
                }
            }
            if let Some(stream) = self.streams.get(id) {
                stream.waits_for_budget = false;
            }
            self.waiting.pop_front();
        }
    }

    /// END_STREAM by a header block.
    fn end_request(&mut self, id: StreamId, now: u64) -> Result<Option<Event>, Fatal> {
        let stream = self.streams.get(id).expect("the caller found it open");
        if stream.content_left.is_some_and(|left| left != 0) {
            return self.stream_error(id, ErrorCode::ProtocolError, now).map(|()| None);
        }
        Ok(self.complete_request(id))
    }

    /// The client has sent everything: deliver what waited for that.
    fn complete_request(&mut self, id: StreamId) -> Option<Event> {
        let stream = self.streams.get(id)?;
        stream.request_ended = true;
        match stream.intake {
            Intake::Discard => None,
            Intake::Messages if stream.assembly.is_empty() => Some(Event::GrpcHalfClose { stream: id }),
            Intake::SingleMessage if stream.message_complete => {
                self.deliver_assembly(id);
                let message = self.expand(id, Place::Delivered(PREFIX_BYTES), &[])?;
                self.deliver_call(id, message)
            }
            Intake::SingleMessage if stream.assembly.is_empty() => {
                self.refuse(id, &Refusal::no_message());
                None
            }
            Intake::SingleMessage | Intake::Messages => {
                self.refuse(id, &Refusal::cut_message());
                None
            }
            Intake::Body => {
                self.deliver_assembly(id);
                let stream = self.streams.get(id).expect("just looked at");
                stream.delivered = true;
                self.owed_bytes += std::mem::take(&mut stream.head_bytes);
                self.delivered_head = stream.head.take();
                Some(Event::HttpRequest { stream: id, body: Place::Delivered(0) })
            }
        }
    }

    /// Ends a call with a status of the transport's own.
    fn refuse(&mut self, id: StreamId, refusal: &Refusal) {
        let owner_works = self.streams.peek(id).is_some_and(|stream| stream.delivered);
        self.finish(id, refusal.code, &refusal.message);
        if let Some(stream) = self.streams.get(id) {
            stream.intake = Intake::Discard;
        }
        if owner_works {
            self.events.push_back(Event::StreamReset { stream: id });
        }
    }

    /// Answers a request by its head alone; the rest of it is not read.
    fn refuse_head(&mut self, id: StreamId, ended: bool, status: u16, refusal: Option<&Refusal>) {
        let stream = self.streams.get(id).expect("refused streams are open");
        stream.request_ended = ended;
        match refusal {
            Some(refusal) => self.finish_at_head(id, status, refusal.code, &refusal.message),
            None => self.send_http(id, status, &[], &[]),
        }
    }
}

/// Bytes that have not arrived: of a message whose prefix is known, or of a body (of undeclared length: one byte past
/// the limit, so that going over it shows). `None` if nothing particular is due.
fn missing_bytes(stream: &Stream, body_bytes_max: usize) -> Option<i64> {
    match stream.intake {
        Intake::Body => {
            let undeclared = (body_bytes_max + 1 - stream.assembly.len()) as i64;
            return Some(stream.content_left.map_or(undeclared, |left| left as i64));
        }
        Intake::SingleMessage | Intake::Messages if !stream.message_complete => {}
        _ => return None,
    }
    let prefix = stream.assembly.first_chunk::<PREFIX_BYTES>()?;
    let [_, length @ ..] = *prefix;
    // Checked against the limit when the prefix was read.
    Some(PREFIX_BYTES as i64 + i64::from(u32::from_be_bytes(length)) - stream.assembly.len() as i64)
}

/// Looks for a whole message in `rest`, which starts at `position` of the input; gathers what is partial.
#[inline]
fn find_message(
    stream: &mut Stream,
    rest: &mut &[u8],
    position: usize,
    heads: &heads::HeadStore,
    limits: &crate::connection::ConnectionLimits,
) -> Result<Found, Refusal> {
    let is_gzip = stream.is_gzip;
    let check = |prefix: [u8; PREFIX_BYTES], head: Option<HeadRef>| {
        let named = head.and_then(|head| heads.get(head).head.known(Known::GrpcEncoding));
        let encoding = if is_gzip { Some(GZIP) } else { named };
        grpc::check_prefix(prefix, limits.message_bytes_max, encoding)
    };
    if stream.assembly.is_empty() {
        if let Some(prefix) = rest.first_chunk::<PREFIX_BYTES>() {
            let length = check(*prefix, stream.head)?;
            if let Some(after) = rest.get(PREFIX_BYTES + length..) {
                *rest = after;
                let start = position + PREFIX_BYTES;
                return Ok(Found::InInput(start, start + length));
            }
        }
        stream.assembly.extend_from_slice(rest);
        *rest = &[];
        return Ok(Found::Partial);
    }
    let prefix_missing = PREFIX_BYTES.saturating_sub(stream.assembly.len()).min(rest.len());
    let (prefix_part, after) = rest.split_at(prefix_missing);
    stream.assembly.extend_from_slice(prefix_part);
    *rest = after;
    let Some(prefix) = stream.assembly.first_chunk::<PREFIX_BYTES>() else { return Ok(Found::Partial) };
    let length = check(*prefix, stream.head)?;
    let missing = (PREFIX_BYTES + length - stream.assembly.len()).min(rest.len());
    let (part, after) = rest.split_at(missing);
    stream.assembly.extend_from_slice(part);
    *rest = after;
    let complete = stream.assembly.len() == PREFIX_BYTES + length;
    Ok(if complete { Found::Assembled } else { Found::Partial })
}
