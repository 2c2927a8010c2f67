//! What a member is started with.
//!
//! Owns: the sizes of the daemon, and what follows from the operator's choices for the parts of a member. Does not
//! know: the text of a flag ([`crate::options`]).

use trilith_engine::replica::ReplicaOptions;
use trilith_engine::shard::ShardOptions;
use trilith_engine::store::StoreOptions;
use trilith_engine::store::row_log::RowLogOptions;
use trilith_reactor::Port;
use trilith_wire::connection::ConnectionLimits;

use crate::api;
use crate::boot;
use crate::front::FrontOptions;
use crate::initial::Initial;
use crate::journal::{Field, Journal, Level};
use crate::layout::Layout;
use crate::options::Options;
use crate::service::Admission;
use crate::surface::Surface;

/// See [`NodeOptions::watch_block_bytes_max`]: the daemon's.
const WATCH_BLOCK_BYTES_MAX: usize = 1 << 20;
/// Memory for partly received requests.
pub(super) const ASSEMBLY_BYTES_MAX: usize = 64 << 20;
/// What a message may have beyond `--max-request-bytes` (etcd's `grpcOverheadBytes`).
pub(super) const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Everything a member is started with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Member name.
    pub name: String,
    /// Advertised client URLs.
    pub client_urls: Vec<String>,
    /// What a new member is made with.
    pub initial: Initial,
    /// Listeners, metrics, warnings, gates.
    pub surface: Surface,
    /// How log records are rendered.
    pub journal: Journal,
    /// Raft, log and checkpoint triggers.
    pub replica: ReplicaOptions,
    /// Index files.
    pub store: StoreOptions,
    /// Row files.
    pub rows: RowLogOptions,
    /// `--max-request-bytes`.
    pub request_bytes_max: usize,
    /// `--max-txn-ops`.
    pub txn_ops_max: usize,
    /// Effective quota; negative is none.
    pub quota_bytes: i64,
    /// Announced and enforced streams per connection, if any.
    pub streams_max: Option<u32>,
    /// Shortest interval between client pings, nanoseconds.
    pub keepalive_min_time: u64,
    /// Idle time after which the server pings, nanoseconds.
    pub keepalive_interval: u64,
    /// Wait for a ping's answer, nanoseconds.
    pub keepalive_timeout: u64,
    /// Longest wait for a data file's lock, nanoseconds.
    pub lock_wait: u64,
    /// Discard the log from this LSN on instead of refusing to start.
    pub wal_discard_from_lsn: Option<u64>,
    /// Memory for pages of store files, rows and the overlay together.
    pub cache_bytes: u64,
    /// Room kept back for a full disk; 0 is none.
    pub reserve_bytes: u64,
    /// Time between notices of progress to watchers that asked for them, nanoseconds.
    pub watch_progress_interval: u64,
    /// Encoded events that are handed to all who watch at once; a revision with more leaves in parts.
    pub watch_block_bytes_max: usize,
    /// Time of one scrub of everything stored, nanoseconds; 0 is never.
    pub scrub_interval: u64,
    /// Cores that serve connections beside this one.
    pub connection_cores: usize,
    /// Whether this core serves connections, too, when there are others for that.
    pub sequencer_serves: bool,
}

impl NodeOptions {
    /// The daemon's sizes with the operator's choices.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let mut log = trilith_raftlog::Options::standard();
        log.election_timeout = options.election_timeout_ms * 1_000_000;
        log.heartbeat_interval = options.heartbeat_interval_ms * 1_000_000;
        // One command in an entry of its own must always fit.
        log.entry_bytes_max = log.entry_bytes_max.max(options.max_request_bytes + (1 << 20));
        log.segment_bytes = log.segment_bytes.max((log.entry_bytes_max as u64 + (1 << 20)).next_multiple_of(1 << 20));
        let row_segment_bytes = 64 << 20;
        // A key may be as long as a request, and a page at most an eighth of its file. Counts for new stores alone.
        let cache_bytes = if options.cache_bytes == 0 { u64::MAX } else { options.cache_bytes };
        let index_file_bytes =
            (8 * (options.max_request_bytes as u64 + (8 << 10))).next_multiple_of(1 << 20).max(64 << 20);
        let suggested = options.cores.as_ref().map_or(1, Layout::shards);
        let shards = if options.shards == 0 { suggested } else { options.shards };
        Self {
            name: options.name.clone(),
            client_urls: options.advertise_client_urls.clone(),
            initial: options.initial.clone(),
            surface: Surface::new(options),
            journal: Journal { level_min: options.log_level, format: options.log_format },
            replica: ReplicaOptions {
                log,
                checkpoint_overlay_bytes: 48 << 20,
                checkpoint_changes: 350_000,
                // A start holds the log above a checkpoint in memory, twice as much while one was under way.
                checkpoint_log_bytes: (128 << 20).min(cache_bytes.saturating_mul(2).max(64 << 20)),
                pending_bytes_max: 64 << 20,
                shards: ShardOptions { shards, ..ShardOptions::default() },
            },
            store: StoreOptions {
                index_file_bytes,
                index_files_max: 65_536,
                row_segment_bytes,
                write_bytes_max: 256 << 10,
                writes_in_flight_max: 4,
            },
            rows: RowLogOptions {
                segment_bytes: row_segment_bytes,
                block_bytes: 32 << 10,
                rows_resident_bytes_max: (64 << 20).min(cache_bytes / 2),
                write_bytes_max: 256 << 10,
            },
            request_bytes_max: options.max_request_bytes,
            txn_ops_max: options.max_txn_ops,
            quota_bytes: options.quota_backend_bytes,
            streams_max: (options.max_concurrent_streams < u32::MAX).then_some(options.max_concurrent_streams),
            keepalive_min_time: options.keepalive_min_time,
            keepalive_interval: options.keepalive_interval,
            keepalive_timeout: options.keepalive_timeout,
            lock_wait: boot::LOCK_WAIT,
            wal_discard_from_lsn: options.wal_discard_from_lsn,
            cache_bytes,
            // Two merges that need files of their own, and two segments of the log.
            reserve_bytes: 2 * (index_file_bytes + row_segment_bytes + log.segment_bytes),
            watch_progress_interval: options.watch_progress_notify_interval,
            watch_block_bytes_max: WATCH_BLOCK_BYTES_MAX,
            scrub_interval: options.scrub_interval,
            connection_cores: options.cores.as_ref().map_or(0, Layout::connection_cores),
            sequencer_serves: options.cores.as_ref().is_none_or(|layout| layout.sequencer_serves),
        }
    }

    /// What a connection core of this member is started with.
    #[must_use]
    pub fn front(&self) -> FrontOptions {
        FrontOptions {
            limits: self.connection_limits(),
            assembly_bytes_max: ASSEMBLY_BYTES_MAX,
            surface: self.surface.clone(),
            admission: self.admission(self.initial.ids().1.0),
        }
    }

    pub(super) fn admission(&self, member_id: u64) -> Admission {
        Admission {
            request_bytes_max: self.request_bytes_max,
            txn_ops_max: self.txn_ops_max,
            quota_bytes: self.quota_bytes,
            member_id,
            rows_held_max: crate::service::rows_held_max(self.cache_bytes),
        }
    }

    /// Writes a log record.
    pub fn log<P: Port>(&self, port: &mut P, level: Level, message: &str, fields: &[(&str, Field<'_>)]) {
        if let Some(record) = self.journal.render(port.wall_now(), level, message, fields) {
            port.log(record.as_bytes());
        }
    }

    pub(super) fn connection_limits(&self) -> ConnectionLimits {
        let mut limits = ConnectionLimits::new(api::route);
        limits.message_bytes_max = self.request_bytes_max + GRPC_OVERHEAD_BYTES;
        limits.http_body_bytes_max = limits.message_bytes_max;
        limits.concurrent_streams_announced = self.streams_max;
        if let Some(streams) = self.streams_max {
            limits.streams_max = limits.streams_max.min(streams as usize);
        }
        limits.ping_interval_min = self.keepalive_min_time;
        limits.keepalive_interval = self.keepalive_interval;
        limits.keepalive_timeout = self.keepalive_timeout;
        limits
    }
}
