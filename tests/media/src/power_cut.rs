//! Power cuts: a member must start from every image that one may leave, and keep its promises.
//!
//! Owns: which images of a trace are tried, and what is asked of a member that starts from one. Does not know: formats.
//!
//! Invariants
//! - I1: every acknowledged request is there, with its revision and value; what was not acknowledged is there whole or
//!   not at all, in order; nothing else is.
//! - I2: a member that started goes on: it takes writes and checkpoints, and starts again from what that left.

use std::rc::Rc;

use trilith_sim::rng::Rng;

use crate::image::Image;
use crate::ledger::{Fault, Ledger};
use crate::medium::{Medium, cuts};
use crate::member::{Geometry, MILLISECOND, Member, Reply};
use crate::port::Pace;
use crate::recording::Recording;
use crate::request::{Change, Request};
use crate::trace::{Mark, Step};

/// What must hold of an image.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The requests that may have taken effect.
    pub ledger: Rc<Ledger>,
    /// So many have.
    pub least: usize,
    /// No more than so many have.
    pub most: usize,
}

/// A point of a trace and one of its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Steps before the power cut.
    pub steps: usize,
    /// The image, see [`Medium::power_cut`].
    pub image: u64,
    /// Its number in the trace.
    pub number: u64,
}

/// The images there are at each point of a trace.
#[must_use]
pub fn survey(steps: &[Step]) -> Vec<(usize, u64)> {
    let mut medium = Medium::default();
    let mut at = 0;
    let mut survey = Vec::new();
    for cut in cuts(steps) {
        steps[at..cut].iter().for_each(|step| medium.take(step));
        at = cut;
        survey.push((cut, medium.images()));
    }
    survey
}

/// Chooses `count` cases: half spread evenly over the points, half over the images. With as many as there are, all.
#[must_use]
pub fn choose(survey: &[(usize, u64)], count: u64, seed: u64) -> Vec<Case> {
    let total: u64 = survey.iter().map(|(_, images)| images).sum();
    let mut cases = Vec::new();
    for number in 0..count {
        let mut rng = Rng::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let case = if count >= total {
            locate(survey, number % total)
        } else if number % 2 == 0 {
            let place = (number * survey.len() as u64 + rng.below(survey.len() as u64)) / count;
            let (steps, images) = survey[place as usize % survey.len()];
            (steps, rng.below(images))
        } else {
            locate(survey, ((number * total + rng.below(total)) / count) % total)
        };
        cases.push(Case { steps: case.0, image: case.1, number });
    }
    cases
}

/// Point and image of the image `number` of a trace.
fn locate(survey: &[(usize, u64)], number: u64) -> (usize, u64) {
    let mut rest = number;
    for (steps, images) in survey {
        if rest < *images {
            return (*steps, rest);
        }
        rest -= images;
    }
    unreachable!("the number is below the sum")
}

/// Tries cases of a recording, in any order; `begin` is told of each, `report` what came of it.
pub fn try_cases(
    recording: &Recording,
    mut cases: Vec<Case>,
    seed: u64,
    begin: &mut dyn FnMut(&Case),
    report: &mut dyn FnMut(&Case, Result<(), String>),
) {
    cases.sort();
    let mut medium = Medium::default();
    let mut at = 0;
    let mut promise = Promise { ledger: Rc::clone(&recording.epochs[0]), least: 0, most: 0 };
    for case in cases {
        for step in &recording.steps[at..case.steps] {
            medium.take(step);
            if let Step::Mark(mark) = step {
                promise.follow(*mark, recording);
            }
        }
        at = case.steps;
        begin(&case);
        let cut = medium.power_cut(case.image, seed);
        let image = medium.image_after(&cut);
        let seed = seed ^ case.number << 20;
        let result = survive(&recording.geometry, image, &promise, seed).map_err(|fault| {
            let Promise { least, most, .. } = promise;
            let left = medium.describe(&cut);
            format!("after {} steps, {least} of {most} requests acknowledged; left: {left}: {fault:?}", case.steps)
        });
        report(&case, result);
    }
}

impl Promise {
    fn follow(&mut self, mark: Mark, recording: &Recording) {
        match mark {
            Mark::Epoch { epoch, settled } => {
                *self = Self { ledger: Rc::clone(&recording.epochs[epoch]), least: settled, most: settled };
            }
            Mark::Issued(count) => self.most = self.most.max(count),
            Mark::Acknowledged(count) => self.least = self.least.max(count),
        }
    }
}

/// Starts a member from an image, reads everything, goes on, ends, starts again.
///
/// # Errors
/// A promise is broken.
pub fn survive(geometry: &Geometry, image: Image, promise: &Promise, seed: u64) -> Result<(), Fault> {
    let mut rng = Rng::new(seed);
    let mut member = Member::boot(geometry, image, Pace::AtOnce, rng.bits())?;
    member.serve()?;
    let count = promise.ledger.verify(&mut member, promise.least, promise.most)?;
    let mut ledger = Ledger::clone(&promise.ledger);
    ledger.truncate(count);
    go_on(&mut member, geometry, &mut ledger, &mut rng)?;
    let image = end(member, &mut rng)?;
    let mut member = Member::boot(geometry, image, Pace::AtOnce, rng.bits())?;
    member.serve()?;
    ledger.verify(&mut member, ledger.len(), ledger.len()).map(drop)
}

/// Writes enough for a checkpoint, most of the time.
fn go_on(member: &mut Member, geometry: &Geometry, ledger: &mut Ledger, rng: &mut Rng) -> Result<(), Fault> {
    if ledger.last().has_alarm {
        call(member, ledger, &Request::Alarm { active: false })?;
    }
    for _ in 0..rng.between(1, geometry.checkpoint_changes as u64 + 2) {
        let key = geometry.key(rng.below(40));
        let value = vec![rng.bits() as u8; rng.log_between(1, 200) as usize];
        call(member, ledger, &Request::Change(Change::Put { key, value }))?;
    }
    if rng.chance(500) {
        member.rest(20 * MILLISECOND)?;
    }
    Ok(())
}

fn call(member: &mut Member, ledger: &mut Ledger, request: &Request) -> Result<(), Fault> {
    ledger.push(request);
    let expected = ledger.last().revision;
    match member.call(request.encode())? {
        Reply::Message(bytes) => match request.revision(&bytes).map_err(Fault::Wrong)? {
            revision if revision == expected => Ok(()),
            revision => Err(Fault::Wrong(format!("{request:?} has revision {revision}, not {expected}"))),
        },
        failed => Err(Fault::Wrong(format!("{request:?} is answered by {failed:?}"))),
    }
}

/// The life ends in one of its ways; what the next one finds.
fn end(mut member: Member, rng: &mut Rng) -> Result<Image, Fault> {
    let way = rng.below(4);
    if way == 0 {
        member.stop()?;
    }
    let mut port = member.into_port();
    if way <= 1 {
        port.end_process();
        return Ok(port.visible().clone());
    }
    let mut medium = Medium::default();
    port.steps.iter().for_each(|step| medium.take(step));
    let cut = medium.power_cut(if way == 2 { 0 } else { rng.below(medium.images()) }, rng.bits());
    Ok(medium.image_after(&cut))
}
