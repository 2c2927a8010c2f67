//! Room on the medium: the reserve, and what waits for room.
//!
//! Owns: the reserve file, the submissions that met a full disk, and when they are tried again. Does not know: the
//! port, alarms, what the submissions are for.
//!
//! ```text
//! plenty --full disk--> short, reserve given up --> what waits is tried again, every second
//!   ^                                                            |
//!   '----------- the reserve could be made again <---------------'  nothing waits any more
//! ```
//!
//! Invariants
//! - I1: the reserve is given up at the first sign of a full disk and made again only when nothing waits for room.
//! - I2: what is parked has had no effect that anything depends on: no acknowledgement, no checkpoint hangs on it yet.

use std::collections::VecDeque;
use std::io;

use trilith_reactor::FileId;

/// Name of the reserve below the data directory.
pub const RESERVE_FILE_NAME: &str = "store/reserve";
/// Between two attempts to get room.
const RETRY_DELAY: u64 = 1_000_000_000;
/// Between two attempts to make the reserve again.
const RESERVE_DELAY: u64 = 5_000_000_000;

/// The reserve and what waits for room.
#[derive(Debug)]
pub(super) struct Space<T> {
    reserve: Option<FileId>,
    reserve_bytes: u64,
    is_short: bool,
    /// The reserve is being removed or made.
    is_changing: bool,
    parked: VecDeque<T>,
    retry_at: Option<u64>,
}

impl<T> Default for Space<T> {
    fn default() -> Self {
        let (parked, retry_at) = (VecDeque::new(), None);
        Self { reserve: None, reserve_bytes: 0, is_short: false, is_changing: false, parked, retry_at }
    }
}

/// What is to be done about room now.
#[derive(Debug)]
pub(super) enum SpaceStep<T> {
    /// Remove the reserve, then [`Space::handle_reserve_gone`].
    GiveUpReserve(FileId),
    /// Make a reserve of so many bytes, then [`Space::handle_reserve_made`].
    MakeReserve(u64),
    /// Try these again.
    Retry(VecDeque<T>),
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl<T> Space<T> {
    /// What boot found or made: the reserve, or no room for it.
    pub(super) fn start(&mut self, reserve: Option<FileId>, reserve_bytes: u64, now: u64) {
        (self.reserve, self.reserve_bytes) = (reserve, reserve_bytes);
        self.is_short = reserve.is_none() && reserve_bytes > 0;
        self.retry_at = self.is_short.then_some(now + RESERVE_DELAY);
    }

    /// Whether the disk was full and the reserve is not yet made again.
    pub(super) fn is_short(&self) -> bool {
        self.is_short
    }

    /// What waits for room.
    pub(super) fn parked(&self) -> impl Iterator<Item = &T> {
        self.parked.iter()
    }

    /// A submission found no room. Whether that is news.
    pub(super) fn park(&mut self, submission: T, now: u64) -> bool {
        self.parked.push_back(submission);
        // With a reserve to give up, at once.
        let at = if self.reserve.is_some() { now } else { now + RETRY_DELAY };
        self.retry_at = Some(self.retry_at.map_or(at, |earlier| earlier.min(at)));
        !std::mem::replace(&mut self.is_short, true)
    }

    /// What is due at `now`.
    pub(super) fn poll(&mut self, now: u64) -> Option<SpaceStep<T>> {
        if self.is_changing || !self.is_short || self.retry_at.is_none_or(|at| at > now) {
            return None;
        }
        self.retry_at = None;
        if let Some(reserve) = self.reserve.take_if(|_| !self.parked.is_empty()) {
            self.is_changing = true;
            return Some(SpaceStep::GiveUpReserve(reserve));
        }
        if !self.parked.is_empty() {
            self.retry_at = Some(now + RESERVE_DELAY);
            return Some(SpaceStep::Retry(std::mem::take(&mut self.parked)));
        }
        if self.reserve_bytes == 0 {
            self.is_short = false;
            return None;
        }
        self.is_changing = true;
        Some(SpaceStep::MakeReserve(self.reserve_bytes))
    }

    /// The reserve's room is free.
    pub(super) fn handle_reserve_gone(&mut self, now: u64) {
        self.is_changing = false;
        self.retry_at = Some(now);
    }

    /// The reserve was made, or could not be. Whether the disk has room again.
    pub(super) fn handle_reserve_made(&mut self, made: Option<FileId>, now: u64) -> bool {
        (self.is_changing, self.reserve) = (false, made);
        self.is_short = self.reserve.is_none() || !self.parked.is_empty();
        // Something may have found no room while the reserve was being made.
        let delay = if self.parked.is_empty() { RESERVE_DELAY } else { 0 };
        self.retry_at = self.is_short.then_some(now + delay);
        !self.is_short
    }

    /// When [`Self::poll`] is due.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.retry_at.filter(|_| self.is_short && !self.is_changing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(reserve: bool) -> Space<u32> {
        let mut space = Space::default();
        space.start(reserve.then_some(FileId(9)), 1 << 20, 0);
        space
    }

    #[test]
    fn the_reserve_makes_room_and_comes_back_last() {
        let mut space = started(true);
        assert!(space.poll(u64::MAX).is_none() && space.deadline().is_none(), "there is plenty");
        assert!(space.park(1, 100) && !space.park(2, 100), "only the first is news");
        assert!(matches!(space.poll(100), Some(SpaceStep::GiveUpReserve(FileId(9)))));
        assert!(space.poll(u64::MAX).is_none(), "its room is not free yet");
        space.handle_reserve_gone(200);
        assert!(matches!(space.poll(200), Some(SpaceStep::Retry(parked)) if parked == [1, 2]));
        space.park(2, 300);
        assert_eq!(space.deadline(), Some(300 + RETRY_DELAY), "without a reserve there is no use in haste");
        let now = 300 + RETRY_DELAY;
        assert!(matches!(space.poll(now), Some(SpaceStep::Retry(parked)) if parked == [2]));
        assert_eq!(space.deadline(), Some(now + RESERVE_DELAY));
        let now = now + RESERVE_DELAY;
        assert!(matches!(space.poll(now), Some(SpaceStep::MakeReserve(0x10_0000))));
        assert!(!space.handle_reserve_made(None, now) && space.is_short());
        assert!(matches!(space.poll(now + RESERVE_DELAY), Some(SpaceStep::MakeReserve(_))));
        assert!(space.handle_reserve_made(Some(FileId(10)), now) && !space.is_short());
        assert!(space.deadline().is_none());
    }

    #[test]
    fn what_finds_no_room_while_the_reserve_is_made_gets_it() {
        let mut space = started(false);
        assert!(space.is_short(), "a start without a reserve is short of room");
        assert!(matches!(space.poll(RESERVE_DELAY), Some(SpaceStep::MakeReserve(_))));
        space.park(7, RESERVE_DELAY);
        assert!(!space.handle_reserve_made(Some(FileId(1)), RESERVE_DELAY));
        assert!(matches!(space.poll(RESERVE_DELAY), Some(SpaceStep::GiveUpReserve(FileId(1)))));
        space.handle_reserve_gone(RESERVE_DELAY);
        assert!(matches!(space.poll(RESERVE_DELAY), Some(SpaceStep::Retry(parked)) if parked == [7]));
    }

    #[test]
    fn a_store_without_a_reserve_still_tries_again() {
        let mut space = Space::default();
        space.start(None, 0, 0);
        assert!(!space.is_short());
        assert!(space.park(1, 0));
        assert!(matches!(space.poll(RETRY_DELAY), Some(SpaceStep::Retry(_))));
        assert!(space.poll(RETRY_DELAY + RESERVE_DELAY).is_none() && !space.is_short(), "there is none to make");
    }
}
