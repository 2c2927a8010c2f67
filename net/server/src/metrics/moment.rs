//! The values of the moment: what `/metrics` asks for when a scraper comes.
//!
//! Owns: their names. Does not know: where the node takes them from.

use trilith_reactor::ProcessStats;

use super::exposition::{Exposition, Kind, label_value, seconds};
use crate::http::{CLUSTER_VERSION, SERVER_VERSION};
use crate::options::gates::Gates;

/// What the server is at this moment.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// This member, as in `etcd_server_id`.
    pub member_id: u64,
    /// A leader is known.
    pub has_leader: bool,
    /// It is this member.
    pub is_leader: bool,
    /// Raft's commit index.
    pub committed: u64,
    /// The applied index.
    pub applied: u64,
    /// Commands without an outcome.
    pub pending: u64,
    /// `--quota-backend-bytes`; negative is none.
    pub quota_bytes: i64,
    /// `dbSize`.
    pub store_bytes: u64,
    /// `dbSizeInUse`.
    pub store_bytes_in_use: u64,
    /// The newest visible revision.
    pub revision: i64,
    /// The compacted revision.
    pub compacted: i64,
    /// Long reads that hold a revision.
    pub open_reads: u64,
    /// Rounds of linearizable reads that raft refused.
    pub rounds_refused: u64,
    /// Batches whose commands shards have evaluated.
    pub shard_rounds: u64,
    /// Active alarms: member, and etcd's name of the alarm.
    pub alarms: Vec<(u64, &'static str)>,
    /// `--feature-gates`.
    pub gates: Gates,
    /// What the operating system says of the process.
    pub process: ProcessStats,
}

impl Moment {
    pub(super) fn render(&self, out: &mut Exposition) {
        self.render_server(out);
        self.render_store(out);
        self.render_process(out);
    }

    fn render_server(&self, out: &mut Exposition) {
        let one = |out: &mut Exposition, name: &str, help: &str, label: &str, value: &str| {
            out.family(name, Kind::Gauge, help);
            out.sample(name, &format!("{label}=\"{}\"", label_value(value)), 1);
        };
        one(out, "etcd_server_version", "The version reported to clients.", "server_version", SERVER_VERSION);
        let cluster = CLUSTER_VERSION.trim_end_matches(".0");
        one(out, "etcd_cluster_version", "The version of the cluster.", "cluster_version", cluster);
        one(out, "etcd_server_id", "The member, in hexadecimal.", "server_id", &format!("{:x}", self.member_id));
        one(out, "trilith_version", "The version of this program.", "version", env!("CARGO_PKG_VERSION"));
        out.gauge("etcd_server_has_leader", "1 if a leader is known.", u8::from(self.has_leader));
        out.gauge("etcd_server_is_leader", "1 if this member leads.", u8::from(self.is_leader));
        out.gauge("etcd_server_is_learner", "1 if this member has no vote.", 0);
        out.gauge("etcd_server_proposals_committed_total", "The commit index of raft.", self.committed);
        out.gauge("etcd_server_proposals_applied_total", "The applied index of raft.", self.applied);
        out.gauge("etcd_server_proposals_pending", "Commands without an outcome.", self.pending);
        let name = "trilith_shard_rounds_total";
        out.counter(name, "Batches whose commands shards have evaluated beside each other.", self.shard_rounds);
        let name = "etcd_server_read_indexes_failed_total";
        out.counter(name, "Rounds of linearizable reads that were refused.", self.rounds_refused);
        let name = "etcd_server_quota_backend_bytes";
        out.gauge(name, "Size limit of the store; 0 is none.", self.quota_bytes.max(0));
        let name = "etcd_server_feature_enabled";
        out.family(name, Kind::Gauge, "1 if the feature gate is on.");
        for (gate, is_on) in self.gates.all() {
            out.sample(name, &format!("name=\"{}\",stage=\"{}\"", gate.name, gate.stage), u8::from(is_on));
        }
        let name = "etcd_debugging_server_alarms";
        out.family(name, Kind::Gauge, "Active alarms.");
        for (member, alarm) in &self.alarms {
            out.sample(name, &format!("alarm_type=\"{alarm}\",server_id=\"{member:x}\""), 1);
        }
    }

    fn render_store(&self, out: &mut Exposition) {
        let name = "etcd_mvcc_db_total_size_in_bytes";
        out.gauge(name, "Bytes of the store: extents in use, pending rows, overlay.", self.store_bytes);
        let name = "etcd_mvcc_db_total_size_in_use_in_bytes";
        out.gauge(name, "The same without dead rows.", self.store_bytes_in_use);
        out.gauge("etcd_mvcc_db_open_read_transactions", "Long reads that hold a revision.", self.open_reads);
        out.gauge("etcd_debugging_mvcc_current_revision", "The newest visible revision.", self.revision);
        let name = "etcd_debugging_mvcc_compact_revision";
        out.gauge(name, "The compacted revision; -1 before the first compaction.", self.compacted);
    }

    fn render_process(&self, out: &mut Exposition) {
        let ProcessStats { cpu_time, start_time, resident_bytes, virtual_bytes, open_files, open_files_max } =
            self.process;
        let name = "process_cpu_seconds_total";
        out.family(name, Kind::Counter, "CPU time of the process.");
        out.sample(name, "", seconds(cpu_time));
        let name = "process_start_time_seconds";
        out.gauge(name, "Start of the process, in seconds since the Unix epoch.", seconds(start_time));
        out.gauge("process_resident_memory_bytes", "Resident memory, mapped pages included.", resident_bytes);
        out.gauge("process_virtual_memory_bytes", "Virtual memory.", virtual_bytes);
        out.gauge("process_open_fds", "Open file descriptors.", open_files);
        out.gauge("process_max_fds", "Most file descriptors.", open_files_max);
        out.gauge("os_fd_used", "Open file descriptors.", open_files);
        out.gauge("os_fd_limit", "Most file descriptors.", open_files_max);
    }
}
