//! Sleeping on an event descriptor inside the executor.
//!
//! glommio sleeps on its own rings; reading an event descriptor through it makes anything that can signal one (our file
//! ring, the helper thread, another core, a signal handler) able to wake a task of this executor.
//!
//! Does not know: what the wake-up means. It may come in vain, and several signals may arrive as one.

use crate::sys::EventFd;
use glommio::io::BufferedFile;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

/// The waiting side of one [`EventFd`].
pub(crate) struct WakeUp {
    file: BufferedFile,
}

impl WakeUp {
    /// Must be called inside the executor that will wait.
    pub(crate) fn new(event: &EventFd) -> io::Result<Self> {
        let descriptor = event.duplicate()?.into_raw_fd();
        // SAFETY: the descriptor was just taken out of its owner, so the file becomes its only owner.
        Ok(Self { file: unsafe { BufferedFile::from_raw_fd(descriptor) } })
    }

    /// Waits until the descriptor was signalled since the last wait.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.file.read_at(0, size_of::<u64>()).await.map(|_| ()).map_err(io::Error::from)
    }
}
