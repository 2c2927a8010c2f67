//! The helper thread: file work that would stall a core (creating, zeroing, removing, faulting pages in).
//!
//! Owns: the thread, its two request queues (pages first: a reader waits for them) and the reply queue.
//! Does not know: tokens' meaning, the ring, sockets.
//!
//! Invariants
//! - I1: at most [`OUTSTANDING_MAX`] requests are with the helper, the rest waits on the core's side; so neither a
//!   request nor a reply ever finds its queue full.
//! - I2: each request yields exactly one reply; after a reply is queued the core's event descriptor is signalled.
//!   Requests about pages are served in the order in which they were made.
//! - I3: dropping the handle ends the thread after the request in hand.

use crate::files::{Directory, OpenFile};
use crate::mapping::Mapping;
use crate::port::{FileMode, Preparation, Token};
use crate::sys::{self, EventFd};
use crossbeam::queue::ArrayQueue;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const OUTSTANDING_MAX: usize = 256;
/// Populates whose reads are with the device at once.
const PAGES_AT_ONCE: usize = 32;
/// Pause between two chunks of zeros of a file under creation.
const CREATION_PAUSE: Duration = Duration::from_millis(1);

pub(crate) enum Request {
    Create { token: Token, name: String, bytes: u64, mode: FileMode, preparation: Preparation },
    Unlink { token: Token, name: String, file: OpenFile },
    Populate { token: Token, mapping: Arc<Mapping>, offset: u64, len: usize },
    Release { file: Arc<File>, mapping: Arc<Mapping>, offset: u64, len: usize },
}

pub(crate) enum Reply {
    Created { token: Token, result: io::Result<OpenFile> },
    Unlinked { token: Token, result: io::Result<()> },
    Populated { token: Token, result: io::Result<()> },
    Released,
}

struct Shared {
    directory: Directory,
    pages: ArrayQueue<Request>,
    files: ArrayQueue<Request>,
    replies: ArrayQueue<Reply>,
    event: Arc<EventFd>,
    stopping: AtomicBool,
}

/// The core's end of the helper thread.
pub(crate) struct FileThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    waiting: VecDeque<Request>,
    outstanding: usize,
}

impl FileThread {
    pub(crate) fn start(directory: Directory, event: Arc<EventFd>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            directory,
            pages: ArrayQueue::new(OUTSTANDING_MAX),
            files: ArrayQueue::new(OUTSTANDING_MAX),
            replies: ArrayQueue::new(OUTSTANDING_MAX),
            event,
            stopping: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("trilith-helper".to_owned()).spawn(move || theirs.work())?;
        Ok(Self { shared, thread: Some(thread), waiting: VecDeque::new(), outstanding: 0 })
    }

    pub(crate) fn request(&mut self, request: Request) {
        self.waiting.push_back(request);
        self.hand_over();
    }

    fn hand_over(&mut self) {
        let mut handed = false;
        while self.outstanding < OUTSTANDING_MAX
            && let Some(request) = self.waiting.pop_front()
        {
            let pages_first = matches!(request, Request::Populate { .. } | Request::Release { .. });
            let queue = if pages_first { &self.shared.pages } else { &self.shared.files };
            assert!(queue.push(request).is_ok(), "I1: room for every outstanding request");
            self.outstanding += 1;
            handed = true;
        }
        if handed && let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    pub(crate) fn poll_reply(&mut self) -> Option<Reply> {
        let reply = self.shared.replies.pop()?;
        self.outstanding -= 1;
        self.hand_over();
        Some(reply)
    }
}

impl Drop for FileThread {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A helper that panicked has already aborted the process or reported itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            if self.serve_pages() {
                continue;
            }
            match self.files.pop() {
                Some(request) => self.serve(request),
                // An unpark between the pop and here makes park return at once.
                None => thread::park(),
            }
        }
    }

    /// Serves what is asked about pages, if anything is. Their reads start together and are waited for in order.
    fn serve_pages(&self) -> bool {
        let batch: Vec<Request> = std::iter::from_fn(|| self.pages.pop()).take(PAGES_AT_ONCE).collect();
        for request in &batch {
            if let Request::Populate { mapping, offset, len, .. } = request {
                mapping.begin_populate(*offset, *len);
            }
        }
        let is_any = !batch.is_empty();
        batch.into_iter().for_each(|request| self.serve(request));
        is_any
    }

    fn serve(&self, request: Request) {
        let reply = match request {
            Request::Create { token, name, bytes, mode, preparation } => {
                // A file is made ahead of its need: the disk is left to the log's records most of the time. A request
                // about pages ends the pause.
                let mut pages_first = || {
                    thread::park_timeout(CREATION_PAUSE);
                    while self.serve_pages() {}
                };
                let result = self.directory.create(&name, bytes, mode, preparation, &mut pages_first);
                Reply::Created { token, result }
            }
            Request::Unlink { token, name, file } => {
                drop(file);
                Reply::Unlinked { token, result: self.directory.unlink(&name) }
            }
            Request::Populate { token, mapping, offset, len } => {
                Reply::Populated { token, result: mapping.populate(offset, len) }
            }
            Request::Release { file, mapping, offset, len } => {
                // In this order: the kernel keeps what is mapped.
                mapping.release(offset, len);
                sys::drop_cached(&file, offset, len);
                Reply::Released
            }
        };
        assert!(self.replies.push(reply).is_ok(), "I1: room for every reply");
        self.event.signal();
    }
}
