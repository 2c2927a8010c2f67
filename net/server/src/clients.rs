//! The connections of a core: protocol state, what is owed to the kernel, who must be looked at this turn.
//!
//! Owns: one connection per accepted socket, the one-send-at-a-time rule and the list of touched connections; on the
//! sequencer also the other cores' connections ([`crate::remote`]), so that who answers need not ask where a connection
//! is. Does not know: methods, storage, what a request means, how much of a turn is whose ([`crate::turns`]).
//!
//! Invariants
//! - I1: at most one `send` is outstanding per connection (the port's I3).
//! - I2: a [`Caller`] names a connection for ever: once it is gone, answers to it have no effect.
//! - I3: all bytes that became ready in a turn leave in one `send`.

use std::collections::{BTreeMap, BTreeSet};

use trilith_reactor::{ConnectionId, CoreId, Port};
use trilith_wire::connection::{AssemblyBudget, ConnectionEvent, ConnectionLimits, OutputBudget, StreamId};

use crate::answering::Answering;
use crate::calls::CountedConnection;
use crate::http::Audience;
use crate::metrics::calls::CallMetrics;
use crate::remote::RemoteCore;
use crate::turns::{Share, Turns};

/// Output buffers kept for reuse.
const SPARE_BUFFERS_MAX: usize = 64;
/// A buffer that grew beyond this is not kept.
const SPARE_BUFFER_BYTES_MAX: usize = 256 << 10;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// Whose connection it is; 0: this core's.
    core: u32,
    /// The connection's place in that core's table.
    slot: u32,
    /// The connection.
    connection: ConnectionId,
    /// The stream on it.
    pub stream: StreamId,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Client {
    id: ConnectionId,
    /// Which listener it came through.
    pub audience: Audience,
    /// The protocol.
    pub connection: CountedConnection,
    sending: bool,
    receiving: bool,
    closing: bool,
    touched: bool,
    /// When the connection itself must be called next; mirrored in the table's index.
    deadline: Option<u64>,
}

/// All connections of a core.
#[derive(Debug)]
pub struct Clients {
    limits: ConnectionLimits,
    slots: Vec<Option<Client>>,
    vacant: Vec<usize>,
    by_id: BTreeMap<ConnectionId, usize>,
    touched: Vec<usize>,
    /// Slots to be polled.
    turns: Turns,
    /// All are touched once this turn's output is sent.
    all_next: bool,
    /// Slots whose connections wait for budget, and the highest use of it that made one wait.
    starved: BTreeSet<usize>,
    starved_at: usize,
    deadlines: BTreeSet<(u64, usize)>,
    spare: Vec<Vec<u8>>,
    /// The connection cores, in the order of their numbers from 1 on.
    remotes: Vec<RemoteCore>,
    /// The core's account of partly received messages.
    pub budget: AssemblyBudget,
    /// And of what is unsent.
    output: OutputBudget,
    /// Wall-clock time of the turn, for dates in responses.
    pub wall_now: u64,
}

impl Clients {
    /// An empty table.
    #[must_use]
    pub fn new(limits: ConnectionLimits, assembly_bytes_max: usize) -> Self {
        Self {
            limits,
            slots: Vec::new(),
            vacant: Vec::new(),
            by_id: BTreeMap::new(),
            touched: Vec::new(),
            turns: Turns::default(),
            all_next: false,
            starved: BTreeSet::new(),
            starved_at: 0,
            deadlines: BTreeSet::new(),
            spare: Vec::new(),
            remotes: Vec::new(),
            budget: AssemblyBudget::new(assembly_bytes_max),
            output: OutputBudget::default(),
            wall_now: 0,
        }
    }

    /// The same, on a sequencer with so many connection cores.
    #[must_use]
    pub fn with_cores(limits: ConnectionLimits, assembly_bytes_max: usize, cores: usize) -> Self {
        let remotes = (1..=cores).map(|number| RemoteCore::new(CoreId(number))).collect();
        Self { remotes, ..Self::new(limits, assembly_bytes_max) }
    }

    /// Open connections of this core.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether no connection is open, on any core.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty() && self.remotes.iter().all(|remote| remote.count() == 0)
    }

    /// The connection cores.
    pub fn remotes(&mut self) -> &mut [RemoteCore] {
        &mut self.remotes
    }

    /// A connection core.
    pub fn remote(&mut self, core: CoreId) -> &mut RemoteCore {
        &mut self.remotes[core.0 - 1]
    }

    /// Takes in an accepted connection.
    pub fn handle_accepted(&mut self, id: ConnectionId, audience: Audience, now: u64) {
        let client = Client {
            id,
            audience,
            connection: CountedConnection::new(&self.limits, now),
            sending: false,
            receiving: true,
            closing: false,
            touched: false,
            deadline: None,
        };
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        assert!(self.slots[slot].is_none(), "a vacant slot holds no connection");
        self.slots[slot] = Some(client);
        let earlier = self.by_id.insert(id, slot);
        assert!(earlier.is_none(), "a connection id is never reused within a process");
        self.touch(slot);
    }

    /// Hands arrived bytes to their connection.
    pub fn handle_received(&mut self, id: ConnectionId, bytes: Vec<u8>, now: u64) {
        if let Some(slot) = self.slot_of(id) {
            self.client(slot).connection.handle_bytes(bytes, now);
            self.touch(slot);
        }
    }

    /// The kernel has the last output; `buffer` may be reused.
    pub fn handle_sent(&mut self, id: ConnectionId, buffer: Vec<u8>, now: u64) {
        self.keep_buffer(buffer);
        if let Some(slot) = self.slot_of(id) {
            let client = self.client(slot);
            assert!(client.sending, "I1: a completion answers the one outstanding send");
            client.sending = false;
            client.connection.handle_sent(now);
            self.touch(slot);
        }
    }

    /// The socket is gone; the slot that its connection had.
    pub fn handle_closed(&mut self, id: ConnectionId, metrics: &mut CallMetrics, now: u64) -> Option<usize> {
        let slot = self.by_id.remove(&id)?;
        let mut client = self.slots[slot].take().expect("an indexed connection has its slot");
        client.connection.release(&mut self.budget);
        client.connection.release_output(&mut self.output);
        if let Some(deadline) = client.deadline {
            self.deadlines.remove(&(deadline, slot));
        }
        client.connection.settle_closed(metrics, now);
        self.vacant.push(slot);
        Some(slot)
    }

    /// Lets every connection act whose deadline has passed.
    pub fn handle_time(&mut self, now: u64) {
        while let Some(&(deadline, slot)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.remove(&(deadline, slot));
            let client = self.client(slot);
            client.deadline = None;
            client.connection.handle_timer(now);
            self.touch(slot);
        }
    }

    /// The earliest deadline of any connection.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Begins a graceful end on every connection.
    pub fn start_drain(&mut self, now: u64) {
        for slot in 0..self.slots.len() {
            if let Some(client) = &mut self.slots[slot] {
                client.connection.start_drain(now);
                self.touch(slot);
            }
        }
    }

    /// Touches every connection for the next turn: those that spoke before service began are looked at then.
    pub fn touch_all_next(&mut self) {
        self.all_next = true;
    }

    /// A turn of polling begins: with those who were touched since the last [`Self::flush`], those whose share of an
    /// earlier turn was used up, and those who waited for budget that was returned.
    pub fn begin_polling(&mut self) {
        self.revive();
        for &slot in &self.touched {
            self.turns.add(slot);
        }
        self.turns.begin();
    }

    /// Whose turn it is, and what it may take; it is marked for output. `None` when the turn is over.
    pub fn next_to_poll(&mut self) -> Option<(usize, Share)> {
        loop {
            let (slot, share) = self.turns.take()?;
            // It may be vacant by now, or another's.
            if self.slots[slot].is_some() {
                self.touch(slot);
                return Some((slot, share));
            }
        }
    }

    /// A connection was polled as far as its share and the caller's own bounds allow. Whether it waits for budget is
    /// remembered.
    pub fn handle_polled(&mut self, slot: usize, share: &Share) {
        self.turns.end(slot, share);
        let starved = self.slots[slot].as_ref().is_some_and(|client| client.connection.waits_for_budget());
        if starved {
            self.starved.insert(slot);
            self.starved_at = self.starved_at.max(self.budget.used_bytes());
        }
    }

    /// Whether connections wait for the next turn of polling.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.turns.has_waiting()
    }

    /// Whether budget was returned since connections had to wait for it: they must be polled again.
    #[must_use]
    pub fn has_revived(&self) -> bool {
        !self.starved.is_empty() && self.budget.used_bytes() < self.starved_at
    }

    /// Touches those that waited for budget, if some was returned.
    fn revive(&mut self) {
        if !self.has_revived() {
            return;
        }
        self.starved_at = 0;
        for slot in std::mem::take(&mut self.starved) {
            // It may be vacant by now, or another's.
            if self.slots[slot].is_some() {
                self.touch(slot);
            }
        }
    }

    /// The connection in a slot, with the budget it polls against.
    pub fn connection(&mut self, slot: usize) -> Option<(&mut Client, &mut AssemblyBudget)> {
        self.slots[slot].as_mut().map(|client| (client, &mut self.budget))
    }

    /// The connection that waits for an answer, if it is still there; it is marked for output.
    #[inline]
    pub fn answer(&mut self, caller: Caller) -> Option<Answering<'_>> {
        if let Some(core) = caller.remote() {
            return self.remotes[core].answer(caller).map(Answering::Remote);
        }
        self.answer_own(caller).map(Answering::Local)
    }

    /// The same, of a connection of this core.
    #[inline]
    pub fn answer_own(&mut self, caller: Caller) -> Option<&mut CountedConnection> {
        let slot = caller.slot();
        let present = self.slots.get(slot)?.as_ref().is_some_and(|client| client.id == caller.connection);
        if !present {
            return None;
        }
        self.touch(slot);
        self.slots[slot].as_mut().map(|client| &mut client.connection)
    }

    /// Whether somebody still waits for an answer.
    #[must_use]
    pub fn is_open(&self, caller: Caller) -> bool {
        if let Some(core) = caller.remote() {
            return self.remotes[core].is_open(caller);
        }
        let client = self.slots.get(caller.slot()).and_then(Option::as_ref);
        client.is_some_and(|client| client.id == caller.connection && client.connection.is_open(caller.stream))
    }

    /// Bytes for a caller that wait for its windows or the kernel.
    #[must_use]
    pub fn backlog_bytes(&self, caller: Caller) -> usize {
        if let Some(core) = caller.remote() {
            return self.remotes[core].backlog_bytes(caller);
        }
        let client =
            self.slots.get(caller.slot()).and_then(Option::as_ref).filter(|client| client.id == caller.connection);
        client.map_or(0, |client| client.connection.backlog_bytes(caller.stream))
    }

    /// Sends what the touched connections have ready, one write each, and closes those that are finished; sends the
    /// connection cores what the turn has for them.
    pub fn flush<P: Port>(&mut self, port: &mut P, metrics: &mut CallMetrics, now: u64) {
        let touched = std::mem::take(&mut self.touched);
        for &slot in &touched {
            if self.slots[slot].is_some() {
                self.flush_one(slot, port, metrics, now);
            }
        }
        for remote in &mut self.remotes {
            remote.flush(port);
        }
        // The list's allocation is reused; nothing was touched meanwhile.
        assert!(self.touched.is_empty(), "flushing touches no connection");
        self.touched = touched;
        self.touched.clear();
        if std::mem::take(&mut self.all_next) {
            for slot in 0..self.slots.len() {
                if self.slots[slot].is_some() {
                    self.touch(slot);
                }
            }
        }
    }

    fn flush_one<P: Port>(&mut self, slot: usize, port: &mut P, metrics: &mut CallMetrics, now: u64) {
        let mut buffer = self.spare.pop().unwrap_or_default();
        let client = self.slots[slot].as_mut().expect("the caller looked");
        client.touched = false;
        client.connection.settle(metrics, now);
        if !client.sending {
            client.connection.take_output(&mut buffer, now);
        }
        client.connection.settle_output(&mut self.output);
        if !buffer.is_empty() {
            client.sending = true;
            port.send(client.id, std::mem::take(&mut buffer));
        }
        if client.connection.is_finished() && !client.closing {
            client.closing = true;
            port.close(client.id);
        }
        let wanted = client.connection.wants_bytes();
        if wanted != client.receiving && !client.closing {
            client.receiving = wanted;
            port.set_receiving(client.id, wanted);
        }
        let deadline = client.connection.deadline();
        if deadline != client.deadline {
            if let Some(earlier) = client.deadline {
                self.deadlines.remove(&(earlier, slot));
            }
            client.deadline = deadline;
            if let Some(later) = deadline {
                self.deadlines.insert((later, slot));
            }
        }
        self.keep_buffer(buffer);
    }

    fn touch(&mut self, slot: usize) {
        let client = self.slots[slot].as_mut().expect("only present connections are touched");
        if !client.touched {
            client.touched = true;
            self.touched.push(slot);
        }
    }

    fn slot_of(&self, id: ConnectionId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    fn client(&mut self, slot: usize) -> &mut Client {
        self.slots[slot].as_mut().expect("an indexed connection has its slot")
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        let worth = 1..=SPARE_BUFFER_BYTES_MAX;
        if self.spare.len() < SPARE_BUFFERS_MAX && worth.contains(&buffer.capacity()) {
            self.spare.push(buffer);
        }
    }
}

impl Client {
    /// The connection's name at the port.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The connection's next event, while its share of the turn lasts.
    #[inline]
    pub fn poll(&mut self, share: &mut Share, budget: &mut AssemblyBudget, now: u64) -> Option<ConnectionEvent<'_>> {
        if share.is_used_up() {
            return None;
        }
        let Some(event) = self.connection.poll_event(budget, now) else {
            share.note_end();
            return None;
        };
        share.spend(match &event {
            ConnectionEvent::GrpcRequest { message, .. } | ConnectionEvent::GrpcMessage { message, .. } => {
                message.len()
            }
            ConnectionEvent::HttpRequest { body, .. } => body.len(),
            ConnectionEvent::GrpcHalfClose { .. }
            | ConnectionEvent::StreamReset { .. }
            | ConnectionEvent::StreamWritable { .. } => 0,
        });
        Some(event)
    }
}

impl Caller {
    /// Names a stream of the connection in a slot.
    #[must_use]
    pub fn new(slot: usize, connection: ConnectionId, stream: StreamId) -> Self {
        Self { core: 0, slot: u32::try_from(slot).expect("connections are far fewer than 2^32"), connection, stream }
    }

    /// Names a stream of a connection of another core.
    #[must_use]
    pub fn on_core(core: CoreId, slot: u32, connection: ConnectionId, stream: StreamId) -> Self {
        Self { core: u32::try_from(core.0).expect("cores are few"), slot, connection, stream }
    }

    /// The connection's place in the table of its core.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.slot as usize
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// The position of its core among the connection cores; `None`: it is this core's.
    #[inline]
    fn remote(&self) -> Option<usize> {
        (self.core as usize).checked_sub(1)
    }

    /// Its name among all callers, in the order of connections.
    #[must_use]
    pub fn key(&self) -> (ConnectionId, StreamId) {
        (self.connection, self.stream)
    }

    /// Whether it waits on this connection.
    #[must_use]
    pub fn is_of(&self, connection: ConnectionId) -> bool {
        self.connection == connection
    }
}
