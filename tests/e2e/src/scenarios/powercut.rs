//! Power cuts and disk errors under the real server: whatever was acknowledged is there afterwards, and the server
//! always starts.
//!
//! I1  A cut happens at a request to the disk: before it, after it, or at an arbitrary moment under load; in a start,
//!     in a checkpoint, in a write of the log, at the making of a file.
//! I2  A disk is used for several cycles, so that damage which one start overlooks meets the next.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::campaign::load::{Load, Mix, Shared};
use crate::campaign::verify::verify;
use crate::chance::Chance;
use crate::faultfs::medium::Survival;
use crate::faultfs::{Blow, FaultDisk, Plan, Site};
use crate::server::{Launch, Server, Subject};
use crate::setup::{Outcome, Setup};

/// Cycles before a fresh disk is taken, which keeps the data small and cuts first starts too.
const CYCLES_PER_DISK: u64 = 12;
/// A small load runs this long at most before power goes anyway.
const SMALL_LOAD: Duration = Duration::from_secs(2);
/// Long enough for a checkpoint's worth of log.
const BULK_LOAD: Duration = Duration::from_secs(10);
/// A killed process is gone after this long.
const KILL_LIMIT: Duration = Duration::from_secs(60);
/// A process whose disk has failed must be gone after this long: a moment, on a machine that is busy with much else.
const EXIT_LIMIT: Duration = Duration::from_secs(15);

/// Where a cycle's blow falls: part of a path, how many requests pass at most before it, the load that leads there.
struct Aim {
    path: &'static str,
    sites: &'static [Site],
    skip_max: u64,
    /// From the start of the process on, or from when it serves.
    in_start: bool,
    mix: Mix,
}

const fn aim(path: &'static str, sites: &'static [Site], skip_max: u64, in_start: bool, mix: Mix) -> Aim {
    Aim { path, sites, skip_max, in_start, mix }
}

/// Everywhere; repeated entries are drawn more often.
const EVERYWHERE: &[Aim] = &[
    aim("", Site::ALL, 2000, false, Mix::Small),
    aim("", Site::ALL, 2000, false, Mix::Upkeep),
    aim("/wal/", &[Site::Write], 1000, false, Mix::Small),
    aim("/wal/", &[Site::Sync], 1000, false, Mix::Small),
    aim("", Site::ALL, 60, true, Mix::Small),
    aim("", &[Site::Name, Site::SyncFolder], 12, true, Mix::Small),
    aim("", Site::ALL, 3000, false, Mix::Bulk),
    aim("/store/", Site::ALL, 400, false, Mix::Bulk),
    aim("/store/", &[Site::Sync], 20, false, Mix::Upkeep),
    aim("/store/superblock", Site::ALL, 8, false, Mix::Upkeep),
    aim("/wal/", &[Site::Name, Site::SyncFolder, Site::Allocate], 6, false, Mix::Bulk),
];
const CHECKPOINTS: &[Aim] = &[
    aim("/store/rows", Site::ALL, 600, false, Mix::Bulk),
    aim("/store/index", Site::ALL, 30, false, Mix::Bulk),
    aim("/store/superblock", Site::ALL, 2, false, Mix::Bulk),
];
const UPKEEP: &[Aim] = &[
    aim("/store/", Site::ALL, 200, false, Mix::Upkeep),
    aim("/store/", &[Site::Sync], 30, false, Mix::Upkeep),
    aim("/store/superblock", Site::ALL, 12, false, Mix::Upkeep),
    aim("/store/", &[Site::Name, Site::SyncFolder, Site::Allocate], 8, false, Mix::Upkeep),
];
const FILE_CHANGES: &[Aim] = &[
    aim("/wal", &[Site::Name], 4, false, Mix::Bulk),
    aim("/wal", &[Site::SyncFolder], 4, false, Mix::Bulk),
    aim("/wal", &[Site::Allocate], 3, false, Mix::Bulk),
    aim("/store", &[Site::Name, Site::SyncFolder, Site::Allocate], 4, false, Mix::Bulk),
    aim("", &[Site::Name, Site::SyncFolder, Site::Allocate], 20, true, Mix::Small),
];

/// What a campaign does to its server.
#[derive(Clone, Copy)]
struct Campaign {
    aims: &'static [Aim],
    blow: Blow,
    /// Whether what was not synced may be lost; otherwise only the process ends.
    is_lossy: bool,
}

/// `--cuts` power cuts: nothing acknowledged is lost, and the server always starts.
pub(super) fn power_cuts(setup: &Setup) -> Result<Outcome> {
    run(setup, setup.cuts, Campaign { aims: EVERYWHERE, blow: Blow::PowerCut, is_lossy: true })
}

/// An input/output error at some request: the process ends at once, acknowledges nothing that is not there after a
/// power cut, and the next start is clean.
pub(super) fn disk_errors(setup: &Setup) -> Result<Outcome> {
    run(setup, 12, Campaign { aims: EVERYWHERE, blow: Blow::Error(libc::EIO), is_lossy: true })
}

/// kill -9 in the middle of a checkpoint: data and the index it was applied at stay together (etcd #13766, #13514).
pub(super) fn kill_in_checkpoint(setup: &Setup) -> Result<Outcome> {
    run(setup, 6, Campaign { aims: CHECKPOINTS, blow: Blow::PowerCut, is_lossy: false })
}

/// kill -9 in the middle of compactions and defragmentations: revisions and data stay (etcd #14685).
pub(super) fn kill_in_upkeep(setup: &Setup) -> Result<Outcome> {
    run(setup, 10, Campaign { aims: UPKEEP, blow: Blow::PowerCut, is_lossy: false })
}

/// Power cuts while files of the log and the store are made, renamed and removed (etcd #14098, #6368, #6378).
pub(super) fn power_cut_in_file_changes(setup: &Setup) -> Result<Outcome> {
    run(setup, 8, Campaign { aims: FILE_CHANGES, blow: Blow::PowerCut, is_lossy: true })
}

fn run(setup: &Setup, cycles: u64, campaign: Campaign) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd's files are not laid out as the aims expect".to_owned()));
    }
    if let Err(error) = FaultDisk::mount(&setup.fresh_folder("probe")?) {
        return Ok(Outcome::Skipped(format!("no FUSE: {error:#}")));
    }
    let started = Instant::now();
    let mut totals = Totals::default();
    for first in (0..cycles).step_by(usize::try_from(CYCLES_PER_DISK)?) {
        let mut victim = Victim::new(setup, campaign, totals)?;
        for cycle in first..cycles.min(first + CYCLES_PER_DISK) {
            victim.cycle(setup.seed, cycle).with_context(|| format!("cycle {cycle} of seed {}", setup.seed))?;
        }
        totals = victim.finish()?;
    }
    let seconds = started.elapsed().as_secs_f64() / cycles as f64;
    println!("         {cycles} cycles of {seconds:.1} s: {totals}");
    // Blows that never fall prove nothing.
    if totals.struck < cycles / 2 {
        bail!("only {} of {cycles} cycles reached the request they aimed at", totals.struck);
    }
    Ok(Outcome::Passed)
}

/// What a campaign has done so far, for its report.
#[derive(Debug, Default)]
struct Totals {
    acknowledged: u64,
    struck: u64,
    in_start: u64,
    sectors_in_doubt: u64,
    sectors_lost: u64,
    names_lost: u64,
    slowest_exit: Duration,
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { acknowledged, struck, in_start, sectors_in_doubt, sectors_lost, names_lost, slowest_exit } = self;
        write!(
            f,
            "{acknowledged} acknowledged, {struck} struck at their request ({in_start} in a start), {sectors_lost} of \
             {sectors_in_doubt} sectors and {names_lost} changes of names lost, slowest exit {} ms",
            slowest_exit.as_millis()
        )
    }
}

/// A disk, the server on it, and everything its clients were told.
struct Victim {
    campaign: Campaign,
    disk: FaultDisk,
    launch: Launch,
    shared: Arc<Shared>,
    totals: Totals,
    /// What the disk went through last, for the report of what a start finds.
    last: String,
}

impl Victim {
    fn new(setup: &Setup, campaign: Campaign, totals: Totals) -> Result<Self> {
        let mountpoint = setup.fresh_folder("mount")?;
        let launch = Launch {
            data: mountpoint.join("data"),
            flags: vec!["--quota-backend-bytes".to_owned(), (8_u64 << 30).to_string()],
            ..setup.launch()?
        };
        let disk = FaultDisk::mount(&mountpoint)?;
        Ok(Self { campaign, disk, launch, shared: Arc::default(), totals, last: "a fresh disk".to_owned() })
    }

    /// Start, verify, load, blow, end; then what the disk kept is decided.
    fn cycle(&mut self, seed: u64, cycle: u64) -> Result<()> {
        let mut chance = Chance::new(seed, cycle << 8);
        let Campaign { aims, blow, is_lossy } = self.campaign;
        let aim = chance.pick(aims);
        let (skip, is_done) = (chance.below(aim.skip_max), chance.percent(50));
        let plan = Plan { path: aim.path, sites: aim.sites, skip, is_done, blow };
        if aim.in_start {
            self.disk.arm(plan.clone());
        }
        let mut server = self.launch.spawn()?;
        let result = self.load_until_gone(&mut server, aim, plan, &mut chance);
        // If that failed, the process may still wait for the disk, and must not be waited for before this.
        self.disk.drop_requests();
        let what = result.with_context(|| format!("after {}", self.last))?;
        drop(server);
        let survival = if is_lossy { survival(&mut chance) } else { ALL_SURVIVES };
        let losses = self.disk.restore_power(survival, &mut chance)?;
        self.totals.sectors_in_doubt += losses.sectors_in_doubt;
        self.totals.sectors_lost += losses.sectors_lost;
        self.totals.names_lost += losses.names_lost;
        self.last = format!("cycle {cycle}, {what}, {survival:?}, {losses:?}");
        Ok(())
    }

    /// Returns what struck the disk.
    fn load_until_gone(&mut self, server: &mut Server, aim: &Aim, plan: Plan, chance: &mut Chance) -> Result<String> {
        let is_ready = server.wait_ready_unless(|| self.disk.struck().is_some())?;
        self.disk.disarm();
        if !is_ready || self.disk.struck().is_some() {
            self.totals.in_start += 1;
            return self.end(server, plan.blow);
        }
        verify(server.address(), &mut self.shared.history(), chance)?;
        self.disk.arm(plan.clone());
        let load = Load::start(&self.shared, server.address(), aim.mix, chance.bits());
        let limit = Instant::now() + if aim.mix == Mix::Small { SMALL_LOAD } else { BULK_LOAD };
        while self.disk.wait_struck(Duration::from_millis(20)).is_none() && Instant::now() < limit {
            if load.has_ended() && self.disk.struck().is_none() {
                let reason = self.shared.lost().unwrap_or_default();
                load.join()?;
                bail!("the load ended by itself: {reason}; {}", server.log_tail(5));
            }
        }
        let result = self.end(server, plan.blow);
        if result.is_err() {
            self.disk.drop_requests();
            server.kill()?;
        }
        self.totals.acknowledged += self.shared.answers();
        load.join().and(result)
    }

    /// Waits for the end of a process that met an error, or ends it with the power.
    fn end(&mut self, server: &mut Server, blow: Blow) -> Result<String> {
        let struck = self.disk.disarm();
        self.totals.struck += u64::from(struck.is_some());
        match (&struck, blow) {
            (Some(struck), Blow::Error(_)) => {
                let status = server.wait_exit(EXIT_LIMIT).with_context(|| struck.what.clone())?;
                self.totals.slowest_exit = self.totals.slowest_exit.max(struck.at.elapsed());
                if status.success() || status.signal().is_some() {
                    bail!("{}: the process ended with {status}:\n{}", struck.what, server.log_tail(5));
                }
            }
            _ => {
                self.disk.freeze();
                server.signal_kill()?;
                self.disk.drop_requests();
                server.wait_exit(KILL_LIMIT)?;
            }
        }
        server.check_records()?;
        Ok(struck.map_or_else(|| "at no particular request".to_owned(), |struck| struck.what))
    }

    /// A last start, with nothing to fear any more.
    fn finish(self) -> Result<Totals> {
        let server = self.launch.start().with_context(|| format!("after {}", self.last))?;
        verify(server.address(), &mut self.shared.history(), &mut Chance::new(0, 0))
            .with_context(|| format!("after {}", self.last))?;
        server.stop(&[])?;
        self.disk.unmount()?;
        Ok(self.totals)
    }
}

/// What a kill of the process alone leaves.
const ALL_SURVIVES: Survival = Survival { sectors_percent: 100, names_percent: 100, names_in_order: false };

/// Disks differ in how much of what nobody synced they keep.
fn survival(chance: &mut Chance) -> Survival {
    Survival {
        sectors_percent: *chance.pick(&[0, 0, 30, 70, 100]),
        names_percent: *chance.pick(&[0, 50, 100]),
        names_in_order: chance.percent(50),
    }
}
