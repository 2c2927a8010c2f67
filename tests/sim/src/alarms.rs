//! What is known of the alarms: they have no revision, so only certainties are judged.
//!
//! Owns: which alarms were asked for, and which are certainly on. Does not know: why a server raises one by itself;
//! with a quota it may.
//!
//! Invariants
//! - I1: an alarm is certainly on from an acknowledged activation until anybody asks for its end; an end that was asked
//!   for before and has not come may still come.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::Reply;
use crate::history::{AlarmAction, CORRUPT, Fault, NOSPACE, Request};
use crate::value::OperationId;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    has_quota: bool,
    asked: BTreeSet<i32>,
    certain: BTreeSet<i32>,
    /// Deactivations that were begun and may still take effect, by kind.
    ends: BTreeMap<i32, BTreeSet<OperationId>>,
    /// Activations under way, as long as no deactivation of their kind is.
    activating: BTreeMap<OperationId, i32>,
    /// What was certainly on when an operation began, while that remains so.
    known: BTreeMap<OperationId, BTreeSet<i32>>,
}

impl Alarms {
    /// Before anything was asked.
    pub(crate) fn new(has_quota: bool) -> Self {
        Self { has_quota, ..Self::default() }
    }

    /// An operation begins.
    pub(crate) fn invoke(&mut self, id: OperationId, request: &Request) {
        match request {
            Request::Alarm { action: AlarmAction::Activate, kind, .. } => {
                self.asked.insert(*kind);
                if self.ends.get(kind).is_none_or(BTreeSet::is_empty) {
                    self.activating.insert(id, *kind);
                }
            }
            Request::Alarm { action: AlarmAction::Deactivate, kind, .. } => {
                self.certain.remove(kind);
                self.activating.retain(|_, other| other != kind);
                for known in self.known.values_mut() {
                    known.remove(kind);
                }
                self.ends.entry(*kind).or_default().insert(id);
            }
            _ => {}
        }
        if !self.certain.is_empty() {
            self.known.insert(id, self.certain.clone());
        }
    }

    /// An operation ended.
    ///
    /// # Errors
    /// It was answered, though an alarm forbids it, or lists what cannot be.
    pub(crate) fn complete(&mut self, id: OperationId, request: &Request, reply: &Reply) -> Result<(), String> {
        let known = self.known.remove(&id).unwrap_or_default();
        let activated = self.activating.remove(&id);
        if let Request::Alarm { action: AlarmAction::Deactivate, kind, .. } = request
            && *reply != Reply::Unknown
        {
            self.ends.entry(*kind).or_default().remove(&id);
        }
        let Reply::Answered(response) = reply else { return Ok(()) };
        let forbids = |kind: i32| known.contains(&kind);
        if request.grows() && forbids(NOSPACE) {
            return Err("answered under the space alarm".to_owned());
        }
        if request.is_logged() && forbids(CORRUPT) {
            return Err("answered under the corruption alarm".to_owned());
        }
        let Request::Alarm { action, kind, .. } = request else { return Ok(()) };
        let listed = &response.answer.alarms;
        let possible = |kind: &i32| self.asked.contains(kind) || (*kind == NOSPACE && self.has_quota);
        let right = match action {
            AlarmAction::Activate if *kind == 0 => listed.is_empty(),
            AlarmAction::Activate => listed == &[*kind],
            AlarmAction::Deactivate => listed.is_empty() || listed == &[*kind],
            AlarmAction::Get => {
                let wanted = known.iter().filter(|known| *kind == 0 || *known == kind);
                let all_there = wanted.into_iter().all(|wanted| listed.contains(wanted));
                all_there && listed.iter().all(|listed| (*kind == 0 || listed == kind) && possible(listed))
            }
        };
        self.certain.extend(activated.filter(|kind| *kind != 0));
        if right { Ok(()) } else { Err(format!("lists the alarms {listed:?}; certain: {known:?}")) }
    }

    /// Whether an alarm or the quota may be the reason of a refusal.
    pub(crate) fn may_refuse(&self, request: &Request, fault: Fault) -> bool {
        match fault {
            Fault::NO_SPACE => request.grows() && (self.has_quota || self.asked.contains(&NOSPACE)),
            _ => self.asked.contains(&CORRUPT),
        }
    }

    /// Whether the corruption alarm may be on, or have been.
    pub(crate) fn may_be_corrupt(&self) -> bool {
        self.asked.contains(&CORRUPT)
    }

    /// From now on the server may raise the space alarm by itself.
    pub(crate) fn expect_no_space(&mut self) {
        self.has_quota = true;
    }

    /// Nothing is under way any more: what did not end by now never will.
    pub(crate) fn settle(&mut self) {
        self.ends.clear();
        self.activating.clear();
        self.known.clear();
    }
}
