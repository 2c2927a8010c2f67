//! Ports for servers: free, and kept from every other run of tests and commands until this process ends.
//!
//! I1  A port is taken from below the range from which the system gives ports to outgoing connections, so that no
//!     client gets one between its choice and the start of its server, or while a server is restarted.
//! I2  A port is reserved by an abstract socket that bears its number: processes choose at the same time without
//!     meeting.

#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// The first port that is ever chosen.
const FIRST: u16 = 10_000;
/// Where the system's range begins unless it says otherwise.
const SYSTEM_FIRST: u16 = 32_768;

/// The reservations of this process.
static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A loopback port that nobody uses or has reserved.
///
/// # Errors
/// All are in use or reserved.
pub fn reserve() -> Result<u16> {
    let end = system_first().max(FIRST + 1);
    let count = u32::from(end - FIRST);
    // Processes begin far apart, so that they seldom try the same numbers.
    let start = std::process::id().wrapping_mul(97);
    for step in 0..count {
        let port = FIRST + (start.wrapping_add(step) % count) as u16;
        let Ok(name) = SocketAddr::from_abstract_name(format!("trilith-test-port-{port}")) else { continue };
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
            return Ok(port);
        }
    }
    bail!("no port from {FIRST} to {end} is free")
}

/// The first port that the system gives to outgoing connections.
fn system_first() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(SYSTEM_FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_no_client_gets_it() {
        let mut ports: Vec<u16> = (0..40).map(|_| reserve().unwrap()).collect();
        assert!(ports.iter().all(|port| *port < system_first().max(FIRST + 1)), "{ports:?}");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 40);
    }
}
