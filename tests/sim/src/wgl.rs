//! An independent judge of a few keys: searches for a linear order of the operations on one key, without revisions
//! (Wing and Gong's algorithm with Lowe's memory of visited states).
//!
//! Owns: what each operation did to the audited keys, windows of bounded length, the search. Does not know: revisions,
//! the model; the caller gives a key's value at the ends of a window.
//!
//! Invariants
//! - I1: only what is certain counts against the server: an operation of unknown outcome may take effect at any time
//!   after its beginning or never, and what ends after a window's end is unknown in it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use crate::history::{Answer, Range, Request};
use crate::model::KeyValue;
use crate::value::{OperationId, Value};

/// Operations of a window at most.
const WINDOW_MAX: usize = 300;
/// Operations under way at once in a window at most: the search takes exponentially long in their number.
const OPEN_MAX: usize = 9;
/// States visited before the search gives up, which is a failure.
const STATES_MAX: usize = 500_000;
/// Operations that a report shows.
const SHOWN_MAX: usize = 12;
/// Ways in which an unknown operation may have gone; with more, its key is not audited further.
const WAYS_MAX: usize = 8;

/// What is in a key.
type State = Option<Value>;

/// One thing that an operation did to a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// It saw this.
    See(State),
    /// It saw whether something is there.
    SeePresence(bool),
    Set(Value),
    /// A put that keeps the value: there must be one.
    Keep,
    Clear,
}

#[derive(Clone)]
struct Call {
    invoked: u64,
    /// `None`: nobody knows.
    completed: Option<u64>,
    /// The ways it may have gone.
    ways: Vec<Vec<Step>>,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invoked, completed, ways } = self;
        write!(f, "{invoked}..{completed:?} {ways:?}")
    }
}

/// The audited keys and what happened to them since the last judgement.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    keys: BTreeMap<Vec<u8>, BTreeMap<OperationId, Call>>,
    /// When the window of a key was full: what was begun from then on is not in it.
    full: BTreeMap<Vec<u8>, u64>,
    /// Windows judged, and operations in them.
    pub(crate) windows: u64,
    /// Deletions that no client asked for, so far: they are numbered from the top.
    cleared: u64,
}

impl Audit {
    /// Adds a key to audit.
    pub(crate) fn watch(&mut self, key: Vec<u8>) {
        self.keys.insert(key, BTreeMap::new());
    }

    pub(crate) fn invoke(&mut self, id: OperationId, request: &Request, now: u64) {
        for (key, calls) in &mut self.keys {
            if touches(request, key) && !request.is_serializable() && !self.full.contains_key(key) {
                let open = calls.values().filter(|call| call.completed.is_none()).count();
                if calls.len() == WINDOW_MAX || open == OPEN_MAX {
                    self.full.insert(key.clone(), now);
                    continue;
                }
                let ways = ways(request, key);
                calls.insert(id, Call { invoked: now, completed: None, ways });
            }
        }
    }

    pub(crate) fn complete(&mut self, id: OperationId, request: &Request, answer: &Answer, now: u64) {
        for (key, calls) in &mut self.keys {
            if let Some(call) = calls.get_mut(&id) {
                let mut steps = Vec::new();
                observe(request, answer, key, &mut steps);
                call.completed = Some(now);
                call.ways = vec![steps];
            }
        }
    }

    /// A key went without a client's doing, between these times; `None`: perhaps.
    pub(crate) fn clear(&mut self, key: &[u8], invoked: u64, completed: Option<u64>) {
        if let Some(calls) = self.keys.get_mut(key) {
            self.cleared += 1;
            calls.insert(OperationId::MAX - self.cleared, Call { invoked, completed, ways: vec![vec![Step::Clear]] });
        }
    }

    /// It certainly had no effect.
    pub(crate) fn drop_failed(&mut self, id: OperationId) {
        self.keys.values_mut().for_each(|calls| drop(calls.remove(&id)));
    }

    /// Judges all windows, given the keys' values at their beginning and end, and begins new ones.
    ///
    /// # Errors
    /// No linear order explains what was seen, or none was found in time.
    pub(crate) fn judge(&mut self, begin: &dyn Fn(&[u8]) -> State, end: &dyn Fn(&[u8]) -> State) -> Result<(), String> {
        for (key, calls) in &mut self.keys {
            let key_bytes = key.as_slice();
            let calls = std::mem::take(calls);
            let calls = window(calls.into_values().collect(), self.full.remove(key), end(key));
            if calls.is_empty() {
                continue;
            }
            self.windows += 1;
            if calls.len() > BITS || calls.iter().any(|call| call.ways.len() > WAYS_MAX) {
                continue;
            }
            let found = search(begin(key), &calls);
            let why = match found {
                Found::Order => continue,
                Found::Nothing => "no order explains",
                Found::TooMuch => "no order was found in time for",
            };
            let shown: Vec<String> = calls.iter().take(SHOWN_MAX).map(|call| format!("{call:?}")).collect();
            let (count, key) = (calls.len(), key.escape_ascii());
            return Err(format!("{why} {count} operations on {key} from {:?}: {}", begin(key_bytes), shown.join("; ")));
        }
        Ok(())
    }
}

/// The calls to judge: as they are, with a last look at the end, or as far as they were begun before `cut`.
fn window(calls: Vec<Call>, cut: Option<u64>, end: State) -> Vec<Call> {
    let mut calls = calls;
    calls.sort_by_key(|call| call.invoked);
    if let Some(cut) = cut {
        calls.retain(|call| call.invoked < cut);
        for call in &mut calls {
            if call.completed.is_some_and(|at| at >= cut) {
                // It may or may not have happened yet; what it saw then does not count.
                call.completed = None;
                call.ways = vec![call.ways[0].iter().filter(|step| step.is_effect()).cloned().collect()];
            }
        }
    } else if !calls.is_empty() {
        let last = u64::MAX - 1;
        calls.push(Call { invoked: last, completed: Some(u64::MAX), ways: vec![vec![Step::See(end)]] });
    }
    calls.retain(|call| call.completed.is_some() || call.ways.iter().any(|way| !way.is_empty()));
    calls
}

impl Step {
    fn is_effect(&self) -> bool {
        !matches!(self, Self::See(_) | Self::SeePresence(_))
    }
}

/// Whether a request may look at or change a key.
fn touches(request: &Request, key: &[u8]) -> bool {
    match request {
        Request::Put(put) => put.key == key,
        Request::Delete(delete) => delete.range.contains(key),
        Request::Range(range) => sees(range, key),
        Request::Txn(txn) => txn.operations().any(|operation| touches(operation, key)),
        _ => false,
    }
}

/// Whether a read tells what is in a key.
fn sees(range: &Range, key: &[u8]) -> bool {
    let whole = range.revision == 0 && range.limit <= 0 && !range.has_filters() && !range.keys_only;
    whole && !range.serializable && range.range.contains(key) && !range.count_only
}

/// The ways in which a request of unknown outcome may change a key, besides not at all.
fn ways(request: &Request, key: &[u8]) -> Vec<Vec<Step>> {
    match request {
        Request::Put(put) if put.key == key => {
            vec![vec![if put.ignore_value { Step::Keep } else { Step::Set(Value::of(&put.value)) }]]
        }
        Request::Delete(delete) if delete.range.contains(key) => vec![vec![Step::Clear]],
        Request::Txn(txn) => {
            let mut all = Vec::new();
            for branch in [&txn.success, &txn.failure] {
                let mut of_branch: Vec<Vec<Step>> = vec![Vec::new()];
                for operation in branch {
                    let next = ways(operation, key);
                    of_branch = of_branch
                        .iter()
                        .flat_map(|way| next.iter().map(move |more| [way.as_slice(), more].concat()))
                        .take(WAYS_MAX + 1)
                        .collect();
                }
                all.extend(of_branch);
            }
            all.sort();
            all.dedup();
            all
        }
        _ => vec![Vec::new()],
    }
}

/// What an answered request did to a key.
fn observe(request: &Request, answer: &Answer, key: &[u8], steps: &mut Vec<Step>) {
    let find = |kvs: &[KeyValue]| kvs.iter().find(|pair| pair.key == key).map(|pair| pair.value);
    match request {
        Request::Put(put) if put.key == key => {
            if put.prev_kv {
                steps.push(Step::See(find(&answer.kvs)));
            }
            steps.push(if put.ignore_value { Step::Keep } else { Step::Set(Value::of(&put.value)) });
        }
        Request::Delete(delete) if delete.range.contains(key) => {
            if delete.prev_kv {
                steps.push(Step::See(find(&answer.kvs)));
            } else if delete.range.range_end.is_empty() {
                steps.push(Step::SeePresence(answer.count > 0));
            }
            steps.push(Step::Clear);
        }
        Request::Range(range) if sees(range, key) => steps.push(Step::See(find(&answer.kvs))),
        Request::Txn(txn) => {
            for (operation, inner) in txn.branch(answer.succeeded).iter().zip(&answer.inner) {
                observe(operation, inner, key, steps);
            }
        }
        _ => {}
    }
}

/// The state after a way, if it can have gone so.
fn run(way: &[Step], state: State) -> Option<State> {
    let mut state = state;
    for step in way {
        match step {
            Step::See(seen) if *seen != state => return None,
            Step::SeePresence(seen) if *seen != state.is_some() => return None,
            Step::Keep if state.is_none() => return None,
            Step::Set(value) => state = Some(*value),
            Step::Clear => state = None,
            _ => {}
        }
    }
    Some(state)
}

enum Found {
    Order,
    Nothing,
    TooMuch,
}

/// Calls that fit a set: those of a window, the last look, and some that no client made.
const BITS: usize = (WINDOW_MAX + 64) / 64 * 64;

type Bits = [u64; BITS / 64];

fn search(begin: State, calls: &[Call]) -> Found {
    let mut visited: HashSet<(Bits, State)> = HashSet::new();
    let mut stack = vec![(Bits::default(), begin)];
    while let Some((done, state)) = stack.pop() {
        let is_done = |position: usize| done[position / 64] & (1 << (position % 64)) != 0;
        let open = || calls.iter().enumerate().filter(|(position, _)| !is_done(*position));
        // Nothing that began after another had ended can come before it.
        let Some(limit) = open().filter_map(|(_, call)| call.completed).min() else { return Found::Order };
        // A call that only looks and sees what is there is best ended at once: waiting gains nothing.
        let looks = |call: &Call| call.completed.is_some() && call.ways[0].iter().all(|step| !step.is_effect());
        let idle = open()
            .take_while(|(_, call)| call.invoked <= limit)
            .find(|(_, call)| looks(call) && run(&call.ways[0], state).is_some());
        if let Some((position, _)) = idle {
            let mut done = done;
            done[position / 64] |= 1 << (position % 64);
            if visited.insert((done, state)) {
                stack.push((done, state));
            }
            continue;
        }
        for (position, call) in open().take_while(|(_, call)| call.invoked <= limit) {
            for after in call.ways.iter().filter_map(|way| run(way, state)) {
                let mut done = done;
                done[position / 64] |= 1 << (position % 64);
                if visited.insert((done, after)) {
                    stack.push((done, after));
                }
            }
        }
        if visited.len() > STATES_MAX {
            return Found::TooMuch;
        }
    }
    Found::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(invoked: u64, completed: u64, steps: &[Step]) -> Call {
        Call { invoked, completed: Some(completed), ways: vec![steps.to_vec()] }
    }

    fn value(name: u8) -> Value {
        Value::of(&[name])
    }

    fn explains(calls: &[Call]) -> bool {
        matches!(search(None, calls), Found::Order)
    }

    #[test]
    fn a_read_sees_the_last_write_or_one_beside_it() {
        let set = |name| Step::Set(value(name));
        let see = |name| Step::See(Some(value(name)));
        assert!(explains(&[call(1, 2, &[set(1)]), call(3, 4, &[see(1)])]));
        assert!(!explains(&[call(1, 2, &[set(1)]), call(3, 4, &[Step::See(None)])]));
        assert!(explains(&[call(1, 5, &[set(1)]), call(2, 3, &[see(1)]), call(3, 4, &[see(1)])]));
        assert!(!explains(&[call(1, 9, &[set(1)]), call(2, 3, &[see(1)]), call(4, 5, &[Step::See(None)])]));
        assert!(explains(&[call(1, 4, &[set(1)]), call(2, 5, &[set(2)]), call(6, 7, &[see(1)])]));
        assert!(!explains(&[call(1, 2, &[set(1)]), call(3, 4, &[set(2)]), call(5, 6, &[see(1)])]));
        assert!(!explains(&[call(1, 2, &[Step::Keep])]));
        assert!(!explains(&[call(1, 2, &[set(1)]), call(3, 4, &[Step::SeePresence(false)])]));
    }

    #[test]
    fn an_unknown_write_may_come_at_any_time_once_or_never() {
        let unknown = |invoked| Call { invoked, completed: None, ways: vec![vec![Step::Set(value(1))]] };
        let see = |at, seen: Option<u8>| call(at, at + 1, &[Step::See(seen.map(value))]);
        assert!(explains(&[unknown(1), see(2, None), see(4, None)]));
        assert!(explains(&[unknown(1), see(2, None), see(4, Some(1))]));
        assert!(!explains(&[unknown(1), see(2, Some(1)), see(4, None)]));
        let clear = call(6, 7, &[Step::Clear]);
        assert!(!explains(&[unknown(1), see(4, Some(1)), clear, see(8, Some(1))]));
        assert!(!explains(&[see(2, Some(1)), unknown(4)]));
    }

    #[test]
    fn a_delete_may_wait_for_a_put_beside_it() {
        let see = |at, seen: Option<u8>| call(at, at + 1, &[Step::See(seen.map(value))]);
        let set = call(1, 9, &[Step::Set(value(1))]);
        let clear = call(1, 9, &[Step::Clear]);
        assert!(explains(&[set, clear, see(3, Some(1)), see(5, None), see(10, None)]));
    }

    #[test]
    fn a_long_window_is_cut_and_what_crosses_the_cut_is_unknown() {
        let count = WINDOW_MAX as u64 + 40;
        let calls = (0..count).map(|at| call(10 * at + 1, 10 * at + 35, &[Step::Set(value(at as u8))])).collect();
        let cut = window(calls, Some(10 * WINDOW_MAX as u64 + 1), None);
        assert!(cut.len() == WINDOW_MAX && cut.iter().filter(|call| call.completed.is_none()).count() == 3);
        assert!(explains(&cut));
    }
}
