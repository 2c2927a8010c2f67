//! One call at a time over one connection, however long its answer.
//!
//! Owns: connecting, waiting, the status. Does not know: what a message says.

use crate::client::{Client, Outcome};
use crate::sockets::{Completion, Sockets};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Without any bytes for so long a call is given up.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A connection for calls of one method.
pub struct Calls {
    sockets: Sockets,
    slot: usize,
    client: Client<()>,
}

impl Calls {
    /// Connects and waits until the server takes calls.
    pub fn connect(endpoint: &str, path: &str) -> Result<Self, String> {
        let mut sockets = Sockets::new().map_err(|error| format!("cannot set up io_uring: {error}"))?;
        let stream = TcpStream::connect(endpoint).map_err(|error| format!("cannot connect to {endpoint}: {error}"))?;
        let slot = sockets.add(stream).map_err(|error| error.to_string())?;
        let client = Client::new(path, endpoint, sockets.queue(slot));
        let mut calls = Self { sockets, slot, client };
        while !calls.client.has_room() {
            calls.wait()?;
        }
        Ok(calls)
    }

    /// Sends a message and waits for the answer's; any status but OK is an error.
    pub fn call(&mut self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.client.call(message, (), self.sockets.queue(self.slot));
        loop {
            if let Some(finished) = self.wait()? {
                return match finished.0 {
                    Outcome::Status(0) => Ok(finished.1),
                    Outcome::Status(status) => Err(format!("grpc-status {status}")),
                    Outcome::Reset(code) => Err(format!("RST_STREAM {code}")),
                    Outcome::Broken(what) => Err(what.to_owned()),
                };
            }
        }
    }

    /// Takes in what arrives next; the call's end, if it is there.
    fn wait(&mut self) -> Result<Option<(Outcome, Vec<u8>)>, String> {
        let (started, mut completions, mut finished) = (Instant::now(), Vec::new(), Vec::new());
        self.sockets.wait(Some(SILENCE_MAX), &mut completions).map_err(|error| format!("io_uring: {error}"))?;
        if completions.is_empty() && started.elapsed() >= SILENCE_MAX {
            return Err(format!("nothing came for {SILENCE_MAX:?}"));
        }
        for completion in completions {
            let Completion::Received(slot, bytes) = completion else {
                return Err("the server closed the connection".to_owned());
            };
            let received = self.client.receive(&bytes, self.sockets.queue(slot), &mut finished);
            received.map_err(|error| format!("the server broke the protocol: {error}"))?;
            self.sockets.receive_again(slot, bytes);
        }
        Ok(finished.pop().map(|finished| (finished.outcome, finished.message)))
    }
}
