//! What all answers of a life add up to, once the recovered store can be read.
//!
//! Owns: the replay of claimed revisions, the search for the makers of unclaimed ones, and the judgement of reads and
//! refusals. Does not know: anything that happens while clients are at work.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::{Checker, Operation, Refusal};
use crate::hash;
use crate::history::{Answer, Fault, LeaseFacts, Request};
use crate::model::{Changes, KeyRange, KeyValue, Model};
use crate::value::OperationId;

/// Extends the model of `checker` to `newest` and judges everything since the last time.
pub(crate) fn settle(
    checker: &mut Checker,
    newest: i64,
    states: &BTreeMap<i64, Vec<KeyValue>>,
    now: u64,
) -> Result<(), String> {
    if let Some((revision, (id, _))) = checker.claims.range(newest + 1..).next() {
        let why = format!("acknowledged at revision {revision} and lost: the store is at {newest}");
        return Err(checker.blame(*id, &why));
    }
    if checker.highest_returned > newest {
        let revision = checker.highest_returned;
        return Err(format!("revision {revision} was shown and lost: the store is at {newest}"));
    }
    let ceilings = Ceilings::new(checker, newest);
    let before = checker.model.revision();
    let mut riddles = Vec::new();
    for revision in before + 1..=newest {
        match checker.claims.remove(&revision) {
            Some((id, answer)) => apply_claim(checker, id, &answer).map_err(|why| checker.blame(id, &why))?,
            None => {
                let state = states.get(&revision).ok_or_else(|| format!("revision {revision} was not read"))?;
                let makers = apply_unclaimed(checker, revision, state)?;
                if let Some(lease) = makers.lease {
                    note_end_of_lease(checker, lease, revision, (makers.writes.is_empty(), now))?;
                } else {
                    riddles.push((revision, makers.writes));
                }
            }
        }
    }
    match_makers(&riddles)?;
    // Whatever did not turn up by now never may.
    checker.unknown.clear();
    checker.alarms.settle();
    for (id, answer) in std::mem::take(&mut checker.observations) {
        check_observation(checker, id, &answer).map_err(|why| checker.blame(id, &why))?;
    }
    check_attachments(checker)?;
    checker.leases.settle(now)?;
    for refusal in std::mem::take(&mut checker.refusals) {
        check_refusal(checker, &refusal, &ceilings).map_err(|why| checker.blame(refusal.id, &why))?;
    }
    let Checker { audit, model, .. } = checker;
    audit.judge(&|key| model.get(key, before).map(|pair| pair.value), &|key| {
        model.get(key, newest).map(|pair| pair.value)
    })
}

fn apply_claim(checker: &mut Checker, id: OperationId, answer: &Answer) -> Result<(), String> {
    let request = &checker.operations[id as usize].request;
    let (expected, changes) = checker
        .model
        .evaluate(request, checker.model.revision(), -1)
        .map_err(|fault| format!("answered, though {}", fault.text))?;
    compare_answers(answer, &expected)?;
    checker.model.install(changes);
    Ok(())
}

/// Who may have made a revision that nobody claims.
struct Makers {
    /// Writes of unknown outcome.
    writes: Vec<OperationId>,
    /// The end of this lease.
    lease: Option<i64>,
}

/// Finds the writes of unknown outcome that may have made `revision`, and the lease whose end may, and applies one.
fn apply_unclaimed(checker: &mut Checker, revision: i64, state: &[KeyValue]) -> Result<Makers, String> {
    let changed = difference_of(&checker.model, revision - 1, state);
    let mut found: Vec<(OperationId, Changes)> = Vec::new();
    let ended = end_of_lease(&checker.model, revision - 1, &changed);
    for id in &checker.unknown {
        let operation = &checker.operations[*id as usize];
        if operation.floor >= revision {
            continue;
        }
        let Ok((_, changes)) = checker.model.evaluate(&operation.request, revision - 1, -1) else { continue };
        if !changes.is_empty() && net(&checker.model, revision - 1, &changes) == changed {
            found.push((*id, changes));
        }
    }
    let writes = found.iter().map(|(id, _)| *id).collect();
    let lease = ended.as_ref().map(|(lease, _)| *lease);
    let mut ways: Vec<Changes> = ended.into_iter().map(|(_, changes)| changes).collect();
    ways.extend(found.into_iter().map(|(_, changes)| changes));
    if ways.iter().any(|changes| *changes != ways[0]) {
        checker.ambiguous.insert(revision, ways.clone());
    }
    let Some(changes) = ways.into_iter().next() else {
        let shown: Vec<String> = changed.iter().take(4).map(show_change).collect();
        return Err(format!("revision {revision} is nobody's: {} keys changed: {}", changed.len(), shown.join(", ")));
    };
    checker.model.install(changes);
    Ok(Makers { writes, lease })
}

/// The lease whose end after `before` leaves behind what changed, and what it does.
fn end_of_lease(model: &Model, before: i64, changed: &Net) -> Option<(i64, Changes)> {
    let (key, _) = changed.first_key_value()?;
    let lease = model.get(key, before)?.lease;
    let changes = model.end_of_lease(lease, before);
    (lease != 0 && net(model, before, &changes) == *changed).then_some((lease, changes))
}

/// The end of a lease made `revision`, certainly or perhaps: its keys are gone.
fn note_end_of_lease(
    checker: &mut Checker,
    lease: i64,
    revision: i64,
    (is_certain, now): (bool, u64),
) -> Result<(), String> {
    let (from, to) = checker.times_of(revision, now);
    let keys = checker.model.changed_at(revision);
    if is_certain {
        checker.covered.push(if keys.len() > 1 {
            "(several keys ended with a lease)"
        } else {
            "(key ended with a lease)"
        });
    }
    for key in keys {
        checker.audit.clear(key, from, Some(to).filter(|_| is_certain));
    }
    if is_certain { checker.leases.note_end(lease, revision, (from, to)) } else { Ok(()) }
}

/// No key of the newest state hangs on a lease that the audit did not find.
fn check_attachments(checker: &Checker) -> Result<(), String> {
    let newest = checker.model.revision();
    let Some(leases) = checker.leases.audited().filter(|_| checker.highest_returned == newest) else { return Ok(()) };
    let leases: BTreeSet<i64> = leases.collect();
    for pair in checker.model.range(&KeyRange::everything(), newest) {
        if pair.lease != 0 && !leases.contains(&pair.lease) {
            let key = pair.key.escape_ascii();
            return Err(format!("{key} hangs on lease {} at {newest}, which is not listed: {leases:?}", pair.lease));
        }
    }
    Ok(())
}

/// What an answer about a lease says of its keys at its revision.
fn check_lease(checker: &Checker, operation: &Operation, answer: &Answer) -> Result<(), String> {
    let (model, at) = (&checker.model, answer.revision);
    if at > model.revision() {
        return Err(format!("shown at revision {at}"));
    }
    let gone = match operation.request {
        Request::LeaseRevoke { id } => id,
        Request::LeaseKeepAlive { id, .. } if answer.lease.ttl == 0 => id,
        Request::LeaseTimeToLive { id, .. } if answer.lease.ttl < 0 => id,
        Request::LeaseTimeToLive { id, keys: true } => return check_keys_of_lease(model, id, operation.floor, answer),
        _ => return Ok(()),
    };
    if let Some(key) = model.attached(gone, at).next() {
        return Err(format!("the lease is gone, and {} still hangs on it at {at}", key.escape_ascii()));
    }
    match checker.leases.ended_once_at(gone) {
        Some(ended) if matches!(operation.request, Request::LeaseRevoke { .. }) && ended != at => {
            Err(format!("revoked at {at}, but its keys were deleted at {ended}"))
        }
        _ => Ok(()),
    }
}

/// The keys of a lease are listed while others come and go.
fn check_keys_of_lease(model: &Model, lease: i64, floor: i64, answer: &Answer) -> Result<(), String> {
    let LeaseFacts { keys, .. } = &answer.lease;
    let listed: BTreeSet<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    if listed.len() != keys.len() {
        return Err("lists a key twice".to_owned());
    }
    let (from, to) = (floor.max(1), answer.revision);
    if let Some(key) = listed.iter().find(|key| model.leases_of(key, from, to).all(|other| other != lease)) {
        return Err(format!("lists {}, which did not hang on it in {from}..={to}", key.escape_ascii()));
    }
    let missing = |key: &&[u8]| !listed.contains(key) && model.leases_of(key, from, to).all(|other| other == lease);
    match model.attached(lease, to).find(missing) {
        Some(key) => Err(format!("leaves out {}, which hung on it all the time", key.escape_ascii())),
        None => Ok(()),
    }
}

type Net = BTreeMap<Vec<u8>, Option<KeyValue>>;

/// What differs between the model at `before` and a state.
fn difference_of(model: &Model, before: i64, state: &[KeyValue]) -> Net {
    let mut changed = Net::new();
    let mut state = state.iter().peekable();
    for old in model.range(&KeyRange::everything(), before) {
        while let Some(new) = state.next_if(|new| new.key < old.key) {
            changed.insert(new.key.clone(), Some(new.clone()));
        }
        match state.next_if(|new| new.key == old.key) {
            Some(new) if new == old => {}
            Some(new) => drop(changed.insert(new.key.clone(), Some(new.clone()))),
            None => drop(changed.insert(old.key.clone(), None)),
        }
    }
    changed.extend(state.map(|new| (new.key.clone(), Some(new.clone()))));
    changed
}

/// What changes leave behind.
fn net(model: &Model, before: i64, changes: &Changes) -> Net {
    let mut left: Net = changes.iter().cloned().collect();
    left.retain(|key, pair| pair.as_ref() != model.get(key, before));
    left
}

fn show_change((key, pair): (&Vec<u8>, &Option<KeyValue>)) -> String {
    let key = key.escape_ascii();
    match pair {
        Some(pair) => format!("{key} = {} version {}", pair.value.show(), pair.version),
        None => format!("{key} is gone"),
    }
}

fn check_observation(checker: &Checker, id: OperationId, answer: &Answer) -> Result<(), String> {
    let at = answer.revision;
    let request = &checker.operations[id as usize].request;
    match request {
        Request::HashKv { .. } => return hash::check(&checker.model, &checker.ambiguous, request, answer),
        // What an alarm's answer lists was judged when it came.
        Request::Alarm { .. } | Request::Hash | Request::Status | Request::Compact { .. } => {
            return if at <= checker.model.revision() { Ok(()) } else { Err(format!("shown at revision {at}")) };
        }
        Request::LeaseGrant { .. }
        | Request::LeaseRevoke { .. }
        | Request::LeaseKeepAlive { .. }
        | Request::LeaseTimeToLive { .. }
        | Request::LeaseLeases => return check_lease(checker, &checker.operations[id as usize], answer),
        _ => {}
    }
    let (expected, changes) =
        checker.model.evaluate(request, at, -1).map_err(|fault| format!("answered at {at}, though {}", fault.text))?;
    if !changes.is_empty() {
        return Err(format!("changed nothing at {at}, where the model would have changed something"));
    }
    compare_answers(answer, &expected)
}

/// The lowest revision of the writes that were begun from some operation on.
struct Ceilings {
    /// Operation and the lowest revision from it on, by operation.
    lowest: Vec<(OperationId, i64)>,
    newest: i64,
}

impl Ceilings {
    fn new(checker: &Checker, newest: i64) -> Self {
        let mut lowest: Vec<(OperationId, i64)> =
            checker.claims.iter().map(|(revision, (id, _))| (*id, *revision)).collect();
        lowest.sort_unstable();
        let mut least = newest + 1;
        for (_, revision) in lowest.iter_mut().rev() {
            least = least.min(*revision);
            *revision = least;
        }
        Self { lowest, newest }
    }

    /// The highest revision that the store can have had when no operation from `next` on was begun.
    fn before(&self, next: OperationId) -> i64 {
        let position = self.lowest.partition_point(|(id, _)| *id < next);
        self.lowest.get(position).map_or(self.newest, |(_, revision)| revision - 1)
    }
}

/// Some state between what was known before the request and what was begun after its refusal must explain it.
fn check_refusal(checker: &Checker, refusal: &Refusal, ceilings: &Ceilings) -> Result<(), String> {
    let operation = &checker.operations[refusal.id as usize];
    let request = &operation.request;
    let floor = if request.is_serializable() { operation.connection_floor } else { operation.floor }.max(1);
    let ceiling = ceilings.before(refusal.next);
    let compacted = [operation.compacted_floor, refusal.asked];
    let explained = match request {
        Request::Compact { revision, .. } => match refusal.fault {
            Fault::COMPACTED => *revision <= refusal.asked,
            fault => fault == Fault::FUTURE && *revision > floor,
        },
        Request::HashKv { revision } => match refusal.fault {
            Fault::COMPACTED => *revision != 0 && *revision < refusal.asked,
            fault => fault == Fault::FUTURE && *revision > floor,
        },
        _ => (floor..=ceiling).any(|at| {
            let refused = |compacted| {
                let with = checker.model.evaluate(request, at, compacted).err();
                let without = checker.model.evaluate_without_leases(request, at, compacted).err();
                with == Some(refusal.fault) || without == Some(refusal.fault)
            };
            compacted.into_iter().any(refused)
        }),
    };
    if explained { Ok(()) } else { Err(format!("{} at no revision in {floor}..={ceiling}", refusal.fault.text)) }
}

/// Says where an answer differs from the model's.
pub(crate) fn compare_answers(answer: &Answer, expected: &Answer) -> Result<(), String> {
    let facts = |answer: &Answer| {
        let Answer { revision, count, more, succeeded, inner, .. } = answer;
        (*revision, *count, *more, *succeeded, inner.len())
    };
    if facts(answer) != facts(expected) {
        let show = |(revision, count, more, succeeded, inner)| {
            format!("revision {revision}, count {count}, more {more}, succeeded {succeeded}, {inner} inner")
        };
        return Err(format!("{}; the model: {}", show(facts(answer)), show(facts(expected))));
    }
    if answer.kvs != expected.kvs {
        return Err(format!("pairs at {}: {}", answer.revision, difference(&answer.kvs, &expected.kvs)));
    }
    for (position, (inner, expected)) in answer.inner.iter().zip(&expected.inner).enumerate() {
        compare_answers(inner, expected).map_err(|why| format!("operation {position} of it: {why}"))?;
    }
    Ok(())
}

/// Gives every revision a write of its own among its candidates (augmenting paths in a bipartite graph).
fn match_makers(riddles: &[(i64, Vec<OperationId>)]) -> Result<(), String> {
    fn assign(
        position: usize,
        riddles: &[(i64, Vec<OperationId>)],
        owner: &mut BTreeMap<OperationId, usize>,
        tried: &mut BTreeSet<OperationId>,
    ) -> bool {
        for id in &riddles[position].1 {
            if tried.insert(*id) && owner.get(id).copied().is_none_or(|other| assign(other, riddles, owner, tried)) {
                owner.insert(*id, position);
                return true;
            }
        }
        false
    }
    let mut owner = BTreeMap::new();
    for position in 0..riddles.len() {
        if !assign(position, riddles, &mut owner, &mut BTreeSet::new()) {
            return Err(format!("revision {}: a write stands more often than it was asked for", riddles[position].0));
        }
    }
    Ok(())
}

fn difference(seen: &[KeyValue], expected: &[KeyValue]) -> String {
    let position = seen.iter().zip(expected).position(|(left, right)| left != right);
    let position = position.unwrap_or_else(|| seen.len().min(expected.len()));
    let show = |pairs: &[KeyValue]| {
        pairs.get(position).map_or_else(
            || "nothing".to_owned(),
            |pair| {
                let KeyValue { key, value, create_revision, mod_revision, version, lease } = pair;
                let (key, value) = (key.escape_ascii(), value.show());
                format!("{key} = {value} create {create_revision} mod {mod_revision} version {version} lease {lease}")
            },
        )
    };
    format!(
        "{} pairs, the model {}; first difference at {position}: {}; the model: {}",
        seen.len(),
        expected.len(),
        show(seen),
        show(expected)
    )
}
