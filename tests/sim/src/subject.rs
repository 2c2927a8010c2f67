//! What is simulated: one server process on a simulated port.
//!
//! Owns: the seam between the simulator and the server. Does not know: faults, clients, checks.

use trilith_reactor::CoreLoop;

use crate::port::SimPort;
use crate::weather::Limits;

/// A server that the simulator can start.
pub trait Subject: CoreLoop<SimPort> + Sized {
    /// Recovers from the port's disk and gets ready for the first turn.
    ///
    /// # Errors
    /// The process could not start; the text says why.
    fn boot(limits: &Limits, port: &mut SimPort) -> Result<Self, String>;
}
