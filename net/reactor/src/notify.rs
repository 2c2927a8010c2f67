//! Word to the service manager: sd_notify(3), one datagram to the socket that the environment names.
//!
//! Owns: the protocol. Does not know: when there is something to say.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells the service manager `state`, such as `READY=1`. `Ok(false)`: none wants to know.
///
/// # Errors
/// The socket of `NOTIFY_SOCKET` does not take it.
pub fn notify_service_manager(state: &str) -> io::Result<bool> {
    match std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) {
        Some(name) => notify(&name, state).map(|()| true),
        None => Ok(false),
    }
}

/// An abstract address starts with `@`.
fn notify(name: &OsStr, state: &str) -> io::Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not stop the server.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn named_and_abstract_sockets_get_the_state() {
        let name = format!("trilith-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let _ = std::fs::remove_file(&path);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        notify(path.as_os_str(), "READY=1").unwrap();
        notify(&OsString::from(format!("@{name}")), "STOPPING=1").unwrap();
        assert_eq!([received(&by_path), received(&by_name)], ["READY=1", "STOPPING=1"]);
        std::fs::remove_file(&path).unwrap();
        assert!(notify(path.as_os_str(), "READY=1").is_err(), "nobody is there");
    }
}
