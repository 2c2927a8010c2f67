//! What a stream has to go on with when it has room: answers, long responses, parked watchers, progress.
//!
//! Owns: the order of these, progress on request and periodic progress, the slow end of a closed stream. Does not know:
//! events.
//!
//! Invariants
//! - I1: progress at a revision is queued when every event up to it was handed over, and nothing goes before an answer
//!   that is queued.

use std::ops::Bound;

use crate::budget::{Pause, price};
use crate::mvcc::KeyTree;
use crate::page_source::Unavailable;
use crate::watch::hub::{ACTIVE, Hub, PROGRESS, State};
use crate::watch::lane::Ground;
use crate::watch::slab::NIL;
use crate::watch::{ResponseHead, StreamKey};

impl Hub {
    /// Goes on with every stream that can. Answers with a page that a long response waits for.
    pub(super) fn step_streams<T: KeyTree>(
        &mut self,
        ground: &mut Ground<'_, T>,
    ) -> Result<Option<Unavailable>, Pause> {
        let mut waits = None;
        let mut from = 0;
        while let Some(&stream) = self.runnable.range(from..).next() {
            from = stream + 1;
            match self.step_stream(stream, ground) {
                Ok(()) => drop(self.runnable.remove(&stream)),
                Err(Pause::Pages(missing)) => waits = waits.or(Some(missing)),
                Err(Pause::Budget) => return Err(Pause::Budget),
            }
            ground.budget.charge(1)?;
        }
        Ok(waits)
    }

    /// Goes on with a stream until nothing is left or it has no room.
    fn step_stream<T: KeyTree>(&mut self, stream: u32, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
        loop {
            if !self.go_on_with_long(stream, ground)? || !self.flush_answers(stream, ground)? {
                return Ok(());
            }
            if !self.begin_long(stream, ground) {
                break;
            }
        }
        if !self.tick(stream, ground)? {
            return Ok(());
        }
        while let Some(&(next, watcher)) = self.streams[stream].parked.first() {
            if !ground.outlet.has_room(StreamKey(stream)) {
                return Ok(());
            }
            self.change(watcher, next, State::Waiting);
            ground.budget.charge(price::NEXT_ROW)?;
        }
        Ok(())
    }

    /// Sends control answers; false if there is no room for one.
    fn flush_answers<T: KeyTree>(&mut self, stream: u32, ground: &mut Ground<'_, T>) -> Result<bool, Pause> {
        while !self.streams[stream].answers.is_empty() {
            if !ground.outlet.has_room(StreamKey(stream)) {
                return Ok(false);
            }
            if let Some(head) = self.streams[stream].answers.pop_front() {
                ground.outlet.send(StreamKey(stream), &head, &[]);
            }
            ground.budget.charge(price::NEXT_ROW)?;
        }
        Ok(true)
    }

    /// Goes on with periodic progress; false if there is no room for it.
    fn tick<T: KeyTree>(&mut self, stream: u32, ground: &mut Ground<'_, T>) -> Result<bool, Pause> {
        while let Some(from) = self.streams[stream].tick_from {
            if !ground.outlet.has_room(StreamKey(stream)) {
                return Ok(false);
            }
            let mut later = self.streams[stream].watchers.range((Bound::Included(from), Bound::Unbounded));
            let Some((&id, &watcher)) = later.next() else {
                self.streams[stream].tick_from = None;
                break;
            };
            self.streams[stream].tick_from = id.checked_add(1);
            if watcher != NIL && self.wants_progress(watcher) {
                ground.outlet.send(StreamKey(stream), &ResponseHead::events(id, self.front), &[]);
            }
            ground.budget.charge(price::NEXT_ROW)?;
        }
        Ok(true)
    }

    /// Whether periodic progress is due to a watcher; a new period begins for it.
    fn wants_progress(&mut self, watcher: u32) -> bool {
        let held = &mut self.watchers[watcher];
        let flags = held.flags;
        held.flags &= !ACTIVE;
        let idle = flags & PROGRESS != 0 && flags & ACTIVE == 0 && held.state == State::Synced;
        // Progress is not behind what the client was told at the creation.
        idle && held.next <= self.front + 1 && !self.is_future(watcher)
    }

    /// Answers requests for progress up to the point that was reached.
    pub(super) fn answer_requests(&mut self, stream: u32) {
        let held = &mut self.streams[stream];
        let requests = std::mem::take(&mut held.requests);
        if self.is_all_synced(stream) {
            for _ in 0..requests {
                self.answer(stream, ResponseHead::progress(self.front));
            }
        }
    }

    /// Takes closed streams apart.
    pub(super) fn dismantle<T: KeyTree>(&mut self, ground: &mut Ground<'_, T>) -> Result<(), Pause> {
        while let Some(&stream) = self.closing.first() {
            self.drop_long(stream);
            while let Some((_, watcher)) = self.streams[stream].watchers.pop_first() {
                if watcher != NIL {
                    self.remove(watcher);
                }
                ground.budget.charge(price::SEEK)?;
            }
            self.closing.remove(&stream);
            self.runnable.remove(&stream);
            self.streams.remove(stream);
        }
        Ok(())
    }
}
