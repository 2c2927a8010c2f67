//! From committed entries to state, one command at a time.
//!
//! Owns: the place in the log that apply has reached, and the state it changes (keyspace and small tables). Does not
//! know: raft, who waits for an answer, when a checkpoint is due.
//!
//! Invariants
//! - I1: commands are applied in log order, each once; a suspended command has changed nothing and is tried again.
//! - I2: the applied index advances over every entry, whatever its commands answer.
//! - I3: an entry this version cannot read ends the process: skipping it would make members differ.

use std::sync::Arc;

use trilith_raftlog::{Entry as LogEntry, EntryType, Index};

use crate::command::{Alarm, Command, Entry};
use crate::mvcc::key_tree::KeyTree;
use crate::mvcc::{CompactOutcome, DeleteOutcome, Keyspace, MvccError, PutOutcome, TxnOutcome};
use crate::page_source::{PageSource, Unavailable};
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
    /// Maintenance.Alarm: whether the set of alarms changed.
    Alarm {
        /// The alarm named.
        alarm: Alarm,
        /// True if it was raised or cleared by this command.
        changed: bool,
    },
    /// A member published itself.
    Published,
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
    /// A page is needed first; nothing has changed.
    Suspended(Unavailable),
}

/// An entry on its way through apply.
#[derive(Debug)]
struct Cursor {
    index: Index,
    payload: Arc<Vec<u8>>,
    position: usize,
    next_sequence: u64,
}

/// The replicated state.
#[derive(Debug)]
pub struct State<T> {
    /// Keys, their history, revisions.
    pub keyspace: Keyspace<T>,
    /// Members and alarms.
    pub tables: Tables,
    cursor: Option<Cursor>,
    applied: Index,
}

impl<T: KeyTree> State<T> {
    /// The state as of `applied`.
    #[must_use]
    pub fn new(keyspace: Keyspace<T>, tables: Tables, applied: Index) -> Self {
        Self { keyspace, tables, cursor: None, applied }
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
                Entry::decode(&payload).expect("I3: an entry this version can read").header.first_sequence
            }
            _ => 0,
        };
        self.cursor = Some(Cursor { index: entry.index, payload, position: 0, next_sequence });
    }

    /// Applies the next command of the entry handed in.
    pub fn apply_next(&mut self, pages: &dyn PageSource) -> ApplyStep {
        let Some(cursor) = self.cursor.take() else { return ApplyStep::Idle };
        let payload = Arc::clone(&cursor.payload);
        if payload.is_empty() {
            return self.finish_entry(cursor.index);
        }
        let mut entry = Entry::decode(&payload).expect("I3: checked when it was handed in");
        let header = entry.header;
        if cursor.position > 0 {
            entry.skip_to(cursor.position);
        }
        let Some(command) = entry.next_command() else { return self.finish_entry(cursor.index) };
        let command = command.expect("I3: a command this version can read");
        let id = CommandId { member: header.member, boot: header.boot, sequence: cursor.next_sequence };
        match self.apply(&command, pages) {
            Ok(result) => {
                let position = entry.position();
                let next_sequence = cursor.next_sequence + 1;
                self.keyspace.publish(self.applied.0);
                self.cursor = Some(Cursor { position, next_sequence, ..cursor });
                ApplyStep::Applied(Applied { id, result })
            }
            Err(unavailable) => {
                self.cursor = Some(cursor);
                ApplyStep::Suspended(unavailable)
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
        pages: &dyn PageSource,
    ) -> Result<Result<Outcome, ApplyError>, Unavailable> {
        if let Some(refusal) = self.alarm_refusal(command) {
            return Ok(Err(refusal));
        }
        let mvcc = ApplyError::Mvcc;
        Ok(match command {
            Command::Put(put) => self.keyspace.apply_put(put, pages)?.map(Outcome::Put).map_err(mvcc),
            Command::DeleteRange(del) => {
                self.keyspace.apply_delete_range(del, pages)?.map(Outcome::DeleteRange).map_err(mvcc)
            }
            Command::Txn(txn) => self.keyspace.apply_txn(txn, pages)?.map(Outcome::Txn).map_err(mvcc),
            Command::Compact { revision } => self.keyspace.apply_compact(*revision).map(Outcome::Compact).map_err(mvcc),
            Command::AlarmActivate(alarm) => {
                Ok(Outcome::Alarm { alarm: *alarm, changed: self.tables.apply_activate(*alarm) })
            }
            Command::AlarmDeactivate(alarm) => {
                Ok(Outcome::Alarm { alarm: *alarm, changed: self.tables.apply_deactivate(*alarm) })
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
        let writes =
            matches!(command, Command::Put(_) | Command::DeleteRange(_) | Command::Txn(_) | Command::Compact { .. });
        if writes && active(ALARM_CORRUPT) {
            return Some(ApplyError::Corrupt);
        }
        let grows = match command {
            Command::Put(_) => true,
            Command::Txn(txn) => txn.has_put(),
            _ => false,
        };
        (grows && active(ALARM_NOSPACE)).then_some(ApplyError::NoSpace)
    }
}
