//! What must be right before the first turn: process limits, io_uring, listening sockets.
//!
//! Every error says what was wrong and what the operator can do about it.

use crate::log::in_context;
use crate::options::{ListenAddress, ListenOptions};
use crate::sys::{Limit, Resource, limit, raise_limit};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

/// glommio refuses to start below this.
const LOCKED_BYTES_MIN: u64 = 512 << 10;
const OPEN_FILES_MIN: u64 = 1024;
const BACKLOG: i32 = 4096;
const BIND_POLL: Duration = Duration::from_millis(10);
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Raises the soft limits to the hard ones and checks that they suffice.
pub(crate) fn check_limits() -> io::Result<()> {
    ensure(Resource::LockedMemory, LOCKED_BYTES_MIN, "locked memory (RLIMIT_MEMLOCK)", "LimitMEMLOCK=", "ulimit -l")?;
    ensure(Resource::OpenFiles, OPEN_FILES_MIN, "open files (RLIMIT_NOFILE)", "LimitNOFILE=", "ulimit -n")
}

fn ensure(resource: Resource, least: u64, name: &str, unit_setting: &str, shell_setting: &str) -> io::Result<()> {
    let Limit { soft, hard } = limit(resource)?;
    if hard < least {
        return Err(io::Error::other(format!(
            "the limit of {name} is {hard}, at least {least} is needed: \
             set {unit_setting} in the systemd unit, or {shell_setting} in the shell"
        )));
    }
    if soft < hard { raise_limit(resource) } else { Ok(()) }
}

/// Explains a failure to make a ring.
pub(crate) fn explain_ring_error(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EPERM) => in_context(
            error,
            "io_uring is not permitted: set sysctl kernel.io_uring_disabled=0 \
             (a container's seccomp profile must allow io_uring as well)",
        ),
        Some(libc::ENOSYS) => in_context(error, "this kernel has no io_uring; Linux 6.1 or newer is needed"),
        Some(libc::EINVAL) => in_context(error, "this kernel's io_uring is too old; Linux 6.1 or newer is needed"),
        Some(libc::ENOMEM) => in_context(error, "no memory for io_uring: raise the limit of locked memory (ulimit -l)"),
        _ => in_context(error, "cannot set up io_uring"),
    }
}

/// Explains a failure to make an executor.
pub(crate) fn explain_executor_error(error: io::Error, cpu: Option<usize>) -> io::Error {
    match (error.raw_os_error(), cpu) {
        (None, Some(cpu)) => in_context(
            error,
            &format!("cannot bind a thread to processor {cpu}: name processors that this process may use"),
        ),
        _ => explain_ring_error(error),
    }
}

/// Binds and listens; while the address is in use, retries for `retry_max` (a killed process gives its port back some
/// milliseconds after its end).
pub(crate) fn listen(options: &ListenOptions, retry_max: Duration) -> io::Result<Socket> {
    let start = Instant::now();
    loop {
        match listen_once(options) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < retry_max => {
                thread::sleep(BIND_POLL);
            }
            result => {
                return result.map_err(|error| explain_listen_error(error, options));
            }
        }
    }
}

fn explain_listen_error(error: io::Error, options: &ListenOptions) -> io::Error {
    let advice = match error.kind() {
        _ if matches!(options.address, ListenAddress::Unix(_)) => {
            return in_context(error, &format!("cannot listen on the socket {}", options.address));
        }
        io::ErrorKind::AddrInUse => "another process has the port: stop it, or choose another URL to listen on",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has the address: correct the URL to listen on",
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 is for root, or for AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit"
        }
        _ => return in_context(error, &format!("cannot listen on {}", options.address)),
    };
    io::Error::new(error.kind(), format!("cannot listen on {}: {error}: {advice}", options.address))
}

fn listen_once(options: &ListenOptions) -> io::Result<Socket> {
    let socket = match &options.address {
        ListenAddress::Tcp(address) => bind_tcp(*address, options.reuse_port)?,
        ListenAddress::Unix(path) => bind_unix(path)?,
    };
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind_tcp(address: SocketAddr, is_port_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_port_shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Accepted sockets inherit both.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A path keeps its socket after the end of a process that was killed. Nobody answers on such a one.
fn bind_unix(path: &Path) -> io::Result<Socket> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if is_socket(path) {
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        if probe.connect(&address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            fs::remove_file(path)?;
        }
    }
    socket.bind(&address)?;
    Ok(socket)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Takes the paths of Unix sockets away. To be called when nothing listens any more.
pub(crate) fn remove_sockets(listeners: &[ListenOptions]) {
    for listener in listeners {
        if let ListenAddress::Unix(path) = &listener.address
            && is_socket(path)
        {
            // One that stays is replaced by the next start.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_says_what_to_do() {
        for (code, advice) in [
            (libc::EPERM, "kernel.io_uring_disabled=0"),
            (libc::EPERM, "seccomp"),
            (libc::ENOSYS, "Linux 6.1 or newer"),
            (libc::EINVAL, "Linux 6.1 or newer"),
            (libc::ENOMEM, "locked memory"),
        ] {
            let said = explain_ring_error(io::Error::from_raw_os_error(code)).to_string();
            assert!(said.contains(advice), "{said}");
        }
    }

    #[test]
    fn a_refused_address_says_what_to_do() {
        let options = ListenOptions { address: SocketAddr::from(([127, 0, 0, 1], 2379)).into(), reuse_port: false };
        for (code, advice) in [
            (libc::EADDRINUSE, "another process has the port"),
            (libc::EADDRNOTAVAIL, "no interface of this machine"),
            (libc::EACCES, "below 1024"),
            (libc::ENOMEM, "cannot listen on 127.0.0.1:2379"),
        ] {
            let said = explain_listen_error(io::Error::from_raw_os_error(code), &options).to_string();
            assert!(said.contains(advice) && said.contains("127.0.0.1:2379"), "{said}");
        }
    }
}
