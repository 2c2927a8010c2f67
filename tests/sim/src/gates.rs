//! Coverage gates: what a campaign must have seen for its zero violations to mean something.
//!
//! Owns: the list. Does not know: who counts.

use std::collections::BTreeMap;

use crate::history::Fault;

/// With fewer seeds the rare things may be missing by chance.
const SEEDS_MIN: u64 = 400;

/// Faults, and places at which they strike.
const FAULTS: &[&str] = &[
    "(kill)",
    "(power loss)",
    "(I/O error)",
    "(short write)",
    "(no space)",
    "(pause)",
    "(disk stall)",
    "(slow CPU)",
    "(wall clock jump)",
    "(graceful stop)",
    "(one copy damaged)",
    "(free bytes damaged)",
    "(anything damaged)",
    "(damage refused)",
    "(late write awaited)",
    "(hang-up)",
    "(connection reset)",
    "(cancelled call)",
    "(abandoned stream)",
    "(sectors lost)",
    "(torn log write)",
    "(torn store write)",
    "(name lost)",
    "(crash at boot)",
];

/// Coincidences in which mistakes hide.
const COINCIDENCES: &[&str] = &[
    "(checkpoint while writing)",
    "(log segment recycled)",
    "(compaction during a read)",
    "(index populated)",
    "(rows populated)",
    "(pages released)",
    "(store read past the cache)",
    "(reserve given up)",
    "(reserve made again)",
    "scrubbed the data directory",
    "(restart during a checkpoint)",
    "(torn superblock)",
    "(large read in slices)",
    "(commands evaluated by shards)",
    "(events watched)",
    "(progress answered)",
    "(progress notice)",
    "(future watch reached)",
    "(slow watch stream)",
    "(watcher behind)",
    "(watch ended by compaction)",
    "(slow watcher overtaken by compaction)",
    "(watch resumed after a crash)",
    "(watchers caught up)",
    "(lease granted)",
    "(lease kept alive)",
    "(lease revoked)",
    "(lease expired)",
    "(lease outlived a process)",
    "(lease due while no process ran)",
    "(leases ran out)",
    "(key ended with a lease)",
    "(several keys ended with a lease)",
    "mvcc: watcher range is empty",
    "mvcc: duplicate watch ID provided on the WatchStream",
    "dropped an unacknowledged tail of the log",
];

/// The gates that a campaign of so many seeds missed.
#[must_use]
pub fn missed(seeds: u64, coverage: &BTreeMap<String, u64>) -> Vec<String> {
    if seeds < SEEDS_MIN {
        return Vec::new();
    }
    let errors = Fault::ALL.iter().map(|fault| fault.text);
    let gates = FAULTS.iter().chain(COINCIDENCES).copied().chain(errors);
    gates.filter(|gate| coverage.get(*gate).copied().unwrap_or(0) == 0).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_missed_by_name_and_only_in_a_campaign() {
        let mut coverage: BTreeMap<String, u64> =
            FAULTS.iter().chain(COINCIDENCES).map(|gate| ((*gate).to_owned(), 1)).collect();
        coverage.extend(Fault::ALL.iter().map(|fault| (fault.text.to_owned(), 1)));
        assert!(missed(SEEDS_MIN, &coverage).is_empty());
        coverage.insert("(pause)".to_owned(), 0);
        coverage.remove("(torn superblock)");
        assert_eq!(missed(SEEDS_MIN, &coverage), ["(pause)", "(torn superblock)"]);
        assert!(missed(1, &coverage).is_empty());
    }
}
