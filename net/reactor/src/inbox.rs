//! Where the executor's tasks leave events for the core loop, and how they wake it.
//!
//! One thread only. Does not know: what the events mean.
//!
//! Invariant I1: after `push` or `wake`, the next `wait` ends without sleeping. A wait always gives the other tasks of
//! the executor a chance to run, so that everything that is ready lands in one turn.

use crate::port::Event;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

#[derive(Default)]
pub(crate) struct Inbox {
    events: RefCell<Vec<Event>>,
    woken: Cell<bool>,
    sleeper: Cell<Option<Waker>>,
}

impl Inbox {
    pub(crate) fn push(&self, event: Event) {
        self.events.borrow_mut().push(event);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.sleeper.take() {
            waker.wake();
        }
    }

    /// Moves everything that was pushed to the end of `events`.
    pub(crate) fn drain_into(&self, events: &mut Vec<Event>) {
        events.append(&mut self.events.borrow_mut());
    }

    /// Sleeps until woken; at least one round of the executor passes.
    pub(crate) async fn wait(&self) {
        let mut yielded = false;
        poll_fn(|context| {
            if yielded && self.woken.replace(false) {
                return Poll::Ready(());
            }
            yielded = true;
            if self.woken.get() {
                context.waker().wake_by_ref();
            } else {
                self.sleeper.set(Some(context.waker().clone()));
            }
            Poll::Pending
        })
        .await;
    }
}
