//! Who of a core's connections is polled next, and how far.
//!
//! Owns: the queue of connections that may have something to say, and what they may take of their core's turn. Does not
//! know: connections, what they say, what else bounds them (credit).
//!
//! What is taken is counted in units: one for an event of any kind, and one for each KiB of its message.
//!
//! Invariants
//! - I1: a connection stands in the queue once at most, and has one share of a turn at most: who was not polled to the
//!   end comes again when everybody who stood behind it was polled.
//! - I2: a turn ends after [`UNITS_PER_TURN_MAX`], exceeded by one share and one event at most.

use std::collections::VecDeque;

/// Units that those who wait share in a turn: what one takes that waits alone. A millisecond or so of cheap calls.
const UNITS_SHARED: usize = 1_024;
/// A share however many wait: fewer calls would not be worth the write that answers them.
const SHARE_UNITS_MIN: usize = 16;
/// Units of a turn, however many wait. Many connections with a call each are taken together: their puts are one sync.
const UNITS_PER_TURN_MAX: usize = 4_096;

/// The queue of a core. Connections are named by their slots.
#[derive(Debug, Default)]
pub struct Turns {
    queue: VecDeque<usize>,
    /// By slots.
    is_queued: Vec<bool>,
    /// What is left of the core's turn: connections that had no share yet, and units.
    shares_left: usize,
    units_left: usize,
    share_units: usize,
}

/// What a connection may take of a turn.
#[derive(Debug)]
pub struct Share {
    units: usize,
    left: usize,
    is_at_end: bool,
}

impl Turns {
    /// A connection may have something to say.
    #[inline]
    pub fn add(&mut self, slot: usize) {
        if self.is_queued.len() <= slot {
            self.is_queued.resize(slot + 1, false);
        }
        if !std::mem::replace(&mut self.is_queued[slot], true) {
            self.queue.push_back(slot);
        }
    }

    /// A turn of the core begins, with those who are in the queue by now.
    pub fn begin(&mut self) {
        self.shares_left = self.queue.len();
        self.units_left = UNITS_PER_TURN_MAX;
        self.share_units = (UNITS_SHARED / self.shares_left.max(1)).max(SHARE_UNITS_MIN);
    }

    /// Takes the next connection out of the queue; `None` when the turn has no share left.
    #[inline]
    pub fn take(&mut self) -> Option<(usize, Share)> {
        if self.shares_left == 0 || self.units_left == 0 {
            return None;
        }
        self.shares_left -= 1;
        let slot = self.queue.pop_front().expect("who has a share to come is in the queue");
        self.is_queued[slot] = false;
        Some((slot, Share { units: self.share_units, left: self.share_units, is_at_end: false }))
    }

    /// A connection was polled: it goes to the end of the queue unless it has said everything.
    #[inline]
    pub fn end(&mut self, slot: usize, share: &Share) {
        self.units_left = self.units_left.saturating_sub(share.units - share.left);
        if !share.is_at_end {
            self.add(slot);
        }
    }

    /// Whether somebody waits for the next turn.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl Share {
    /// Whether nothing more may be taken.
    #[inline]
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.left == 0
    }

    /// Counts an event with a message of so many bytes.
    #[inline]
    pub fn spend(&mut self, message_bytes: usize) {
        self.left = self.left.saturating_sub(1 + message_bytes / 1_024);
    }

    /// The connection has nothing more to say.
    #[inline]
    pub fn note_end(&mut self) {
        self.is_at_end = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls everybody whose turn it is; those of whom `events` has none left are at their end. What was taken of whom.
    fn turn(turns: &mut Turns, events: &mut [usize], message_bytes: usize) -> Vec<(usize, usize)> {
        let mut taken = Vec::new();
        turns.begin();
        while let Some((slot, mut share)) = turns.take() {
            let before = events[slot];
            while !share.is_used_up() {
                if events[slot] == 0 {
                    share.note_end();
                    break;
                }
                events[slot] -= 1;
                share.spend(message_bytes);
            }
            taken.push((slot, before - events[slot]));
            turns.end(slot, &share);
        }
        taken
    }

    #[test]
    fn who_waits_alone_takes_the_most_and_comes_again() {
        let (mut turns, mut events) = (Turns::default(), [2_500]);
        turns.add(0);
        turns.add(0);
        assert_eq!(turn(&mut turns, &mut events, 0), [(0, 1_024)]);
        assert_eq!(turn(&mut turns, &mut events, 1_500), [(0, 512)], "a KiB counts as an event");
        assert_eq!(turn(&mut turns, &mut events, 10 << 20), [(0, 1)], "however long");
        assert_eq!(turn(&mut turns, &mut events, 0), [(0, 963)]);
        assert!(!turns.has_waiting());
        assert_eq!(turn(&mut turns, &mut events, 0), []);
    }

    #[test]
    fn nobody_has_two_shares_before_everybody_had_one() {
        let (mut turns, mut events) = (Turns::default(), [5_000, 5_000, 1, 5_000]);
        (0..4).for_each(|slot| turns.add(slot));
        assert_eq!(turn(&mut turns, &mut events, 0), [(0, 256), (1, 256), (2, 1), (3, 256)]);
        events[2] = 1;
        turns.add(2);
        assert_eq!(turn(&mut turns, &mut events, 0), [(0, 256), (1, 256), (3, 256), (2, 1)]);
    }

    #[test]
    fn a_turn_is_bounded_however_many_wait_and_the_next_begins_with_those_who_had_none() {
        let (mut turns, mut events) = (Turns::default(), vec![100; 1_000]);
        (0..1_000).for_each(|slot| turns.add(slot));
        let first = turn(&mut turns, &mut events, 0);
        assert_eq!((first.len(), first[0], first[255]), (256, (0, 16), (255, 16)));
        events.push(1);
        turns.add(1_000);
        assert_eq!(turn(&mut turns, &mut events, 0)[0], (256, 16));
        assert!(turns.has_waiting());
        // Those with a single call each are taken together.
        let (mut turns, mut events) = (Turns::default(), vec![1; 4_000]);
        (0..4_000).for_each(|slot| turns.add(slot));
        assert_eq!(turn(&mut turns, &mut events, 0).len(), 4_000);
        assert!(!turns.has_waiting());
    }
}
