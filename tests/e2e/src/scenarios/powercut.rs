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
/// Cycles of errors.
const ERRORS: u64 = 12;
/// A small load runs this long at most before power goes anyway.
const SMALL_LOAD: Duration = Duration::from_millis(700);
/// Long enough for a checkpoint's worth of log.
const BULK_LOAD: Duration = Duration::from_secs(4);
/// A killed process is gone after this long.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// A process whose disk has failed must be gone after this long.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

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

/// Repeated entries are drawn more often.
const AIMS: &[Aim] = &[
    aim("", Site::ALL, 2000, false, Mix::Small),
    aim("", Site::ALL, 2000, false, Mix::Small),
    aim("/wal/", &[Site::Write], 1000, false, Mix::Small),
    aim("/wal/", &[Site::Sync], 1000, false, Mix::Small),
    aim("", Site::ALL, 60, true, Mix::Small),
    aim("", &[Site::Name, Site::SyncFolder], 12, true, Mix::Small),
    aim("", Site::ALL, 3000, false, Mix::Bulk),
    aim("/store/", Site::ALL, 400, false, Mix::Bulk),
    aim("/store/", &[Site::Sync], 8, false, Mix::Bulk),
    aim("/store/superblock", Site::ALL, 4, false, Mix::Bulk),
    aim("/wal/", &[Site::Name, Site::SyncFolder, Site::Allocate], 6, false, Mix::Bulk),
];

/// `--cuts` power cuts: nothing acknowledged is lost, and the server always starts.
pub(super) fn power_cuts(setup: &Setup) -> Result<Outcome> {
    run(setup, setup.cuts, Blow::PowerCut)
}

/// An input/output error at some request: the process ends at once, acknowledges nothing that is not there after a
/// power cut, and the next start is clean.
pub(super) fn disk_errors(setup: &Setup) -> Result<Outcome> {
    run(setup, ERRORS, Blow::Error(libc::EIO))
}

fn run(setup: &Setup, cycles: u64, blow: Blow) -> Result<Outcome> {
    if setup.subject == Subject::Etcd {
        return Ok(Outcome::Inapplicable("etcd's files are not laid out as the aims expect".to_owned()));
    }
    if let Err(error) = FaultDisk::mount(&setup.fresh_folder("probe")?) {
        return Ok(Outcome::Skipped(format!("no FUSE: {error:#}")));
    }
    let started = Instant::now();
    let mut totals = Totals::default();
    for first in (0..cycles).step_by(usize::try_from(CYCLES_PER_DISK)?) {
        let mut campaign = Campaign::new(setup, totals)?;
        for cycle in first..cycles.min(first + CYCLES_PER_DISK) {
            campaign.cycle(setup.seed, cycle, blow).with_context(|| format!("cycle {cycle} of seed {}", setup.seed))?;
        }
        totals = campaign.finish()?;
    }
    let seconds = started.elapsed().as_secs_f64() / cycles as f64;
    println!("         {cycles} cycles of {seconds:.1} s: {totals}");
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
struct Campaign {
    disk: FaultDisk,
    launch: Launch,
    shared: Arc<Shared>,
    totals: Totals,
    /// What the disk went through last, for the report of what a start finds.
    last: String,
}

impl Campaign {
    fn new(setup: &Setup, totals: Totals) -> Result<Self> {
        let mountpoint = setup.fresh_folder("mount")?;
        let launch = Launch {
            data: mountpoint.join("data"),
            flags: vec!["--quota-backend-bytes".to_owned(), (8_u64 << 30).to_string()],
            ..setup.launch()?
        };
        let disk = FaultDisk::mount(&mountpoint)?;
        Ok(Self { disk, launch, shared: Arc::default(), totals, last: "a fresh disk".to_owned() })
    }

    /// Start, verify, load, blow, end; then what the disk kept is decided.
    fn cycle(&mut self, seed: u64, cycle: u64, blow: Blow) -> Result<()> {
        let mut chance = Chance::new(seed, cycle << 8);
        let aim = chance.pick(AIMS);
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
        let survival = survival(&mut chance);
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
        let limit = Instant::now() + if aim.mix == Mix::Bulk { BULK_LOAD } else { SMALL_LOAD };
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

/// Disks differ in how much of what nobody synced they keep.
fn survival(chance: &mut Chance) -> Survival {
    Survival {
        sectors_percent: *chance.pick(&[0, 0, 30, 70, 100]),
        names_percent: *chance.pick(&[0, 50, 100]),
        names_in_order: chance.percent(50),
    }
}
