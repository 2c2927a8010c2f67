//! Connections that other cores serve, as the sequencer sees them.
//!
//! Owns: which streams of them are open, what of a stream's answers has not left its connection, the answers of the
//! turn for each core, and how many connections each core has. Does not know: HTTP/2, sockets, what an answer means.
//!
//! Invariants
//! - I1: nothing is sent on a stream that is not open: an open one was announced by its request and has neither been
//!   ended here nor been reported as reset.
//! - I2: the backlog of a stream is what was sent on it less what its core reported as gone: never less than what waits
//!   there, so a slow reader is bounded as with a connection of this core.
//! - I3: a core is told in the order in which answers were made, and its credit follows `front::message`.

use trilith_reactor::{ConnectionId, CoreId, Port};
use trilith_wire::connection::StreamId;
use trilith_wire::connection::limits::{GRANTED_BYTES_MAX, STREAM_BACKLOG_LOW_BYTES};

use crate::clients::Caller;
use crate::front::errands::Errand;
use crate::front::message::{
    ANSWER_BYTES_MAX, Answer, Answers, Credit, Order, REQUEST_BYTES_MAX, REQUESTS_MAX, Requests, Told,
};
use crate::http::Response;

/// What gRPC puts before a message.
const PREFIX_BYTES: usize = 5;

#[derive(Clone, Copy, Debug)]
struct RemoteStream {
    stream: StreamId,
    backlog: usize,
}

#[derive(Debug)]
struct Remote {
    id: ConnectionId,
    /// By the slots of the streams.
    streams: Vec<Option<RemoteStream>>,
}

/// A connection core.
#[derive(Debug)]
pub struct RemoteCore {
    core: CoreId,
    /// By the slots of that core; those that have asked for something.
    connections: Vec<Option<Remote>>,
    /// Connections given to it and not reported as closed.
    count: usize,
    outgoing: Answers,
    /// Credit that is to be given back.
    owed: Credit,
    /// Bytes of answers sent and not reported as taken.
    in_flight: usize,
}

impl RemoteCore {
    /// A core without connections.
    #[must_use]
    pub fn new(core: CoreId) -> Self {
        Self {
            core,
            connections: Vec::new(),
            count: 0,
            outgoing: Answers::default(),
            owed: Credit::default(),
            in_flight: 0,
        }
    }

    /// Its number.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.core
    }

    /// Its connections.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// A connection is given to it.
    pub fn note_given(&mut self) {
        self.count += 1;
    }

    /// A parcel of it is being taken.
    pub(crate) fn note_parcel(&mut self, requests: &Requests) {
        self.owed.add_all(requests.cost);
        let Credit { requests: count, bytes } = self.owed;
        // The last request may be a long one.
        let keeps = count <= REQUESTS_MAX && bytes <= REQUEST_BYTES_MAX + GRANTED_BYTES_MAX;
        assert!(keeps, "I3: a core keeps to its credit, {count} requests of {bytes} bytes are too many");
        self.in_flight = self.in_flight.checked_sub(requests.answers_taken).expect("I3: what is taken was sent");
    }

    /// A call begins on a stream (I1).
    pub(crate) fn open(&mut self, caller: Caller) {
        let remote = self.connect(caller);
        let slot = caller.stream.slot();
        if remote.streams.len() <= slot {
            remote.streams.resize(slot + 1, None);
        }
        remote.streams[slot] = Some(RemoteStream { stream: caller.stream, backlog: 0 });
    }

    /// Something was heard from a connection.
    fn connect(&mut self, caller: Caller) -> &mut Remote {
        let slot = caller.slot();
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        let connection = caller.connection();
        let place = &mut self.connections[slot];
        if place.as_ref().is_none_or(|remote| remote.id != connection) {
            *place = Some(Remote { id: connection, streams: Vec::new() });
        }
        place.as_mut().expect("just placed")
    }

    /// An HTTP request came on a connection.
    pub(crate) fn note_http(&mut self, caller: Caller) {
        self.connect(caller);
    }

    /// A client gave a call up.
    pub(crate) fn handle_reset(&mut self, caller: Caller) {
        if let Some(remote) = self.remote_mut(caller) {
            remote.close(caller.stream);
        }
    }

    /// A connection is gone.
    pub(crate) fn handle_closed(&mut self, caller: Caller) {
        self.count = self.count.checked_sub(1).expect("a connection is closed once");
        if self.remote(caller).is_some() {
            self.connections[caller.slot()] = None;
        }
    }

    /// Bytes of a stream are out of its connection's queue. Whether who fills it may go on that could not before.
    pub(crate) fn handle_taken(&mut self, caller: Caller, bytes: usize) -> bool {
        let Some(stream) = self.remote_mut(caller).and_then(|remote| remote.stream_mut(caller.stream)) else {
            return false;
        };
        let before = stream.backlog;
        stream.backlog = before.checked_sub(bytes).expect("I2: what is gone was sent");
        before > STREAM_BACKLOG_LOW_BYTES && stream.backlog <= STREAM_BACKLOG_LOW_BYTES
    }

    /// See `Clients::is_open`.
    pub(crate) fn is_open(&self, caller: Caller) -> bool {
        self.remote(caller).is_some_and(|remote| remote.stream(caller.stream).is_some())
    }

    /// See `Clients::backlog_bytes`.
    pub(crate) fn backlog_bytes(&self, caller: Caller) -> usize {
        self.remote(caller).and_then(|remote| remote.stream(caller.stream)).map_or(0, |stream| stream.backlog)
    }

    /// The connection that waits for an answer, if it is still there.
    pub(crate) fn answer(&mut self, caller: Caller) -> Option<RemoteConnection<'_>> {
        let remote = self.connections.get_mut(caller.slot())?.as_mut().filter(|it| it.id == caller.connection())?;
        Some(RemoteConnection { remote, slot: u32::try_from(caller.slot()).ok()?, outgoing: &mut self.outgoing })
    }

    /// Orders the core as a whole.
    pub(crate) fn order(&mut self, order: Order) {
        self.outgoing.orders.push(order);
    }

    /// Gives the core a job.
    pub(crate) fn send_job(&mut self, errand: Errand) {
        self.outgoing.errands.push(errand);
    }

    /// Sends what the turn has for this core.
    pub(crate) fn flush<P: Port>(&mut self, port: &mut P) {
        if let Some(answers) = self.take_parcel() {
            port.post(self.core, Box::new(answers));
        }
    }

    fn take_parcel(&mut self) -> Option<Answers> {
        if self.in_flight <= ANSWER_BYTES_MAX {
            self.outgoing.credit = std::mem::take(&mut self.owed);
        }
        if self.outgoing.is_empty() {
            return None;
        }
        self.in_flight += self.outgoing.weight();
        let next = self.outgoing.successor();
        Some(std::mem::replace(&mut self.outgoing, next))
    }

    fn remote(&self, caller: Caller) -> Option<&Remote> {
        self.connections.get(caller.slot())?.as_ref().filter(|remote| remote.id == caller.connection())
    }

    fn remote_mut(&mut self, caller: Caller) -> Option<&mut Remote> {
        self.connections.get_mut(caller.slot())?.as_mut().filter(|remote| remote.id == caller.connection())
    }
}

impl Remote {
    fn stream(&self, stream: StreamId) -> Option<&RemoteStream> {
        self.streams.get(stream.slot())?.as_ref().filter(|open| open.stream == stream)
    }

    fn stream_mut(&mut self, stream: StreamId) -> Option<&mut RemoteStream> {
        self.streams.get_mut(stream.slot())?.as_mut().filter(|open| open.stream == stream)
    }

    fn close(&mut self, stream: StreamId) {
        if self.stream(stream).is_some() {
            self.streams[stream.slot()] = None;
        }
    }
}

/// A connection of another core, for one answer. Its methods are those of a connection.
#[derive(Debug)]
pub struct RemoteConnection<'a> {
    remote: &'a mut Remote,
    slot: u32,
    outgoing: &'a mut Answers,
}

impl RemoteConnection<'_> {
    fn tell(&mut self, stream: StreamId, what: Told) {
        self.outgoing.items.push(Answer { slot: self.slot, connection: self.remote.id, stream, what });
    }

    fn encode(&mut self, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.outgoing.bytes.len();
        encode(&mut self.outgoing.bytes);
        assert!(self.outgoing.bytes.len() - start == len, "an encoder must write the announced length");
    }

    pub(crate) fn send_unary(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.is_open(stream) {
            self.tell(stream, Told::Unary { len });
            self.encode(len, encode);
            self.remote.close(stream);
        }
    }

    pub(crate) fn send_message(&mut self, stream: StreamId, len: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Some(open) = self.remote.stream_mut(stream) {
            open.backlog += PREFIX_BYTES + len;
            self.tell(stream, Told::Message { len });
            self.encode(len, encode);
        }
    }

    pub(crate) fn begin_message(&mut self, stream: StreamId, len: usize) {
        if let Some(open) = self.remote.stream_mut(stream) {
            open.backlog += PREFIX_BYTES;
            self.tell(stream, Told::Begin { len });
        }
    }

    pub(crate) fn send_part(&mut self, stream: StreamId, bytes: &[u8]) {
        if let Some(open) = self.remote.stream_mut(stream).filter(|_| !bytes.is_empty()) {
            open.backlog += bytes.len();
            self.tell(stream, Told::Part { len: bytes.len() });
            self.outgoing.bytes.extend_from_slice(bytes);
        }
    }

    pub(crate) fn finish(&mut self, stream: StreamId, code: u32, message: &str) {
        if self.is_open(stream) {
            self.tell(stream, Told::Finish { code, len: message.len() });
            self.outgoing.bytes.extend_from_slice(message.as_bytes());
            self.remote.close(stream);
        }
    }

    /// Of a call or of an HTTP request, whose streams are not listed.
    pub(crate) fn reset(&mut self, stream: StreamId) {
        self.tell(stream, Told::Reset);
        self.remote.close(stream);
    }

    pub(crate) fn respond(&mut self, stream: StreamId, response: &Response) {
        self.tell(stream, Told::Http(Box::new(response.clone())));
    }

    pub(crate) fn is_open(&self, stream: StreamId) -> bool {
        self.remote.stream(stream).is_some()
    }

    pub(crate) fn backlog_bytes(&self, stream: StreamId) -> usize {
        self.remote.stream(stream).map_or(0, |open| open.backlog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(connection: u64) -> Caller {
        // Ids of streams are made by connections alone.
        Caller::on_core(CoreId(1), 3, ConnectionId(connection), StreamId::default())
    }

    fn stream() -> StreamId {
        StreamId::default()
    }

    fn told(answers: &Answers) -> Vec<String> {
        answers.items.iter().map(|answer| format!("{:?}", answer.what)).collect()
    }

    #[test]
    fn a_stream_takes_answers_from_its_request_to_its_end() {
        let mut core = RemoteCore::new(CoreId(1));
        core.note_given();
        assert!(core.answer(caller(7)).is_none(), "nothing was heard of it");
        core.open(caller(7));
        assert!(core.is_open(caller(7)) && !core.is_open(caller(8)));
        let mut connection = core.answer(caller(7)).expect("it is there");
        connection.send_message(stream(), 2, |out| out.extend_from_slice(b"ab"));
        connection.finish(stream(), 5, "why");
        connection.send_message(stream(), 2, |_| unreachable!("it is over"));
        connection.send_unary(stream(), 2, |_| unreachable!("it is over"));
        connection.begin_message(stream(), 2);
        connection.send_part(stream(), b"cd");
        connection.finish(stream(), 0, "");
        core.open(caller(7));
        core.answer(caller(7)).expect("it is there").send_unary(stream(), 1, |out| out.push(b'x'));
        assert!(!core.is_open(caller(7)));
        core.open(caller(7));
        core.handle_reset(caller(7));
        core.answer(caller(7)).expect("it is there").finish(stream(), 1, "");
        let answers = core.take_parcel().expect("there are answers");
        assert_eq!(told(&answers), ["Message { len: 2 }", "Finish { code: 5, len: 3 }", "Unary { len: 1 }"]);
        assert_eq!(answers.bytes, b"abwhyx");
        assert!(core.take_parcel().is_none());
        core.handle_closed(caller(7));
        assert!(core.answer(caller(7)).is_none() && core.count() == 0);
    }

    #[test]
    fn a_slot_that_another_connection_has_by_now_takes_no_answers_of_the_first() {
        let mut core = RemoteCore::new(CoreId(1));
        core.open(caller(7));
        core.open(caller(8));
        assert!(core.answer(caller(7)).is_none() && !core.is_open(caller(7)) && core.is_open(caller(8)));
    }

    #[test]
    fn what_was_sent_is_there_until_it_is_reported_as_gone() {
        let mut core = RemoteCore::new(CoreId(1));
        core.open(caller(7));
        let part = vec![0; STREAM_BACKLOG_LOW_BYTES];
        let mut connection = core.answer(caller(7)).expect("it is there");
        connection.begin_message(stream(), 2 * part.len());
        connection.send_part(stream(), &part);
        assert_eq!(core.backlog_bytes(caller(7)), PREFIX_BYTES + part.len());
        core.answer(caller(7)).expect("it is there").send_part(stream(), &part);
        assert!(!core.handle_taken(caller(7), part.len()), "it is still full");
        assert!(core.handle_taken(caller(7), PREFIX_BYTES), "who fills it may go on");
        assert!(!core.handle_taken(caller(7), part.len()), "who fills it knows");
        assert_eq!(core.backlog_bytes(caller(7)), 0);
        assert!(!core.handle_taken(caller(8), 1), "of a connection that is gone");
    }

    #[test]
    fn credit_waits_while_many_answers_are_under_way() {
        let mut core = RemoteCore::new(CoreId(1));
        let cost = Credit { requests: 3, bytes: 100 };
        let request = |answers_taken| Requests { cost, answers_taken, ..Requests::default() };
        core.note_parcel(&request(0));
        assert_eq!(core.take_parcel().expect("credit is given back").credit, cost);
        core.open(caller(7));
        core.answer(caller(7)).expect("there").send_part(stream(), &vec![0; ANSWER_BYTES_MAX + 1]);
        let weight = core.take_parcel().expect("an answer").weight();
        core.note_parcel(&request(0));
        assert!(core.take_parcel().is_none(), "nothing to say");
        core.open(caller(7));
        core.answer(caller(7)).expect("there").finish(stream(), 0, "");
        let more = core.take_parcel().expect("an answer");
        assert_eq!((more.items.len(), more.credit), (1, Credit::default()));
        core.note_parcel(&request(weight));
        let credit = core.take_parcel().expect("credit is given back").credit;
        assert_eq!(credit, Credit { requests: 6, bytes: 200 });
    }

    #[test]
    #[should_panic(expected = "I3")]
    fn a_core_that_sends_more_than_its_credit_is_a_bug() {
        let mut core = RemoteCore::new(CoreId(1));
        let cost = Credit { requests: REQUESTS_MAX + 1, bytes: 0 };
        core.note_parcel(&Requests { cost, ..Requests::default() });
    }
}
