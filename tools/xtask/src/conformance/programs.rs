//! The table of programs: which client each is of, its parts, and which of them this version of the server lacks.

/// What a program is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// A package of Go: folder of its main module, package path.
    Go(&'static str, &'static str),
    /// The program in the workspace of its own in `rust`.
    Rust,
    /// `python/tour.py` with the packages it requires.
    Python,
    /// `node/tour.js` with the packages of its lock file.
    Node,
    /// `etcdctl/tour.sh` with the etcdctl of a release.
    Etcdctl(Release),
}

/// A release of etcdctl, and with it where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// 3.4, Debian's.
    Old,
    /// 3.5, from the Python package that carries it.
    Middle,
    /// The one of the etcd that is compared with.
    Current,
}

/// One program of the suite.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) client: Client,
    /// Parts that must be the same on both servers.
    pub(super) parts: &'static [&'static str],
    /// Parts that count on how the servers are started here.
    pub(super) local: &'static [&'static str],
    /// Parts that take long, run when asked for.
    pub(super) slow: &'static [&'static str],
    /// Parts about what this version of the server answers UNIMPLEMENTED.
    pub(super) absent: &'static [&'static str],
}

impl Program {
    /// Every part, in the order of a run.
    pub(super) fn all_parts(&self) -> Vec<&'static str> {
        self.parts_to_run(true, true)
    }

    /// The parts of one run.
    pub(super) fn parts_to_run(&self, local: bool, slow: bool) -> Vec<&'static str> {
        let local = if local { self.local } else { &[] };
        let slow = if slow { self.slow } else { &[] };
        [self.parts, local, slow, self.absent].concat()
    }
}

const TOUR: &[&str] = &[
    "kv",
    "txn",
    "errors",
    "watch",
    "watch-old",
    "progress",
    "lease",
    "mutex",
    "election",
    "stm",
    "maintenance",
    "members",
    "leader",
    "reconnect",
    "expiry",
    "session",
    "registry",
];

const fn tour(name: &'static str, folder: &'static str) -> Program {
    Program {
        name,
        client: Client::Go(folder, "trilith.test/tour"),
        parts: TOUR,
        local: &[],
        slow: &[],
        absent: &["auth", "changes", "snapshot"],
    }
}

const fn etcdctl(name: &'static str, release: Release) -> Program {
    Program {
        name,
        client: Client::Etcdctl(release),
        parts: &["kv", "txn", "watch", "lease", "locks", "maintenance"],
        local: &[],
        slow: &["perf"],
        absent: &["auth", "snapshot"],
    }
}

/// The suite.
pub(super) const PROGRAMS: &[Program] = &[
    tour("go-3.7", "current"),
    tour("go-3.4", "v34"),
    tour("go-3.3", "v33"),
    Program {
        name: "wire",
        client: Client::Go("current", "./wire"),
        parts: &[
            "create",
            "cancel",
            "filters",
            "fragments",
            "progress",
            "compacted",
            "grant",
            "keepalive",
            "stream",
            "answers",
            "health",
            "passwords",
            "gzip",
        ],
        local: &["notify"],
        slow: &[],
        absent: &["auth", "changes", "snapshot"],
    },
    Program {
        name: "rust",
        client: Client::Rust,
        parts: &["kv", "txn", "watch", "lease", "maintenance"],
        local: &[],
        slow: &[],
        absent: &["lock", "election", "auth", "snapshot"],
    },
    Program {
        name: "python",
        client: Client::Python,
        parts: &["kv", "txn", "watch", "lease", "lock", "maintenance"],
        local: &[],
        slow: &[],
        absent: &["snapshot"],
    },
    Program {
        name: "node",
        client: Client::Node,
        parts: &["kv", "txn", "watch", "lease", "lock", "election", "maintenance"],
        local: &[],
        slow: &[],
        absent: &["auth", "snapshot"],
    },
    etcdctl("etcdctl-3.4", Release::Old),
    etcdctl("etcdctl-3.5", Release::Middle),
    etcdctl("etcdctl-3.7", Release::Current),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_either_there_or_absent() {
        for program in PROGRAMS {
            let mut parts = program.all_parts();
            parts.sort_unstable();
            let count = parts.len();
            parts.dedup();
            assert_eq!(parts.len(), count, "{}", program.name);
        }
    }

    #[test]
    fn slow_parts_run_only_when_asked_for() {
        for program in PROGRAMS {
            assert_eq!(program.all_parts().len() - program.parts_to_run(true, false).len(), program.slow.len());
        }
    }
}
