//! The sequencer among its connection cores: who serves a connection, what other cores' connections ask for, whose
//! counters a scraper gets.
//!
//! Owns: the choice of a core for an accepted connection, the way from a parcel to the service, the collection of
//! counters. Does not know: how a parcel travels, how a core serves its connections (`crate::front`).
//!
//! With one core none of it is reached.

use std::sync::Arc;

use trilith_reactor::{ConnectionId, CoreId, ListenerId, Port};

use super::{Node, http_status};
use crate::clients::{Caller, Clients};
use crate::front::FrontMetrics;
use crate::front::message::{Order, Request, Requests, Said, take};
use crate::http::{self, Answer, Audience};
use crate::metrics::moment::Moment;
use crate::service::Verdict;

/// How long a look at this core's use of its processor is, in nanoseconds.
const BUSY_WINDOW: u64 = 100_000_000;

/// How busy this core is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Busy {
    since: u64,
    cpu_at: u64,
    /// It worked for more than half of the last window.
    is_half: bool,
}

impl Busy {
    /// The turn at `now` began when the core had worked for `cpu`.
    pub(super) fn observe(&mut self, cpu: u64, now: u64) {
        let passed = now.saturating_sub(self.since);
        if passed >= BUSY_WINDOW {
            self.is_half = cpu.saturating_sub(self.cpu_at).saturating_mul(2) > passed;
            (self.since, self.cpu_at) = (now, cpu);
        }
    }
}

/// Scrapers that wait for the counters of other cores. One collection is under way at a time; who comes meanwhile waits
/// for the next, so that scrapers cost the cores no more however many they are.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    /// Not part of a collection yet.
    wanted: Vec<(Caller, Audience)>,
    under_way: Option<Scrape>,
    last: u64,
}

#[derive(Debug)]
struct Scrape {
    number: u64,
    callers: Vec<(Caller, Audience)>,
    /// Cores that have not told theirs.
    missing: usize,
    gathered: FrontMetrics,
}

impl Scrapes {
    /// A scraper came.
    pub(super) fn want(&mut self, caller: Caller, audience: Audience) {
        self.wanted.push((caller, audience));
    }
}

impl Node {
    /// Keeps a connection, or gives it to the core with the fewest. Whoever is not a client stays here.
    pub(super) fn handle_accepted<P: Port>(
        &mut self,
        port: &mut P,
        listener: ListenerId,
        connection: ConnectionId,
        now: u64,
    ) {
        let audience = self.options.surface.audience(listener);
        let is_client = !matches!(audience, Audience::Metrics | Audience::Peers);
        let may_keep = self.options.sequencer_serves && !self.busy.is_half;
        let own = if may_keep { self.clients.len() } else { usize::MAX };
        let least = self.clients.remotes().iter_mut().min_by_key(|remote| remote.count());
        match least.filter(|remote| is_client && remote.count() < own) {
            Some(remote) => {
                remote.note_given();
                port.hand_over(connection, listener, remote.core());
            }
            None => self.clients.handle_accepted(connection, audience, now),
        }
    }

    /// Takes what connection cores have sent.
    pub(super) fn handle_parcels<P: Port>(&mut self, port: &mut P, now: u64) {
        for (from, requests) in std::mem::take(&mut self.parcels) {
            self.handle_parcel(port, from, *requests, now);
        }
    }

    fn handle_parcel<P: Port>(&mut self, port: &mut P, from: CoreId, requests: Requests, now: u64) {
        self.clients.remote(from).note_parcel(&requests);
        let wall_now = port.wall_now();
        let mut bytes = requests.bytes.as_slice();
        for request in &requests.items {
            self.handle_request(from, request, &mut bytes, (now, wall_now));
        }
        requests.jobs.into_iter().for_each(|job| self.service.replica.handle_job(job));
        self.log_slow(port, &requests.slow);
        for (number, counters) in requests.counters {
            self.take_counters(port, number, &counters);
        }
    }

    fn handle_request(&mut self, from: CoreId, request: &Request, bytes: &mut &[u8], (now, wall_now): (u64, u64)) {
        let caller = Caller::on_core(from, request.slot, request.connection, request.stream);
        let len = match request.what {
            Said::Call { len, .. } | Said::Put { len, .. } | Said::Message { len } => len,
            Said::Http { lens, .. } => lens.iter().sum(),
            Said::HalfClose | Said::Reset | Said::Taken { .. } | Said::Closed => 0,
        };
        let data = take(bytes, len);
        let is_listening = self.is_listening();
        let Self { service, clients, .. } = self;
        match request.what {
            Said::Closed => {
                clients.remote(from).handle_closed(caller);
                service.handle_connection_closed(request.connection);
            }
            Said::Taken { bytes } => {
                if clients.remote(from).handle_taken(caller, bytes) {
                    service.handle_writable(caller);
                }
            }
            // As with own connections: nobody is listened to any more.
            _ if !is_listening => {}
            Said::Call { method, facts, .. } => {
                clients.remote(from).open(caller);
                let verdict = service.handle_call(caller, method, facts, data, now);
                settle(clients, caller, verdict);
            }
            Said::Put { facts, cost, .. } => {
                clients.remote(from).open(caller);
                let verdict = service.handle_encoded_put(caller, facts, cost, data, now);
                settle(clients, caller, verdict);
            }
            Said::Message { .. } => {
                if let Err(status) = service.handle_message(caller, data, now) {
                    settle(clients, caller, Verdict::Refused(status));
                }
            }
            Said::HalfClose => {
                if service.handle_half_close(caller)
                    && let Some(mut connection) = clients.answer(caller)
                {
                    connection.finish(caller.stream, 0, "");
                }
            }
            Said::Reset => {
                clients.remote(from).handle_reset(caller);
                service.handle_reset(caller);
            }
            Said::Http { audience, lens } => {
                clients.remote(from).note_http(caller);
                let (method, rest) = data.split_at(lens[0]);
                let (path, query) = rest.split_at(lens[1]);
                self.handle_http(caller, audience, &http::Request { method, path, query }, (now, wall_now));
            }
        }
    }

    fn handle_http(
        &mut self,
        caller: Caller,
        audience: Audience,
        request: &http::Request<'_>,
        (now, wall_now): (u64, u64),
    ) {
        let answer = http::respond(audience, request, &http_status(&self.service, &self.identity, wall_now));
        match answer {
            Answer::AfterRead(probe) => self.service.handle_probe(caller, probe, now),
            Answer::Metrics => self.scrapes.want(caller, audience),
            Answer::Now(response) => {
                if let Some(mut connection) = self.clients.answer(caller) {
                    connection.respond(caller.stream, &response);
                }
            }
            Answer::Reset => {
                if let Some(mut connection) = self.clients.answer(caller) {
                    connection.reset(caller.stream);
                }
            }
        }
    }

    /// Answers those who came for the metrics, as soon as every core has told its counters.
    pub(super) fn serve_scrapers<P: Port>(&mut self, port: &P) {
        if self.scrapes.wanted.is_empty() || self.scrapes.under_way.is_some() {
            return;
        }
        let callers = std::mem::take(&mut self.scrapes.wanted);
        self.scrapes.last += 1;
        let number = self.scrapes.last;
        let remotes = self.clients.remotes();
        remotes.iter_mut().for_each(|remote| remote.order(Order::Count(number)));
        let missing = remotes.len();
        let gathered = FrontMetrics::new(&self.options.surface);
        self.scrapes.under_way = Some(Scrape { number, callers, missing, gathered });
        self.answer_scrapers(port);
    }

    fn take_counters<P: Port>(&mut self, port: &P, number: u64, counters: &FrontMetrics) {
        if let Some(scrape) = self.scrapes.under_way.as_mut().filter(|scrape| scrape.number == number) {
            scrape.gathered.calls.merge(&counters.calls);
            scrape.gathered.turn.merge(&counters.turn);
            scrape.gathered.shard.merge(&counters.shard);
            scrape.missing -= 1;
            self.answer_scrapers(port);
        }
    }

    fn answer_scrapers<P: Port>(&mut self, port: &P) {
        if let Some(scrape) = self.scrapes.under_way.take_if(|scrape| scrape.missing == 0) {
            let (process, gates) = (port.process_stats(), self.options.surface.gates);
            let moment = Moment { process, gates, ..self.service.moment() };
            self.metrics.watch = self.service.watch_metrics();
            let text = self.metrics.render(&scrape.gathered, &self.service.applied, &moment);
            // One text for all who asked: there may be thousands on one connection.
            let text = Arc::from(text.into_bytes());
            for (caller, audience) in scrape.callers {
                if let Some(mut connection) = self.clients.answer(caller) {
                    let response = http::metrics_response(audience, &text, port.wall_now());
                    connection.respond(caller.stream, &response);
                }
            }
        }
    }

    /// Tells every connection core to do something.
    pub(super) fn order(&mut self, order: Order) {
        self.clients.remotes().iter_mut().for_each(|remote| remote.order(order));
    }
}

/// Hands a verdict on a call to its connection.
fn settle(clients: &mut Clients, caller: Caller, verdict: Verdict) {
    let Some(mut connection) = clients.answer(caller) else { return };
    let stream = caller.stream;
    match verdict {
        Verdict::Pending => {}
        Verdict::Message(bytes) => connection.send_unary(stream, bytes.len(), |out| out.extend_from_slice(&bytes)),
        Verdict::Begun(bytes) => connection.send_message(stream, bytes.len(), |out| out.extend_from_slice(&bytes)),
        Verdict::Refused(status) => {
            connection.finish(stream, u32::from(status.code.number()), &status.message);
        }
    }
}
