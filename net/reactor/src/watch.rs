//! The watch: a thread that makes glommio look at its tasks again.
//!
//! glommio 0.9 can go to sleep with runnable tasks: it does so if anything lands in its latency ring between its look
//! at the rings and its first task. The end of a cancelled timer does, once in some hundred thousand rounds, when
//! another processor completes something at the same moment. Nothing inside the executor survives that (timers are
//! tasks, too), but a wake-up from another thread always reaches it, and then it runs everything. So this thread looks
//! whether the core still turns, and wakes it if not. A needless wake-up costs some microseconds.
//!
//! Owns: the thread and the bound on oversleeping. Does not know: what a turn does.
//!
//! Invariant I1: a core that sleeps with runnable tasks is woken within [`BUSY_LOOK`] if it had turns lately, otherwise
//! within [`IDLE_LOOK`].

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const BUSY_LOOK: Duration = Duration::from_millis(1);
const IDLE_LOOK: Duration = Duration::from_millis(20);
/// After so many looks without a turn between them the core counts as idle.
const IDLE_AFTER_LOOKS: u32 = 20;

#[derive(Default)]
struct Shared {
    turns: AtomicU64,
    sleeper: Mutex<Option<Waker>>,
    stopping: AtomicBool,
}

/// The core's end of the watch. Dropping it ends the thread.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread of the watch wakes; runs as a task of the executor.
pub(crate) struct Watched(Arc<Shared>);

impl Watch {
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("trilith-watch".to_owned()).spawn(move || theirs.look())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A turn begins: the core is awake.
    pub(crate) fn count_turn(&self) {
        self.shared.turns.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn watched(&self) -> Watched {
        Watched(Arc::clone(&self.shared))
    }
}

impl Watched {
    /// Never ends; being woken is all it is for.
    pub(crate) async fn run(self) {
        poll_fn(|context| {
            let mut sleeper = self.0.sleeper.lock().unwrap_or_else(PoisonError::into_inner);
            if !sleeper.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                *sleeper = Some(context.waker().clone());
            }
            Poll::<()>::Pending
        })
        .await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.sleeper.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Shared {
    fn look(&self) {
        let (mut turns, mut quiet_looks) = (0, 0_u32);
        while !self.stopping.load(Ordering::Acquire) {
            thread::park_timeout(if quiet_looks < IDLE_AFTER_LOOKS { BUSY_LOOK } else { IDLE_LOOK });
            let now = self.turns.load(Ordering::Relaxed);
            if now != turns {
                (turns, quiet_looks) = (now, 0);
                continue;
            }
            quiet_looks = quiet_looks.saturating_add(1);
            if let Some(sleeper) = self.sleeper.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                sleeper.wake_by_ref();
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A watch that panicked has reported itself already.
            let _ = thread.join();
        }
    }
}
