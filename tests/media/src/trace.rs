//! What a process did to its medium, in order, and what it promised meanwhile.
//!
//! Owns: the vocabulary of a recording. Does not know: which images a power cut may leave of it
//! ([`crate::medium`]), what the bytes mean.
//!
//! Invariants
//! - I1: a mark stands behind everything the process had done to the medium when it made the promise.

use std::rc::Rc;

use crate::image::Image;

/// A file from its creation on, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileNumber(pub u32);

/// One write, sync or change of a name, from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u32);

/// One step.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the text of each variant names its fields")]
pub enum Step {
    /// The medium as it stood: every file that is named, durable.
    Mounted(Image, Vec<FileNumber>),
    /// A write is on its way. `syncs_itself`: durable once it ended, as writes of the log are.
    WriteBegun { ticket: Ticket, file: FileNumber, offset: usize, bytes: Rc<Vec<u8>>, syncs_itself: bool },
    /// It ended.
    WriteEnded { ticket: Ticket },
    /// A sync of a file is on its way.
    SyncBegun { ticket: Ticket, file: FileNumber },
    /// It ended: writes that had ended before it began are durable.
    SyncEnded { ticket: Ticket },
    /// A file of zeros is being made and given a name.
    CreateBegun { ticket: Ticket, file: FileNumber, name: String, bytes: usize },
    /// The file has its name, and nobody syncs the directory.
    Named { ticket: Ticket },
    /// File, name and directory are durable.
    CreateEnded { ticket: Ticket },
    /// A name is being removed.
    UnlinkBegun { ticket: Ticket, name: String },
    /// It is gone, durably.
    UnlinkEnded { ticket: Ticket },
    /// The names of a directory are durable as they stand.
    DirectorySynced { directory: String },
    /// The process was killed. Of what was under way, this reached the file; the rest never will.
    Killed { landed: Vec<(Ticket, Landed)> },
    /// A promise, or its premise.
    Mark(Mark),
}

impl Step {
    /// Whether the medium may look different afterwards.
    #[must_use]
    pub fn changes_medium(&self) -> bool {
        !matches!(self, Self::Mark(_) | Self::SyncBegun { .. })
    }
}

/// What a killed process still brought about.
#[derive(Clone, Debug)]
pub enum Landed {
    /// These sectors of a write.
    Sectors(Vec<bool>),
    /// A change of a name, without the sync of its directory.
    Name,
    /// A change of a name and the sync of its directory.
    NameAndDirectory,
}

/// What the recording knows of requests; counts are positions in the epoch's [`crate::ledger::Ledger`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// From here on the requests of this epoch's ledger count, of which so many are settled.
    Epoch {
        /// Its number.
        epoch: usize,
        /// Requests settled at its beginning.
        settled: usize,
    },
    /// So many requests were sent.
    Issued(usize),
    /// So many were acknowledged, in order.
    Acknowledged(usize),
}
