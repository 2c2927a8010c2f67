//! Trilith as the subject of a run.
//!
//! Owns: the translation of drawn limits into the server's options. Does not know: faults, clients, checks.

use trilith_engine::replica::ReplicaOptions;
use trilith_engine::shard::ShardOptions;
use trilith_engine::store::StoreOptions;
use trilith_engine::store::row_log::RowLogOptions;
use trilith_reactor::{CoreLoop, Event, Turn};
use trilith_server::boot::LOCK_WAIT;
use trilith_server::initial::Initial;
use trilith_server::journal::{Format, Journal, Level};
use trilith_server::node::{Node, NodeOptions};

use crate::port::SimPort;
use crate::subject::Subject;
use crate::weather::{Limits, SECOND};

/// One member, the real shell over the simulated port.
#[derive(Debug)]
pub struct Trilith {
    node: Node,
    /// Rounds of shards seen so far.
    rounds: u64,
}

fn options(limits: &Limits) -> NodeOptions {
    let mut log = trilith_raftlog::Options::standard();
    log.segment_bytes = limits.wal_segment_bytes;
    log.batch_bytes_max = limits.batch_bytes_max;
    log.entry_bytes_max = limits.entry_bytes_max;
    log.appends_in_flight_max = limits.appends_in_flight_max;
    log.log_bytes_max = 4 * limits.entry_bytes_max;
    log.quiet_delay = limits.quiet_delay;
    log.election_timeout = limits.election_timeout;
    log.heartbeat_interval = limits.election_timeout / 10;
    NodeOptions {
        name: "sim".to_owned(),
        client_urls: vec!["http://10.0.0.1:2379".to_owned()],
        initial: Initial {
            peer_urls: vec!["http://10.0.0.1:2380".to_owned()],
            token: "sim".to_owned(),
            ..Initial::default()
        },
        surface: trilith_server::surface::Surface::default(),
        journal: Journal { level_min: Level::Debug, format: Format::Json },
        replica: ReplicaOptions {
            log,
            checkpoint_overlay_bytes: limits.checkpoint_overlay_bytes,
            checkpoint_changes: limits.checkpoint_changes,
            checkpoint_log_bytes: limits.checkpoint_log_bytes,
            pending_bytes_max: 64 << 20,
            shards: ShardOptions {
                shards: limits.shards,
                gain_commands_min: 1,
                load_stride: 1,
                ..ShardOptions::default()
            },
        },
        store: StoreOptions {
            index_file_bytes: limits.index_file_bytes,
            index_files_max: 4096,
            row_segment_bytes: limits.row_segment_bytes,
            write_bytes_max: limits.store_write_bytes_max,
            writes_in_flight_max: limits.store_writes_in_flight_max,
        },
        rows: RowLogOptions {
            segment_bytes: limits.row_segment_bytes,
            block_bytes: limits.row_block_bytes,
            rows_resident_bytes_max: limits.rows_resident_bytes_max,
            write_bytes_max: limits.store_write_bytes_max,
        },
        request_bytes_max: limits.request_bytes_max,
        txn_ops_max: 128,
        quota_bytes: limits.quota_bytes,
        streams_max: None,
        keepalive_min_time: 5 * SECOND,
        keepalive_interval: 7_200 * SECOND,
        keepalive_timeout: 20 * SECOND,
        lock_wait: LOCK_WAIT,
        wal_discard_from_lsn: None,
        cache_bytes: limits.cache_bytes,
        reserve_bytes: limits.reserve_bytes,
        watch_progress_interval: limits.watch_progress_interval,
        watch_block_bytes_max: limits.watch_block_bytes_max,
        scrub_interval: limits.scrub_interval,
        connection_cores: 0,
        sequencer_serves: true,
    }
}

impl Subject for Trilith {
    fn boot(limits: &Limits, port: &mut SimPort) -> Result<Self, String> {
        Node::boot(options(limits), port).map(|node| Self { node, rounds: 0 }).map_err(|error| error.to_string())
    }
}

impl CoreLoop<SimPort> for Trilith {
    fn handle_turn(&mut self, port: &mut SimPort, events: &mut Vec<Event>) -> Turn {
        let turn = self.node.handle_turn(port, events);
        let rounds = self.node.replica().shard_rounds();
        if rounds > std::mem::replace(&mut self.rounds, rounds) {
            port.cover("(commands evaluated by shards)");
        }
        turn
    }
}
