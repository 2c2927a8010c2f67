//! Hard state.

use crate::ids::{BootNumber, Generation, Identity, Index, MemberId, Term};

/// What a member must not forget besides its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// Version of this record.
    pub generation: Generation,
    /// Whose it is.
    pub identity: Identity,
    /// The present term.
    pub term: Term,
    /// Who got this member's vote in that term.
    pub vote: Option<MemberId>,
    /// A commit index; the real one may be higher.
    pub commit: Index,
    /// How often the directory was started.
    pub boot_number: BootNumber,
}
