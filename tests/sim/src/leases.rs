//! What is known of leases: they have no revisions, so their times are judged, and an order of what was seen of them.
//!
//! Owns: everything that happened to each lease since the last settlement, the ids that were ever given out, and the
//! bounds of patience with a lease that does not end. Does not know: keys and revisions, beyond the revisions at which
//! leases ended; how an order is found ([`mod@search`]).
//!
//! Invariants
//! - I1: a lease never ends by itself before the time it was granted or renewed for is over, counted from when that was
//!   asked for and without pauses of the process; after a start it has its whole time again, and an election timeout.
//! - I2: it ends within [`LATE_MAX`] after that time has passed since somebody was told, or since a start was audited,
//!   as far as the process could run.
//! - I3: an id that the server chose is never given out again.
//! - I4: what is seen of a lease is what some order of grants, ends and looks explains.

mod search;

use std::collections::{BTreeMap, BTreeSet};

use self::search::{Call, Found, Held, Lives, Step, nanoseconds, search};
use crate::checker::Reply;
use crate::history::{Answer, Fault, LeaseFacts, Request};

const SECOND: u64 = 1_000_000_000;
/// How much later than its time a lease may end: the log may wait for a slow disk.
const LATE_MAX: u64 = 20 * SECOND;
/// Calls that a report shows.
const SHOWN_MAX: usize = 12;

/// One lease, or an id that was asked for.
#[derive(Debug, Default)]
struct History {
    begin: Option<Held>,
    calls: Vec<Call>,
    /// When its time is over at the latest, on the clock of [`Leases::useful`]; `None`: nobody knows.
    due_by: Option<u64>,
    /// Grants and renewals under way, and whether the outcome of some is unknown.
    renewals: u32,
    is_uncertain: bool,
}

impl History {
    fn due_by(&self) -> Option<u64> {
        self.due_by.filter(|_| self.renewals == 0 && !self.is_uncertain)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    ttl_min: i64,
    election_timeout: u64,
    histories: BTreeMap<i64, History>,
    /// All ids that the server chose.
    chosen: BTreeSet<i64>,
    /// Ids that were listed and that nobody was told of so far.
    strays: BTreeSet<i64>,
    /// Grants of unknown outcome to which the server gives an id: when they began and for how long.
    unknown: Vec<(u64, i64)>,
    /// Of leases whose ids the server chose, the revision at which their keys were deleted.
    ended_at: BTreeMap<i64, i64>,
    /// Those that somebody may take to be alive.
    alive: BTreeSet<i64>,
    /// Beginning and end of each life since the one of the last settlement.
    spans: Vec<(u64, u64)>,
    /// Pauses that the process notices: when each began and how long it was.
    pauses: Vec<(u64, u64)>,
    /// While the store is audited: the leases that there are, with their granted times to live.
    audited: Option<BTreeMap<i64, i64>>,
    now: u64,
    /// For so long the process could not run.
    lost: u64,
    covered: Vec<&'static str>,
}

impl Leases {
    /// Of a server with this election timeout: no lease lives shorter than one and a half of it, in tenths and rounded
    /// up to seconds.
    pub(crate) fn new(election_timeout: u64) -> Self {
        let ttl_min = (15 * (election_timeout / 10)).div_ceil(SECOND).cast_signed();
        Self { ttl_min, election_timeout, ..Self::default() }
    }

    /// Leases that somebody may take to be alive.
    pub(crate) fn alive(&self) -> &BTreeSet<i64> {
        &self.alive
    }

    /// A life begins.
    pub(crate) fn begin_life(&mut self, now: u64) {
        self.spans.push((now, u64::MAX));
        self.audited = None;
    }

    /// It ends.
    pub(crate) fn end_life(&mut self, now: u64) {
        if let Some((_, ended)) = self.spans.last_mut() {
            *ended = now;
        }
    }

    /// It is `now`, and all in all the process could not run for so long.
    pub(crate) fn set_time(&mut self, now: u64, lost: u64) {
        (self.now, self.lost) = (now, lost);
    }

    /// The process did not run for so long from this time on.
    pub(crate) fn note_pause(&mut self, began: u64, length: u64) {
        if length > self.election_timeout {
            self.pauses.push((began, length));
        }
    }

    /// The lease that ends next, as far as is known, or is about to.
    pub(crate) fn next_to_end(&self) -> Option<i64> {
        let from = self.useful(self.now).saturating_sub(SECOND / 8);
        let due = self.alive.iter().filter_map(|id| Some((self.histories.get(id)?.due_by()?, *id)));
        due.filter(|(due, _)| *due >= from).min().map(|(_, id)| id)
    }

    /// From now on until the settlement, nobody asks but the auditor.
    pub(crate) fn begin_audit(&mut self) {
        self.audited = Some(BTreeMap::new());
    }

    /// Things worth counting since the last call.
    pub(crate) fn take_covered(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.covered)
    }

    /// When the last lease is over that is over within `length`, as far as is known; nobody renews them.
    pub(crate) fn run_out_by(&self, now: u64, length: u64) -> Option<u64> {
        let until = self.useful(now) + length;
        let due = self.alive.iter().filter_map(|id| self.histories.get(id)?.due_by().filter(|due| *due <= until));
        due.max().map(|due| due + self.lost)
    }

    /// The leases that should be over by now.
    pub(crate) fn overdue(&self, now: u64) -> usize {
        let due = self.alive.iter().filter_map(|id| self.histories.get(id)?.due_by());
        due.filter(|due| *due <= self.useful(now)).count()
    }

    /// Time that the process could use.
    fn useful(&self, now: u64) -> u64 {
        now.saturating_sub(self.lost)
    }

    fn history(&mut self, id: i64) -> &mut History {
        self.histories.entry(id).or_default()
    }

    /// An operation begins.
    pub(crate) fn invoke(&mut self, request: &Request) {
        if let Some(id) = renewed(request) {
            self.history(id).renewals += 1;
        }
    }

    /// An operation of this time ended; a lease may be stuck if the server is not allowed to end any.
    ///
    /// # Errors
    /// What is said of a lease is wrong, whatever else happened.
    pub(crate) fn complete(
        &mut self,
        request: &Request,
        reply: &Reply,
        (invoked, now): (u64, u64),
        may_be_stuck: bool,
    ) -> Result<(), String> {
        if let Some(id) = renewed(request) {
            let history = self.history(id);
            history.renewals -= 1;
            history.is_uncertain |= *reply == Reply::Unknown;
        }
        let call = |step| Call { invoked, completed: Some(now), step };
        match reply {
            Reply::Answered(response) => {
                let late_max = if may_be_stuck { u64::MAX } else { LATE_MAX };
                self.handle_answer(request, &response.answer, call(Step::See), late_max)
            }
            Reply::Unknown => {
                self.handle_unknown(request, invoked);
                Ok(())
            }
            Reply::Failed { code, text } => {
                let is = |fault: Fault| (fault.code, fault.text) == (*code, text.as_str());
                match request {
                    Request::LeaseGrant { id, .. } if *id != 0 && is(Fault::LEASE_EXISTS) => {
                        self.see(*id, call(Step::See));
                    }
                    Request::LeaseRevoke { id } if is(Fault::LEASE_NOT_FOUND) => self.see(*id, call(Step::SeeNone)),
                    _ if is(Fault::LEASE_NOT_FOUND) => {
                        let id = request.lease_named().ok_or("it names no lease")?;
                        self.see(id, call(Step::SeeNone));
                    }
                    _ => {}
                }
                Ok(())
            }
            Reply::Refused => Ok(()),
        }
    }

    fn see(&mut self, id: i64, call: Call) {
        match call.step {
            Step::SeeNone | Step::End => self.alive.remove(&id),
            _ => self.alive.insert(id),
        };
        self.history(id).calls.push(call);
    }

    /// It was seen alive by who asked at the call's beginning.
    fn see_alive(&mut self, id: i64, call: Call, late_max: u64) -> Result<(), String> {
        let useful = self.useful(call.invoked);
        self.see(id, call);
        match self.history(id).due_by() {
            Some(due) if due.saturating_add(late_max) < useful => {
                let late = (useful - due) / 1_000_000;
                Err(format!("lease {id} is still there {late} virtual milliseconds after its time"))
            }
            _ => Ok(()),
        }
    }

    fn handle_unknown(&mut self, request: &Request, invoked: u64) {
        match *request {
            Request::LeaseGrant { id, ttl } => {
                let ttl = ttl.max(self.ttl_min);
                if id == 0 {
                    self.unknown.push((invoked, ttl));
                } else {
                    self.history(id).calls.push(Call { invoked, completed: None, step: Step::Grant { ttl } });
                }
            }
            Request::LeaseRevoke { id } => {
                self.history(id).calls.push(Call { invoked, completed: None, step: Step::End });
            }
            _ => {}
        }
    }

    /// `call` has the times of the operation.
    fn handle_answer(&mut self, request: &Request, answer: &Answer, call: Call, late_max: u64) -> Result<(), String> {
        let (facts, now) = (&answer.lease, call.completed.unwrap_or(call.invoked));
        match *request {
            Request::LeaseGrant { id, ttl } => {
                let ttl = ttl.max(self.ttl_min);
                self.check_granted((id, ttl), facts)?;
                self.covered.push("(lease granted)");
                self.see(facts.id, Call { step: Step::Grant { ttl }, ..call });
                self.note_due(facts.id, now, ttl);
            }
            Request::LeaseRevoke { id } => {
                self.covered.push("(lease revoked)");
                self.see(id, Call { step: Step::End, ..call });
            }
            Request::LeaseKeepAlive { id, .. } if facts.id != id || facts.ttl < 0 => {
                return Err(format!("{facts:?}"));
            }
            Request::LeaseKeepAlive { id, .. } if facts.ttl == 0 => self.see(id, Call { step: Step::SeeNone, ..call }),
            Request::LeaseKeepAlive { id, .. } => {
                self.covered.push("(lease kept alive)");
                self.see_alive(id, Call { step: Step::Renew { ttl: facts.ttl }, ..call }, late_max)?;
                self.note_due(id, now, facts.ttl);
            }
            Request::LeaseTimeToLive { id, keys } => self.handle_rest((id, keys), facts, call, late_max)?,
            Request::LeaseLeases => self.handle_list(&facts.ids, call, late_max)?,
            _ if request.has_attached(answer) => {
                let id = request.lease_named().ok_or("it names no lease")?;
                self.see_alive(id, call, late_max)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// It lives at the longest for its time from `now` on.
    fn note_due(&mut self, id: i64, now: u64, ttl: i64) {
        let due = self.useful(now).saturating_add(nanoseconds(ttl));
        let history = self.history(id);
        history.due_by = Some(history.due_by.unwrap_or(0).max(due));
    }

    fn check_granted(&mut self, (id, ttl): (i64, i64), facts: &LeaseFacts) -> Result<(), String> {
        let is_right = if id == 0 { facts.id > 0 && self.chosen.insert(facts.id) } else { facts.id == id };
        self.strays.remove(&facts.id);
        if is_right && facts.ttl == ttl { Ok(()) } else { Err(format!("granted {facts:?}, not for {ttl} s")) }
    }

    fn handle_rest(
        &mut self,
        (id, keys): (i64, bool),
        facts: &LeaseFacts,
        call: Call,
        late_max: u64,
    ) -> Result<(), String> {
        let LeaseFacts { ttl, granted_ttl, .. } = *facts;
        if facts.id != id || (!facts.keys.is_empty() && !keys) {
            return Err(format!("{facts:?}"));
        }
        if ttl == -1 && granted_ttl == 0 && facts.keys.is_empty() {
            self.see(id, Call { step: Step::SeeNone, ..call });
            if let Some(audited) = &mut self.audited {
                audited.remove(&id);
            }
            return Ok(());
        }
        let longest = nanoseconds(granted_ttl).saturating_add(self.election_timeout);
        if ttl < 0 || nanoseconds(ttl) > longest {
            return Err(format!("{ttl} s are left of {granted_ttl} s"));
        }
        if let Some(audited) = &mut self.audited {
            audited.insert(id, granted_ttl);
        }
        let left_max = nanoseconds(ttl.saturating_add(1));
        self.see_alive(id, Call { step: Step::SeeRest { ttl: granted_ttl, left_max }, ..call }, late_max)
    }

    fn handle_list(&mut self, ids: &[i64], call: Call, late_max: u64) -> Result<(), String> {
        let listed: BTreeSet<i64> = ids.iter().copied().collect();
        if listed.len() != ids.len() {
            return Err(format!("lists a lease twice: {ids:?}"));
        }
        let gone: Vec<i64> = self.histories.keys().filter(|id| !listed.contains(id)).copied().collect();
        for id in gone {
            self.see(id, Call { step: Step::SeeNone, ..call });
        }
        if let Some(audited) = &mut self.audited {
            *audited = listed.iter().map(|id| (*id, 0)).collect();
        }
        for id in listed {
            if !self.histories.contains_key(&id) {
                self.strays.insert(id);
            }
            self.see_alive(id, call, late_max)?;
        }
        Ok(())
    }

    /// The keys of a lease were deleted at `revision`, which was made between these times.
    ///
    /// # Errors
    /// They were before, and the lease cannot have been granted anew.
    pub(crate) fn note_end(&mut self, id: i64, revision: i64, (from, to): (u64, u64)) -> Result<(), String> {
        self.see(id, Call { invoked: from, completed: Some(to), step: Step::SeeNone });
        match self.ended_at.insert(id, revision) {
            Some(earlier) if self.chosen.contains(&id) => {
                Err(format!("the keys of lease {id} are deleted at {revision}, though it ended at {earlier}"))
            }
            _ => Ok(()),
        }
    }

    /// Where the keys of a lease were deleted, if that can have happened only once.
    pub(crate) fn ended_once_at(&self, id: i64) -> Option<i64> {
        self.ended_at.get(&id).copied().filter(|_| self.chosen.contains(&id))
    }

    /// The leases that the audit found; `None`: it did not ask.
    pub(crate) fn audited(&self) -> Option<impl Iterator<Item = i64>> {
        self.audited.as_ref().map(|audited| audited.keys().copied())
    }

    /// Judges everything since the last settlement; nobody but the auditor asked in this life.
    ///
    /// # Errors
    /// No order explains what was seen of a lease.
    pub(crate) fn settle(&mut self, now: u64) -> Result<(), String> {
        let (strays, unknown) = (std::mem::take(&mut self.strays), std::mem::take(&mut self.unknown));
        if strays.len() > unknown.len() {
            return Err(format!("there are leases {strays:?}, and {} grants that nobody heard of", unknown.len()));
        }
        self.chosen.extend(&strays);
        for (id, mut history) in std::mem::take(&mut self.histories) {
            if strays.contains(&id) {
                let grants = unknown.iter().map(|&(invoked, ttl)| (invoked, Step::Grant { ttl }));
                history.calls.extend(grants.map(|(invoked, step)| Call { invoked, completed: None, step }));
            }
            history.calls.sort_by_key(|call| call.invoked);
            self.judge(id, &history)?;
            let began = self.spans.last().map_or(0, |(began, _)| *began);
            let is_there = self.audited.as_ref().is_some_and(|audited| audited.contains_key(&id));
            if is_there && history.due_by().is_some_and(|due| due < self.useful(began)) {
                self.covered.push("(lease due while no process ran)");
            }
        }
        self.begin_anew(now);
        Ok(())
    }

    fn lives(&self) -> Lives<'_> {
        Lives { spans: &self.spans, pauses: &self.pauses, election_timeout: self.election_timeout }
    }

    fn judge(&mut self, id: i64, history: &History) -> Result<(), String> {
        let lives = self.lives();
        let found = search(history.begin, &history.calls, lives);
        let why = match found {
            Found::Order { ends } => {
                self.covered.extend((0..ends).map(|_| "(lease expired)"));
                return Ok(());
            }
            Found::Nothing => "no order explains",
            Found::TooMuch => "no order was found in time for",
        };
        let History { begin, calls, .. } = history;
        let shown: Vec<String> = calls.iter().take(SHOWN_MAX).map(|call| format!("{call:?}")).collect();
        let (count, spans, shown) = (calls.len(), &self.spans, shown.join("; "));
        Err(format!("{why} what was seen of lease {id} ({count} calls) from {begin:?} in {spans:?}: {shown}"))
    }

    /// What the audit found is where the next histories begin.
    fn begin_anew(&mut self, now: u64) {
        let current = self.spans.pop().unwrap_or((now, u64::MAX));
        let earlier = std::mem::replace(&mut self.spans, vec![current]);
        self.pauses.clear();
        let audited = self.audited.take().unwrap_or_default();
        let lives = Lives { spans: &[], pauses: &[], election_timeout: self.election_timeout };
        self.alive = audited.keys().copied().collect();
        let due = |ttl| now.saturating_sub(self.lost).saturating_add(nanoseconds(ttl) + self.election_timeout);
        self.histories = audited
            .into_iter()
            .map(|(id, ttl)| {
                let begin = Some(Held { ttl, not_before: lives.not_before(current.0, ttl), since: now });
                (id, History { begin, due_by: Some(due(ttl)), ..History::default() })
            })
            .collect();
        if !earlier.is_empty() && !self.histories.is_empty() {
            self.covered.push("(lease outlived a process)");
        }
    }
}

/// The lease that a request may give more time.
fn renewed(request: &Request) -> Option<i64> {
    match request {
        Request::LeaseGrant { id, .. } if *id != 0 => Some(*id),
        Request::LeaseKeepAlive { id, .. } => Some(*id),
        _ => None,
    }
}
