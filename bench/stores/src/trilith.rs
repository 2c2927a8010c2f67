//! Trilith's own storage: write-ahead log, replica, row log, overlay, key index and checkpoints, on the server's own
//! reactor, without connections.
//!
//! Owns: how the work is put to a replica: a turn hands in completions, submits the next batch once the last one is
//! applied (hence durable), and gives checkpoints their share, as the server's loop does. Does not know: what the work
//! is.
//!
//! Invariants
//! - I1: a batch counts as committed when its last command was applied; all of them must have succeeded.
//! - I2: checkpoints run whenever they are due, inside the measured time.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use trilith_engine::budget::{Budget, Pause};
use trilith_engine::command::{Command, Put, RangeQuery};
use trilith_engine::page_source::Unavailable;
use trilith_engine::replica::Effect;
use trilith_engine::replica::apply::{ApplyStep, Outcome};
use trilith_engine::store::{CheckpointStep, ReclaimStep};
use trilith_raftlog::Role;
use trilith_reactor::{CoreLoop, Event, GlommioPort, Port, ReactorOptions, Turn};
use trilith_server::NodeOptions;
use trilith_server::boot::{self, Booted};
use trilith_server::disk::{Completion, Pages};
use trilith_server::options::{self, Invocation};

use crate::work::{self, Figures, Times, Work, key, value};

/// Merge work of a turn while something else is to be done, as in the server.
const CHECKPOINT_UNITS: u32 = 5_000;
/// Reclaim work of a turn, as in the server.
const RECLAIM_UNITS: u32 = 1_500;
/// Rows of one range of a scan.
const SCAN_ROWS: i64 = 1_000;
/// Lookups of one turn.
const LOOKUPS_PER_TURN: u64 = 1_000;

/// Does the whole work.
pub(crate) fn run(folder: &Path, work: &Work) -> Result<Figures> {
    let arguments = ["--quota-backend-bytes=-1".to_owned(), format!("--data-dir={}", folder.display())];
    let parsed = options::parse(&arguments, &[], |path| std::fs::read_to_string(path));
    let parsed = parsed.map_err(|error| anyhow!("{error:?}"))?;
    let Invocation::Serve(parsed) = parsed else { bail!("these options ask for a server") };
    let reactor = ReactorOptions {
        data_directory: folder.to_owned(),
        listeners: Vec::new(),
        bind_retry_max: Duration::ZERO,
        log_outputs: Vec::new(),
        signals: false,
        spin_before_sleep: Duration::ZERO,
    };
    let mut end = None;
    let outcome = trilith_reactor::run(&reactor, |port| {
        let booted = boot::boot(&NodeOptions::new(&parsed), port)?;
        Ok::<_, boot::BootError>(Shard {
            booted,
            work: *work,
            stage: Stage::Electing,
            next: 0,
            started: Instant::now(),
            waiting_for: None,
            more: false,
            end: &mut end,
            times: Times::default(),
        })
    });
    outcome.map_err(|error| anyhow!("{error:?}"))?;
    let times = end.context("the loop says how it ended")??;
    Ok(times.figures(work, work::disk_mib(folder)?))
}

/// What is being measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Electing,
    Load,
    FirstScan,
    Scan,
    LookUp,
    Batches,
    Singles,
    Done,
}

struct Shard<'a> {
    booted: Booted,
    work: Work,
    stage: Stage,
    /// Operations of this stage that were done or submitted.
    next: u64,
    /// When the stage began.
    started: Instant,
    /// The last command of the batch under way.
    waiting_for: Option<u64>,
    more: bool,
    end: &'a mut Option<Result<Times>>,
    times: Times,
}

impl CoreLoop<GlommioPort> for Shard<'_> {
    fn handle_turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Turn {
        let result = self.turn(port, events);
        if result.is_ok() && self.stage != Stage::Done {
            let deadline = if self.more { Some(port.now()) } else { self.booted.replica.deadline() };
            port.set_deadline(deadline);
            return Turn::Continue;
        }
        *self.end = Some(result.map(|()| self.times));
        Turn::Stop(0)
    }
}

impl Shard<'_> {
    fn turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Result<()> {
        self.more = false;
        for event in events.drain(..) {
            self.complete(port, event)?;
        }
        self.booted.replica.handle_tick(port.now());
        if self.stage == Stage::Electing && self.booted.replica.role() == Role::Leader {
            self.enter(Stage::Load);
        }
        self.proceed(port)?;
        self.booted.replica.propose_batch();
        self.carry_out(port);
        self.apply(port)?;
        self.checkpoint(port)?;
        self.reclaim(port)?;
        self.booted.replica.propose_batch();
        self.carry_out(port);
        Ok(())
    }

    fn complete(&mut self, port: &mut GlommioPort, event: Event) -> Result<()> {
        // The only other event is the timer.
        let Ok(completion) = self.booted.disk.handle_event(port, event) else { return Ok(()) };
        let (replica, now) = (&mut self.booted.replica, port.now());
        match completion {
            Completion::HardState { generation, copy } => replica.handle_hard_state_complete(generation, copy, now),
            Completion::Append { lsn } => replica.handle_append_complete(lsn, now),
            Completion::Segment { sequence } => replica.handle_segment_prepared(sequence, now),
            Completion::Store { token } => replica.handle_store_complete(token),
            Completion::Failed { what, error } | Completion::OutOfSpace { what, error } => bail!("{what}: {error}"),
            Completion::Corrupt { block } => bail!("{block:?} does not match its checksum"),
            _ => {}
        }
        Ok(())
    }

    fn carry_out(&mut self, port: &mut GlommioPort) {
        let Booted { replica, disk, .. } = &mut self.booted;
        while let Some(effect) = replica.poll_effect() {
            match effect {
                Effect::WriteHardState { generation, copy, bytes } => {
                    disk.write_hard_state(port, generation, copy, bytes);
                }
                Effect::PrepareSegment(prepare) => disk.prepare_segment(port, prepare),
                Effect::Append(append) => disk.append(port, append),
                Effect::Store(effect) => disk.store(port, effect),
                _ => {}
            }
        }
    }

    fn apply(&mut self, port: &mut GlommioPort) -> Result<()> {
        loop {
            let Booted { replica, disk, .. } = &mut self.booted;
            match replica.apply_step(&mut Budget::unlimited(), &Pages { port: &*port, disk }) {
                ApplyStep::Idle => return Ok(()),
                ApplyStep::EntryDone(_) | ApplyStep::More => {}
                ApplyStep::Applied(applied) => {
                    ensure!(matches!(applied.result, Ok(Outcome::Put(_))), "a put failed: {:?}", applied.result);
                    if self.waiting_for == Some(applied.id.sequence) {
                        self.waiting_for = None;
                        self.more = true;
                    }
                }
                ApplyStep::Suspended(unavailable) => return self.load(port, unavailable),
                ApplyStep::Waiting => unreachable!("one shard has no jobs"),
            }
        }
    }

    fn checkpoint(&mut self, port: &mut GlommioPort) -> Result<()> {
        let Booted { replica, disk, .. } = &mut self.booted;
        match replica.checkpoint_step(CHECKPOINT_UNITS, &Pages { port: &*port, disk }) {
            CheckpointStep::Idle | CheckpointStep::Waiting => Ok(()),
            CheckpointStep::More => {
                self.more = true;
                Ok(())
            }
            CheckpointStep::NeedPages(unavailable) => self.load(port, unavailable),
        }
    }

    /// Frees what checkpoints replaced, and what a compaction left, with the share of a turn that it has in the server.
    fn reclaim(&mut self, port: &mut GlommioPort) -> Result<()> {
        let Booted { replica, disk, .. } = &mut self.booted;
        match replica.reclaim_step(&mut Budget::new(RECLAIM_UNITS), &Pages { port: &*port, disk }) {
            ReclaimStep::Idle | ReclaimStep::Waiting | ReclaimStep::NeedsCheckpoint => Ok(()),
            ReclaimStep::More => {
                self.more = true;
                Ok(())
            }
            ReclaimStep::NeedPages(unavailable) => self.load(port, unavailable),
        }
    }

    /// Asks for pages; their arrival is an event that brings the next turn.
    fn load(&mut self, port: &mut GlommioPort, unavailable: Unavailable) -> Result<()> {
        match unavailable {
            Unavailable::Missing(block) => {
                self.booted.disk.load(port, block);
                Ok(())
            }
            Unavailable::Corrupt(block) => bail!("{block:?} does not match its checksum"),
        }
    }

    fn pause(&mut self, port: &mut GlommioPort, pause: Pause) -> Result<()> {
        match pause {
            Pause::Pages(unavailable) => self.load(port, unavailable),
            Pause::Budget => bail!("an unlimited budget was used up"),
        }
    }

    fn enter(&mut self, stage: Stage) {
        (self.stage, self.next, self.started, self.more) = (stage, 0, Instant::now(), true);
    }

    /// Does, or submits, the next part of the stage.
    fn proceed(&mut self, port: &mut GlommioPort) -> Result<()> {
        if self.waiting_for.is_some() {
            return Ok(());
        }
        let took = self.started.elapsed();
        match self.stage {
            Stage::Electing | Stage::Done => {}
            Stage::Load => match self.work.load_batches().nth(self.next as usize) {
                Some(batch) => {
                    let work = self.work;
                    self.submit(&mut batch.map(|position| (work.load_order(position), 0)))?;
                }
                None => {
                    self.times.load = took;
                    self.enter(Stage::FirstScan);
                }
            },
            Stage::FirstScan | Stage::Scan if self.next == self.work.keys => {
                self.times.scan = took;
                self.enter(if self.stage == Stage::FirstScan { Stage::Scan } else { Stage::LookUp });
            }
            Stage::FirstScan | Stage::Scan => self.scan(port)?,
            Stage::LookUp if self.next == self.work.lookups() => {
                self.times.lookups = took;
                self.enter(Stage::Batches);
            }
            Stage::LookUp => self.look_up(port)?,
            Stage::Batches if self.next == self.work.commits => {
                self.times.batches = took;
                self.enter(Stage::Singles);
            }
            Stage::Batches => {
                let (work, first) = (self.work, self.next * work::UPDATE_BATCH);
                self.submit(&mut (0..work::UPDATE_BATCH).map(|row| (work.random_key(first + row), 1)))?;
            }
            Stage::Singles if self.next == self.work.commits => {
                self.times.singles = took;
                self.enter(Stage::Done);
            }
            Stage::Singles => self.submit(&mut std::iter::once((self.work.random_key(self.next), 2)))?,
        }
        Ok(())
    }

    fn submit(&mut self, rows: &mut dyn Iterator<Item = (u64, u64)>) -> Result<()> {
        for (number, generation) in rows {
            let (key, value) = (key(number), value(number, generation));
            let put = Command::Put(Put { key: &key, value: &value, ..Put::default() });
            let sequence = self.booted.replica.submit(&put).map_err(|error| anyhow!("{error:?}"))?;
            self.waiting_for = Some(sequence);
        }
        self.next += 1;
        Ok(())
    }

    /// The next thousand keys, and so on while their pages are there.
    fn scan(&mut self, port: &mut GlommioPort) -> Result<()> {
        let first = key(self.next);
        let query = RangeQuery { key: &first, range_end: b"\0", limit: SCAN_ROWS, ..RangeQuery::default() };
        let Booted { replica, disk, .. } = &self.booted;
        let pages = Pages { port: &*port, disk };
        match replica.keyspace().range(&query, &mut Budget::unlimited(), &pages) {
            Ok(answer) => {
                let answer = answer.map_err(|error| anyhow!("{error:?}"))?;
                ensure!(answer.count as u64 == self.work.keys - self.next, "{} keys are left", answer.count);
                for row in &answer.rows {
                    work::check_scanned(self.next, row.key, row.value)?;
                    self.next += 1;
                }
                self.more = true;
                Ok(())
            }
            Err(pause) => self.pause(port, pause),
        }
    }

    fn look_up(&mut self, port: &mut GlommioPort) -> Result<()> {
        for _ in 0..LOOKUPS_PER_TURN.min(self.work.lookups() - self.next) {
            let number = self.work.random_key(self.next);
            let key = key(number);
            let query = RangeQuery { key: &key, ..RangeQuery::default() };
            let Booted { replica, disk, .. } = &self.booted;
            let pages = Pages { port: &*port, disk };
            match replica.keyspace().range(&query, &mut Budget::unlimited(), &pages) {
                Ok(answer) => {
                    let answer = answer.map_err(|error| anyhow!("{error:?}"))?;
                    work::check_loaded(number, answer.rows.first().map(|row| row.value))?;
                    self.next += 1;
                }
                Err(pause) => return self.pause(port, pause),
            }
        }
        self.more = true;
        Ok(())
    }
}
