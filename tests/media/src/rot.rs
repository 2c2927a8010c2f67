//! Rot: one fault on a closed directory, in any file. A member tells it, or is not touched by it.
//!
//! Owns: the kinds of faults, where they strike, and which outcomes are right. Does not know: formats; it strikes at
//! sectors, blocks, lengths and names.
//!
//! Invariants
//! - I1: one fault per case. Every acknowledged request of the directory lies under a durable watermark before it.
//! - I2: right are: everything is there and right; a refused start that names the file; a process that stops naming
//!   file and offset. A wrong answer, a panic or a life without progress is never right.

use std::collections::BTreeMap;

use trilith_sim::rng::Rng;

use crate::coverage::family;
use crate::image::Image;
use crate::ledger::{Fault, Ledger};
use crate::medium::{BLOCK_BYTES, Chronicle, SECTOR_BYTES};
use crate::member::{Ended, Geometry, MILLISECOND, Member};
use crate::port::Pace;
use crate::recording::{Closed, Recording};

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One bit is another.
    BitFlip,
    /// 512 bytes are zeros.
    ZeroedSector,
    /// 4 KiB are zeros.
    ZeroedBlock,
    /// 4 KiB are what they were before the newest write.
    LostWrite,
    /// 4 KiB are what they once were.
    StaleBlock,
    /// 4 KiB are those of another place.
    Misdirected,
    /// The file ends early.
    Truncated,
    /// The file is gone.
    Missing,
}

const KINDS: [Kind; 8] = [
    Kind::BitFlip,
    Kind::ZeroedSector,
    Kind::ZeroedBlock,
    Kind::LostWrite,
    Kind::StaleBlock,
    Kind::Misdirected,
    Kind::Truncated,
    Kind::Missing,
];

/// What became of a faulty directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Everything is right.
    Right,
    /// The start was refused.
    Refused,
    /// The process stopped when it came upon the fault.
    Stopped,
}

/// One fault, made.
#[derive(Clone, Debug)]
pub struct Struck {
    /// The faulty directory.
    pub image: Image,
    /// The family of the file, such as `wal/seg`.
    pub family: String,
    /// What happened.
    pub kind: Kind,
    /// The same in words.
    pub text: String,
}

/// Where the files of a recording can be struck.
#[derive(Debug)]
pub struct Quarry<'a> {
    closed: &'a Closed,
    chronicle: Chronicle,
    families: BTreeMap<String, Vec<&'a str>>,
}

impl<'a> Quarry<'a> {
    /// The files of one closed directory.
    #[must_use]
    pub fn new(recording: &'a Recording, closed: &'a Closed) -> Self {
        let mut families: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for name in closed.image.files.keys() {
            families.entry(family(name).to_owned()).or_default().push(name);
        }
        Self { closed, chronicle: Chronicle::of(&recording.steps[..closed.steps]), families }
    }

    /// Makes one fault; `None` if what was drawn would change nothing.
    #[must_use]
    pub fn strike(&self, rng: &mut Rng) -> Option<Struck> {
        let (family, names) = self.families.iter().nth(rng.index(self.families.len()))?;
        let name = names[rng.index(names.len())];
        let kind = KINDS[rng.index(KINDS.len())];
        let mut image = self.closed.image.clone();
        let place = match kind {
            Kind::Missing => image.files.remove(name).map(|_| String::new()),
            Kind::Truncated => truncate(image.contents_mut(name)?, rng),
            _ => self.strike_block(&mut image, name, kind, rng),
        }?;
        let has_changed = image != self.closed.image;
        let text = format!("{kind:?} of {name}{place}");
        has_changed.then(|| Struck { image, family: family.clone(), kind, text })
    }

    fn strike_block(&self, image: &mut Image, name: &str, kind: Kind, rng: &mut Rng) -> Option<String> {
        let number = draw_block(&image.files[name], rng)?;
        let foreign = match kind {
            Kind::Misdirected => self.draw_foreign(name, number, rng)?,
            _ => (Vec::new(), String::new()),
        };
        let block = image.contents_mut(name)?.chunks_mut(BLOCK_BYTES).nth(number)?;
        let at = number * BLOCK_BYTES;
        let place = match kind {
            Kind::BitFlip => {
                let bit = draw_bit(block, rng);
                block[bit / 8] ^= 1 << (bit % 8);
                return Some(format!(" at byte {} bit {}", at + bit / 8, bit % 8));
            }
            Kind::ZeroedSector => {
                let sector = rng.index(block.len().div_ceil(SECTOR_BYTES));
                block.chunks_mut(SECTOR_BYTES).nth(sector)?.fill(0);
                return Some(format!(" at {}", at + sector * SECTOR_BYTES));
            }
            Kind::LostWrite | Kind::StaleBlock => {
                let versions = self.chronicle.blocks.get(&(name.to_owned(), number))?;
                // The newest write that is not what stands there: a write may repeat what was there.
                let older = versions.iter().rposition(|version| version[..] == *block)?.checked_sub(1)?;
                let version = if kind == Kind::LostWrite { older } else { rng.index(older + 1) };
                block.copy_from_slice(versions[version].get(..block.len())?);
                format!(" (version {version} of {})", versions.len())
            }
            Kind::Misdirected => {
                block.copy_from_slice(foreign.0.get(..block.len())?);
                foreign.1
            }
            _ => {
                block.fill(0);
                String::new()
            }
        };
        Some(format!(" at {at}{place}"))
    }

    /// Another block, of the same file half of the time.
    fn draw_foreign(&self, name: &str, number: usize, rng: &mut Rng) -> Option<(Vec<u8>, String)> {
        let names: Vec<&String> = self.closed.image.files.keys().collect();
        let from = if rng.chance(500) { name } else { names[rng.index(names.len())].as_str() };
        let contents = &self.closed.image.files[from];
        let block = draw_block(contents, rng).filter(|block| from != name || *block != number)?;
        let bytes = contents.chunks(BLOCK_BYTES).nth(block)?.to_vec();
        Some((bytes, format!(" (from {from} at {})", block * BLOCK_BYTES)))
    }
}

/// A block that holds something, most of the time.
fn draw_block(contents: &[u8], rng: &mut Rng) -> Option<usize> {
    let blocks = contents.len().div_ceil(BLOCK_BYTES);
    let used: Vec<usize> = (0..blocks).filter(|number| !is_zero(contents, *number)).collect();
    if blocks == 0 {
        None
    } else if used.is_empty() || rng.chance(50) {
        Some(rng.index(blocks))
    } else {
        Some(used[rng.index(used.len())])
    }
}

fn is_zero(contents: &[u8], block: usize) -> bool {
    let end = contents.len().min((block + 1) * BLOCK_BYTES);
    contents[block * BLOCK_BYTES..end].iter().all(|byte| *byte == 0)
}

/// Any bit; often one of a byte that is not zero, or of the beginning.
fn draw_bit(block: &[u8], rng: &mut Rng) -> usize {
    let used: Vec<usize> = (0..block.len()).filter(|at| block[*at] != 0).collect();
    let byte = match rng.below(4) {
        0 => rng.index(block.len().min(128)),
        1 | 2 if !used.is_empty() => used[rng.index(used.len())],
        _ => rng.index(block.len()),
    };
    byte * 8 + rng.index(8)
}

fn truncate(contents: &mut Vec<u8>, rng: &mut Rng) -> Option<String> {
    let unit = [1, SECTOR_BYTES, BLOCK_BYTES][rng.index(3)];
    let len = rng.index(contents.len().div_ceil(unit).max(1)) * unit;
    contents.truncate(len);
    Some(format!(" to {len}"))
}

/// Starts a member from a faulty directory and judges what comes of it: the outcome and the member's last words.
///
/// # Errors
/// The outcome is wrong; the text says how.
pub fn judge(
    geometry: &Geometry,
    struck: &Struck,
    ledger: &Ledger,
    count: usize,
    seed: u64,
) -> Result<(Outcome, String), String> {
    match endure(geometry, struck.image.clone(), ledger, count, seed) {
        Ok(()) => Ok((Outcome::Right, String::new())),
        Err(Fault::Ended(Ended::Refused(text))) => match check_words(struck, &text) {
            Ok(()) => Ok((Outcome::Refused, text)),
            Err(missing) => Err(format!("{}: a refusal without {missing}: {text}", struck.text)),
        },
        Err(Fault::Ended(Ended::Stopped(text))) => match check_words(struck, &text) {
            Ok(()) => Ok((Outcome::Stopped, text)),
            Err(missing) => Err(format!("{}: a stop without {missing}: {text}", struck.text)),
        },
        Err(fault) => Err(format!("{}: {fault:?}", struck.text)),
    }
}

/// Reads everything, rests, stops, and does it again.
fn endure(geometry: &Geometry, image: Image, ledger: &Ledger, count: usize, seed: u64) -> Result<(), Fault> {
    let mut rng = Rng::new(seed);
    let mut member = Member::boot(geometry, image, Pace::AtOnce, rng.bits())?;
    member.serve()?;
    ledger.verify(&mut member, count, count)?;
    member.rest(10 * MILLISECOND)?;
    if rng.chance(500) {
        member.stop()?;
    }
    let mut port = member.into_port();
    port.end_process();
    let mut member = Member::boot(geometry, port.visible().clone(), Pace::AtOnce, rng.bits())?;
    member.serve()?;
    ledger.verify(&mut member, count, count).map(drop)
}

/// What a refusal or a stop must name: a file, where in it, and, if the log is damaged, which record.
fn check_words(struck: &Struck, text: &str) -> Result<(), &'static str> {
    let names_file = ["wal/", "store/"].iter().any(|directory| text.contains(directory));
    if !names_file {
        return Err("a file");
    }
    let is_whole_file = matches!(struck.kind, Kind::Missing | Kind::Truncated);
    if !is_whole_file && !text.contains("offset") {
        return Err("an offset");
    }
    // A header of another file says nothing of records.
    let is_log = struck.family == "wal/seg" && !is_whole_file && !text.contains("belongs to another");
    if is_log && !(text.contains("lsn") && text.contains("index")) {
        return Err("the record");
    }
    Ok(())
}
