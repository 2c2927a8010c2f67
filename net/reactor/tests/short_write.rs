//! A write that the kernel cuts short. In a process of its own: what cuts it is the process's limit on files.

use std::io;
use std::time::Duration;
use trilith_reactor::{
    BootFiles, CoreLoop, Event, FileId, FileMode, GlommioPort, Port, Preparation, ReactorOptions, Token, Turn, run,
};

/// The first byte that no file may have; a file is sparse up to it.
const LIMIT: u64 = 1 << 30;
const BLOCK_BYTES: u64 = 4096;

/// Writes two blocks around the limit to each file, and keeps how that ended.
struct Writes {
    files: [FileId; 2],
    results: Vec<(Token, io::Result<()>)>,
}

impl CoreLoop<GlommioPort> for Writes {
    fn handle_turn(&mut self, port: &mut GlommioPort, events: &mut Vec<Event>) -> Turn {
        if events.is_empty() {
            for (number, file) in (0..).zip(self.files) {
                Port::write(port, Token(number), file, LIMIT - BLOCK_BYTES, vec![1; 2 * BLOCK_BYTES as usize]);
            }
        }
        for event in events.drain(..) {
            let Event::Written { token, result } = event else { panic!("{event:?}") };
            self.results.push((token, result));
        }
        if self.results.len() < self.files.len() {
            return Turn::Continue;
        }
        let is_short = |result: &io::Result<()>| result.as_ref().is_err_and(|it| it.kind() == io::ErrorKind::WriteZero);
        assert!(self.results.iter().all(|(_, result)| is_short(result)), "{:?}", self.results);
        Turn::Stop(0)
    }
}

#[test]
fn a_short_write_is_an_error() {
    let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
    // SAFETY: the call reads the structure it is given and no other memory.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    let directory = std::env::temp_dir().join(format!("trilith-short-write-{}", std::process::id()));
    let options = ReactorOptions {
        data_directory: directory.clone(),
        listeners: Vec::new(),
        bind_retry_max: Duration::ZERO,
        log_outputs: Vec::new(),
        signals: false,
        spin_before_sleep: Duration::ZERO,
    };
    let status = run(&options, |port| {
        BootFiles::create_directory(port, "")?;
        let mut create = |name, mode| BootFiles::create(port, name, BLOCK_BYTES, mode, Preparation::Reserve);
        let files = [create("store", FileMode::Store)?, create("log", FileMode::Log)?];
        Ok::<_, io::Error>(Writes { files, results: Vec::new() })
    });
    std::fs::remove_dir_all(directory).unwrap();
    assert_eq!(status.unwrap(), 0);
}
