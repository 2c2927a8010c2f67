//! Every named limit of a server connection, with its unit.
//!
//! Owns: the names, the units and the defaults. Does not know: which code enforces a limit (each constant is quoted
//! where it acts). A limit is never silent: going over it has the explicit answer that its comment states.
//!
//! Invariants
//! - I1: `const` assertions below relate limits that depend on each other.

use crate::connection::Route;

/// Nanoseconds in a second; all times in this crate are nanoseconds of a monotonic clock.
pub const SECOND: u64 = 1_000_000_000;

/// `SETTINGS_MAX_FRAME_SIZE` we announce: the smallest legal value, so a frame always fits one read buffer.
pub const FRAME_BYTES_MAX: usize = 16_384;
/// `SETTINGS_INITIAL_WINDOW_SIZE` we announce: the protocol's default. More is granted once a message length is known.
pub const STREAM_WINDOW_BYTES: i64 = 65_535;
/// Receive window of a connection. Credit returns on arrival: stream windows are what bounds memory.
pub const CONNECTION_WINDOW_BYTES: i64 = 16 << 20;
/// Consumed bytes after which the connection's window is filled up again.
pub const CONNECTION_CREDIT_BYTES: i64 = CONNECTION_WINDOW_BYTES / 2;
/// `SETTINGS_HEADER_TABLE_SIZE` of our decoder, and the most our encoder ever uses.
pub const HEADER_TABLE_BYTES_MAX: usize = 4_096;
/// CONTINUATION frames per header block; over it: GOAWAY ENHANCE_YOUR_CALM.
pub const CONTINUATION_FRAMES_MAX: u32 = 8;
/// Length of a header block, in header lists of the longest kind; over it: GOAWAY ENHANCE_YOUR_CALM, undecoded.
pub const HEADER_BLOCK_LISTS_MAX: usize = 2;
/// Header fields per block; over it: the request is refused like an oversized header list.
pub const HEADER_FIELDS_MAX: usize = 256;
/// What one stream may send before another gets its turn.
pub const SEND_QUANTUM_BYTES: usize = 16_384;
/// Bytes handed to the kernel at once; the rest stays where flow control and fairness still see it.
pub const OUTPUT_AHEAD_BYTES_MAX: usize = 256 << 10;
/// Output that waits for the kernel beyond which no further input is parsed (TCP then pushes back).
pub const OUTPUT_BACKLOG_BYTES_MAX: usize = 1 << 20;
/// Unsent response bytes of one connection beyond which new streams are answered with REFUSED_STREAM, and responses
/// that do not fit any more by RST_STREAM ENHANCE_YOUR_CALM.
pub const RESPONSE_BACKLOG_BYTES_MAX: usize = 64 << 20;
/// Unsent bytes of a core's connections together beyond which each of them may have [`OUTPUT_FAIR_BYTES`] only.
pub const OUTPUT_BYTES_MAX: usize = 128 << 20;
/// What one connection may have unsent while all together have much.
pub const OUTPUT_FAIR_BYTES: usize = 1 << 20;
/// And while they have twice [`OUTPUT_BYTES_MAX`].
pub const OUTPUT_LEAST_BYTES: usize = 64 << 10;
/// What a connection may hold of partly received requests although the assembly budget is exhausted: those who send
/// small requests do not suffer from those who leave large ones unfinished. Beyond it: REFUSED_STREAM.
pub const HELD_BYTES_FREE: usize = 16 << 10;
/// How long a request may take to arrive while half of the assembly budget is in use. Over it: ENHANCE_YOUR_CALM.
pub const GATHERING_PATIENCE: u64 = 5 * SECOND;
/// What arrives earns more time, at this rate.
pub const GATHERING_BYTES_PER_SECOND: u64 = 16 << 10;
/// And how long one may wait for its grant then.
pub const GRANT_PATIENCE: u64 = 30 * SECOND;
/// A stream's unsent bytes below which a writer that was above it hears `StreamWritable`.
pub const STREAM_BACKLOG_LOW_BYTES: usize = 64 << 10;
/// Unparsed input beyond which `wants_bytes` turns false.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Ping strikes before GOAWAY ENHANCE_YOUR_CALM `too_many_pings` (grpc-go's `maxPingStrikes`).
pub const PING_STRIKES_MAX: u32 = 2;
/// Shortest legal gap between pings while no stream is active (grpc-go's `defaultPingTimeout`).
pub const PING_IDLE_INTERVAL: u64 = 7_200 * SECOND;
/// Control frames (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown) accepted in a burst;
/// requests and sent DATA earn credit back. Over it: GOAWAY ENHANCE_YOUR_CALM.
pub const CONTROL_FRAMES_BURST_MAX: u64 = 10_000;
/// Control frames a second that the burst allowance regains.
pub const CONTROL_FRAMES_PER_SECOND: u64 = 1_000;
/// Streams reset, by the client or because of its errors, in a burst. Over it: GOAWAY ENHANCE_YOUR_CALM.
pub const RESETS_BURST_MAX: u64 = 10_000;
/// Resets a second that the burst allowance regains (10,000 a minute).
pub const RESETS_PER_SECOND: u64 = 166;
/// Times its own length that a compressed message may have for nothing: text comes to ten or twenty times.
pub const EXPANSION_FREE: usize = 16;
/// KiB beyond that in a burst. Over it: the call is refused.
pub const EXPANSION_KIB_BURST_MAX: u64 = 8 << 10;
/// KiB a second that the burst allowance regains.
pub const EXPANSION_KIB_PER_SECOND: u64 = 64 << 10;
/// Buffers up to this capacity stay with their connection or stream for the next message; larger ones are freed.
pub const BUFFER_KEPT_BYTES_MAX: usize = 4 << 10;
/// How many recently closed streams of each kind are remembered to tell late frames from violations.
pub const CLOSED_STREAMS_REMEMBERED: usize = 64;
/// Length of an HTTP/1.1 request line plus header fields; over it: 431 and close.
pub const HTTP1_HEAD_BYTES_MAX: usize = 64 << 10;
/// Length of one chunk-size line of a chunked body, extensions included; over it: 400 and close.
pub const HTTP1_CHUNK_LINE_BYTES_MAX: usize = 4_096;
/// Largest message or body whatever the options say: a window must be able to hold it.
pub const GRANTED_BYTES_MAX: usize = 1 << 30;

const _: () = assert!(SEND_QUANTUM_BYTES <= FRAME_BYTES_MAX && OUTPUT_AHEAD_BYTES_MAX < OUTPUT_BACKLOG_BYTES_MAX);
const _: () = assert!(CONNECTION_CREDIT_BYTES < CONNECTION_WINDOW_BYTES && CONNECTION_WINDOW_BYTES < 1 << 31);
const _: () = assert!(OUTPUT_LEAST_BYTES < OUTPUT_FAIR_BYTES && OUTPUT_FAIR_BYTES < RESPONSE_BACKLOG_BYTES_MAX);

/// The limits an operator or a test may choose; the rest are the constants of this file.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// How a gRPC path is resolved.
    pub route: fn(path: &[u8]) -> Option<Route>,
    /// Largest gRPC request message, bytes. Over it: ResourceExhausted with grpc-go's text.
    pub message_bytes_max: usize,
    /// Largest HTTP (non-gRPC) request body, bytes. Over it: 413.
    pub http_body_bytes_max: usize,
    /// Header list of one request (RFC 9113 6.5.2 size: name + value + 32 each). Over it: 431 or RST_STREAM.
    pub header_list_bytes_max: usize,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` as announced; `None` announces nothing.
    pub concurrent_streams_announced: Option<u32>,
    /// Streams open at once; over it: RST_STREAM REFUSED_STREAM.
    pub streams_max: usize,
    /// Preface, first SETTINGS (HTTP/2) or first request head (HTTP/1.1) must be complete within this time.
    pub preface_timeout: u64,
    /// A header block or HTTP/1.1 head that has begun must be complete within this time.
    pub header_timeout: u64,
    /// Output that neither kernel nor peer window takes for this long ends the connection (or resets the stream).
    pub write_timeout: u64,
    /// An HTTP/1.1 connection without a request for this long is closed.
    pub http1_idle_timeout: u64,
    /// Client pings closer than this are strikes while streams are active (`--grpc-keepalive-min-time`).
    pub ping_interval_min: u64,
    /// Idle time after which the server pings (`--grpc-keepalive-interval`).
    pub keepalive_interval: u64,
    /// How long the answer to that ping may take (`--grpc-keepalive-timeout`).
    pub keepalive_timeout: u64,
    /// How long a drain waits for the answer to its ping before the final GOAWAY.
    pub drain_ping_timeout: u64,
}

impl ConnectionLimits {
    /// etcd's defaults where etcd has one (api.md 2.1), design section 10 elsewhere.
    #[must_use]
    pub fn new(route: fn(path: &[u8]) -> Option<Route>) -> Self {
        Self {
            route,
            message_bytes_max: 2_097_152,
            http_body_bytes_max: 2_097_152,
            header_list_bytes_max: 16_384,
            concurrent_streams_announced: None,
            streams_max: 100_000,
            preface_timeout: 5 * SECOND,
            header_timeout: 5 * SECOND,
            write_timeout: 60 * SECOND,
            http1_idle_timeout: 300 * SECOND,
            ping_interval_min: 5 * SECOND,
            keepalive_interval: 7_200 * SECOND,
            keepalive_timeout: 20 * SECOND,
            drain_ping_timeout: 5 * SECOND,
        }
    }
}
