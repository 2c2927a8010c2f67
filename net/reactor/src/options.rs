//! What a core's reactor is given at start. Owns the plain option types; knows nothing of the command line.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a socket listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP: address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// A socket in the file system. One that a dead process left behind is replaced; it is removed at the end.
    Unix(PathBuf),
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Where.
    pub address: ListenAddress,
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
    File {
        /// Where it is.
        path: PathBuf,
        /// When it is set aside; `None`: never.
        rotation: Option<LogRotation>,
    },
}

/// When a log file is set aside, and how long those set aside stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// Bytes that a file may have; a longer record has one of its own.
    pub bytes_max: u64,
    /// Days that files stay; 0: for ever.
    pub days_max: u64,
    /// Files that stay; 0: all.
    pub files_max: u64,
    /// Their names have local time instead of UTC.
    pub is_local_time: bool,
    /// They are compressed (gzip).
    pub is_compressed: bool,
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
