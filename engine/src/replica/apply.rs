//! From committed entries to state, one command at a time.
//!
//! Owns: the place in the log that apply has reached, and the state it changes (keyspace and small tables). Does not
//! know: raft, who waits for an answer, when a checkpoint is due.
//!
//! Invariants
//! - I1: commands are applied in log order, each once; one that paused is called again before the next, and nothing of
//!   it is visible until it has ended.
//! - I2: the applied index advances over every entry, whatever its commands answer.
//! - I3: an entry this version cannot read ends the process: skipping it would make members differ.

use std::sync::Arc;

use trilith_raftlog::{Entry as LogEntry, EntryType, Index, Term};

use crate::budget::{Budget, Pause};
use crate::command::{Alarm, Command, Entry, EntryHeader};
use crate::lease::TTL_MAX;
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::{
    CompactOutcome, DeleteOutcome, Keyspace, LeaseRevokeOutcome, MvccError, OpOutcome, PutOutcome, TxnOutcome,
};
use crate::page_source::{PageSource, Unavailable};
use crate::shard::{Begun, Installed, ShardJob, ShardOptions, Shards};
use crate::tables::Tables;

/// etcd's AlarmType NOSPACE.
pub const ALARM_NOSPACE: u32 = 1;
/// etcd's AlarmType CORRUPT.
pub const ALARM_CORRUPT: u32 = 2;

/// Names a command for the member that answers its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandId {
    /// The member.
    pub member: u64,
    /// Its boot number.
    pub boot: u64,
    /// The command's sequence in that boot.
    pub sequence: u64,
}

/// Why a command changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The client's fault.
    Mvcc(MvccError),
    /// The space alarm is on.
    NoSpace,
    /// The corruption alarm is on.
    Corrupt,
    /// A leader of another term saw a lease expire; who leads now counts anew.
    OtherTerm,
}

/// What a command answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// KV.Put.
    Put(PutOutcome),
    /// KV.DeleteRange.
    DeleteRange(DeleteOutcome),
    /// KV.Txn.
    Txn(TxnOutcome),
    /// KV.Compact.
    Compact(CompactOutcome),
    /// Maintenance.Alarm.
    Alarm {
        /// The alarm named.
        alarm: Alarm,
        /// Whether the answer lists it: it is on now, or was cleared by this command.
        listed: bool,
    },
    /// Lease.LeaseGrant.
    LeaseGrant {
        /// The lease.
        id: i64,
        /// Its time to live in seconds.
        ttl: i64,
    },
    /// A lease ended: by Lease.LeaseRevoke, or it expired.
    LeaseEnd {
        /// The lease.
        id: i64,
        /// What came of it.
        outcome: LeaseRevokeOutcome,
    },
    /// How much of a lease is left was noted, if it still exists.
    LeaseCheckpoint {
        /// The lease.
        id: i64,
    },
    /// A member published itself.
    Published,
}

impl From<OpOutcome> for Outcome {
    fn from(outcome: OpOutcome) -> Self {
        match outcome {
            OpOutcome::Put(put) => Self::Put(put),
            OpOutcome::DeleteRange(delete) => Self::DeleteRange(delete),
            OpOutcome::Txn(txn) => Self::Txn(txn),
            OpOutcome::Range(_) => unreachable!("a range alone is no command"),
        }
    }
}

/// A command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Which one.
    pub id: CommandId,
    /// What it answered.
    pub result: Result<Outcome, ApplyError>,
}

/// The next thing apply did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyStep {
    /// Everything handed in is applied.
    Idle,
    /// A command was applied.
    Applied(Applied),
    /// The end of an entry was reached; everything up to it is published.
    EntryDone(Index),
    /// The budget is used up in the middle of a command: call again.
    More,
    /// A page is needed first: load it and call again. The command keeps what it has done.
    Suspended(Unavailable),
    /// Jobs are out ([`Replica::poll_job`](super::Replica::poll_job)); until they are back nothing can be applied.
    Waiting,
}

/// An entry on its way through apply.
#[derive(Debug)]
struct Cursor {
    index: Index,
    term: Term,
    payload: Arc<Vec<u8>>,
    position: usize,
    /// Commands that begin below it are applied one by one.
    direct_until: usize,
    next_sequence: u64,
}

/// The replicated state.
#[derive(Debug)]
pub struct State<T> {
    /// Keys, their history, revisions.
    pub keyspace: Keyspace<T>,
    /// Members and alarms.
    pub tables: Tables,
    shards: Shards<T>,
    cursor: Option<Cursor>,
    applied: Index,
}

impl<T: KeyTree> State<T> {
    /// The state as of `applied`.
    #[must_use]
    pub fn new(keyspace: Keyspace<T>, tables: Tables, applied: Index, shards: ShardOptions) -> Self {
        Self { keyspace, tables, shards: Shards::new(shards), cursor: None, applied }
    }

    /// The last index applied whole.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Whether apply stands between two entries, where a checkpoint may be taken.
    #[must_use]
    pub fn is_between_entries(&self) -> bool {
        self.cursor.is_none()
    }

    /// Hands in the next committed entry; only between entries.
    pub fn begin_entry(&mut self, entry: &LogEntry) {
        assert!(self.cursor.is_none(), "I1: one entry after the other");
        assert_eq!(entry.index, self.applied.next(), "I1: entries in log order");
        let payload = match entry.entry_type {
            EntryType::Commands => Arc::clone(&entry.payload),
            EntryType::Configuration => {
                let configuration = Tables::decode(&entry.payload).expect("I3: a configuration this version can read");
                self.tables.apply_configuration(configuration);
                Arc::default()
            }
            EntryType::NoOp => Arc::default(),
        };
        let next_sequence = match entry.entry_type {
            EntryType::Commands => {
                let commands = Entry::decode(&payload).expect("I3: an entry this version can read");
                // Looked at whole before any of it changes anything.
                commands.check().expect("I3: commands this version can read, as many as announced");
                commands.header.first_sequence
            }
            EntryType::Configuration | EntryType::NoOp => 0,
        };
        let (index, term) = (entry.index, entry.term);
        self.cursor = Some(Cursor { index, term, payload, position: 0, direct_until: 0, next_sequence });
    }

    /// The next job of a round of shards: to be stepped by whoever is to, and handed back.
    pub fn poll_job(&mut self) -> Option<ShardJob<T>> {
        self.shards.poll_job()
    }

    /// Takes a job back, done or not: what is left of it is done here.
    pub fn handle_job(&mut self, job: ShardJob<T>) {
        self.shards.handle_job(job);
    }

    /// Rounds of shards so far.
    #[must_use]
    pub fn shard_rounds(&self) -> u64 {
        self.shards.rounds()
    }

    /// Whether the round under way has nothing to do before a job comes back.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.shards.is_waiting()
    }

    /// Whether the keyspace is lent to jobs: it may be read and not be changed.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.shards.is_lent()
    }

    /// Applies the next command of the entry handed in.
    pub fn apply_next(&mut self, budget: &mut Budget, pages: &dyn PageSource) -> ApplyStep {
        let Some(mut cursor) = self.cursor.take() else { return ApplyStep::Idle };
        let payload = Arc::clone(&cursor.payload);
        if payload.is_empty() {
            return self.finish_entry(cursor.index);
        }
        let mut entry = Entry::decode(&payload).expect("checked when it was handed in");
        let header = entry.header;
        if cursor.position > 0 {
            entry.skip_to(cursor.position);
        }
        if entry.position() >= cursor.direct_until && !self.shards.has_round() {
            match self.begin_round(&payload, entry.clone(), budget) {
                Begun::Round => {}
                Begun::Direct { until } => cursor.direct_until = until,
            }
        }
        if self.shards.has_round() {
            return self.go_on_with_round(cursor, header, budget, pages);
        }
        let Some(command) = entry.next_command() else { return self.finish_entry(cursor.index) };
        let command = command.expect("checked when it was handed in");
        let id = CommandId { member: header.member, boot: header.boot, sequence: cursor.next_sequence };
        match self.apply(&command, cursor.term, budget, pages) {
            Ok(result) => {
                let position = entry.position();
                let next_sequence = cursor.next_sequence + 1;
                self.keyspace.publish(self.applied.0);
                self.cursor = Some(Cursor { position, next_sequence, ..cursor });
                ApplyStep::Applied(Applied { id, result })
            }
            Err(pause) => {
                self.cursor = Some(cursor);
                match pause {
                    Pause::Budget => ApplyStep::More,
                    Pause::Pages(unavailable) => ApplyStep::Suspended(unavailable),
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn set_shard_map(&mut self, map: crate::shard::ShardMap) {
        self.shards.set_map(map);
    }

    fn begin_round(&mut self, payload: &Arc<Vec<u8>>, entry: Entry<'_>, budget: &mut Budget) -> Begun {
        // What an alarm refuses is not looked at by shards; the commands that change alarms are no round's.
        if self.tables.alarms().is_empty() {
            self.shards.begin(payload, entry, &self.keyspace, budget)
        } else {
            Begun::Direct { until: usize::MAX }
        }
    }

    /// The next command of the round under way, if every job is back.
    fn go_on_with_round(
        &mut self,
        cursor: Cursor,
        header: EntryHeader,
        budget: &mut Budget,
        pages: &dyn PageSource,
    ) -> ApplyStep {
        match self.shards.step(pages, budget) {
            Ok(true) => {
                let Installed { end, answer } = self.shards.install_next(&mut self.keyspace, budget);
                self.keyspace.publish(self.applied.0);
                let id = CommandId { member: header.member, boot: header.boot, sequence: cursor.next_sequence };
                let result = answer.map(Outcome::from).map_err(ApplyError::Mvcc);
                self.cursor = Some(Cursor { position: end, next_sequence: cursor.next_sequence + 1, ..cursor });
                ApplyStep::Applied(Applied { id, result })
            }
            waiting => {
                self.cursor = Some(cursor);
                match waiting {
                    Err(Pause::Budget) => ApplyStep::More,
                    Err(Pause::Pages(unavailable)) => ApplyStep::Suspended(unavailable),
                    Ok(_) => ApplyStep::Waiting,
                }
            }
        }
    }

    fn finish_entry(&mut self, index: Index) -> ApplyStep {
        self.applied = index;
        self.keyspace.publish(index.0);
        ApplyStep::EntryDone(index)
    }

    fn apply(
        &mut self,
        command: &Command<'_>,
        term: Term,
        budget: &mut Budget,
        pages: &dyn PageSource,
    ) -> Result<Result<Outcome, ApplyError>, Pause> {
        if let Some(refusal) = self.alarm_refusal(command) {
            return Ok(Err(refusal));
        }
        let mvcc = ApplyError::Mvcc;
        Ok(match command {
            Command::Put(put) => self.keyspace.apply_put(put, budget, pages)?.map(Outcome::Put).map_err(mvcc),
            Command::DeleteRange(del) => {
                self.keyspace.apply_delete_range(del, budget, pages)?.map(Outcome::DeleteRange).map_err(mvcc)
            }
            Command::Txn(txn) => self.keyspace.apply_txn(txn, budget, pages)?.map(Outcome::Txn).map_err(mvcc),
            Command::Compact { revision } => self.keyspace.apply_compact(*revision).map(Outcome::Compact).map_err(mvcc),
            Command::AlarmActivate(alarm) => {
                // One that was on already is listed as well, as in etcd.
                self.tables.apply_activate(*alarm);
                Ok(Outcome::Alarm { alarm: *alarm, listed: true })
            }
            Command::AlarmDeactivate(alarm) => {
                Ok(Outcome::Alarm { alarm: *alarm, listed: self.tables.apply_deactivate(*alarm) })
            }
            Command::LeaseGrant { ttl, .. } if *ttl > TTL_MAX => Err(mvcc(MvccError::LeaseTtlTooLarge)),
            Command::LeaseGrant { id, ttl } => {
                let granted = self.keyspace.apply_lease_grant(*id, *ttl);
                granted.map(|()| Outcome::LeaseGrant { id: *id, ttl: *ttl }).map_err(mvcc)
            }
            Command::LeaseExpire { term: leading, .. } if *leading != term.0 => Err(ApplyError::OtherTerm),
            Command::LeaseRevoke { id } | Command::LeaseExpire { id, .. } => {
                let ended = self.keyspace.apply_lease_revoke(*id, budget, pages)?;
                ended.map(|outcome| Outcome::LeaseEnd { id: *id, outcome }).map_err(mvcc)
            }
            Command::LeaseCheckpoint { id, remaining } => {
                self.keyspace.apply_lease_checkpoint(*id, *remaining);
                Ok(Outcome::LeaseCheckpoint { id: *id })
            }
            Command::PublishMember(publish) => {
                self.tables.apply_publish(publish);
                Ok(Outcome::Published)
            }
        })
    }

    /// etcd's capped applier: which commands an active alarm of any member forbids.
    fn alarm_refusal(&self, command: &Command<'_>) -> Option<ApplyError> {
        let alarms = self.tables.alarms();
        if alarms.is_empty() {
            return None;
        }
        let active = |kind: u32| alarms.iter().any(|alarm| alarm.alarm == kind);
        let writes = !matches!(
            command,
            Command::AlarmActivate(_)
                | Command::AlarmDeactivate(_)
                | Command::PublishMember(_)
                | Command::LeaseCheckpoint { .. }
        );
        if writes && active(ALARM_CORRUPT) {
            return Some(ApplyError::Corrupt);
        }
        let grows = match command {
            Command::Put(_) | Command::LeaseGrant { .. } => true,
            Command::Txn(txn) => txn.has_put(),
            _ => false,
        };
        (grows && active(ALARM_NOSPACE)).then_some(ApplyError::NoSpace)
    }
}

#[cfg(test)]
mod tests {
    use trilith_raftlog::{ClusterId, Digest, Identity, Incarnation, MemberId};

    use super::*;
    use crate::command::{Put, append_command, begin_entry};
    use crate::lease::Lease;
    use crate::mvcc::KeyspaceState;
    use crate::store::row_log::{RowLog, RowLogOptions};
    use crate::store::test_disk::Disk;
    use crate::store::{Store, StoreOptions, Tree};

    const ROWS: RowLogOptions = RowLogOptions {
        segment_bytes: 1 << 20,
        block_bytes: 8192,
        rows_resident_bytes_max: 1 << 20,
        write_bytes_max: 8192,
    };
    const STORE: StoreOptions = StoreOptions {
        index_file_bytes: 256 << 10,
        index_files_max: 1,
        row_segment_bytes: 1 << 20,
        write_bytes_max: 8192,
        writes_in_flight_max: 1,
    };

    fn state() -> State<Tree> {
        let identity = Identity { cluster_id: ClusterId(1), member_id: MemberId(1), incarnation: Incarnation(1) };
        let tree = Store::new(STORE, identity).keys();
        let keyspace = Keyspace::new(tree, RowLog::new(ROWS), KeyspaceState::FRESH, 0);
        State::new(keyspace, Tables::default(), Index::ZERO, ShardOptions::default())
    }

    fn entry(payload: Vec<u8>) -> LogEntry {
        LogEntry::new(Digest::default(), Index(1), Term(2), EntryType::Commands, Arc::new(payload))
    }

    fn apply(state: &mut State<Tree>, commands: &[Command<'_>]) -> Vec<Result<Outcome, ApplyError>> {
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 1, 1);
        commands.iter().for_each(|command| append_command(&mut payload, command));
        let index = state.applied().next();
        let previous = Digest::default();
        state.begin_entry(&LogEntry::new(previous, index, Term(2), EntryType::Commands, Arc::new(payload)));
        let mut results = Vec::new();
        while let ApplyStep::Applied(applied) = state.apply_next(&mut Budget::unlimited(), &Disk::default()) {
            results.push(applied.result);
        }
        results
    }

    #[test]
    #[should_panic(expected = "as many as announced")]
    fn an_entry_cut_between_two_commands_changes_nothing() {
        let mut payload = Vec::new();
        begin_entry(&mut payload, 1, 1, 1);
        append_command(&mut payload, &Command::Put(Put { key: b"a", ..Put::default() }));
        let cut = payload.len();
        append_command(&mut payload, &Command::Put(Put { key: b"b", ..Put::default() }));
        payload.truncate(cut);
        state().begin_entry(&entry(payload));
    }

    #[test]
    fn a_lease_expires_only_by_the_word_of_who_leads() {
        let mut state = state();
        let put = Command::Put(Put { key: b"k", lease: 5, ..Put::default() });
        let grant = |ttl| Command::LeaseGrant { id: 5, ttl };
        let expire = |term| Command::LeaseExpire { id: 5, term };
        let note = Command::LeaseCheckpoint { id: 5, remaining: 7 };
        let found = apply(&mut state, &[grant(TTL_MAX + 1), grant(TTL_MAX), put, note.clone(), expire(1), expire(3)]);
        assert_eq!(found[0], Err(ApplyError::Mvcc(MvccError::LeaseTtlTooLarge)));
        assert_eq!(found[1], Ok(Outcome::LeaseGrant { id: 5, ttl: TTL_MAX }));
        assert_eq!(found[3], Ok(Outcome::LeaseCheckpoint { id: 5 }));
        assert_eq!(found[4..], [Err(ApplyError::OtherTerm), Err(ApplyError::OtherTerm)]);
        let lease = Lease { ttl: TTL_MAX, remaining: 7 };
        assert_eq!(state.keyspace.leases().iter().collect::<Vec<_>>(), [(5, lease)]);
        let outcome = LeaseRevokeOutcome { revision: 3, deleted: 1 };
        let found = apply(&mut state, &[expire(2), expire(2), note]);
        assert_eq!(found[0], Ok(Outcome::LeaseEnd { id: 5, outcome }));
        assert_eq!(found[1], Err(ApplyError::Mvcc(MvccError::LeaseNotFound)));
        assert!(state.keyspace.leases().is_empty(), "a note of a lease that ended makes none");
    }

    #[test]
    fn alarms_refuse_what_grows_until_each_is_cleared_exactly() {
        let mut state = state();
        let alarm = Alarm { member: 5, alarm: ALARM_NOSPACE };
        let put = Command::Put(Put { key: b"k", ..Put::default() });
        let listed = |listed| Ok(Outcome::Alarm { alarm, listed });
        let raised = apply(&mut state, &[Command::AlarmActivate(alarm), Command::AlarmActivate(alarm), put.clone()]);
        assert_eq!(raised, [listed(true), listed(true), Err(ApplyError::NoSpace)]);
        let results = apply(
            &mut state,
            &[
                Command::Compact { revision: 1 },
                Command::AlarmDeactivate(Alarm { member: 0, ..alarm }),
                put.clone(),
                Command::AlarmDeactivate(alarm),
                Command::AlarmDeactivate(alarm),
                put,
            ],
        );
        assert!(matches!(results[0], Ok(Outcome::Compact(_))), "compaction frees space");
        assert!(matches!(results[1], Ok(Outcome::Alarm { listed: false, .. })), "member 0 is no wildcard");
        assert_eq!(results[2], Err(ApplyError::NoSpace));
        assert_eq!(results[3..5], [listed(true), listed(false)]);
        assert!(matches!(results[5], Ok(Outcome::Put(_))));
    }
}
