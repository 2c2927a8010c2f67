//! A disk that can fail: a FUSE file system in memory that tells synced from unsynced state, loses power at a chosen
//! request, fails a chosen request, or runs full.
//!
//! Owns the mount and the medium for their lifetime. Needs root and /dev/fuse. Does not know what is stored.
//!
//! I1  From the moment power goes no request is answered until the caller says that the process is gone
//!     ([`FaultDisk::drop_requests`]), and then only with errors: nothing that the process does afterwards counts.
//! I2  A remount forgets everything the kernel kept, so what is read after a cut comes from the medium.
//! I3  Dropping the disk leaves no mount and no request unanswered.

mod fuse;
pub mod medium;
mod sparse;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fuser::{BackgroundSession, Config};

use crate::chance::Chance;
use crate::faultfs::fuse::Front;
use crate::faultfs::medium::{Errno, Losses, Medium, Survival};

/// Longest wait until the files of an ended process are closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Kinds of requests a plan can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Bytes of a file.
    Write,
    /// Sync of a file.
    Sync,
    /// Creation, removal or renaming of a file or folder.
    Name,
    /// Sync of a folder.
    SyncFolder,
    /// Reservation or release of space, change of length.
    Allocate,
}

impl Site {
    /// All of them: every request that changes what a cut would leave.
    pub const ALL: &'static [Self] = &[Self::Write, Self::Sync, Self::Name, Self::SyncFolder, Self::Allocate];
}

/// What happens at the chosen request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Power goes.
    PowerCut,
    /// The request fails, this once.
    Error(Errno),
}

/// Which request is struck, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Part of the path of the file or folder; empty: any.
    pub path: &'static str,
    /// Kinds of requests that count.
    pub sites: &'static [Site],
    /// How many of them pass before the one that is struck.
    pub skip: u64,
    /// Whether the request has had its effect when it is struck.
    pub is_done: bool,
    /// What happens.
    pub blow: Blow,
}

/// A plan that has come true.
#[derive(Clone, Debug)]
pub struct Struck {
    /// When.
    pub at: Instant,
    /// The request, for the report.
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// Requests are not answered.
    Frozen,
    /// Requests are answered with errors.
    Off,
}

struct State {
    medium: Medium,
    power: Power,
    plan: Option<Plan>,
    struck: Option<Struck>,
    /// Requests of any site so far.
    requests: u64,
    /// Sum of file lengths that fit.
    capacity_bytes: u64,
}

/// What the file system thread and the test share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state as soon as there is an answer to give (I1).
    fn powered(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.lock();
        while state.power == Power::Frozen {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.power {
            Power::On => Ok(state),
            Power::Frozen | Power::Off => Err(libc::EIO),
        }
    }

    /// Does what a request asks for, unless the plan strikes it.
    fn act<T>(
        &self,
        site: Site,
        path: impl FnOnce(&Medium) -> String,
        work: impl FnOnce(&mut Medium) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.powered()?;
        state.requests += 1;
        let path = path(&state.medium);
        let Some(plan) = state.take_struck(site, &path) else { return work(&mut state.medium) };
        if plan.is_done {
            let _ = work(&mut state.medium);
        }
        let done = if plan.is_done { "after" } else { "before" };
        let number = state.requests;
        state.struck =
            Some(Struck { at: Instant::now(), what: format!("{done} {site:?} of {path}, request {number}") });
        if plan.blow == Blow::PowerCut {
            state.power = Power::Frozen;
        }
        self.changed.notify_all();
        drop(state);
        match plan.blow {
            Blow::Error(errno) => Err(errno),
            Blow::PowerCut => self.powered().and(Err(libc::EIO)),
        }
    }
}

impl State {
    fn take_struck(&mut self, site: Site, path: &str) -> Option<Plan> {
        let plan = self.plan.as_mut()?;
        if !plan.sites.contains(&site) || !path.contains(plan.path) {
            return None;
        }
        match plan.skip.checked_sub(1) {
            Some(rest) => {
                plan.skip = rest;
                None
            }
            None => self.plan.take(),
        }
    }
}

/// The mounted disk.
pub struct FaultDisk {
    shared: Arc<Shared>,
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
}

impl FaultDisk {
    /// An empty disk, mounted.
    pub fn mount(mountpoint: &Path) -> Result<Self> {
        if !Path::new("/dev/fuse").exists() {
            bail!("there is no /dev/fuse");
        }
        let state = State {
            medium: Medium::new(),
            power: Power::On,
            plan: None,
            struck: None,
            requests: 0,
            capacity_bytes: u64::MAX,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut disk = Self { shared, mountpoint: mountpoint.to_owned(), session: None };
        disk.attach()?;
        Ok(disk)
    }

    fn attach(&mut self) -> Result<()> {
        let front = Front { shared: Arc::clone(&self.shared) };
        let session = fuser::spawn_mount(front, &self.mountpoint, &Config::default()).context("cannot mount")?;
        self.session = Some(session);
        Ok(())
    }

    fn detach(&mut self) -> Result<()> {
        self.drop_requests();
        let Some(session) = self.session.take() else { return Ok(()) };
        self.unmount_when_closed()?;
        session.join().context("the file system's thread failed")
    }

    /// The files of a process whose ring had requests under way are closed some time after its end. A disk that stays
    /// in use is taken out of sight, so that whatever went wrong leaves no mount behind.
    fn unmount_when_closed(&self) -> Result<()> {
        let limit = Instant::now() + CLOSE_LIMIT;
        loop {
            let output = Command::new("umount").arg(&self.mountpoint).output().context("cannot start umount")?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() > limit {
                let hidden = Command::new("umount").arg("--lazy").arg(&self.mountpoint).status();
                hidden.context("cannot start umount")?;
                bail!("cannot unmount: {}", String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Strikes the request that the plan describes.
    pub fn arm(&self, plan: Plan) {
        let mut state = self.shared.lock();
        state.struck = None;
        state.plan = Some(plan);
    }

    /// Takes back the plan; if it came true before that, how.
    pub fn disarm(&self) -> Option<Struck> {
        let mut state = self.shared.lock();
        state.plan = None;
        state.struck.clone()
    }

    /// The plan that came true, if it did.
    pub fn struck(&self) -> Option<Struck> {
        self.shared.lock().struck.clone()
    }

    /// Waits for the plan to come true.
    pub fn wait_struck(&self, limit: Duration) -> Option<Struck> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.struck.is_some() || left.is_zero() {
                return state.struck.clone();
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Power goes now.
    pub fn freeze(&self) {
        self.shared.lock().power = Power::Frozen;
    }

    /// The process has been killed: what it still waits for is answered with errors, so that it can end.
    pub fn drop_requests(&self) {
        self.shared.lock().power = Power::Off;
        self.shared.changed.notify_all();
    }

    /// Requests so far that could change what a cut leaves.
    pub fn requests(&self) -> u64 {
        self.shared.lock().requests
    }

    /// Limits the sum of file lengths; requests beyond it fail with ENOSPC.
    pub fn set_capacity(&self, bytes: u64) {
        self.shared.lock().capacity_bytes = bytes;
    }

    /// Sum of the lengths of all files.
    pub fn used_bytes(&self) -> u64 {
        self.shared.lock().medium.used_bytes()
    }

    /// Power returns: what no sync covered has survived or not; every file must be closed by now.
    pub fn restore_power(&mut self, survival: Survival, chance: &mut Chance) -> Result<Losses> {
        self.detach()?;
        let losses = {
            let mut state = self.shared.lock();
            (state.plan, state.struck) = (None, None);
            state.power = Power::On;
            state.medium.cut_power(survival, chance)
        };
        self.attach()?;
        Ok(losses)
    }

    /// Unmounts; every file must be closed by now.
    pub fn unmount(mut self) -> Result<()> {
        self.detach()
    }
}

impl Drop for FaultDisk {
    /// A scenario that failed leaves no mount behind either; its server, dropped before, holds no file any more.
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            eprintln!("cannot unmount: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(plan: Plan) -> State {
        let medium = Medium::new();
        State { medium, power: Power::On, plan: Some(plan), struck: None, requests: 0, capacity_bytes: u64::MAX }
    }

    #[test]
    fn a_plan_strikes_the_request_it_describes_and_no_other() {
        let blow = Blow::Error(libc::EIO);
        let plan = Plan { path: "wal/", sites: &[Site::Sync], skip: 1, is_done: true, blow };
        let mut state = state(plan);
        let seen: Vec<bool> = [
            (Site::Sync, "/store/a"),
            (Site::Write, "/wal/a"),
            (Site::Sync, "/wal/a"),
            (Site::Sync, "/wal/b"),
            (Site::Sync, "/wal/b"),
        ]
        .into_iter()
        .map(|(site, path)| state.take_struck(site, path).is_some())
        .collect();
        assert_eq!(seen, [false, false, false, true, false]);
    }

    #[test]
    fn a_frozen_disk_does_nothing_and_a_dead_one_answers_errors() {
        let plan = Plan { path: "", sites: Site::ALL, skip: 0, is_done: false, blow: Blow::PowerCut };
        let shared = Arc::new(Shared { state: Mutex::new(state(plan)), changed: Condvar::new() });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.act(Site::Sync, |_| "/a".to_owned(), |_| Ok(1))
        });
        let mut state = shared.lock();
        while state.struck.is_none() {
            state = shared.changed.wait(state).unwrap();
        }
        assert_eq!(state.power, Power::Frozen);
        assert!(!thread.is_finished());
        state.power = Power::Off;
        drop(state);
        shared.changed.notify_all();
        assert_eq!(thread.join().unwrap(), Err(libc::EIO));
        assert_eq!(shared.act(Site::Sync, |_| "/a".to_owned(), |_| Ok(1)), Err(libc::EIO));
    }
}
