//! Several pieces of work at once, on a few threads that take the next one when they are done with the last.
//!
//! I1  All pieces are done, whatever becomes of the others; the first error is the result.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

use crate::process::Tally;

/// The sum of what `work` counts for each item.
pub(crate) fn run<T: Sync>(lanes: usize, items: &[T], work: impl Fn(&T) -> Result<Tally> + Sync) -> Result<Tally> {
    let next = AtomicUsize::new(0);
    let lane = || {
        let mut sum = Ok(Tally::default());
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            sum = add(sum, work(item));
        }
        sum
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        threads.into_iter().try_fold(Tally::default(), |sum, thread| {
            add(Ok(sum), thread.join().ok().context("a lane panicked").and_then(|result| result))
        })
    })
}

/// The sum, or the first error.
fn add(sum: Result<Tally>, more: Result<Tally>) -> Result<Tally> {
    let (mut sum, more) = (sum?, more?);
    sum.add(more);
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use anyhow::bail;

    use super::*;

    #[test]
    fn every_piece_is_counted_once() {
        let items: Vec<u64> = (0..100).collect();
        let count = |item: &u64| Ok(Tally { passed: 1, failed: *item, skipped: 0 });
        for lanes in [1, 3, 200] {
            assert_eq!(run(lanes, &items, count).unwrap(), Tally { passed: 100, failed: 4950, skipped: 0 });
        }
    }

    #[test]
    fn pieces_run_at_once() {
        let barrier = Barrier::new(3);
        let meet = |_: &u64| {
            barrier.wait();
            Ok(Tally { passed: 1, ..Tally::default() })
        };
        assert_eq!(run(3, &[0, 1, 2], meet).unwrap().passed, 3);
    }

    #[test]
    fn an_error_stops_nobody_else_and_is_the_result() {
        let done = AtomicUsize::new(0);
        let result = run(2, &[0, 1, 2, 3, 4], |item| {
            done.fetch_add(1, Ordering::Relaxed);
            if *item == 1 { bail!("one") } else { Ok(Tally::default()) }
        });
        assert_eq!(result.unwrap_err().to_string(), "one");
        assert_eq!(done.load(Ordering::Relaxed), 5);
    }
}
