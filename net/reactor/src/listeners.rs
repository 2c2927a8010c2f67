//! Listening sockets on the core's ring: one accept operation each, which goes on until it is told to end.
//!
//! Owns: the listeners and the pause after a failed accept. Does not know: what becomes of an accepted socket.
//!
//! Invariant I1: a listener's descriptor is closed only after its accept operation has ended.

use crate::port::ListenerId;
use crate::ring::{Completion, OperationId, Origin, Ring, target};
use io_uring::opcode;
use socket2::Socket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Pause after a failed accept (out of descriptors, mostly), so that it does not spin.
const ACCEPT_PAUSE_NANOSECONDS: u64 = 20_000_000;

struct Listener {
    socket: Socket,
    accepting: bool,
    closing: bool,
    /// When to accept again after a failure.
    again_at: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Listeners {
    /// A closed one leaves its place, so that the numbers of the others stay.
    places: Vec<Option<Listener>>,
}

impl Listeners {
    /// Accepts from `socket` from now on.
    pub(crate) fn add(&mut self, ring: &mut Ring, socket: Socket) {
        self.places.push(Some(Listener { socket, accepting: false, closing: false, again_at: None }));
        self.accept(ring, self.places.len() - 1);
    }

    fn accept(&mut self, ring: &mut Ring, number: usize) {
        let Some(listener) = self.places.get_mut(number).and_then(Option::as_mut) else { return };
        if listener.accepting || listener.closing {
            return;
        }
        listener.accepting = true;
        listener.again_at = None;
        let descriptor = target(listener.socket.as_raw_fd());
        let entry = opcode::AcceptMulti::new(descriptor).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: no memory is named, and the descriptor stays open until the operation has ended (I1).
        unsafe { ring.prepare(OperationId::new(Origin::Accept, number as u64), entry) };
    }

    /// Takes a completion of an accept operation; the accepted socket, if it is one.
    pub(crate) fn complete(
        &mut self,
        ring: &mut Ring,
        completion: &Completion,
        now: u64,
    ) -> Option<(ListenerId, Socket)> {
        let number = completion.user_data.number() as usize;
        // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
        let accepted = (completion.result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(completion.result) });
        let place = &mut self.places[number];
        let listener = place.as_mut().expect("I1: the listener of an operation is open");
        let closing = listener.closing;
        if !completion.more {
            listener.accepting = false;
            if closing {
                *place = None;
            } else if accepted.is_some() {
                self.accept(ring, number);
            } else {
                listener.again_at = Some(now + ACCEPT_PAUSE_NANOSECONDS);
            }
        }
        let id = ListenerId(u32::try_from(number).expect("listeners are few"));
        accepted.filter(|_| !closing).map(|descriptor| (id, Socket::from(descriptor)))
    }

    /// Accepts again where the pause is over.
    pub(crate) fn end_pauses(&mut self, ring: &mut Ring, now: u64) {
        for number in 0..self.places.len() {
            if self.again_at(number).is_some_and(|at| at <= now) {
                self.accept(ring, number);
            }
        }
    }

    fn again_at(&self, number: usize) -> Option<u64> {
        self.places[number].as_ref()?.again_at
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        (0..self.places.len()).filter_map(|number| self.again_at(number)).min()
    }

    /// Stops accepting and closes every listener.
    pub(crate) fn close(&mut self, ring: &mut Ring) {
        for (number, place) in self.places.iter_mut().enumerate() {
            let Some(listener) = place else { continue };
            if !listener.accepting {
                *place = None;
            } else if !std::mem::replace(&mut listener.closing, true) {
                let number = number as u64;
                ring.cancel(OperationId::new(Origin::Cancel, number), OperationId::new(Origin::Accept, number));
            }
        }
    }
}
