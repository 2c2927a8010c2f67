//! Several lives of one member under a drawn workload, recorded.
//!
//! Owns: the workload, the ends of lives, the marks. Does not know: what is checked of it later.
//!
//! Invariants
//! - I1: a recording is decided by its seed.
//! - I2: an epoch begins when a life has shown how many requests of the epoch before took effect; the rest never will.

use std::collections::BTreeMap;
use std::rc::Rc;

use trilith_sim::rng::Rng;

use crate::image::Image;
use crate::ledger::{Fault, Ledger};
use crate::medium::Medium;
use crate::member::{Ended, Geometry, MILLISECOND, Member, Reply};
use crate::port::{MediaPort, Pace};
use crate::request::{Change, Request};
use crate::trace::{Mark, Step};

/// Long enough for the record that makes everything before it provably durable, and for checkpoints to end.
const QUIET: u64 = 80 * MILLISECOND;
const KEYS: u64 = 14;

/// A directory that no process has open, and what it holds.
#[derive(Clone, Debug)]
pub struct Closed {
    /// The directory.
    pub image: Image,
    /// The epoch of its last life.
    pub epoch: usize,
    /// Requests of it that took effect; all were acknowledged.
    pub count: usize,
    /// Whether the last process stopped by itself; otherwise it was killed at rest.
    pub is_stopped: bool,
    /// So many steps led to it.
    pub steps: usize,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recording {
    /// The member's sizes.
    pub geometry: Geometry,
    /// Everything that was done to the medium, and promised.
    pub steps: Vec<Step>,
    /// The requests of each epoch.
    pub epochs: Vec<Rc<Ledger>>,
    /// Directories at rest.
    pub closed: Vec<Closed>,
}

/// Records the trace of a seed.
///
/// # Errors
/// The member fails without any fault.
pub fn record(seed: u64) -> Result<Recording, String> {
    let mut rng = Rng::new(seed ^ 0x7472_6163_6500_0000);
    let geometry = Geometry::draw(&mut rng);
    let port = MediaPort::new(Image::default(), Pace::Drawn, rng.bits());
    let mut recorder = Recorder {
        geometry,
        rng,
        ledger: Ledger::default(),
        epochs: Vec::new(),
        closed: Vec::new(),
        calls: BTreeMap::new(),
        acknowledged: 0,
    };
    let lives = recorder.rng.between(2, 5);
    let mut port = port;
    for life in 0..lives {
        port = recorder.live(port, life + 1 == lives).map_err(|fault| format!("recording: {fault:?}"))?;
    }
    recorder.epochs.push(Rc::new(recorder.ledger));
    Ok(Recording { geometry, steps: port.steps, epochs: recorder.epochs, closed: recorder.closed })
}

struct Recorder {
    geometry: Geometry,
    rng: Rng,
    ledger: Ledger,
    epochs: Vec<Rc<Ledger>>,
    closed: Vec<Closed>,
    /// Requests under way by stream, with their places in the ledger.
    calls: BTreeMap<u32, (Request, usize)>,
    acknowledged: usize,
}

impl Recorder {
    /// One life; the port after its end.
    fn live(&mut self, port: MediaPort, is_last: bool) -> Result<MediaPort, Fault> {
        let booted = Member::boot_on(&self.geometry, port);
        let mut member = booted.map_err(|(ended, _)| Fault::Ended(ended))?;
        self.calls.clear();
        if !is_last && self.rng.chance(100) {
            // It dies before it serves.
            for _ in 0..self.rng.between(1, 12) {
                member.turn(u64::MAX)?;
            }
            return Ok(self.end(member));
        }
        member.serve()?;
        let settled = self.ledger.verify(&mut member, self.acknowledged, self.ledger.len())?;
        self.epochs.push(Rc::new(self.ledger.clone()));
        self.ledger.truncate(settled);
        self.acknowledged = settled;
        // Epochs are numbered by the ledger that follows; the one before the first life is empty.
        member.port.mark(Mark::Epoch { epoch: self.epochs.len(), settled });
        for _ in 0..self.rng.between(4, 14) {
            self.act(&mut member)?;
        }
        if is_last || self.rng.chance(250) {
            return self.close(member, is_last);
        }
        self.die_busy(member)
    }

    /// The life ends with requests under way.
    fn die_busy(&mut self, mut member: Member) -> Result<MediaPort, Fault> {
        for _ in 0..self.rng.between(1, 4) {
            let request = self.draw();
            self.issue(&mut member, request);
        }
        for _ in 0..self.rng.between(1, 6) {
            self.turn(&mut member)?;
        }
        Ok(self.end(member))
    }

    /// The process dies at once, with or without the machine.
    fn end(&mut self, member: Member) -> MediaPort {
        let mut port = member.into_port();
        if self.rng.chance(500) {
            port.end_process();
            return port;
        }
        let mut medium = Medium::default();
        port.steps.iter().for_each(|step| medium.take(step));
        let cut = medium.power_cut(self.rng.below(medium.images()), self.rng.bits());
        port.lose_power(medium.image_after(&cut));
        port
    }

    /// The life ends at rest, and its directory is kept.
    fn close(&mut self, mut member: Member, is_last: bool) -> Result<MediaPort, Fault> {
        self.wait(&mut member)?;
        member.rest(QUIET)?;
        if !member.port.is_busy() {
            self.keep(&member.port, false);
        }
        if !is_last && self.rng.chance(300) {
            let mut port = member.into_port();
            port.end_process();
            return Ok(port);
        }
        member.stop()?;
        let mut port = member.into_port();
        self.keep(&port, true);
        port.end_process();
        Ok(port)
    }

    fn keep(&mut self, port: &MediaPort, is_stopped: bool) {
        let (image, epoch, count) = (port.visible().clone(), self.epochs.len(), self.ledger.len());
        self.closed.push(Closed { image, epoch, count, is_stopped, steps: port.steps.len() });
    }

    fn act(&mut self, member: &mut Member) -> Result<(), Fault> {
        match self.rng.below(20) {
            0..=13 => {
                for _ in 0..self.rng.between(1, 6) {
                    let request = self.draw();
                    self.issue(member, request);
                    if self.rng.chance(500) {
                        self.turn(member)?;
                    }
                }
            }
            14 => self.compact(member)?,
            15 => self.raise_alarm(member)?,
            16 => {
                let serializable = self.rng.chance(500);
                self.issue(member, Request::Count { serializable });
            }
            17 => {
                self.wait(member)?;
                self.rest(member, QUIET)?;
            }
            18 => self.rest(member, 3 * MILLISECOND)?,
            _ => {}
        }
        if self.rng.chance(300) { self.wait(member) } else { self.turn(member) }
    }

    fn draw(&mut self) -> Request {
        if self.rng.chance(150) {
            let key = self.draw_key();
            let version = if self.rng.chance(500) { self.ledger.version(&key) } else { self.rng.below(3) as i64 };
            // Not both empty: that would be a read.
            let success = self.draw_branch(1);
            return Request::Txn { key, version, success, failure: self.draw_branch(0) };
        }
        let key = self.draw_key();
        Request::Change(if self.rng.chance(180) { self.draw_delete(key) } else { self.draw_put(key) })
    }

    fn draw_key(&mut self) -> Vec<u8> {
        self.geometry.key(self.rng.below(KEYS))
    }

    fn draw_put(&mut self, key: Vec<u8>) -> Change {
        let large = self.rng.chance(80);
        let len =
            if large { self.rng.between(3_000, self.geometry.value_bytes_max()) } else { self.rng.log_between(1, 600) };
        // Values differ everywhere, so that no piece of one passes for a piece of another.
        let mut bytes = Rng::new(self.rng.bits());
        Change::Put { key, value: (0..len).map(|_| bytes.bits() as u8).collect() }
    }

    fn draw_delete(&mut self, key: Vec<u8>) -> Change {
        let end = if self.rng.chance(500) { Vec::new() } else { self.draw_key() };
        Change::Delete { key, end }
    }

    /// A few changes of different keys.
    fn draw_branch(&mut self, least: u64) -> Vec<Change> {
        let mut keys: Vec<Vec<u8>> =
            (0..self.rng.between(least, self.geometry.branch_max())).map(|_| self.draw_key()).collect();
        keys.sort();
        keys.dedup();
        let mut changes = Vec::new();
        for key in keys {
            if self.rng.chance(250) {
                changes.push(Change::Delete { key, end: Vec::new() });
            } else {
                let mut bytes = Rng::new(self.rng.bits());
                let value = (0..self.rng.log_between(1, 300)).map(|_| bytes.bits() as u8).collect();
                changes.push(Change::Put { key, value });
            }
        }
        changes
    }

    fn compact(&mut self, member: &mut Member) -> Result<(), Fault> {
        let state = self.ledger.last();
        if state.revision > state.compacted.max(1) {
            let revision = self.rng.between(state.compacted.max(1) as u64 + 1, state.revision as u64) as i64;
            // Not ahead of what it names: that would be an error.
            self.wait(member)?;
            self.issue(member, Request::Compact { revision });
        }
        Ok(())
    }

    /// Raises the alarm, deletes under it, and clears it again, unless the life ends before.
    fn raise_alarm(&mut self, member: &mut Member) -> Result<(), Fault> {
        self.wait(member)?;
        self.issue(member, Request::Alarm { active: true });
        let key = self.draw_key();
        self.issue(member, Request::Change(Change::Delete { key, end: Vec::new() }));
        self.wait(member)?;
        self.issue(member, Request::Alarm { active: false });
        self.wait(member)
    }

    fn issue(&mut self, member: &mut Member, request: Request) {
        let place = if request.is_command() { self.ledger.push(&request) } else { 0 };
        let stream = member.begin(request.encode());
        if request.is_command() {
            member.port.mark(Mark::Issued(place));
        }
        self.calls.insert(stream, (request, place));
    }

    fn turn(&mut self, member: &mut Member) -> Result<(), Fault> {
        member.turn(u64::MAX)?;
        self.take_answers(member)
    }

    fn rest(&mut self, member: &mut Member, nanoseconds: u64) -> Result<(), Fault> {
        let until = member.port.now() + nanoseconds;
        while member.turn(until)? {
            self.take_answers(member)?;
        }
        Ok(())
    }

    /// Until everything is answered.
    fn wait(&mut self, member: &mut Member) -> Result<(), Fault> {
        while !self.calls.is_empty() {
            if !member.turn(u64::MAX)? {
                return Err(Fault::Ended(Ended::Hangs("calls are not answered".to_owned())));
            }
            self.take_answers(member)?;
        }
        Ok(())
    }

    fn take_answers(&mut self, member: &mut Member) -> Result<(), Fault> {
        while let Some((stream, reply)) = member.poll_answer() {
            let Some((request, place)) = self.calls.remove(&stream) else { continue };
            let Reply::Message(bytes) = &reply else {
                return Err(Fault::Wrong(format!("{request:?} is answered by {reply:?}")));
            };
            let revision = request.revision(bytes).map_err(Fault::Wrong)?;
            let reached = if request.is_command() {
                let expected = self.ledger.state(place).revision;
                if revision != expected {
                    return Err(Fault::Wrong(format!("{request:?} has revision {revision}, not {expected}")));
                }
                place
            } else {
                let reached = self.ledger.reaches(revision);
                reached.ok_or_else(|| Fault::Wrong(format!("a read shows revision {revision}")))?
            };
            if reached > self.acknowledged {
                self.acknowledged = reached;
                member.port.mark(Mark::Acknowledged(reached));
            }
        }
        Ok(())
    }
}
