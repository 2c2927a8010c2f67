//! From a data directory to a replica.
//!
//! Owns: the order of a start: owner lock, refusal of foreign directories, files locked on the descriptions their I/O
//! uses, hard state, checkpoint, log. Does not know: sockets, clients, turns.
//!
//! Invariants
//! - I1: nothing is written before the owner lock is held and the directory is known to be ours or empty.
//! - I2: every data file is locked before it is read, so a killed predecessor's writes have ended.
//! - I3: whatever is refused is named: file, offset, and what an operator can do.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use trilith_engine::mvcc::Keyspace;
use trilith_engine::mvcc::keyspace::KeyspaceState;
use trilith_engine::page_source::{Block, FileKind, PageSource, StoreFile, Unavailable};
use trilith_engine::replica::{Replica, ReplicaBoot, open_state};
use trilith_engine::store::row_log::RowLog;
use trilith_engine::store::{self, SUPERBLOCK_BYTES, Store, StoreMedia};
use trilith_engine::tables::{Member, Tables};
use trilith_raftlog::wal::hard_state::HardStateCopy;
use trilith_raftlog::wal::{hard_state_file_name, segment_slot};
use trilith_raftlog::{
    EntryType, HardState, Identity, Incarnation, LogMedia, LogPosition, Lsn, MediaError, MemberId, RecoverError,
    RecoverOptions, SegmentFile,
};
use trilith_reactor::{BootFiles, FileId, FileMode, Port, Preparation};

use crate::disk::{Disk, RESERVE_FILE_NAME, store_file, store_file_name};
use crate::node::NodeOptions;
use crate::{journal::Field, journal::Level};

/// How long a data file's lock is awaited: a killed process may keep writing for a while.
pub const LOCK_WAIT: u64 = 30_000_000_000;

const HARD_STATE_BYTES: u64 = 4096;
const BLOCK_BYTES: u64 = 4096;
/// Room in a log entry for what surrounds a request.
const ENTRY_BYTES_EXTRA: u64 = 1024;

/// Why a member does not start.
#[derive(Debug)]
pub enum BootError {
    /// A live process holds the directory.
    InUse,
    /// The directory holds etcd's data.
    EtcdData,
    /// A file that is not ours, or of a layout this version does not know.
    UnknownFile(String),
    /// The directory belongs to another cluster than the given token says.
    OtherCluster {
        /// What the directory says.
        found: Identity,
        /// Peer URLs of its member.
        peer_urls: Vec<String>,
        /// The token.
        token: String,
    },
    /// The first start was cut short before it stored its member, and the options describe another.
    OtherMember {
        /// What the directory says.
        found: Identity,
        /// What the options say.
        expected: MemberId,
    },
    /// Options that no data directory, or not this one, can be run with.
    Options(String),
    /// The environment refused a call.
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        error: io::Error,
    },
    /// The log cannot be used.
    Log(RecoverError),
    /// The store cannot be used.
    Store(String),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => {
                f.write_str("the data directory is in use by another process: stop it, or choose another --data-dir")
            }
            Self::EtcdData => f.write_str(
                "the data directory holds etcd's data (member/snap), which this server does not read and has not \
                 touched: choose an empty --data-dir and copy the keys through the client API",
            ),
            Self::UnknownFile(name) => {
                write!(
                    f,
                    "the data directory holds {name:?}, which is not part of this server's layout: choose another \
                     --data-dir"
                )
            }
            Self::OtherCluster { found, peer_urls, token } => write!(
                f,
                "the data directory belongs to cluster {}, which its member at {} did not make with \
                 --initial-cluster-token={token}: check --data-dir, or leave the token out, which only a new member \
                 needs",
                found.cluster_id,
                peer_urls.join(",")
            ),
            Self::OtherMember { found, expected } => write!(
                f,
                "the first start with the data directory, of member {}, ended before it stored anything, and the \
                 options describe member {expected}: start with the --initial-advertise-peer-urls and \
                 --initial-cluster-token of then, or with an empty --data-dir",
                found.member_id
            ),
            Self::Options(text) => f.write_str(text),
            Self::Io { what, error } => match io_advice(error.kind()) {
                Some(advice) => write!(f, "{what}: {error}: {advice}"),
                None => write!(f, "{what}: {error}"),
            },
            Self::Log(error) if error.place().is_some() => write!(
                f,
                "{error}. Nothing was changed. A cluster of one has no copy to repair from: restore a backup, or give \
                 up everything from that LSN on with --wal-discard-from-lsn"
            ),
            Self::Log(error @ RecoverError::OtherVersion { .. }) => {
                write!(f, "{error}. Nothing was changed: start the version that wrote it")
            }
            Self::Log(error) => write!(f, "{error}. Nothing was changed: restore a backup"),
            Self::Store(text) => write!(f, "{text}. Nothing was changed: restore a backup"),
        }
    }
}

impl std::error::Error for BootError {}

/// What an operator can do about an environment that refuses a call on the data directory.
fn io_advice(kind: io::ErrorKind) -> Option<&'static str> {
    Some(match kind {
        io::ErrorKind::PermissionDenied => {
            "the data directory and all in it must belong to the user that the server runs as: chown -R it to that \
             user, or choose another --data-dir"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is mounted read-only: remount it, or choose another --data-dir"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a part of the path is a file: choose another --data-dir"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "there is no room for a first log segment: free some gigabytes, or choose another --data-dir"
        }
        io::ErrorKind::WouldBlock => {
            "writes of a process that was killed are still on their way to the disk, or another process holds the \
             file: try again when it has ended"
        }
        _ => return None,
    })
}

/// What a start yields.
#[derive(Debug)]
pub struct Booted {
    /// The replica.
    pub replica: Replica,
    /// Its files.
    pub disk: Disk,
    /// Who this is.
    pub identity: Identity,
}

/// Starts a member from its data directory, or makes a new one.
///
/// # Errors
/// See [`BootError`].
pub fn boot<P: Port + BootFiles>(options: &NodeOptions, port: &mut P) -> Result<Booted, BootError> {
    check_layout(port)?;
    // Making a directory that exists syncs it: a killed predecessor may have made names that were not synced yet.
    io(port.create_directory(""), || "creating the data directory".to_owned())?;
    if !io(port.lock_owner("LOCK"), || "locking LOCK".to_owned())? {
        return Err(BootError::InUse);
    }
    for directory in ["wal", "store"] {
        io(port.create_directory(directory), || format!("creating {directory}"))?;
    }
    let mut disk = Disk::new(options.cache_bytes);
    let hard_states = open_hard_states(port, &mut disk, options)?;
    let (identity, has_used_hard_state) = decide_identity(port, options, &hard_states)?;
    let store = open_store(port, &mut disk, options, identity, has_used_hard_state)?;
    let (mut keyspace, tables, position) = open_contents(port, &disk, options, &store)?;
    keyspace.rows_mut().forget_removed(|file| disk.store_file(file).is_some());
    check_row_files(&disk, keyspace.rows())?;
    check_limits(options, store.key_bytes_max(), keyspace.rows().row_bytes_max())?;
    let recovered = recover_log(port, &mut disk, options, hard_states, &position)?;
    check_member(port, options, identity, &tables, &recovered)?;
    open_reserve(port, &mut disk, options)?;
    if let Some(dropped) = &recovered.dropped {
        let lsn = i64::try_from(dropped.first_lsn.0).unwrap_or(i64::MAX);
        options.log(
            port,
            Level::Info,
            "dropped an unacknowledged tail of the log",
            &[("first-lsn", Field::Number(lsn))],
        );
    }
    remove_leftovers(port, &mut disk, |file| match file.kind {
        FileKind::Superblock => false,
        FileKind::Index => file.number >= store.index_files(),
        FileKind::Rows => !keyspace.rows().has_file(file),
    })?;
    let replica = Replica::boot(
        options.replica,
        ReplicaBoot {
            identity,
            voters: vec![identity.member_id],
            configuration: initial_configuration(options, identity),
            recovered,
            store,
            keyspace,
            tables,
            position,
            seed: port.entropy(),
            now: port.now(),
        },
    );
    Ok(Booted { replica, disk, identity })
}

fn io<T>(result: io::Result<T>, what: impl FnOnce() -> String) -> Result<T, BootError> {
    result.map_err(|error| BootError::Io { what: what(), error })
}

/// Refuses directories of others before anything is written (I1).
fn check_layout<P: BootFiles>(port: &mut P) -> Result<(), BootError> {
    let list = |port: &mut P, directory: &str| io(port.list(directory), || format!("listing {directory:?}"));
    if !list(port, "member/snap")?.is_empty() || !list(port, "member/wal")?.is_empty() {
        return Err(BootError::EtcdData);
    }
    if let Some(name) = list(port, "")?.into_iter().find(|name| name != "LOCK") {
        return Err(BootError::UnknownFile(name));
    }
    Ok(())
}

/// Every row file that the checkpoint in use names is there. One that is lost whole is told at once, not when it is
/// read from, written to or removed, maybe much later.
fn check_row_files(disk: &Disk, rows: &RowLog) -> Result<(), BootError> {
    match rows.files().into_iter().find(|&file| disk.store_file(file).is_none()) {
        Some(lost) => Err(BootError::Store(format!("{} is missing", store_file_name(lost)))),
        None => Ok(()),
    }
}

/// Whatever a client may send must fit a log entry, a row and, as a key, an index page: nothing later can refuse it.
fn check_limits(options: &NodeOptions, key_bytes_max: u64, row_bytes_max: u64) -> Result<(), BootError> {
    options.replica.log.check().map_err(|text| BootError::Options(text.to_owned()))?;
    let longest = key_bytes_max.min(row_bytes_max).min(options.replica.log.entry_bytes_max as u64 - ENTRY_BYTES_EXTRA);
    if options.request_bytes_max as u64 > longest {
        return Err(BootError::Options(format!(
            "--max-request-bytes={} exceeds {longest}, the longest request that this store's files can hold",
            options.request_bytes_max
        )));
    }
    Ok(())
}

/// Removes store files that a crash left over: the checkpoint in use names nothing in them. They would be replaced
/// sooner or later; until then they would take up room.
fn remove_leftovers<P: BootFiles>(
    port: &mut P,
    disk: &mut Disk,
    is_left_over: impl Fn(StoreFile) -> bool,
) -> Result<(), BootError> {
    for file in disk.store_files() {
        if is_left_over(file) {
            let name = store_file_name(file);
            let id = disk.remove_store_file(file);
            io(port.unlink(id, &name), || format!("removing {name}, which a crash left over"))?;
        }
    }
    Ok(())
}

/// Opens both copies, making missing ones; returns their contents.
fn open_hard_states<P: BootFiles>(
    port: &mut P,
    disk: &mut Disk,
    options: &NodeOptions,
) -> Result<[Option<Vec<u8>>; 2], BootError> {
    let present = io(port.list("wal"), || "listing \"wal\"".to_owned())?;
    let mut contents = [None, None];
    for copy in 0..2_u8 {
        let name = hard_state_file_name(copy);
        let bare = name.strip_prefix("wal/").unwrap_or(&name);
        let file = if present.iter().any(|found| found == bare) {
            let file = io(port.open(&name, FileMode::Log, options.lock_wait), || format!("opening {name}"))?;
            let bytes = io(port.read(file, 0, HARD_STATE_BYTES as usize), || format!("reading {name}"))?;
            contents[usize::from(copy)] = Some(bytes);
            file
        } else {
            io(port.create(&name, HARD_STATE_BYTES, FileMode::Log, Preparation::PreWrite), || {
                format!("creating {name}")
            })?
        };
        disk.add_hard_state(copy, file);
    }
    Ok(contents)
}

/// The directory's own identity if it was used before, else a new one; and whether it was, as far as the hard state
/// tells.
fn decide_identity<P: Port>(
    port: &mut P,
    options: &NodeOptions,
    hard_states: &[Option<Vec<u8>>; 2],
) -> Result<(Identity, bool), BootError> {
    let mut stored: Option<Identity> = None;
    for (copy, bytes) in (0..).zip(hard_states) {
        match HardState::decode(bytes.as_deref()) {
            HardStateCopy::Valid(state) => stored = stored.or(Some(state.identity)),
            HardStateCopy::OtherVersion(version) => {
                let file = hard_state_file_name(copy);
                return Err(BootError::Log(RecoverError::OtherVersion { file, version }));
            }
            // Whether anything hangs on it shows in store and log.
            HardStateCopy::Absent | HardStateCopy::Damaged => {}
        }
    }
    let is_unused = |bytes: &Option<Vec<u8>>| matches!(HardState::decode(bytes.as_deref()), HardStateCopy::Absent);
    let is_new = hard_states.iter().all(is_unused);
    if let Some(fault) = options.initial.cluster_fault.as_ref().filter(|_| is_new) {
        return Err(BootError::Options(fault.clone()));
    }
    if options.initial.is_joining && is_new {
        return Err(BootError::Options(
            "--initial-cluster-state=existing with a data directory that holds no member: cannot fetch cluster info \
             from peer urls: could not retrieve cluster information from the given URLs (this version of trilithd has \
             no support for clusters of several members; say --initial-cluster-state=new to begin a cluster)"
                .to_owned(),
        ));
    }
    let identity = stored.unwrap_or_else(|| {
        let (cluster_id, member_id) = options.initial.ids();
        Identity { cluster_id, member_id, incarnation: Incarnation(port.entropy() | 1) }
    });
    Ok((identity, stored.is_some()))
}

/// The data says who this member is. What the options say of a new one is ignored with a warning where it differs, but
/// for a token that means another cluster.
fn check_member<P: Port>(
    port: &mut P,
    options: &NodeOptions,
    identity: Identity,
    tables: &Tables,
    recovered: &trilith_raftlog::Recovered,
) -> Result<(), BootError> {
    let initial = &options.initial;
    let Some(peer_urls) = stored_peer_urls(identity.member_id, tables, recovered) else {
        // The identifiers that a start left behind without its member are worth as much as the options that made them.
        return match (&initial.cluster_fault, initial.ids()) {
            (Some(fault), _) => Err(BootError::Options(fault.clone())),
            (None, ids) if ids == (identity.cluster_id, identity.member_id) => Ok(()),
            (None, (_, expected)) => Err(BootError::OtherMember { found: identity, expected }),
        };
    };
    if initial.means_another_cluster(identity.cluster_id, &peer_urls) {
        return Err(BootError::OtherCluster { found: identity, peer_urls, token: initial.token.clone() });
    }
    let ignored = initial.ignored(&peer_urls);
    if !ignored.is_empty() {
        let message = "flags of a new member are ignored: the data directory holds a member";
        let fields = [("ignored", Field::List(&ignored)), ("member-peer-urls", Field::List(&peer_urls))];
        options.log(port, Level::Warn, message, &fields);
    }
    Ok(())
}

/// The peer URLs of the member that the data is of, from the checkpoint or the log behind it.
fn stored_peer_urls(member: MemberId, tables: &Tables, recovered: &trilith_raftlog::Recovered) -> Option<Vec<String>> {
    let peer_urls = |tables: &Tables| tables.members().get(&member.0).map(|member| member.peer_urls.clone());
    let configurations = recovered.entries.iter().filter(|entry| entry.entry_type == EntryType::Configuration);
    let logged = configurations.filter_map(|entry| peer_urls(&Tables::decode(&entry.payload)?)).next_back();
    logged.or_else(|| peer_urls(tables))
}

/// Opens every store file, making the superblocks of a new store, and finds the newest checkpoint.
fn open_store<P: BootFiles>(
    port: &mut P,
    disk: &mut Disk,
    options: &NodeOptions,
    identity: Identity,
    has_used_hard_state: bool,
) -> Result<Store, BootError> {
    let names = io(port.list("store"), || "listing \"store\"".to_owned())?;
    let mut files: Vec<StoreFile> = names.iter().filter_map(|name| store_file(&format!("store/{name}"))).collect();
    for number in 0..2 {
        let file = StoreFile { kind: FileKind::Superblock, number };
        if !files.contains(&file) {
            let name = store_file_name(file);
            let created = port.create(&name, SUPERBLOCK_BYTES, FileMode::Store, Preparation::PreWrite);
            let id = io(created, || format!("creating {name}"))?;
            disk.add_store_file(file, id, SUPERBLOCK_BYTES);
        }
    }
    files.sort_unstable();
    for file in files {
        let name = store_file_name(file);
        let id = io(port.open(&name, FileMode::Store, options.lock_wait), || format!("opening {name}"))?;
        if file.kind == FileKind::Superblock {
            // A killed predecessor may have written it and never synced it. What is about to be believed must not be
            // lost together with the other copy, which the next checkpoint overwrites.
            io(port.sync(id), || format!("syncing {name}"))?;
        }
        let bytes = io(port.len(id), || format!("measuring {name}"))?;
        disk.add_store_file(file, id, bytes);
    }
    let mut media = StoreFiles { port, disk };
    store::recover(options.store, identity, &mut media).map_err(|error| match error {
        // The incarnation of a lost hard state was made up a moment ago.
        store::RecoverError::ForeignIdentity { file, .. } if !has_used_hard_state => {
            BootError::Log(RecoverError::HardStateLost { file: store_file_name(file) })
        }
        error => BootError::Store(describe_store(&error, identity)),
    })
}

/// Opens the reserve, or makes it. A disk without room for it is no reason not to start: what is stored can be read,
/// and deleted.
fn open_reserve<P: Port + BootFiles>(port: &mut P, disk: &mut Disk, options: &NodeOptions) -> Result<(), BootError> {
    let bytes = options.reserve_bytes;
    let names = io(port.list("store"), || "listing \"store\"".to_owned())?;
    let is_there = names.iter().any(|name| RESERVE_FILE_NAME.strip_prefix("store/") == Some(name));
    let mut reserve = None;
    if is_there {
        let opened = port.open(RESERVE_FILE_NAME, FileMode::Log, options.lock_wait);
        let id = io(opened, || format!("opening {RESERVE_FILE_NAME}"))?;
        if io(BootFiles::len(port, id), || format!("measuring {RESERVE_FILE_NAME}"))? == bytes {
            reserve = Some(id);
        } else {
            // Of other options.
            io(BootFiles::unlink(port, id, RESERVE_FILE_NAME), || format!("removing {RESERVE_FILE_NAME}"))?;
        }
    }
    if reserve.is_none() && bytes > 0 {
        let made = BootFiles::create(port, RESERVE_FILE_NAME, bytes, FileMode::Log, Preparation::Reserve);
        reserve = match made {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                let message = "no room for the reserve: puts are refused until there is";
                options.log(port, Level::Error, message, &[("error", Field::Text(&error.to_string()))]);
                None
            }
            made => Some(io(made, || format!("creating {RESERVE_FILE_NAME}"))?),
        };
    }
    disk.add_reserve(reserve, bytes, port.now());
    Ok(())
}

fn describe_store(error: &store::RecoverError, identity: Identity) -> String {
    match error {
        store::RecoverError::Media(file, reason) => format!("reading {}: {reason}", store_file_name(*file)),
        store::RecoverError::Corrupt { file, offset, what } => {
            format!("{} is damaged at offset {offset}: {what}", store_file_name(*file))
        }
        store::RecoverError::ForeignIdentity { file, found } => format!(
            "{} belongs to member {} of cluster {} (incarnation {}), but {} to member {} of cluster {} (incarnation \
             {}): the files of two data directories are mixed",
            store_file_name(*file),
            found.member_id,
            found.cluster_id,
            found.incarnation,
            hard_state_file_name(0),
            identity.member_id,
            identity.cluster_id,
            identity.incarnation
        ),
        other => other.to_string(),
    }
}

/// Reads what a checkpoint keeps in memory: row directories and small tables.
fn open_contents<P: Port + BootFiles>(
    port: &mut P,
    disk: &Disk,
    options: &NodeOptions,
    store: &Store,
) -> Result<(Keyspace<store::Tree>, Tables, LogPosition), BootError> {
    let mut pages = BootPages::default();
    loop {
        match open_state(store, options.rows, &pages) {
            Ok(Some(contents)) => return Ok(contents),
            Ok(None) if store.superblock().is_none() => {
                let state = KeyspaceState { revision: 1, compacted: -1, digest: 0 };
                let keyspace = Keyspace::new(store.keys(), RowLog::new(options.rows), state, 0);
                return Ok((keyspace, Tables::default(), LogPosition::default()));
            }
            Ok(None) => return Err(BootError::Store("the checkpoint's tables cannot be read".to_owned())),
            Err(Unavailable::Missing(_)) => pages.load_wanted(port, disk)?,
            Err(Unavailable::Corrupt(block)) => {
                let name = store_file_name(block.file);
                let what = if pages.lacks(block) { "does not reach" } else { "is damaged at" };
                return Err(BootError::Store(format!("{name} {what} offset {}", block.offset)));
            }
        }
    }
}

fn recover_log<P: BootFiles>(
    port: &mut P,
    disk: &mut Disk,
    options: &NodeOptions,
    hard_states: [Option<Vec<u8>>; 2],
    position: &LogPosition,
) -> Result<trilith_raftlog::Recovered, BootError> {
    let mut segments = Vec::new();
    for name in io(port.list("wal"), || "listing \"wal\"".to_owned())? {
        let name = format!("wal/{name}");
        let Some(slot) = segment_slot(&name) else { continue };
        let file = io(port.open(&name, FileMode::Log, options.lock_wait), || format!("opening {name}"))?;
        io(port.sync(file), || format!("syncing {name}"))?;
        let bytes = io(port.len(file), || format!("measuring {name}"))?;
        disk.add_segment(slot, file);
        segments.push((SegmentFile { slot, bytes }, file));
    }
    let mut media = LogFiles { port, segments, hard_states };
    let recover_options = RecoverOptions { after: position.index, discard_from: options.wal_discard_from_lsn.map(Lsn) };
    let recovered = trilith_raftlog::recover(&mut media, &recover_options).map_err(BootError::Log)?;
    if recovered.base != *position {
        return Err(BootError::Store(format!(
            "the checkpoint at index {} does not continue this log (digest {}, the log has {} at index {})",
            position.index, position.digest, recovered.base.digest, recovered.base.index
        )));
    }
    Ok(recovered)
}

fn initial_configuration(options: &NodeOptions, identity: Identity) -> Tables {
    let member = Member { peer_urls: options.initial.peer_urls.clone(), ..Member::default() };
    Tables::with_members([(identity.member_id.0, member)])
}

/// The log's files at boot.
struct LogFiles<'a, P> {
    port: &'a mut P,
    segments: Vec<(SegmentFile, FileId)>,
    hard_states: [Option<Vec<u8>>; 2],
}

impl<P: BootFiles> LogMedia for LogFiles<'_, P> {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, MediaError> {
        Ok(self.segments.iter().map(|(file, _)| *file).collect())
    }

    fn read(&mut self, slot: u32, offset: u64, len: usize) -> Result<Vec<u8>, MediaError> {
        let found = self.segments.iter().find(|(file, _)| file.slot == slot);
        let (_, file) = found.ok_or_else(|| MediaError { reason: format!("no segment in slot {slot}") })?;
        self.port.read(*file, offset, len).map_err(|error| MediaError { reason: error.to_string() })
    }

    fn read_hard_state(&mut self, copy: u8) -> Result<Option<Vec<u8>>, MediaError> {
        Ok(self.hard_states[usize::from(copy)].clone())
    }
}

/// The store's files at boot.
struct StoreFiles<'a, P> {
    port: &'a mut P,
    disk: &'a Disk,
}

impl<P: BootFiles> StoreMedia for StoreFiles<'_, P> {
    fn read(&mut self, file: StoreFile, offset: u64, len: usize) -> Result<Option<Vec<u8>>, String> {
        let Some(id) = self.disk.store_file(file) else { return Ok(None) };
        let bytes = self.port.len(id).map_err(|error| error.to_string())?;
        if offset.checked_add(len as u64).is_none_or(|end| end > bytes) {
            return Ok(None);
        }
        read_range(self.port, id, bytes, offset, len).map(Some).map_err(|error| error.to_string())
    }
}

/// Reads any range by the blocks around it.
fn read_range<P: BootFiles>(port: &mut P, id: FileId, bytes: u64, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let start = offset / BLOCK_BYTES * BLOCK_BYTES;
    let end = (offset + len as u64).next_multiple_of(BLOCK_BYTES).min(bytes);
    let whole = usize::try_from(end - start).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let skip = usize::try_from(offset - start).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut block = port.read(id, start, whole)?;
    block.truncate(skip + len);
    block.drain(..skip);
    Ok(block)
}

/// Blocks read at boot: those that were asked for in vain are loaded before the next attempt.
#[derive(Debug, Default)]
struct BootPages {
    /// `None`: no file holds it. What may be missing (the older checkpoint's part, once it was let go) is no error
    /// here.
    blocks: BTreeMap<Block, Option<Vec<u8>>>,
    wanted: RefCell<BTreeSet<Block>>,
}

impl BootPages {
    fn load_wanted<P: BootFiles>(&mut self, port: &mut P, disk: &Disk) -> Result<(), BootError> {
        let mut media = StoreFiles { port, disk };
        for block in self.wanted.take() {
            let name = store_file_name(block.file);
            let read = media.read(block.file, block.offset, block.len as usize);
            let bytes = read.map_err(|reason| BootError::Store(format!("reading {name}: {reason}")))?;
            self.blocks.insert(block, bytes);
        }
        Ok(())
    }

    /// Whether no file holds this block, which was asked for.
    fn lacks(&self, block: Block) -> bool {
        self.blocks.get(&block).is_some_and(Option::is_none)
    }
}

impl PageSource for BootPages {
    fn block(&self, block: Block) -> Result<&[u8], Unavailable> {
        match self.blocks.get(&block) {
            Some(Some(bytes)) => Ok(bytes),
            Some(None) => Err(Unavailable::Corrupt(block)),
            None => {
                self.wanted.borrow_mut().insert(block);
                Err(Unavailable::Missing(block))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_call_says_what_to_do() {
        let said = |kind: io::ErrorKind| {
            let error = io::Error::from(kind);
            BootError::Io { what: "creating the data directory".to_owned(), error }.to_string()
        };
        for (kind, advice) in [
            (io::ErrorKind::PermissionDenied, "must belong to the user"),
            (io::ErrorKind::ReadOnlyFilesystem, "mounted read-only"),
            (io::ErrorKind::NotADirectory, "a part of the path is a file"),
            (io::ErrorKind::StorageFull, "no room for a first log segment"),
            (io::ErrorKind::WouldBlock, "try again when it has ended"),
        ] {
            let text = said(kind);
            assert!(text.starts_with("creating the data directory: ") && text.contains(advice), "{text}");
        }
        assert!(!said(io::ErrorKind::BrokenPipe).contains("choose"), "nothing to advise");
    }
}
