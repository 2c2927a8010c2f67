//! The two ports of a member.

use anyhow::Result;
use trilith_ports::reserve;

/// The two ports of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Port of the client URL.
    pub client: u16,
    /// Port of the peer URL.
    pub peer: u16,
}

impl Ports {
    /// Two loopback ports that nobody uses or has reserved.
    pub fn pick() -> Result<Self> {
        Ok(Self { client: reserve()?, peer: reserve()? })
    }
}
