//! What the tests of the port share: a directory, a loop made of a closure, a server of connections.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use trilith_reactor::{CoreLoop, Event, GlommioPort, ListenOptions, ListenerId, ReactorOptions, Turn, run};

pub(crate) const SECOND: u64 = 1_000_000_000;

/// A directory of this test's own, removed at its end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("trilith-reactor-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn options(directory: &Path) -> ReactorOptions {
    ReactorOptions {
        data_directory: directory.to_owned(),
        listeners: Vec::new(),
        bind_retry_max: Duration::ZERO,
        log_outputs: Vec::new(),
        signals: false,
        spin_before_sleep: Duration::ZERO,
    }
}

pub(crate) fn listening(directory: &Path) -> ReactorOptions {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    ReactorOptions {
        listeners: vec![ListenOptions { address: address.into(), reuse_port: false }],
        ..options(directory)
    }
}

/// A loop made of a closure that is given one event at a time; `None` is the first turn.
pub(crate) struct Each<F>(F, bool);

impl<F: FnMut(&mut GlommioPort, Option<Event>) -> Turn> CoreLoop<GlommioPort> for Each<F> {
    fn handle_turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Turn {
        if !std::mem::replace(&mut self.1, true) {
            assert!(events.is_empty(), "the first turn brings nothing");
            return (self.0)(port, None);
        }
        assert!(!events.is_empty(), "a turn brings something");
        for event in events.drain(..) {
            if let Turn::Stop(status) = (self.0)(port, Some(event)) {
                return Turn::Stop(status);
            }
        }
        Turn::Continue
    }
}

pub(crate) fn each<F: FnMut(&mut GlommioPort, Option<Event>) -> Turn>(handle: F) -> Result<Each<F>, String> {
    Ok(Each(handle, false))
}

/// Runs `client` on another thread against a core that handles events with `handle`.
pub(crate) fn serve<H, C, T>(handle: H, client: C) -> T
where
    H: FnMut(&mut GlommioPort, Option<Event>) -> Turn,
    C: FnOnce(SocketAddr) -> T + Send + 'static,
    T: Send + 'static,
{
    let scratch = Scratch::new();
    let client = RefCell::new(Some(client));
    let mut running = None;
    run(&listening(&scratch.0), |port| {
        let address = port.listener_address(ListenerId(0)).unwrap();
        let client = client.take().unwrap();
        running = Some(thread::spawn(move || client(address)));
        each(handle)
    })
    .unwrap();
    running.unwrap().join().unwrap()
}
