//! Connections of one core: receiving, one coalesced write at a time, closing.
//!
//! A connection is a slot of a table and a little state; there is no task per connection. Its receive operation goes on
//! by itself, completion after completion, until it is cancelled; each fills a buffer of the pool the core shares.
//! Every change ends in `advance`, which alone decides what follows: an event, another operation, the end.
//!
//! Owns: the table of connections, their operations under way, their descriptors.
//! Does not know: what is said on them, or how they were accepted.
//!
//! Invariants
//! - I1: a [`ConnectionId`] is a generation, the number of the core and that of a slot; no core ever uses one twice.
//! - I2: at most one send is outstanding per connection; `Sent` is pushed once all of it is in the kernel's hands.
//! - I3: `Closed` is the last event of a connection and is pushed exactly once; nothing else follows a `close`.
//! - I4: an idle connection holds no buffer.
//! - I5: a descriptor is closed, and its slot used again, only after every operation on it has completed. Operations
//!   carry slot and generation, so that a completion could never be taken for another connection's.
//! - I6: what arrives while a connection is not received from is held, in order, and it is no more than what was in the
//!   kernel's hands when receiving was cancelled.
//! - I7: no operation is started on a connection in the turn that accepts it, unless the shell asks for one: until then
//!   it may be given away whole.

use crate::mesh::CoreId;
use crate::port::{CloseReason, ConnectionId, Event, ListenerId};
use crate::receive_buffers::{GROUP, ReceiveBuffers};
use crate::ring::{Completion, OperationId, Origin, Ring, target};
use io_uring::opcode;
use socket2::Socket;
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;

/// Completions of one connection in a row become one event up to this length.
const EVENT_BYTES_MAX: usize = 64 << 10;
/// Most bytes of one send operation; the rest follows as the next.
const SEND_BYTES_MAX: usize = 1 << 30;
/// After a close: how long the peer may take to read what was sent and to close its side.
const LINGER_NANOSECONDS_MAX: u64 = 2_000_000_000;
const LINGER_BYTES_MAX: usize = 1 << 20;
/// An id's low half names core and slot; it leaves room for the origin of an operation beside the generation.
const SLOT_BITS: u32 = 22;
const SLOTS_MAX: u32 = 1 << SLOT_BITS;
/// Cores of a process.
pub(crate) const CORES_MAX: usize = 1 << (28 - SLOT_BITS);

struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// `Closed` was reported. The peer may still read the last bytes: closing a socket with unread input would reset
    /// it and destroy them.
    Lingering {
        discarded: usize,
    },
    /// Waits for the end of its operations only (I5).
    Retired,
}

struct Connection {
    stream: Socket,
    stage: Stage,
    /// Present while a send is under way; the kernel reads the bytes.
    outgoing: Option<Outgoing>,
    /// A receive is under way, and whether its end was asked for.
    armed: bool,
    pausing: bool,
    /// Requests to end the receive whose own completion is missing.
    pauses: u32,
    /// What the shell wants.
    receiving: bool,
    close_requested: bool,
    end_of_stream: bool,
    failed: bool,
    held: Vec<u8>,
}

impl Connection {
    fn new(stream: Socket) -> Self {
        Self {
            stream,
            stage: Stage::Open,
            outgoing: None,
            armed: false,
            pausing: false,
            pauses: 0,
            receiving: true,
            close_requested: false,
            end_of_stream: false,
            failed: false,
            held: Vec::new(),
        }
    }

    /// Why the connection is over for the shell, if it is.
    fn close_reason(&self) -> Option<CloseReason> {
        if self.failed {
            Some(CloseReason::Failed)
        } else if self.outgoing.is_some() {
            None
        } else if self.close_requested {
            Some(CloseReason::Requested)
        } else {
            (self.end_of_stream && self.held.is_empty()).then_some(CloseReason::EndOfStream)
        }
    }

    fn wants_bytes(&self) -> bool {
        let stage = match self.stage {
            Stage::Open => self.receiving && !self.close_requested,
            Stage::Lingering { .. } => true,
            Stage::Retired => false,
        };
        stage && !self.end_of_stream && !self.failed
    }

    /// What follows `stage` when the shell was told of the end.
    fn stage_after(&self, reason: CloseReason) -> Stage {
        if reason == CloseReason::Requested && !self.end_of_stream && self.stream.shutdown(Shutdown::Write).is_ok() {
            Stage::Lingering { discarded: 0 }
        } else {
            Stage::Retired
        }
    }

    /// Whether an operation is under way.
    fn operates(&self) -> bool {
        self.armed || self.outgoing.is_some() || self.pauses > 0
    }

    fn take_in(&mut self, id: ConnectionId, bytes: &[u8], events: &mut Vec<Event>) {
        match &mut self.stage {
            Stage::Open if self.close_requested => {}
            Stage::Open if self.receiving && self.held.is_empty() => push_received(events, id, bytes),
            Stage::Open => self.held.extend_from_slice(bytes),
            Stage::Lingering { discarded } => *discarded += bytes.len(),
            Stage::Retired => {}
        }
    }

    /// Takes the result of the send under way. `true`: more is to be sent.
    fn take_sent(&mut self, id: ConnectionId, result: i32, events: &mut Vec<Event>) -> bool {
        let outgoing = self.outgoing.as_mut().expect("I2: a send is under way");
        match usize::try_from(result) {
            Ok(0) => self.failed = true,
            Ok(written) => outgoing.written += written,
            Err(_) if is_passing(result) => {}
            Err(_) => self.failed = true,
        }
        let goes_on = !self.failed && self.stage == Stage::Open;
        if goes_on && outgoing.written < outgoing.bytes.len() {
            return true;
        }
        if let Some(Outgoing { bytes: mut buffer, .. }) = self.outgoing.take()
            && goes_on
            && !self.close_requested
        {
            buffer.clear();
            events.push(Event::Sent { connection: id, buffer });
        }
        false
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// All connections of one core.
pub(crate) struct Sockets {
    buffers: ReceiveBuffers,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// What the next turn brings.
    events: Vec<Event>,
    /// Connections that are received from again and hold bytes.
    resumed: Vec<ConnectionId>,
    /// Ends of lingering, in the order of time.
    lingering: VecDeque<(u64, ConnectionId)>,
    /// Accepted in this turn (I7).
    fresh: Vec<ConnectionId>,
    core: CoreId,
}

impl Sockets {
    pub(crate) fn new(ring: &Ring, core: CoreId) -> io::Result<Self> {
        assert!(core.0 < CORES_MAX, "the number of a core fits an id");
        Ok(Self {
            buffers: ReceiveBuffers::new(ring)?,
            slots: Vec::new(),
            free: Vec::new(),
            events: Vec::new(),
            resumed: Vec::new(),
            lingering: VecDeque::new(),
            fresh: Vec::new(),
            core,
        })
    }

    /// Takes a fresh connection in; [`Sockets::start_fresh`] lets it receive.
    pub(crate) fn adopt(&mut self, listener: ListenerId, stream: Socket) {
        let address = stream.peer_addr().ok().and_then(|address| address.as_socket());
        let peer = address.map_or_else(String::new, |address| address.to_string());
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("descriptors are far fewer than 2^32")
        });
        assert!(number < SLOTS_MAX, "descriptors are far fewer than 2^22");
        let slot = &mut self.slots[number as usize];
        assert!(slot.connection.is_none(), "I1: a free slot has no connection");
        slot.connection = Some(Connection::new(stream));
        let connection = connection_id(slot.generation, self.core, number as usize);
        self.events.push(Event::Accepted { listener, connection, peer });
        self.fresh.push(connection);
    }

    /// To be called at the end of a turn: what it accepted and kept is received from.
    pub(crate) fn start_fresh(&mut self, ring: &mut Ring, now: u64) {
        while let Some(id) = self.fresh.pop() {
            self.advance(ring, id, now);
        }
    }

    /// Gives up a connection accepted in this turn (I7).
    pub(crate) fn give_away(&mut self, id: ConnectionId) -> Socket {
        let slot = &mut self.slots[slot_of(id)];
        let connection = slot.connection.take().expect("it was accepted in this turn");
        assert!(!connection.operates() && connection.stage == Stage::Open, "I7: nothing is under way on it");
        self.release(id);
        connection.stream
    }

    /// Starts to send; a connection that is gone (its `Closed` is on the way) drops the bytes.
    pub(crate) fn send(&mut self, ring: &mut Ring, id: ConnectionId, bytes: Vec<u8>) {
        let Some(connection) = self.open(id) else { return };
        assert!(!connection.close_requested, "I3: nothing is sent after a close");
        assert!(!bytes.is_empty(), "a send has bytes");
        let earlier = connection.outgoing.replace(Outgoing { bytes, written: 0 });
        assert!(earlier.is_none(), "I2: one send at a time");
        prepare_send(ring, id, connection);
    }

    pub(crate) fn set_receiving(&mut self, ring: &mut Ring, id: ConnectionId, receiving: bool, now: u64) {
        let Some(connection) = self.open(id) else { return };
        if std::mem::replace(&mut connection.receiving, receiving) == receiving {
            return;
        }
        if receiving && !connection.held.is_empty() {
            self.resumed.push(id);
        }
        self.advance(ring, id, now);
    }

    pub(crate) fn close(&mut self, ring: &mut Ring, id: ConnectionId, now: u64) {
        let Some(connection) = self.open(id) else { return };
        connection.close_requested = true;
        connection.held = Vec::new();
        self.advance(ring, id, now);
    }

    /// The connection of an id, even if it is over for the shell. `None`: its slot has moved on.
    fn find(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        connection_in(&mut self.slots, id)
    }

    /// The connection of an id, unless its `Closed` was pushed.
    fn open(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.find(id).filter(|connection| connection.stage == Stage::Open)
    }

    /// Takes a completion of a receive operation.
    pub(crate) fn complete_receive(&mut self, ring: &mut Ring, completion: &Completion, now: u64) {
        let id = connection_of(completion.user_data);
        if let Some(connection) = connection_in(&mut self.slots, id) {
            connection.armed &= completion.more;
            match (usize::try_from(completion.result), completion.buffer) {
                (Ok(0), _) => connection.end_of_stream = true,
                (Ok(len), Some(buffer)) => {
                    connection.take_in(id, self.buffers.bytes(buffer, len), &mut self.events);
                }
                (Ok(_), None) => connection.failed = true,
                (Err(_), _) if is_passing(completion.result) => {}
                (Err(_), _) => connection.failed = true,
            }
        }
        if let Some(buffer) = completion.buffer {
            self.buffers.give_back(buffer);
        }
        self.advance(ring, id, now);
    }

    /// Takes the completion of a send operation.
    pub(crate) fn complete_send(&mut self, ring: &mut Ring, completion: &Completion, now: u64) {
        let id = connection_of(completion.user_data);
        let Some(connection) = connection_in(&mut self.slots, id) else { return };
        if connection.take_sent(id, completion.result, &mut self.events) {
            prepare_send(ring, id, connection);
        } else {
            self.advance(ring, id, now);
        }
    }

    /// Takes the completion of a request to end a receive operation.
    pub(crate) fn complete_pause(&mut self, ring: &mut Ring, completion: &Completion, now: u64) {
        let id = connection_of(completion.user_data);
        let Some(connection) = self.find(id) else { return };
        connection.pauses -= 1;
        // One that came at a bad moment ended nothing: it is asked again.
        connection.pausing &= completion.result >= 0;
        self.advance(ring, id, now);
    }

    /// Decides what follows from the state of a connection; to be called after every change of it.
    fn advance(&mut self, ring: &mut Ring, id: ConnectionId, now: u64) {
        let Some(connection) = self.find(id) else { return };
        let mut closed = None;
        if connection.stage == Stage::Open {
            closed = connection.close_reason();
            if let Some(reason) = closed {
                connection.stage = connection.stage_after(reason);
                connection.held = Vec::new();
            }
        }
        if let Stage::Lingering { discarded } = connection.stage
            && (connection.end_of_stream || connection.failed || discarded >= LINGER_BYTES_MAX)
        {
            connection.stage = Stage::Retired;
        }
        let wants_bytes = connection.wants_bytes();
        if wants_bytes && !connection.armed {
            prepare_receive(ring, id, connection);
        } else if !wants_bytes && connection.armed && !connection.pausing {
            connection.pausing = true;
            connection.pauses += 1;
            ring.cancel(user_data(Origin::Pause, id), user_data(Origin::Receive, id));
        }
        let stage = connection.stage;
        let operates = connection.operates();
        if stage == Stage::Retired && connection.outgoing.is_some() {
            // Ends a send that waits for the peer. A socket that is gone already refuses.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        if let Some(reason) = closed {
            self.events.push(Event::Closed { connection: id, reason });
            if let Stage::Lingering { .. } = stage {
                self.lingering.push_back((now + LINGER_NANOSECONDS_MAX, id));
            }
        }
        if stage == Stage::Retired && !operates {
            self.release(id);
        }
    }

    /// Closes the descriptor and makes the slot free (I5).
    fn release(&mut self, id: ConnectionId) {
        let slot = &mut self.slots[slot_of(id)];
        slot.connection = None;
        // A slot whose generations are used up stays empty for good (I1).
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(slot_of(id) as u32);
        }
    }

    /// To be called before a turn's completions are taken: what was held for a connection comes before what is new.
    pub(crate) fn deliver_held(&mut self, ring: &mut Ring, now: u64) {
        for id in std::mem::take(&mut self.resumed) {
            let Some(connection) = self.open(id) else { continue };
            if connection.receiving && !connection.close_requested && !connection.held.is_empty() {
                let bytes = std::mem::take(&mut connection.held);
                self.events.push(Event::Received { connection: id, bytes });
                self.advance(ring, id, now);
            }
        }
    }

    /// To be called after a turn's completions were taken: moves what happened to `events`.
    pub(crate) fn finish_turn(&mut self, ring: &mut Ring, now: u64, events: &mut Vec<Event>) {
        while let Some(&(end, id)) = self.lingering.front()
            && end <= now
        {
            self.lingering.pop_front();
            if let Some(connection) = self.find(id) {
                connection.stage = Stage::Retired;
                self.advance(ring, id, now);
            }
        }
        self.buffers.publish();
        events.append(&mut self.events);
    }

    /// Whether the next turn brings something without any completion.
    pub(crate) fn is_due(&self) -> bool {
        !self.events.is_empty() || !self.resumed.is_empty()
    }

    /// When the next lingering ends.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.lingering.front().map(|&(end, _)| end)
    }

    /// Ends every connection without ceremony: the process stops.
    pub(crate) fn abandon(&mut self, ring: &mut Ring, now: u64) {
        for number in 0..self.slots.len() {
            let slot = &mut self.slots[number];
            let id = connection_id(slot.generation, self.core, number);
            if let Some(connection) = &mut slot.connection {
                connection.stage = Stage::Retired;
                self.advance(ring, id, now);
            }
        }
    }

    /// Gives up: memory that the kernel may still use is leaked, not freed.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
        self.buffers.leak();
    }
}

/// The connection of an id in the table: a function of that alone, so that the rest of [`Sockets`] stays at hand.
fn connection_in(slots: &mut [Slot], id: ConnectionId) -> Option<&mut Connection> {
    let slot = slots.get_mut(slot_of(id)).expect("an id names a slot");
    let generation = (id.0 >> 32) as u32;
    assert!(generation <= slot.generation, "I1: an id of the future");
    if generation == slot.generation { slot.connection.as_mut() } else { None }
}

fn connection_id(generation: u32, core: CoreId, slot: usize) -> ConnectionId {
    ConnectionId((u64::from(generation) << 32) | ((core.0 as u64) << SLOT_BITS) | slot as u64)
}

fn slot_of(id: ConnectionId) -> usize {
    (id.0 & u64::from(SLOTS_MAX - 1)) as usize
}

/// The user data has the halves of the id the other way round: a slot number leaves room for the origin.
fn user_data(origin: Origin, id: ConnectionId) -> OperationId {
    OperationId::new(origin, id.0.rotate_left(32))
}

fn connection_of(user_data: OperationId) -> ConnectionId {
    ConnectionId(user_data.number().rotate_left(32))
}

/// Results that end an operation but not its connection: no buffer was left, or the operation was cancelled.
fn is_passing(result: i32) -> bool {
    matches!(-result, libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN)
}

fn prepare_receive(ring: &mut Ring, id: ConnectionId, connection: &mut Connection) {
    connection.armed = true;
    connection.pausing = false;
    let entry = opcode::RecvMulti::new(target(connection.stream.as_raw_fd()), GROUP).build();
    // SAFETY: the buffers are the pool's, which outlives the ring's operations; the descriptor stays open until the
    // operation has ended (I5).
    unsafe { ring.prepare(user_data(Origin::Receive, id), entry) };
}

fn prepare_send(ring: &mut Ring, id: ConnectionId, connection: &Connection) {
    let outgoing = connection.outgoing.as_ref().expect("the caller has something to send");
    let rest = &outgoing.bytes[outgoing.written..];
    let len = rest.len().min(SEND_BYTES_MAX) as u32;
    let descriptor = target(connection.stream.as_raw_fd());
    // With MSG_WAITALL the kernel goes on by itself after a short send.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    let entry = opcode::Send::new(descriptor, rest.as_ptr(), len).flags(flags).build();
    // SAFETY: the bytes are owned by the connection and untouched until the completion (I2), the connection by the
    // table until its operations have ended (I5).
    unsafe { ring.prepare(user_data(Origin::Send, id), entry) };
}

fn push_received(events: &mut Vec<Event>, id: ConnectionId, bytes: &[u8]) {
    if let Some(Event::Received { connection, bytes: earlier }) = events.last_mut()
        && *connection == id
        && earlier.len() + bytes.len() <= EVENT_BYTES_MAX
    {
        earlier.extend_from_slice(bytes);
    } else {
        events.push(Event::Received { connection: id, bytes: bytes.to_vec() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;

    /// A connection that `sockets` has taken in: its peer.
    fn connect(ring: &mut Ring, sockets: &mut Sockets) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sockets.adopt(ListenerId(0), listener.accept().unwrap().0.into());
        sockets.start_fresh(ring, 0);
        peer
    }

    /// Waits for completions and gives them to `sockets`; answers how often no buffer was left.
    fn take_completions(ring: &mut Ring, sockets: &mut Sockets) -> usize {
        ring.wait(Some(Duration::from_secs(20)), Duration::ZERO).unwrap();
        let (mut taken, mut exhausted) = (0, 0);
        while let Some(completion) = ring.next_completion() {
            taken += 1;
            exhausted += usize::from(completion.result == -libc::ENOBUFS);
            match completion.user_data.origin() {
                Origin::Receive => sockets.complete_receive(ring, &completion, 0),
                Origin::Send => sockets.complete_send(ring, &completion, 0),
                _ => sockets.complete_pause(ring, &completion, 0),
            }
        }
        assert!(taken > 0, "something comes");
        exhausted
    }

    fn end(ring: &mut Ring, sockets: &mut Sockets) {
        sockets.abandon(ring, 0);
        while ring.in_flight() > 0 {
            take_completions(ring, sockets);
        }
        assert!(sockets.slots.iter().all(|slot| slot.connection.is_none()), "I5: every descriptor is closed");
    }

    #[test]
    fn receiving_goes_on_after_no_buffer_was_left() {
        const TOTAL: usize = 24 << 20;
        let mut ring = Ring::new().unwrap();
        let mut sockets = Sockets::new(&ring, CoreId(0)).unwrap();
        let mut peer = connect(&mut ring, &mut sockets);
        let writer = thread::spawn(move || peer.write_all(&vec![1; TOTAL]).map(|()| peer));
        let (mut events, mut exhausted, mut received) = (Vec::new(), 0, 0);
        while received < TOTAL {
            exhausted += take_completions(&mut ring, &mut sockets);
            // What is given back before the first time is not shown to the kernel.
            if exhausted > 0 {
                sockets.finish_turn(&mut ring, 0, &mut events);
            }
            for event in events.drain(..) {
                match event {
                    Event::Received { bytes, .. } => received += bytes.len(),
                    Event::Accepted { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((received, exhausted > 0), (TOTAL, true));
        drop(writer.join().unwrap().unwrap());
        end(&mut ring, &mut sockets);
    }

    #[test]
    fn a_send_that_the_peer_does_not_take_ends_with_its_connection() {
        let mut ring = Ring::new().unwrap();
        let mut sockets = Sockets::new(&ring, CoreId(0)).unwrap();
        let _peers = [connect(&mut ring, &mut sockets), connect(&mut ring, &mut sockets)];
        sockets.send(&mut ring, ConnectionId(0), vec![1; 64 << 20]);
        sockets.send(&mut ring, ConnectionId(1), vec![1; 64 << 20]);
        ring.submit().unwrap();
        end(&mut ring, &mut sockets);
    }

    fn received(events: &[Event]) -> Vec<u8> {
        let parts = events.iter().filter_map(|event| match event {
            Event::Received { bytes, .. } => Some(bytes.as_slice()),
            _ => None,
        });
        parts.flatten().copied().collect()
    }

    #[test]
    fn what_the_kernel_had_taken_before_a_pause_comes_first_after_it() {
        let mut ring = Ring::new().unwrap();
        let mut sockets = Sockets::new(&ring, CoreId(0)).unwrap();
        let mut peer = connect(&mut ring, &mut sockets);
        let id = ConnectionId(0);
        let mut events = Vec::new();
        peer.write_all(b"first").unwrap();
        let arrived = sockets.find(id).unwrap().stream.peek(&mut [std::mem::MaybeUninit::uninit()]).unwrap();
        assert_eq!(arrived, 1);
        // The receive enters the kernel before the request to end it, and finds the bytes.
        sockets.set_receiving(&mut ring, id, false, 0);
        while ring.in_flight() > 0 {
            take_completions(&mut ring, &mut sockets);
        }
        sockets.finish_turn(&mut ring, 0, &mut events);
        assert_eq!((received(&events), sockets.find(id).unwrap().held.as_slice()), (Vec::new(), &b"first"[..]));
        peer.write_all(b"second").unwrap();
        sockets.set_receiving(&mut ring, id, true, 0);
        assert!(sockets.is_due() && sockets.events.is_empty(), "they come with the next turn");
        sockets.set_receiving(&mut ring, id, false, 0);
        sockets.deliver_held(&mut ring, 0);
        assert!(sockets.events.is_empty(), "unless it pauses again");
        sockets.set_receiving(&mut ring, id, true, 0);
        while received(&events).len() < 11 {
            sockets.deliver_held(&mut ring, 0);
            take_completions(&mut ring, &mut sockets);
            sockets.finish_turn(&mut ring, 0, &mut events);
        }
        assert_eq!(received(&events), b"firstsecond");
        end(&mut ring, &mut sockets);
    }

    #[test]
    fn the_end_of_a_stream_waits_for_what_is_held() {
        let mut ring = Ring::new().unwrap();
        let mut sockets = Sockets::new(&ring, CoreId(0)).unwrap();
        let peer = connect(&mut ring, &mut sockets);
        let id = ConnectionId(0);
        sockets.set_receiving(&mut ring, id, false, 0);
        while ring.in_flight() > 0 {
            take_completions(&mut ring, &mut sockets);
        }
        sockets.events.clear();
        let connection = sockets.find(id).unwrap();
        connection.held = b"last".to_vec();
        connection.end_of_stream = true;
        sockets.advance(&mut ring, id, 0);
        assert!(sockets.events.is_empty());
        sockets.set_receiving(&mut ring, id, true, 0);
        sockets.deliver_held(&mut ring, 0);
        let [Event::Received { bytes, .. }, Event::Closed { reason: CloseReason::EndOfStream, .. }] =
            &sockets.events[..]
        else {
            panic!("{:?}", sockets.events);
        };
        assert_eq!(bytes, b"last");
        drop(peer);
        end(&mut ring, &mut sockets);
    }

    #[test]
    fn a_peer_lingers_for_two_seconds_or_a_mebibyte() {
        let mut ring = Ring::new().unwrap();
        let mut sockets = Sockets::new(&ring, CoreId(0)).unwrap();
        let (_silent, mut talker) = (connect(&mut ring, &mut sockets), connect(&mut ring, &mut sockets));
        let (silent_id, talker_id) = (ConnectionId(0), ConnectionId(1));
        let mut events = Vec::new();
        sockets.close(&mut ring, silent_id, 5);
        sockets.close(&mut ring, talker_id, 5);
        sockets.finish_turn(&mut ring, 5, &mut events);
        let closed = events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
        assert_eq!((closed, events.len()), (2, 4), "two were accepted and closed");
        let writer = thread::spawn(move || talker.write_all(&vec![1; 64 << 20]));
        while sockets.find(talker_id).is_some() {
            take_completions(&mut ring, &mut sockets);
            sockets.finish_turn(&mut ring, 5 + LINGER_NANOSECONDS_MAX - 1, &mut events);
        }
        writer.join().unwrap().expect_err("nobody reads more than a mebibyte");
        assert!(sockets.find(silent_id).is_some_and(|silent| silent.stage != Stage::Retired));
        sockets.finish_turn(&mut ring, 5 + LINGER_NANOSECONDS_MAX, &mut events);
        while sockets.find(silent_id).is_some() {
            take_completions(&mut ring, &mut sockets);
        }
        assert_eq!((events.len(), ring.in_flight()), (4, 0), "nothing follows");
    }

    #[test]
    fn a_completion_of_an_earlier_connection_is_nobodys() {
        let mut ring = Ring::new().unwrap();
        let mut sockets = Sockets::new(&ring, CoreId(0)).unwrap();
        drop(connect(&mut ring, &mut sockets));
        while sockets.slots[0].generation == 0 {
            take_completions(&mut ring, &mut sockets);
        }
        let _peer = connect(&mut ring, &mut sockets);
        let (first, second) = (ConnectionId(0), ConnectionId(1 << 32));
        assert!(sockets.open(first).is_none() && sockets.open(second).is_some());
        for id in [first, second, ConnectionId(0xffff_fff7_0fff_fff1)] {
            assert_eq!(connection_of(user_data(Origin::Pause, id)), id);
        }
        sockets.events.clear();
        let user_data = user_data(Origin::Receive, first);
        let late = Completion { user_data, result: -libc::ECONNRESET, buffer: None, more: false };
        sockets.complete_receive(&mut ring, &late, 0);
        sockets.complete_send(&mut ring, &late, 0);
        assert!(sockets.events.is_empty() && sockets.open(second).is_some());
        end(&mut ring, &mut sockets);
    }
}
