//! Where the executor's tasks leave events for the core loop, and how they wake it.
//!
//! One thread only. Does not know: what the events mean.
//!
//! Invariants
//! - I1: after `push` or `wake`, the next `wait` ends without sleeping. A wait always gives the other tasks of the
//!   executor a chance to run, so that everything that is ready lands in one turn.
//! - I2: tasks that keep waking each other never keep the executor from looking at its rings: glommio looks only when
//!   no task is runnable (its own preemption is off, see `glommio_port.rs`), so whoever has gone on for a while waits
//!   for an *I/O round*: a signal that has to come back through the rings.

use crate::port::Event;
use crate::sys::EventFd;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

pub(crate) struct Inbox {
    events: RefCell<Vec<Event>>,
    woken: Cell<bool>,
    sleeper: Cell<Option<Waker>>,
    /// Signals of this descriptor come back as [`Inbox::end_io_round`].
    signal: Arc<EventFd>,
    io_rounds: Cell<u64>,
    waiting_for_io: RefCell<Vec<Waker>>,
}

impl Inbox {
    pub(crate) fn new(signal: Arc<EventFd>) -> Self {
        Self {
            events: RefCell::default(),
            woken: Cell::default(),
            sleeper: Cell::default(),
            signal,
            io_rounds: Cell::default(),
            waiting_for_io: RefCell::default(),
        }
    }

    /// Wakes `task` once the executor has looked at its rings (I2).
    pub(crate) fn wake_after_io_round(&self, task: &Waker) {
        self.waiting_for_io.borrow_mut().push(task.clone());
        self.signal.signal();
    }

    /// Waits until the executor has looked at its rings (I2).
    pub(crate) async fn io_round(&self) {
        let before = self.io_rounds.get();
        poll_fn(|context| {
            if self.io_rounds.get() != before {
                return Poll::Ready(());
            }
            self.wake_after_io_round(context.waker());
            Poll::Pending
        })
        .await;
    }

    /// The signal came back through the rings.
    pub(crate) fn end_io_round(&self) {
        self.io_rounds.set(self.io_rounds.get() + 1);
        for task in self.waiting_for_io.take() {
            task.wake();
        }
        self.wake();
    }

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
