//! What a connection core does for the sequencer beside serving connections: it evaluates jobs of shards.
//!
//! Owns: the jobs that came and are not handed back, and how much of them is done in a turn. Does not know: what a job
//! evaluates (`trilith_engine::shard`), connections.
//!
//! Invariants
//! - I1: a job is handed back once: done, or in want of a page, which only the sequencer can load.
//! - I2: a turn does a bounded part of them, so that connections are served meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use trilith_engine::budget::Budget;
use trilith_engine::shard::{JobStep, ShardJob};
use trilith_engine::store::Tree;
use trilith_reactor::Port;

use crate::disk::SharedPages;
use crate::metrics::histogram::Histogram;
use crate::node::APPLY_UNITS_PER_STEP;

/// Steps in one turn.
const STEPS_PER_TURN: u32 = 8;

/// A job, and the pages it may read meanwhile.
#[derive(Debug)]
pub(crate) struct Errand {
    pub(crate) job: ShardJob<Tree>,
    pub(crate) pages: Arc<SharedPages>,
}

/// The jobs at hand, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Errands {
    waiting: VecDeque<Errand>,
}

impl Errands {
    pub(super) fn take_in(&mut self, errands: Vec<Errand>) {
        self.waiting.extend(errands);
    }

    /// Whether something is left to do.
    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Works as long as a turn allows; what is to be handed back goes to `back`.
    pub(super) fn step<P: Port>(&mut self, port: &P, back: &mut Vec<ShardJob<Tree>>, steps: &mut Histogram) {
        for _ in 0..STEPS_PER_TURN {
            let Some(Errand { mut job, pages }) = self.waiting.pop_front() else { return };
            let started = port.cpu_now();
            let step = job.step(&*pages, &mut Budget::new(APPLY_UNITS_PER_STEP));
            steps.observe(port.cpu_now().saturating_sub(started));
            match step {
                JobStep::More => self.waiting.push_front(Errand { job, pages }),
                JobStep::Done | JobStep::NeedPages(_) => back.push(job),
            }
        }
    }
}
