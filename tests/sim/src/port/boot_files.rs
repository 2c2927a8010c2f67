//! The blocking calls of a start.
//!
//! Owns: how each of them takes time, fails, or is the last one of its process. Does not know: what comes after it.

use std::io;

use trilith_reactor::{BootFiles, FileId, FileMode, Preparation};

use super::{Handle, SimPort, crash_error};
use crate::disk::{Barrier, NameChange};

impl BootFiles for SimPort {
    fn list(&mut self, directory: &str) -> io::Result<Vec<String>> {
        self.alive()?;
        Ok(self.disk.list(directory))
    }

    fn create_directory(&mut self, directory: &str) -> io::Result<()> {
        self.boot_submit(directory, self.weather.sync)?;
        self.disk.create_directory(directory);
        self.alive()
    }

    fn lock_owner(&mut self, name: &str) -> io::Result<bool> {
        self.alive()?;
        if self.disk.lookup(name).is_none() {
            self.disk.create_unsynced(name, 0);
        }
        Ok(true)
    }

    fn open(&mut self, name: &str, mode: FileMode, wait_max: u64) -> io::Result<FileId> {
        self.alive()?;
        let inode = self.disk.lookup(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if self.handles.iter().flatten().any(|handle| handle.inode == inode) {
            self.violations.push(format!("{name} is opened twice"));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let wait = self.disk.quiet_at(inode).saturating_sub(self.now);
        if wait > 0 {
            self.cover("(late write awaited)");
        }
        if wait > wait_max {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.now += wait;
        self.disk.advance(self.now);
        self.trace.event(self.now, format_args!("-> open {name} after {wait}"));
        Ok(self.open_handle(name, inode, mode))
    }

    fn create(&mut self, name: &str, bytes: u64, mode: FileMode, _preparation: Preparation) -> io::Result<FileId> {
        self.trace.event(self.now, format_args!("-> boot create {name} {bytes}"));
        self.boot_submit(name, self.weather.sync)?;
        if let Some(error) = self.creation_error(None) {
            self.feel(Some(error), false);
            return Err(error.as_io());
        }
        let change = self.disk.begin_change(NameChange::Create { name: name.to_owned(), bytes: bytes as usize });
        if self.dead && self.rng.chance(500) {
            return Err(crash_error());
        }
        let inode = self.disk.complete_change(change).expect("a create makes a file");
        self.alive()?;
        Ok(self.open_handle(name, inode, mode))
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        self.alive()?;
        let handle = self.handle(file).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(self.disk.len(handle.inode) as u64)
    }

    fn read(&mut self, file: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.alive()?;
        self.check_aligned("a boot read", offset, len)?;
        let handle = self.handle(file).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let bytes = self.disk.visible(handle.inode, offset, len).map(<[u8]>::to_vec);
        bytes.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.trace.event(self.now, format_args!("-> boot write {file:?} {offset}+{}", bytes.len()));
        self.trace.bytes(bytes);
        self.check_aligned("a boot write", offset, bytes.len())?;
        let handle = self.handle_while_dying(file)?;
        let fatal = self.boot_submit(&handle.name, self.weather.log_write)?;
        let barrier = match handle.mode {
            FileMode::Log => Barrier::AtCompletion,
            FileMode::Store => Barrier::AtSync,
        };
        let begun = self.disk.begin_write(handle.inode, offset, bytes.to_vec(), barrier, &mut self.rng);
        let id = begun.map_err(|breach| {
            self.violations.push(format!("{breach}: {file:?} at {offset}"));
            io::Error::from(io::ErrorKind::InvalidInput)
        })?;
        if !self.dead || fatal {
            self.disk.complete_write(handle.inode, id);
        }
        self.alive()
    }

    fn sync(&mut self, file: FileId) -> io::Result<()> {
        self.trace.event(self.now, format_args!("-> boot sync {file:?}"));
        let handle = self.handle_while_dying(file)?;
        let fatal = self.boot_submit(&handle.name, self.weather.sync)?;
        if !self.dead || fatal {
            let covered = self.disk.begin_sync(handle.inode);
            self.disk.complete_sync(handle.inode, &covered);
        }
        self.alive()
    }

    fn unlink(&mut self, file: FileId, name: &str) -> io::Result<()> {
        self.trace.event(self.now, format_args!("-> boot unlink {name}"));
        let handle = self.handle_while_dying(file)?;
        let fatal = self.boot_submit(name, self.weather.sync)?;
        if self.disk.lookup(name) != Some(handle.inode) {
            self.violations.push(format!("{file:?} is not {name}"));
        }
        self.handles[file.0 as usize] = None;
        let change = self.disk.begin_change(NameChange::Unlink { name: name.to_owned() });
        if !self.dead || fatal {
            self.disk.complete_change(change);
        }
        self.alive()
    }
}

impl SimPort {
    /// The handle of a boot call, also of the one in which the process dies.
    fn handle_while_dying(&mut self, file: FileId) -> io::Result<Handle> {
        let handle = self.handles.get(file.0 as usize).cloned().flatten();
        if handle.is_none() {
            self.violations.push(format!("{file:?} is not open"));
        }
        handle.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
