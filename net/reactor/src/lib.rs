//! The shell's way to the outside world: sockets, files, mapped pages, timers, signals and the mesh between cores.
//!
//! Owns: the completion-based [`Port`], its glommio backend ([`run`]) and the bounded queues between cores ([`mesh`]).
//! Does not know: raft, pages, HTTP, or what any byte means.
//!
//! A shell implements [`CoreLoop`] over any `P: Port`. `run(options, make)` prepares one executor on the calling
//! thread, binds the listeners, calls `make(&mut port)` (where [`BootFiles`] may be used: blocking calls), then turns
//! the loop until it answers [`Turn::Stop`]. A process of several cores gives each thread a seat ([`seats`],
//! [`run_seat`]); the first core has the files.
//!
//! Unsafe code lives in these files only, each block with its reason: `aligned.rs` (page-aligned memory), `mapping.rs`
//! (read-only mappings), `sys.rs` (system calls without a safe face), `ring.rs` (the queues of io_uring), and, because
//! they answer for the memory and the descriptors of their operations, `file_io.rs`, `sockets.rs`, `listeners.rs`,
//! `receive_buffers.rs` and, for the event descriptor, `glommio_port.rs`.

mod aligned;
mod calendar;
mod file_io;
mod files;
mod glommio_port;
mod helper;
mod listeners;
mod log;
mod log_file;
mod mapping;
mod memory;
pub mod mesh;
mod notify;
mod options;
mod port;
mod process;
mod receive_buffers;
mod ring;
mod sockets;
mod start;
mod sys;

pub use calendar::civil_date;
pub use glommio_port::{GlommioPort, RunError, Seat, run, run_seat, seats};
pub use memory::memory_bytes;
pub use mesh::CoreId;
pub use notify::notify_service_manager;
pub use options::{ListenAddress, ListenOptions, LogOutput, LogRotation, ReactorOptions};
pub use port::{
    BootFiles, CloseReason, ConnectionId, CoreLoop, Event, FileId, FileMode, ListenerId, MappedBytes, Parcel, Port,
    Preparation, SharedMapping, Token, Turn,
};
pub use process::ProcessStats;
pub use sys::end_by_signal;
