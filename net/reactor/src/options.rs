//! What a core's reactor is given at start. Owns the plain option types; knows nothing of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Address and port; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// `SO_REUSEPORT`: lets a second process listen on the same port. Off unless the operator asks.
    pub reuse_port: bool,
}

/// Where log records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, created with mode 0600 if missing, appended to.
    File(PathBuf),
}

/// Options of one reactor. There is no `Default`: the caller states every choice.
#[derive(Clone, Debug)]
pub struct ReactorOptions {
    /// The directory all file names are relative to. `BootFiles::create_directory("")` creates it.
    pub data_directory: PathBuf,
    /// Listening sockets; the position is the [`crate::ListenerId`].
    pub listeners: Vec<ListenOptions>,
    /// How long a bind is retried while the address is in use (a killed predecessor holds it for some milliseconds).
    pub bind_retry_max: Duration,
    /// Where log records go; none means nowhere.
    pub log_outputs: Vec<LogOutput>,
    /// Whether SIGTERM and SIGINT become `StopRequested` events. At most one reactor of a process may ask for it.
    pub signals: bool,
    /// How long an idle core spins before it sleeps: latency bought with a core. Zero is the default of the server.
    pub spin_before_sleep: Duration,
}
