//! How many cores a process has, what each does, and which processors they are bound to.
//!
//! Owns: the table of defaults and the text form of `--cores`. Does not know: threads, how many processors there are.
//!
//! | processors | cores | shards |
//! |---|---|---|
//! | 1, 2 | one, which does everything | 1 |
//! | 3, 4 | the sequencer, which serves connections too, and one or two connection cores | 1 |
//! | from 5 on | the sequencer and three fewer connection cores than processors, at most 13 | a third of those, 1-4 |
//!
//! With eight connection cores or more the sequencer serves none itself. A helper thread for files goes with the
//! sequencer, and the kernel's own work wants room, too: both are why the table leaves processors over.
//!
//! Shards are numbered through the connection cores: shard i is evaluated by core 1 + i, beginning again where there
//! are fewer cores; without connection cores the sequencer evaluates all of them.

/// Cores of a process.
pub const CORES_MAX: usize = 64;
/// Connection cores by default.
const CONNECTION_CORES_MAX: usize = 13;
/// Connection cores for each shard by default, and shards at most.
const CONNECTION_CORES_PER_SHARD: usize = 3;
const SHARDS_DEFAULT_MAX: usize = 4;
/// With so many connection cores the sequencer serves no connections.
const SEQUENCER_ALONE_FROM: usize = 8;

/// The cores of a process; the first is the sequencer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// For each core the processor it is bound to; `None`: the scheduler chooses.
    pub cpus: Vec<Option<usize>>,
    /// Whether the sequencer serves connections, too.
    pub sequencer_serves: bool,
}

impl Layout {
    /// The default for so many processors.
    #[must_use]
    pub fn for_processors(processors: usize) -> Self {
        let connection_cores = match processors {
            0..=2 => 0,
            3 | 4 => processors - 2,
            _ => (processors - 3).min(CONNECTION_CORES_MAX),
        };
        Self::of(vec![None; 1 + connection_cores])
    }

    /// Reads `--cores`: 0 for the default (`None`), a number of cores, or processors to bind a core each to (`0,2,3`).
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let number = |text: &str| {
            text.trim().parse::<usize>().map_err(|_| format!("--cores={text}: a number, or a list such as 0,2,3"))
        };
        let cpus = if text.contains(',') {
            let list = text.split(',').map(number).collect::<Result<Vec<_>, _>>()?;
            if let Some(twice) = list.iter().enumerate().find(|(at, cpu)| list[..*at].contains(cpu)) {
                return Err(format!("--cores={text} names processor {} twice", twice.1));
            }
            list.into_iter().map(Some).collect()
        } else {
            match number(text)? {
                0 => return Ok(None),
                count => vec![None; count.min(CORES_MAX + 1)],
            }
        };
        if cpus.len() > CORES_MAX {
            return Err(format!("--cores={text}: at most {CORES_MAX}"));
        }
        Ok(Some(Self::of(cpus)))
    }

    fn of(cpus: Vec<Option<usize>>) -> Self {
        let sequencer_serves = cpus.len() <= SEQUENCER_ALONE_FROM;
        Self { cpus, sequencer_serves }
    }

    /// Cores beside the sequencer.
    #[must_use]
    pub fn connection_cores(&self) -> usize {
        self.cpus.len() - 1
    }

    /// How many shards there are unless `--shards` says it.
    #[must_use]
    pub fn shards(&self) -> usize {
        (self.connection_cores() / CONNECTION_CORES_PER_SHARD).clamp(1, SHARDS_DEFAULT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let expected = [
            (1, 0, true, 1),
            (2, 0, true, 1),
            (3, 1, true, 1),
            (4, 2, true, 1),
            (5, 2, true, 1),
            (8, 5, true, 1),
            (9, 6, true, 2),
            (10, 7, true, 2),
            (11, 8, false, 2),
            (16, 13, false, 4),
            (128, 13, false, 4),
        ];
        for (processors, connection_cores, serves, shards) in expected {
            let layout = Layout::for_processors(processors);
            let found = (layout.connection_cores(), layout.sequencer_serves, layout.shards());
            assert_eq!(found, (connection_cores, serves, shards), "{processors} processors");
        }
    }

    #[test]
    fn numbers_and_lists() {
        let parse = |text| Layout::parse(text).map(|layout| layout.expect("not the default"));
        assert_eq!(Layout::parse("0"), Ok(None));
        assert_eq!(parse("1").unwrap().cpus, [None]);
        assert_eq!(parse("4").unwrap().cpus, [None; 4]);
        assert!(!parse("9").unwrap().sequencer_serves);
        assert_eq!(parse("3, 0,2").unwrap().cpus, [3, 0, 2].map(Some));
        assert_eq!(parse("64").unwrap().connection_cores(), 63);
        for (text, reason) in [
            ("65", "--cores=65: at most 64"),
            ("four", "--cores=four: a number, or a list such as 0,2,3"),
            ("1,2,1", "--cores=1,2,1 names processor 1 twice"),
        ] {
            assert_eq!(parse(text).unwrap_err(), reason);
        }
        assert!(parse("1,,2").is_err() && parse("-1").is_err() && parse("").is_err());
    }
}
