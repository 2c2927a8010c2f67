//! A connection core: the turn of a core that serves connections beside the sequencer.
//!
//! Owns: the protocol state of its connections, what of it need not be known elsewhere (unknown methods, the log form
//! of puts), its side of the exchange with the sequencer, and jobs of shards that the sequencer gives it. Does not
//! know: the replica, what a request means, when service begins: the sequencer says so.
//!
//! A turn handles what came from the sequencer and the sockets, works on jobs, polls the connections as far as its
//! credit reaches, sends each connection's output in one write, and posts at most one parcel.
//!
//! Invariants
//! - I1: requests of a connection reach the sequencer in their order, and answers the connection in theirs.
//! - I2: without credit no connection is polled: what a client sends then waits in its connection, which stops being
//!   read when that is much. Answers are taken all the same, so credit always comes back.
//! - I3: connections take credit in turns ([`crate::turns`]): one that asks without end does not keep the others out.
//! - I4: the sequencer hears of bytes that left a stream's queue whenever it may think the stream full and it is not.

pub(crate) mod errands;
pub mod message;

use std::collections::BTreeMap;

use trilith_reactor::{ConnectionId, CoreId, CoreLoop, Event, Port, Turn};
use trilith_wire::api::methods::Method;
use trilith_wire::api::status::unknown_method;
use trilith_wire::connection::limits::STREAM_BACKLOG_LOW_BYTES;
use trilith_wire::connection::{ConnectionEvent, ConnectionLimits, StreamId};

use crate::api;
use crate::clients::{Caller, Clients};
use crate::metrics::calls::CallMetrics;
use crate::metrics::histogram::{CPU_BOUNDS, Histogram};
use crate::service::{Admission, CallFacts, encode_put};
use crate::surface::Surface;
use crate::turns::Share;
use errands::Errands;
use message::{Answer, Answers, Credit, Order, Request, Requests, Said, Told, take};

/// The sequencer's number.
pub const SEQUENCER: CoreId = CoreId(0);

/// What gRPC puts before a message.
const PREFIX_BYTES: usize = 5;

/// What a connection core counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontMetrics {
    /// gRPC calls and probes.
    pub calls: CallMetrics,
    /// CPU time of whole turns.
    pub turn: Histogram,
    /// CPU time of the steps of shards' jobs.
    pub shard: Histogram,
}

impl FrontMetrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(surface: &Surface) -> Self {
        let calls = CallMetrics::new(surface.is_extensive, surface.slow_call_after);
        Self { calls, turn: Histogram::new(CPU_BOUNDS), shard: Histogram::new(CPU_BOUNDS) }
    }
}

/// What a connection core is started with.
#[derive(Clone, Debug)]
pub struct FrontOptions {
    /// Limits of connections.
    pub limits: ConnectionLimits,
    /// Memory for partly received requests.
    pub assembly_bytes_max: usize,
    /// Listeners, metrics, warnings.
    pub surface: Surface,
    /// Limits of requests.
    pub admission: Admission,
}

/// A connection core.
#[derive(Debug)]
pub struct Front {
    surface: Surface,
    admission: Admission,
    clients: Clients,
    metrics: FrontMetrics,
    errands: Errands,
    outgoing: Requests,
    /// Sent, or about to be, and not given back.
    used: Credit,
    /// Bytes sent on streams of answers, by what the sequencer thinks is still there.
    unreported: BTreeMap<Caller, usize>,
    /// Streams of which something may have to be reported.
    moved: Vec<Caller>,
    is_serving: bool,
    is_draining: bool,
    is_stopping: bool,
    /// Who asked for the counters in this turn.
    asked: Vec<u64>,
    /// The next turn is due at once.
    more: bool,
}

impl Front {
    /// A core without connections.
    #[must_use]
    pub fn new(options: FrontOptions) -> Self {
        Self {
            clients: Clients::new(options.limits, options.assembly_bytes_max),
            metrics: FrontMetrics::new(&options.surface),
            surface: options.surface,
            admission: options.admission,
            errands: Errands::default(),
            outgoing: Requests::default(),
            used: Credit::default(),
            unreported: BTreeMap::new(),
            moved: Vec::new(),
            is_serving: false,
            is_draining: false,
            is_stopping: false,
            asked: Vec::new(),
            more: false,
        }
    }

    /// Requests that were sent, or are about to be, without their credit being back; for inspection.
    #[must_use]
    pub fn used_credit(&self) -> Credit {
        self.used
    }

    /// The member whose clients it serves, once it does; for inspection.
    #[must_use]
    pub fn member_id(&self) -> Option<u64> {
        self.is_serving.then_some(self.admission.member_id)
    }

    /// Streams of answers that are accounted for, for inspection.
    #[must_use]
    pub fn streams_accounted(&self) -> usize {
        self.unreported.len()
    }

    fn handle_event(&mut self, event: Event, now: u64) {
        match event {
            Event::Accepted { listener, connection, .. } => {
                self.clients.handle_accepted(connection, self.surface.audience(listener), now);
                if self.is_draining {
                    self.clients.start_drain(now);
                }
            }
            Event::Received { connection, bytes } => self.clients.handle_received(connection, bytes, now),
            Event::Sent { connection, buffer } => self.clients.handle_sent(connection, buffer, now),
            Event::Closed { connection, .. } => self.handle_closed(connection, now),
            Event::Parcel { parcel, .. } => {
                let answers = parcel.downcast::<Answers>().expect("the sequencer sends answers");
                self.handle_answers(*answers, now);
            }
            Event::Timer | Event::StopRequested { .. } => {}
            other => unreachable!("{other:?} is about files"),
        }
    }

    fn handle_closed(&mut self, connection: ConnectionId, now: u64) {
        let Some(slot) = self.clients.handle_closed(connection, &mut self.metrics.calls, now) else { return };
        let first = Caller::new(slot, connection, StreamId::default());
        let of_it = self.unreported.range(first..).map(|(caller, _)| *caller);
        let gone: Vec<Caller> = of_it.take_while(|caller| caller.is_of(connection)).collect();
        for caller in gone {
            self.unreported.remove(&caller);
        }
        self.say(first, Said::Closed);
    }

    fn handle_answers(&mut self, answers: Answers, now: u64) {
        self.outgoing.answers_taken += answers.weight();
        let mut bytes = answers.bytes.as_slice();
        for answer in &answers.items {
            self.handle_answer(answer, &mut bytes);
        }
        self.used.give_back(answers.credit);
        self.errands.take_in(answers.errands);
        for order in &answers.orders {
            match *order {
                Order::Serve { member_id } => {
                    self.admission.member_id = member_id;
                    self.is_serving = true;
                    self.clients.touch_all_next();
                    self.more = true;
                }
                Order::Drain => {
                    self.is_draining = true;
                    self.clients.start_drain(now);
                }
                Order::Stop => self.is_stopping = true,
                Order::Count(number) => self.asked.push(number),
            }
        }
    }

    fn handle_answer(&mut self, answer: &Answer, bytes: &mut &[u8]) {
        let stream = answer.stream;
        let caller = Caller::new(answer.slot as usize, answer.connection, stream);
        // The bytes are taken whether or not somebody is there.
        let data = match answer.what {
            Told::Unary { len } | Told::Message { len } | Told::Part { len } | Told::Finish { len, .. } => {
                take(bytes, len)
            }
            Told::Begin { .. } | Told::Reset | Told::Http(_) => &[],
        };
        let Some(connection) = self.clients.answer_own(caller) else { return };
        let is_open = connection.is_open(stream);
        match &answer.what {
            Told::Unary { len } => connection.send_unary(stream, *len, |out| out.extend_from_slice(data)),
            Told::Message { len } => connection.send_message(stream, *len, |out| out.extend_from_slice(data)),
            Told::Begin { len } => connection.begin_message(stream, *len),
            Told::Part { .. } => connection.send_part(stream, data),
            Told::Finish { code, .. } => connection.finish(stream, *code, &String::from_utf8_lossy(data)),
            Told::Reset => connection.reset(stream),
            Told::Http(response) => connection.respond(stream, response),
        }
        let sent = match answer.what {
            Told::Message { len } => PREFIX_BYTES + len,
            Told::Begin { .. } => PREFIX_BYTES,
            Told::Part { len } => len,
            Told::Unary { .. } | Told::Finish { .. } | Told::Reset | Told::Http(_) => {
                self.unreported.remove(&caller);
                return;
            }
        };
        // Of a call that its client gave up, nothing is left to be reported.
        if is_open {
            *self.unreported.entry(caller).or_default() += sent;
            self.moved.push(caller);
        }
    }

    fn say(&mut self, caller: Caller, what: Said) {
        self.outgoing.items.push(request(caller, what));
    }

    /// Looks at connections for requests, as far as the credit reaches; in turns (I3).
    fn poll_clients(&mut self, now: u64) {
        if !self.is_serving {
            return;
        }
        self.clients.begin_polling();
        // I2
        while self.used.has_room()
            && let Some((slot, share)) = self.clients.next_to_poll()
        {
            self.poll_client(slot, share, now);
        }
        self.more |= self.used.has_room() && self.clients.has_waiting();
    }

    fn poll_client(&mut self, slot: usize, mut share: Share, now: u64) {
        let Self { clients, outgoing, used, moved, admission, unreported, .. } = self;
        let Some((client, budget)) = clients.connection(slot) else { return };
        let (id, audience) = (client.id(), client.audience);
        while used.has_room()
            && let Some(event) = client.poll(&mut share, budget, now)
        {
            let start = outgoing.bytes.len();
            let (stream, what) = match event {
                ConnectionEvent::GrpcRequest { stream, route, head, message } => {
                    let Some(route) = route.filter(|_| audience.has_grpc()) else {
                        let status = unknown_method(head.path());
                        client.connection.finish(stream, u32::from(status.code.number()), &status.message);
                        continue;
                    };
                    let said = said_of_call(api::method(route), CallFacts::of(head), admission, message, outgoing);
                    (stream, said)
                }
                ConnectionEvent::HttpRequest { stream, head, .. } => {
                    let parts = [head.method(), head.path(), head.query()];
                    parts.iter().for_each(|part| outgoing.bytes.extend_from_slice(part));
                    (stream, Said::Http { audience, lens: parts.map(<[u8]>::len) })
                }
                ConnectionEvent::GrpcMessage { stream, message } => {
                    outgoing.bytes.extend_from_slice(message);
                    (stream, Said::Message { len: message.len() })
                }
                ConnectionEvent::GrpcHalfClose { stream } => (stream, Said::HalfClose),
                ConnectionEvent::StreamReset { stream } => {
                    unreported.remove(&Caller::new(slot, id, stream));
                    (stream, Said::Reset)
                }
                ConnectionEvent::StreamWritable { stream } => {
                    moved.push(Caller::new(slot, id, stream));
                    continue;
                }
            };
            let mut cost = Credit::default();
            cost.add(outgoing.bytes.len() - start);
            used.add_all(cost);
            outgoing.cost.add_all(cost);
            outgoing.items.push(request(Caller::new(slot, id, stream), what));
        }
        clients.handle_polled(slot, &share);
    }

    /// Tells the sequencer what has left the queues of streams, where it may wait for that (I4). After the output of
    /// the turn was taken.
    fn report_moved(&mut self) {
        while let Some(caller) = self.moved.pop() {
            let Some(unreported) = self.unreported.get_mut(&caller) else { continue };
            let backlog = self.clients.backlog_bytes(caller).min(*unreported);
            let gone = *unreported - backlog;
            // A queue above the mark calls when it is below.
            let is_wanted = *unreported > STREAM_BACKLOG_LOW_BYTES || gone >= STREAM_BACKLOG_LOW_BYTES / 2;
            if gone > 0 && backlog <= STREAM_BACKLOG_LOW_BYTES && is_wanted {
                *unreported = backlog;
                self.say(caller, Said::Taken { bytes: gone });
            }
        }
    }

    fn post<P: Port>(&mut self, port: &mut P) {
        for number in std::mem::take(&mut self.asked) {
            self.outgoing.counters.push((number, Box::new(self.metrics.clone())));
        }
        self.outgoing.slow.append(&mut self.metrics.calls.take_slow());
        if self.outgoing.is_due() {
            let next = self.outgoing.successor();
            port.post(SEQUENCER, Box::new(std::mem::replace(&mut self.outgoing, next)));
        }
    }

    fn turn<P: Port>(&mut self, port: &mut P, events: &mut Vec<Event>) -> Turn {
        let now = port.now();
        self.more = false;
        for event in events.drain(..) {
            self.handle_event(event, now);
        }
        // All clients of the process wait for them.
        self.errands.step(&*port, &mut self.outgoing.jobs, &mut self.metrics.shard);
        self.more |= self.errands.has_work();
        self.clients.handle_time(now);
        self.poll_clients(now);
        self.more |= self.is_serving && self.clients.has_revived();
        self.clients.flush(port, &mut self.metrics.calls, now);
        self.report_moved();
        self.post(port);
        if self.is_stopping {
            return Turn::Stop(0);
        }
        port.set_deadline(if self.more { Some(now) } else { self.clients.deadline() });
        Turn::Continue
    }
}

impl<P: Port> CoreLoop<P> for Front {
    fn handle_turn(&mut self, port: &mut P, events: &mut Vec<Event>) -> Turn {
        let started = port.cpu_now();
        let turn = self.turn(port, events);
        self.metrics.turn.observe(port.cpu_now().saturating_sub(started));
        turn
    }
}

fn request(caller: Caller, what: Said) -> Request {
    let slot = u32::try_from(caller.slot()).expect("connections are far fewer than 2^32");
    Request { slot, connection: caller.connection(), stream: caller.stream, what }
}

/// What is sent of a call: of a put that is in order its log form, which the sequencer appends as it is.
fn said_of_call(
    method: Method,
    facts: CallFacts,
    admission: &Admission,
    message: &[u8],
    outgoing: &mut Requests,
) -> Said {
    if method == Method::Put
        && let Some(put) = encode_put(admission, message, &mut outgoing.bytes)
    {
        return Said::Put { facts, cost: put.cost, len: put.len };
    }
    outgoing.bytes.extend_from_slice(message);
    Said::Call { method, facts, len: message.len() }
}
