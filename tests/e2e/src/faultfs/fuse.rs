//! The kernel's side of the fault disk: FUSE requests in, calls of the medium out.
//!
//! I1  The kernel keeps no copy of files of the log and lets their writes proceed side by side, as a disk would; files
//!     of the store are mapped, so the kernel keeps pages of them.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::faultfs::medium::{Errno, Medium, Node};
use crate::faultfs::{Shared, Site, State};

/// How long the kernel may cache names and attributes; nobody changes them behind its back.
const CACHE_TTL: Duration = Duration::from_secs(1);
const BLOCK_BYTES: u64 = 4096;
/// What an unlimited disk says it has: 64 GiB.
const ROOMY_BYTES: u64 = 64 << 30;

/// The file system as fuser sees it.
pub(super) struct Front {
    pub(super) shared: Arc<Shared>,
}

impl From<&Node> for FileType {
    fn from(node: &Node) -> Self {
        if node.is_folder { Self::Directory } else { Self::RegularFile }
    }
}

fn attributes(medium: &Medium, number: u64) -> Result<FileAttr, Errno> {
    let node = medium.node(number)?;
    Ok(FileAttr {
        ino: INodeNo(number),
        size: node.length,
        blocks: node.length.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: node.into(),
        perm: node.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

impl State {
    /// Growth beyond the capacity is refused before anything changed.
    fn room_for(&self, number: u64, end: u64) -> Result<(), Errno> {
        let growth = end.saturating_sub(self.medium.node(number)?.length);
        if growth > 0 && self.medium.used_bytes().saturating_add(growth) > self.capacity_bytes {
            return Err(libc::ENOSPC);
        }
        Ok(())
    }
}

impl Front {
    fn read_state<T>(&self, read: impl FnOnce(&Medium) -> Result<T, Errno>) -> Result<T, Errno> {
        self.shared.powered().and_then(|state| read(&state.medium))
    }

    fn on_file<T>(
        &self,
        site: Site,
        number: u64,
        work: impl FnOnce(&mut Medium) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let path = |medium: &Medium| medium.node(number).map_or_else(|_| "?".to_owned(), |node| node.path.clone());
        self.shared.act(site, path, work)
    }

    fn on_name<T>(
        &self,
        folder: u64,
        name: &OsStr,
        work: impl FnOnce(&mut Medium) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.shared.act(Site::Name, |medium| medium.path_of(folder, name), work)
    }

    fn make(&self, folder: u64, name: &OsStr, is_folder: bool, mode: u32) -> Result<FileAttr, Errno> {
        let mode = u16::try_from(mode & 0o7777).expect("twelve bits");
        self.on_name(folder, name, |medium| {
            let number = medium.create(folder, name, is_folder, mode)?;
            attributes(medium, number)
        })
    }

    fn create_or_open(&self, folder: u64, name: &OsStr, mode: u32, flags: i32) -> Result<FileAttr, Errno> {
        match self.make(folder, name, false, mode) {
            Err(libc::EEXIST) if flags & libc::O_EXCL == 0 => self.read_state(|medium| {
                let number = medium.look_up(folder, name)?;
                attributes(medium, number)
            }),
            result => result,
        }
    }

    fn change(&self, number: u64, mode: Option<u32>, size: Option<u64>) -> Result<FileAttr, Errno> {
        if let Some(size) = size {
            self.shared.powered()?.room_for(number, size)?;
            self.on_file(Site::Allocate, number, |medium| medium.set_length(number, size))?;
        }
        let mut state = self.shared.powered()?;
        if let Some(mode) = mode {
            state.medium.set_mode(number, u16::try_from(mode & 0o7777).expect("twelve bits"))?;
        }
        attributes(&state.medium, number)
    }

    fn allocate(&self, number: u64, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let end = offset.checked_add(length).ok_or(libc::EFBIG)?;
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        if !keeps_size {
            self.shared.powered()?.room_for(number, end)?;
        }
        self.on_file(Site::Allocate, number, |medium| {
            let old = medium.node(number)?.length;
            if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
                let count = usize::try_from(end.min(old).saturating_sub(offset)).map_err(|_| libc::EFBIG)?;
                return medium.write(number, offset, &vec![0; count]);
            }
            if keeps_size || end <= old { Ok(()) } else { medium.set_length(number, end) }
        })
    }

    fn open_flags(&self, number: u64) -> Result<FopenFlags, Errno> {
        self.read_state(|medium| {
            let is_log = medium.node(number)?.path.contains("/wal/");
            let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            Ok(if is_log { direct } else { FopenFlags::empty() })
        })
    }
}

fn failed(errno: Errno) -> FuseErrno {
    FuseErrno::from_i32(errno)
}

fn answer_empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(failed(errno)),
    }
}

fn answer_entry(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&CACHE_TTL, &attributes, Generation(0)),
        Err(errno) => reply.error(failed(errno)),
    }
}

fn answer_attributes(result: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&CACHE_TTL, &attributes),
        Err(errno) => reply.error(failed(errno)),
    }
}

impl Filesystem for Front {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_DIO;
        config
            .add_capabilities(wanted)
            .map_err(|_| io::Error::other("this kernel's FUSE has no asynchronous direct I/O"))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.read_state(|medium| attributes(medium, medium.look_up(parent.0, name)?));
        answer_entry(found, reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attributes(self.read_state(|medium| attributes(medium, ino.0)), reply);
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
        answer_attributes(self.change(ino.0, mode, size), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        answer_entry(self.make(parent.0, name, true, mode), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.on_name(parent.0, name, |medium| medium.remove(parent.0, name)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.on_name(parent.0, name, |medium| medium.remove(parent.0, name)), reply);
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
        let rename = |medium: &mut Medium| medium.rename((parent.0, name), (new_parent.0, new_name));
        answer_empty(self.on_name(new_parent.0, new_name, rename), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_flags(ino.0) {
            Ok(flags) => reply.opened(FileHandle(0), flags),
            Err(errno) => reply.error(failed(errno)),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let made = self.create_or_open(parent.0, name, mode, flags);
        match made.and_then(|attributes| Ok((attributes, self.open_flags(attributes.ino.0)?))) {
            Ok((attributes, flags)) => reply.created(&CACHE_TTL, &attributes, Generation(0), FileHandle(0), flags),
            Err(errno) => reply.error(failed(errno)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_state(|medium| medium.read(ino.0, offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(failed(errno)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let end = offset.saturating_add(bytes.len() as u64);
        let room = self.shared.powered().and_then(|state| state.room_for(ino.0, end));
        match room.and_then(|()| self.on_file(Site::Write, ino.0, |medium| medium.write(ino.0, offset, bytes))) {
            Ok(()) => reply.written(u32::try_from(bytes.len()).expect("the kernel limits a write to a few MiB")),
            Err(errno) => reply.error(failed(errno)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer_empty(self.on_file(Site::Sync, ino.0, |medium| medium.sync(ino.0)), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let sync = |medium: &mut Medium| {
            medium.sync_folder(ino.0);
            Ok(())
        };
        answer_empty(self.on_file(Site::SyncFolder, ino.0, sync), reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.read_state(|medium| {
            let mut entries = vec![(ino.0, FileType::Directory, ".".into()), (ino.0, FileType::Directory, "..".into())];
            for (name, number) in medium.entries(ino.0) {
                entries.push((number, medium.node(number)?.into(), name));
            }
            Ok(entries)
        });
        match listed {
            Ok(entries) => {
                let rest = entries.into_iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX));
                for (position, (number, kind, name)) in rest {
                    if reply.add(INodeNo(number), position as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(failed(errno)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.shared.powered() {
            Ok(state) => {
                let blocks = state.capacity_bytes.min(ROOMY_BYTES) / BLOCK_BYTES;
                let free = blocks.saturating_sub(state.medium.used_bytes() / BLOCK_BYTES);
                reply.statfs(blocks, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
            }
            Err(errno) => reply.error(failed(errno)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer_empty(self.allocate(ino.0, offset, length, mode), reply);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: fuser::ReplyXattr) {
        reply.error(FuseErrno::ENOSYS);
    }
}
