//! What recordings contain, in figures: a campaign that reaches nothing proves nothing.
//!
//! Owns: the counting. Does not know: how much is enough.

use std::collections::BTreeMap;

use crate::trace::{FileNumber, Mark, Step};

/// A file's name without its number.
#[must_use]
pub fn family(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(family, _)| family)
}

/// Adds up what the steps of a trace did.
pub fn count(steps: &[Step], into: &mut BTreeMap<String, u64>) {
    let mut names: BTreeMap<FileNumber, String> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        let what = match step {
            Step::Mounted(image, numbers) => {
                names.extend(image.files.keys().zip(numbers).map(|(name, number)| (*number, name.clone())));
                if at == 0 { "traces".to_owned() } else { "power cuts between lives".to_owned() }
            }
            Step::CreateBegun { file, name, .. } => {
                names.insert(*file, name.clone());
                format!("creations of {}", family(name))
            }
            Step::WriteBegun { file, .. } => format!("writes to {}", family(&names[file])),
            Step::SyncBegun { file, .. } => format!("syncs of {}", family(&names[file])),
            Step::UnlinkBegun { name, .. } => format!("removals of {}", family(name)),
            Step::Killed { landed } => {
                *into.entry("writes and names that outlived their process".to_owned()).or_insert(0) +=
                    landed.len() as u64;
                "kills and stops".to_owned()
            }
            Step::Mark(Mark::Acknowledged(_)) => "acknowledgements".to_owned(),
            _ => continue,
        };
        *into.entry(what).or_insert(0) += 1;
    }
}
