//! The mesh between cores: one bounded queue per core that every other core may push to.
//!
//! Owns: the queues, the sleep flags and the event descriptors that wake a sleeping core.
//! Does not know: what a message means, or how a core spends its turn.
//!
//! A core collects what it has for each destination during a turn ([`MeshEnd::post`]) and hands it over at the end
//! ([`MeshEnd::flush`]): one message per destination and turn, carrying a batch. Within a pair of cores order holds.
//! Nobody waits for room: who finds a queue full goes on and tries again, so two full queues cannot block each other.
//!
//! Invariants
//! - I1: a batch that finds its destination's queue full stays with the sender, in order; nothing is lost or doubled.
//! - I2: a core that set its sleep flag and found its queue empty afterwards is signalled by the next push. (Both sides
//!   put a full fence between their store and their load, so at least one of them sees the other.)
//! - I3: what is for a core whose end is gone is dropped: nobody waits for who will never take it.
//! - I4: a core sends nothing to itself: same-core calls never touch a mailbox.

use crate::sys::EventFd;
use crossbeam::queue::ArrayQueue;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// The number of a core in its mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub usize);

/// What one core sent to another in one turn.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<M> {
    /// The sender.
    pub from: CoreId,
    /// Its messages, in the order in which they were posted. Never empty.
    pub messages: Vec<M>,
}

struct Mailbox<M> {
    queue: ArrayQueue<Batch<M>>,
    sleeping: AtomicBool,
    /// Its core has left.
    left: AtomicBool,
    event: EventFd,
}

/// One core's end of the mesh; moves to the core's thread.
pub struct MeshEnd<M> {
    own: CoreId,
    mailboxes: Arc<[Mailbox<M>]>,
    posted: Vec<Vec<M>>,
}

/// Connects `cores` cores; each queue holds up to `batches_max` batches.
pub fn mesh<M: Send>(cores: usize, batches_max: usize) -> io::Result<Vec<MeshEnd<M>>> {
    assert!(cores > 0 && batches_max > 0, "a mesh has cores and room");
    let mailbox = |_| {
        let (sleeping, left) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Mailbox { queue: ArrayQueue::new(batches_max), sleeping, left, event: EventFd::new()? })
    };
    let mailboxes: Arc<[Mailbox<M>]> = (0..cores).map(mailbox).collect::<io::Result<Vec<_>>>()?.into();
    let end = |own| MeshEnd {
        own: CoreId(own),
        mailboxes: Arc::clone(&mailboxes),
        posted: (0..cores).map(|_| Vec::new()).collect(),
    };
    Ok((0..cores).map(end).collect())
}

impl<M: Send> MeshEnd<M> {
    /// This core's number.
    pub fn own(&self) -> CoreId {
        self.own
    }

    /// Adds a message to this turn's batch for `to`. It leaves with [`MeshEnd::flush`].
    pub fn post(&mut self, to: CoreId, message: M) {
        assert!(to != self.own, "I4: a core does not write to itself");
        self.posted[to.0].push(message);
    }

    /// Messages for `to` that have not left yet: posted in this turn, or held back by a full queue.
    pub fn posted(&self, to: CoreId) -> usize {
        self.posted[to.0].len()
    }

    /// Hands each destination its batch and wakes it if it sleeps. `false`: some queue was full and its batch waits for
    /// the next flush.
    pub fn flush(&mut self) -> bool {
        let mut all = true;
        for (mailbox, posted) in self.mailboxes.iter().zip(&mut self.posted) {
            if posted.is_empty() {
                continue;
            }
            match mailbox.queue.push(Batch { from: self.own, messages: std::mem::take(posted) }) {
                Ok(()) => mailbox.wake(),
                Err(_) if mailbox.left.load(Ordering::Relaxed) => {}
                Err(batch) => {
                    *posted = batch.messages;
                    all = false;
                }
            }
        }
        all
    }

    /// The oldest batch in this core's queue.
    pub fn receive(&self) -> Option<Batch<M>> {
        self.mailboxes[self.own.0].queue.pop()
    }

    /// How many batches this core's queue holds at most.
    pub fn batches_max(&self) -> usize {
        self.mailboxes[self.own.0].queue.capacity()
    }

    /// To be called before this core sleeps: from now on a push signals its event descriptor. `false`: something is in
    /// the queue already, and it must not sleep.
    pub fn begin_sleep(&self) -> bool {
        let mailbox = &self.mailboxes[self.own.0];
        mailbox.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if mailbox.queue.is_empty() {
            return true;
        }
        mailbox.sleeping.store(false, Ordering::Relaxed);
        false
    }

    /// To be called when this core is awake: pushes need not signal. A signal may still come in vain.
    pub fn end_sleep(&self) {
        self.mailboxes[self.own.0].sleeping.store(false, Ordering::Relaxed);
    }

    /// What a push to this core signals while it sleeps. It lives as long as any end of the mesh.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.mailboxes[self.own.0].event.as_raw_fd()
    }
}

impl<M> Drop for MeshEnd<M> {
    fn drop(&mut self) {
        self.mailboxes[self.own.0].left.store(true, Ordering::Relaxed);
    }
}

impl<M> Mailbox<M> {
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.event.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_turn_is_one_batch_per_destination_in_order() {
        let mut ends = mesh::<u32>(3, 4).unwrap();
        for number in 0..5 {
            ends[0].post(CoreId(1), number);
            ends[0].post(CoreId(2), 10 + number);
        }
        assert!(ends[1].receive().is_none(), "nothing leaves before the flush");
        assert!(ends[0].flush());
        assert_eq!(ends[1].receive(), Some(Batch { from: CoreId(0), messages: vec![0, 1, 2, 3, 4] }));
        assert_eq!(ends[2].receive(), Some(Batch { from: CoreId(0), messages: vec![10, 11, 12, 13, 14] }));
        assert!(ends[1].receive().is_none());
    }

    #[test]
    fn a_full_queue_holds_the_batch_back_in_order() {
        let mut ends = mesh::<u32>(2, 2).unwrap();
        for number in 0..2 {
            ends[0].post(CoreId(1), number);
            assert!(ends[0].flush());
        }
        ends[0].post(CoreId(1), 2);
        assert!(!ends[0].flush());
        ends[0].post(CoreId(1), 3);
        assert_eq!(ends[0].posted(CoreId(1)), 2);
        assert_eq!(ends[1].receive().unwrap().messages, [0]);
        assert!(ends[0].flush());
        assert_eq!(ends[1].receive().unwrap().messages, [1]);
        assert_eq!(ends[1].receive().unwrap().messages, [2, 3]);
    }

    #[test]
    fn nobody_waits_for_a_core_that_has_left() {
        let mut ends = mesh::<u32>(2, 1).unwrap();
        let second = ends.pop();
        for number in 0..3 {
            ends[0].post(CoreId(1), number);
            assert_eq!(ends[0].flush(), number == 0);
        }
        drop(second);
        assert!(ends[0].flush());
        assert_eq!(ends[0].posted(CoreId(1)), 0);
    }

    #[test]
    #[should_panic(expected = "I4")]
    fn a_core_does_not_write_to_itself() {
        let mut ends = mesh::<u32>(2, 2).unwrap();
        ends[0].post(CoreId(0), 1);
    }

    fn sleep<M: Send>(end: &MeshEnd<M>) {
        // A signal meant for an earlier sleep may end this one in vain; the loop looks again.
        while end.begin_sleep() {
            end.mailboxes[end.own.0].event.wait().unwrap();
        }
    }

    /// One side of a ping-pong: answers every number with the next one until `last` went by.
    fn play(mut end: MeshEnd<u64>, other: CoreId, last: u64) -> u64 {
        let mut seen = 0;
        while seen + 1 < last {
            sleep(&end);
            while let Some(batch) = end.receive() {
                assert_eq!(batch.from, other);
                for number in batch.messages {
                    assert!(number > seen || seen == 0, "{number} after {seen}");
                    seen = number;
                    if number < last {
                        end.post(other, number + 1);
                    }
                }
            }
            assert!(end.flush(), "a ping-pong never fills a queue");
        }
        seen
    }

    #[test]
    fn two_cores_wake_each_other() {
        const LAST: u64 = 2000;
        let mut ends = mesh::<u64>(2, 4).unwrap();
        let second = ends.pop().unwrap();
        let mut first = ends.pop().unwrap();
        let one = thread::spawn(move || {
            first.post(CoreId(1), 1);
            assert!(first.flush());
            play(first, CoreId(1), LAST)
        });
        let two = thread::spawn(move || play(second, CoreId(0), LAST));
        let seen = [one.join().unwrap(), two.join().unwrap()];
        assert!(seen.contains(&LAST) && seen.contains(&(LAST - 1)), "{seen:?}");
    }
}
