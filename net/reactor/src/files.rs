//! The data directory: names, open files, their locks and mappings, and all blocking file work.
//!
//! Owns: how a file is created, locked, mapped, read and removed. Does not know: the ring or the turn.
//! Everything here blocks; it runs at boot on the core's thread and later on the helper thread only.
//!
//! Invariants
//! - I1: the lock of a file is held by the very open file description its I/O uses, so a killed process's writes that
//!   are still in the kernel keep the lock until they have ended.
//! - I2: a name exists only once its file is fully prepared and synced: files are made under a name that ends in
//!   [`UNFINISHED`] and renamed.
//! - I3: names never leave the data directory; symbolic links are not followed.

use crate::aligned::{AlignedBuffer, BLOCK_BYTES};
use crate::log::in_context;
use crate::mapping::Mapping;
use crate::port::{FileMode, Preparation};
use crate::sys;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Ends the name of a file that is being created; such names are never listed.
const UNFINISHED: &str = ".new";
/// Size of one zeroing or reading system call.
const CHUNK_BYTES: usize = 1 << 20;
/// Zeros written at once: short, so that a log record that comes meanwhile is not long behind them.
const ZEROS_BYTES: usize = 256 << 10;
const LOCK_POLL: Duration = Duration::from_millis(2);

/// A file that is open, locked and, in [`FileMode::Store`], mapped.
pub(crate) struct OpenFile {
    pub(crate) file: Arc<File>,
    pub(crate) mode: FileMode,
    pub(crate) bytes: u64,
    pub(crate) mapping: Option<Arc<Mapping>>,
}

/// The data directory.
#[derive(Clone)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where `name` lives. Panics on a name that would leave the directory (I3).
    fn path(&self, name: &str) -> PathBuf {
        let inside = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        assert!(name.is_empty() || inside, "I3: the name {name:?} stays inside the data directory");
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }

    pub(crate) fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let path = self.path(directory);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(in_context(error, &format!("cannot list {}", path.display()))),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            // Names of ours are ASCII; anything else is not ours to touch.
            if let Some(name) = name.to_str()
                && entry.file_type()?.is_file()
                && !name.ends_with(UNFINISHED)
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn create_directory(&self, directory: &str) -> io::Result<()> {
        let path = self.path(directory);
        let create = || {
            create_directory_at(&path)?;
            // What a killed predecessor renamed or made may not be on the medium yet.
            File::open(&path)?.sync_all()?;
            match sync_parent(&path) {
                // A parent that this user may not list was not made by an earlier start.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                result => result,
            }
        };
        create().map_err(|error| in_context(error, &format!("cannot create {}", path.display())))
    }

    /// Opens (or makes) a file that serves as a lock only. `Ok(None)`: somebody holds it.
    pub(crate) fn lock_owner(&self, name: &str) -> io::Result<Option<File>> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let lock = || {
            let file = options.open(&path)?;
            Ok(sys::try_lock(&file)?.then_some(file))
        };
        lock().map_err(|error| in_context(error, &format!("cannot lock {}", path.display())))
    }

    pub(crate) fn open(&self, name: &str, mode: FileMode, wait_max: Duration) -> io::Result<OpenFile> {
        let path = self.path(name);
        let open = || {
            let file = open_direct(&path, OpenOptions::new().read(true).write(true))?;
            lock_within(&file, wait_max)?;
            finish_open(file, mode)
        };
        open().map_err(|error| in_context(error, &format!("cannot open {}", path.display())))
    }

    /// Makes a file of `bytes` bytes; an older file of that name is replaced. `pause` is called between chunks of work,
    /// so that urgent work can go first.
    pub(crate) fn create(
        &self,
        name: &str,
        bytes: u64,
        mode: FileMode,
        preparation: Preparation,
        pause: &mut dyn FnMut(),
    ) -> io::Result<OpenFile> {
        assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES as u64), "{name}: {bytes} bytes are whole blocks");
        let path = self.path(name);
        let unfinished = self.path(&format!("{name}{UNFINISHED}"));
        let mut create = || {
            remove_if_there(&unfinished)?;
            let file = open_direct(&unfinished, OpenOptions::new().read(true).write(true).create_new(true))?;
            lock_within(&file, Duration::ZERO)?;
            sys::reserve(&file, bytes)?;
            if preparation == Preparation::PreWrite {
                write_zeros(&file, bytes, pause)?;
            }
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            sync_parent(&path)?;
            finish_open(file, mode)
        };
        create().map_err(|error| {
            // On a full disk, what it got of it would be missed.
            let _ = remove_if_there(&unfinished);
            in_context(error, &format!("cannot create {}", path.display()))
        })
    }

    pub(crate) fn unlink(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        let unlink = || fs::remove_file(&path).and_then(|()| sync_parent(&path));
        unlink().map_err(|error| in_context(error, &format!("cannot remove {}", path.display())))
    }
}

fn open_direct(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.mode(0o600).custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW).open(path).map_err(|error| {
        if error.kind() == io::ErrorKind::InvalidInput {
            return in_context(error, "the file system has no direct I/O (O_DIRECT); use ext4 or xfs");
        }
        error
    })
}

fn lock_within(file: &File, wait_max: Duration) -> io::Result<()> {
    let start = Instant::now();
    while !sys::try_lock(file)? {
        if start.elapsed() >= wait_max {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "locked by another process"));
        }
        thread::sleep(LOCK_POLL);
    }
    Ok(())
}

fn finish_open(file: File, mode: FileMode) -> io::Result<OpenFile> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mapped = mode == FileMode::Store && metadata.len() > 0;
    let mapping = if mapped { Some(Arc::new(Mapping::new(&file)?)) } else { None };
    Ok(OpenFile { file: Arc::new(file), mode, bytes: metadata.len(), mapping })
}

fn write_zeros(file: &File, bytes: u64, pause: &mut dyn FnMut()) -> io::Result<()> {
    let zeros = AlignedBuffer::new(ZEROS_BYTES);
    let mut offset = 0;
    while offset < bytes {
        let len = ZEROS_BYTES.min(usize::try_from(bytes - offset).unwrap_or(ZEROS_BYTES));
        file.write_all_at(zeros.bytes(len), offset)?;
        offset += len as u64;
        pause();
    }
    Ok(())
}

/// Reads exactly `len` bytes past every cache.
pub(crate) fn read_direct(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut chunk = AlignedBuffer::new(CHUNK_BYTES.min(len.next_multiple_of(BLOCK_BYTES)).max(BLOCK_BYTES));
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let wanted = CHUNK_BYTES.min(len - bytes.len());
        let got = retry(|| file.read_at(chunk.bytes_mut(wanted), offset + bytes.len() as u64))?;
        if got < wanted {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("only {got} of {wanted} bytes")));
        }
        bytes.extend_from_slice(chunk.bytes(wanted));
    }
    Ok(bytes)
}

/// Writes all of `bytes` past every cache; durable at once in [`FileMode::Log`].
pub(crate) fn write_direct(open: &OpenFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = &open.file;
    let mut chunk = AlignedBuffer::new(CHUNK_BYTES.min(bytes.len().next_multiple_of(BLOCK_BYTES)).max(BLOCK_BYTES));
    for (number, part) in bytes.chunks(CHUNK_BYTES).enumerate() {
        chunk.bytes_mut(part.len()).copy_from_slice(part);
        let put = retry(|| file.write_at(chunk.bytes(part.len()), offset + (number * CHUNK_BYTES) as u64))?;
        if put < part.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, format!("only {put} of {} bytes", part.len())));
        }
    }
    if open.mode == FileMode::Log { file.sync_data() } else { Ok(()) }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn create_directory_at(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_directory_at(&parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent_of(path))?.sync_all()
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
