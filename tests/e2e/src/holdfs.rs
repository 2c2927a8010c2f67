//! A FUSE file system that passes everything through to a backing folder, except that writes below one folder can be
//! held: they are neither applied nor answered until the test releases them, one by one and in any order.
//!
//! Owns the mount for its lifetime. Needs root and /dev/fuse; [`HoldFs::mount`] says when they are missing.
//!
//! I1  A held write has changed nothing in the backing folder.
//! I2  The kernel keeps no copy of files below the held folder (direct I/O) and lets their writes proceed side by
//!     side, so what is held is exactly what the server waits for.
//! I3  Dropping the file system releases what is held, so that no process hangs on it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// How long the kernel may cache names and attributes; nobody changes them behind its back.
const CACHE_TTL: Duration = Duration::from_secs(1);

/// The mounted file system.
pub struct HoldFs {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
}

/// Names one held write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(u64);

struct HeldWrite {
    file: Arc<File>,
    offset: u64,
    bytes: Vec<u8>,
    reply: ReplyWrite,
}

#[derive(Default)]
struct Held {
    holding: bool,
    /// When the newest write of the held folder came.
    newest: Option<Instant>,
    next: u64,
    writes: BTreeMap<u64, HeldWrite>,
}

/// What the file system thread and the test share.
#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HoldFs {
    /// Mounts `backing` at `mountpoint`; writes to files in a folder whose path ends with `folder` can be held.
    pub fn mount(backing: &Path, mountpoint: &Path, folder: &str) -> Result<Self> {
        if !Path::new("/dev/fuse").exists() {
            bail!("there is no /dev/fuse");
        }
        let shared = Arc::new(Shared::default());
        let passthrough = Passthrough {
            shared: Arc::clone(&shared),
            held_folder: PathBuf::from(folder),
            tree: Mutex::new(Tree::new(backing.to_owned())),
        };
        let session = fuser::spawn_mount(passthrough, mountpoint, &Config::default()).context("cannot mount")?;
        Ok(Self { shared, session: Some(session) })
    }

    /// Waits until no write came for the length of `quiet`, and holds every write from then on.
    pub fn hold_when_quiet(&self, quiet: Duration, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let mut held = self.shared.lock();
        while held.newest.is_some_and(|newest| newest.elapsed() < quiet) {
            if started.elapsed() > limit {
                bail!("writes came without a pause of {quiet:?} for {limit:?}");
            }
            held = self.shared.changed.wait_timeout(held, quiet / 4).unwrap_or_else(PoisonError::into_inner).0;
        }
        held.holding = true;
        Ok(())
    }

    /// Waits until a write that contains `mark` is held.
    pub fn wait_held(&self, mark: &[u8], limit: Duration) -> Result<WriteId> {
        let deadline = Instant::now() + limit;
        let mut held = self.shared.lock();
        loop {
            let found = held.writes.iter().find(|(_, write)| contains(&write.bytes, mark));
            if let Some((id, _)) = found {
                return Ok(WriteId(*id));
            }
            let now = Instant::now();
            if now >= deadline {
                let mark = String::from_utf8_lossy(mark);
                bail!("{} writes are held after {limit:?}, none contains {mark}", held.writes.len());
            }
            held = self.shared.changed.wait_timeout(held, deadline - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Applies and answers one held write.
    pub fn release(&self, id: WriteId) -> Result<()> {
        let write = self.shared.lock().writes.remove(&id.0).context("that write is not held")?;
        write.finish();
        Ok(())
    }

    /// Applies and answers all of them in the order they came, and holds no more.
    pub fn release_all(&self) {
        let writes = {
            let mut held = self.shared.lock();
            held.holding = false;
            std::mem::take(&mut held.writes)
        };
        for write in writes.into_values() {
            write.finish();
        }
    }

    /// Unmounts; every file must be closed by now.
    pub fn unmount(mut self) -> Result<()> {
        self.release_all();
        let session = self.session.take().expect("the session lives until here");
        session.umount_and_join().context("cannot unmount")
    }
}

impl Drop for HoldFs {
    /// A scenario that failed leaves no mount behind either; its server, dropped before, holds no file any more.
    fn drop(&mut self) {
        self.release_all();
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("cannot unmount: {error}");
        }
    }
}

impl HeldWrite {
    fn finish(self) {
        answer_write(&self.file, self.offset, &self.bytes, self.reply);
    }
}

fn answer_write(file: &File, offset: u64, bytes: &[u8], reply: ReplyWrite) {
    match file.write_all_at(bytes, offset) {
        Ok(()) => reply.written(u32::try_from(bytes.len()).expect("the kernel limits a write to a few MiB")),
        Err(error) => reply.error(error.into()),
    }
}

fn contains(bytes: &[u8], mark: &[u8]) -> bool {
    bytes.windows(mark.len()).any(|window| window == mark)
}

/// Inode numbers, open files, and the folder behind them.
struct Tree {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    files: HashMap<u64, Arc<File>>,
    next: u64,
}

impl Tree {
    fn new(root: PathBuf) -> Self {
        let number = INodeNo::ROOT.0;
        Self {
            paths: HashMap::from([(number, root.clone())]),
            numbers: HashMap::from([(root, number)]),
            files: HashMap::new(),
            next: number,
        }
    }

    fn path(&self, ino: INodeNo) -> io::Result<PathBuf> {
        self.paths.get(&ino.0).cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    fn number(&mut self, path: &Path) -> u64 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        self.next += 1;
        self.paths.insert(self.next, path.to_owned());
        self.numbers.insert(path.to_owned(), self.next);
        self.next
    }

    fn forget(&mut self, path: &Path) {
        self.numbers.remove(path);
    }

    /// The entry, and everything below it if it is a folder, goes by its new name from now on.
    fn rename(&mut self, from: &Path, to: &Path) {
        self.forget(to);
        for (number, path) in &mut self.paths {
            let Ok(below) = path.strip_prefix(from) else { continue };
            let moved = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
            self.numbers.remove(path);
            self.numbers.insert(moved.clone(), *number);
            *path = moved;
        }
    }

    fn attributes(&mut self, path: &Path) -> io::Result<FileAttr> {
        let facts = std::fs::symlink_metadata(path)?;
        Ok(attributes(self.number(path), &facts))
    }

    fn keep(&mut self, file: File) -> FileHandle {
        self.next += 1;
        self.files.insert(self.next, Arc::new(file));
        FileHandle(self.next)
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        self.files.get(&handle.0).cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

fn attributes(number: u64, facts: &Metadata) -> FileAttr {
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
    FileAttr {
        ino: INodeNo(number),
        size: facts.len(),
        blocks: facts.blocks(),
        atime: time(facts.atime()),
        mtime: time(facts.mtime()),
        ctime: time(facts.ctime()),
        crtime: UNIX_EPOCH,
        kind: if facts.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (facts.mode() & 0o7777) as u16,
        nlink: u32::try_from(facts.nlink()).unwrap_or(u32::MAX),
        uid: facts.uid(),
        gid: facts.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct Passthrough {
    shared: Arc<Shared>,
    held_folder: PathBuf,
    tree: Mutex<Tree>,
}

impl Passthrough {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_holdable(&self, path: &Path) -> bool {
        path.parent().is_some_and(|folder| folder.ends_with(&self.held_folder))
    }

    fn open_flags(&self, path: &Path) -> FopenFlags {
        if self.is_holdable(path) {
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
        } else {
            FopenFlags::empty()
        }
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.tree().path(parent)?.join(name))
    }

    fn look_up(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let path = self.child(parent, name)?;
        self.tree().attributes(&path)
    }

    fn open_file(&self, ino: INodeNo) -> io::Result<(FileHandle, FopenFlags)> {
        let mut tree = self.tree();
        let path = tree.path(ino)?;
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(_) => File::open(&path)?,
        };
        Ok((tree.keep(file), self.open_flags(&path)))
    }

    fn create_file(&self, path: &Path, mode: u32, flags: i32) -> io::Result<(FileAttr, FileHandle)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(mode);
        if flags & libc::O_EXCL == 0 {
            options.create(true)
        } else {
            options.create_new(true)
        };
        let file = options.open(path)?;
        let mut tree = self.tree();
        Ok((tree.attributes(path)?, tree.keep(file)))
    }

    fn change(&self, ino: INodeNo, mode: Option<u32>, size: Option<u64>) -> io::Result<FileAttr> {
        let mut tree = self.tree();
        let path = tree.path(ino)?;
        if let Some(mode) = mode {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
        if let Some(size) = size {
            OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        }
        tree.attributes(&path)
    }

    fn remove(&self, path: &Path, removed: io::Result<()>) -> io::Result<()> {
        removed?;
        self.tree().forget(path);
        Ok(())
    }

    fn allocate(&self, handle: FileHandle, offset: u64, length: u64, mode: i32) -> io::Result<()> {
        let file = self.tree().file(handle)?;
        if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
            return file.write_all_at(&vec![0; usize::try_from(length).unwrap_or(usize::MAX)], offset);
        }
        let size = file.metadata()?.len();
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && offset + length > size {
            file.set_len(offset + length)?;
        }
        Ok(())
    }

    fn entries(&self, ino: INodeNo) -> io::Result<Vec<(u64, FileType, std::ffi::OsString)>> {
        let mut tree = self.tree();
        let path = tree.path(ino)?;
        let mut entries = vec![(ino.0, FileType::Directory, ".".into()), (ino.0, FileType::Directory, "..".into())];
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            let kind = if entry.file_type()?.is_dir() { FileType::Directory } else { FileType::RegularFile };
            entries.push((tree.number(&entry.path()), kind, entry.file_name()));
        }
        Ok(entries)
    }
}

fn answer_empty(result: io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn answer_entry(result: io::Result<FileAttr>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&CACHE_TTL, &attributes, Generation(0)),
        Err(error) => reply.error(error.into()),
    }
}

fn answer_attributes(result: io::Result<FileAttr>, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&CACHE_TTL, &attributes),
        Err(error) => reply.error(error.into()),
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it a held write would block the kernel's worker, and with it every later write of the ring (I2).
        let wanted = InitFlags::FUSE_ASYNC_DIO;
        config
            .add_capabilities(wanted)
            .map_err(|_| io::Error::other("this kernel's FUSE has no asynchronous direct I/O"))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer_entry(self.look_up(parent, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let mut tree = self.tree();
        let result = tree.path(ino).and_then(|path| tree.attributes(&path));
        answer_attributes(result, reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer_attributes(self.change(ino, mode, size), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = self.child(parent, name).and_then(|path| std::fs::DirBuilder::new().mode(mode).create(path));
        answer_entry(made.and_then(|()| self.look_up(parent, name)), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.child(parent, name).and_then(|path| self.remove(&path, std::fs::remove_file(&path)));
        answer_empty(result, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.child(parent, name).and_then(|path| self.remove(&path, std::fs::remove_dir(&path)));
        answer_empty(result, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = self.child(parent, name).and_then(|from| {
            let to = self.child(new_parent, new_name)?;
            std::fs::rename(&from, &to)?;
            self.tree().rename(&from, &to);
            Ok(())
        });
        answer_empty(result, reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino) {
            Ok((handle, flags)) => reply.opened(handle, flags),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let path = self.child(parent, name);
        match path.and_then(|path| Ok((self.create_file(&path, mode, flags)?, self.open_flags(&path)))) {
            Ok(((attributes, handle), flags)) => {
                reply.created(&CACHE_TTL, &attributes, Generation(0), handle, flags);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let result = self.tree().file(handle).and_then(|file| {
            let mut bytes = vec![0; size as usize];
            let mut filled = 0;
            while filled < bytes.len() {
                match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
                    0 => break,
                    count => filled += count,
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        });
        match result {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let tree = self.tree();
        let (file, path) = match tree.file(handle).and_then(|file| Ok((file, tree.path(ino)?))) {
            Ok(found) => found,
            Err(error) => return reply.error(error.into()),
        };
        drop(tree);
        let mut held = self.shared.lock();
        let is_holdable = self.is_holdable(&path);
        if is_holdable {
            held.newest = Some(Instant::now());
        }
        if !held.holding || !is_holdable {
            drop(held);
            return answer_write(&file, offset, bytes, reply);
        }
        let id = held.next;
        held.next += 1;
        held.writes.insert(id, HeldWrite { file, offset, bytes: bytes.to_vec(), reply });
        self.shared.changed.notify_all();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree().files.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let file = self.tree().file(handle);
        answer_empty(file.and_then(|file| file.sync_data()), reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.entries(ino) {
            Ok(entries) => {
                for (position, (number, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
                    if reply.add(INodeNo(number), position as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // A roomy disk: 64 GiB in blocks of 4 KiB.
        let blocks = 16 << 20;
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer_empty(self.allocate(handle, offset, length, mode), reply);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
