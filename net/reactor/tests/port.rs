//! The port against the real kernel: files in a temporary directory, sockets on the loopback interface.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/echo.rs"]
mod echo;

use common::{SECOND, Scratch, each, listening, options, serve};
use echo::echo;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use trilith_reactor::{
    BootFiles, CloseReason, ConnectionId, Event, FileId, FileMode, GlommioPort, ListenAddress, ListenOptions,
    ListenerId, Port, Preparation, RunError, Token, Turn, run,
};

/// The port as boot sees it, without the submissions of the same names.
fn boot(port: &mut GlommioPort) -> &mut impl BootFiles {
    port
}

fn block(fill: u8, blocks: usize) -> Vec<u8> {
    vec![fill; blocks * 4096]
}

#[test]
fn boot_files_keep_what_was_written() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("node/data");
    let status = run(&options(&directory), |port| {
        let files = boot(port);
        assert_eq!(files.list("").unwrap(), Vec::<String>::new());
        files.create_directory("").unwrap();
        files.create_directory("wal/deep").unwrap();
        assert!(files.lock_owner("LOCK").unwrap());
        let file = files.create("wal/seg-0001", 3 << 20, FileMode::Log, Preparation::PreWrite).unwrap();
        assert_eq!(files.len(file).unwrap(), 3 << 20);
        assert!(files.read(file, 0, 3 << 20).unwrap().iter().all(|&byte| byte == 0));
        files.write(file, 4096, &block(5, 300)).unwrap();
        files.sync(file).unwrap();
        assert_eq!(files.read(file, 4096, 300 * 4096).unwrap(), block(5, 300));
        assert!(files.read(file, 3 << 20, 4096).is_err(), "reading past the end is an error");
        let again = files.create("wal/seg-0001", 4096, FileMode::Log, Preparation::Reserve).unwrap();
        assert_eq!(files.read(again, 0, 4096).unwrap(), vec![0; 4096], "a left-over file is replaced, not reopened");
        assert_eq!(files.len(again).unwrap(), 4096);
        let other = files.create("wal/seg-0002", 4096, FileMode::Store, Preparation::Reserve).unwrap();
        fs::write(directory.join("wal/seg-0003.new"), b"left over").unwrap();
        assert_eq!(files.list("wal").unwrap(), ["seg-0001", "seg-0002"]);
        files.unlink(other, "wal/seg-0002").unwrap();
        assert_eq!(files.list("wal").unwrap(), ["seg-0001"]);
        each(|_, _| Turn::Stop(7))
    });
    assert_eq!(status.unwrap(), 7);
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("wal"), mode("wal/seg-0001"), mode("LOCK")), (0o700, 0o700, 0o600, 0o600));
}

#[test]
fn locks_exclude_and_are_waited_for() {
    let scratch = Scratch::new();
    let directory = scratch.0.clone();
    let (held, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let holder = {
        let directory = directory.clone();
        thread::spawn(move || {
            run(&options(&directory), |port| {
                let files = boot(port);
                assert!(files.lock_owner("LOCK").unwrap());
                files.create("log", 4096, FileMode::Log, Preparation::PreWrite).unwrap();
                held.send(()).unwrap();
                released.recv().unwrap();
                each(|_, _| Turn::Stop(0))
            })
            .unwrap();
        })
    };
    is_held.recv().unwrap();
    run(&options(&directory), |port| {
        let files = boot(port);
        assert!(!files.lock_owner("LOCK").unwrap(), "a live owner is seen");
        let refused = files.open("log", FileMode::Log, 0).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
        release.send(()).unwrap();
        files.open("log", FileMode::Log, 20 * SECOND).expect("the lock is waited for");
        each(|_, _| Turn::Stop(0))
    })
    .unwrap();
    holder.join().unwrap();
}

#[test]
fn many_writes_complete_and_are_on_the_medium() {
    const WRITES: u64 = 900;
    let scratch = Scratch::new();
    let mut file = FileId(0);
    let mut done = Vec::new();
    let status = run(&options(&scratch.0), |port| {
        file = boot(port).create("log", WRITES * 4096, FileMode::Log, Preparation::PreWrite).unwrap();
        each(|port: &mut GlommioPort, event| match event {
            None => {
                for number in 0..WRITES {
                    Port::write(port, Token(number), file, number * 4096, block(number as u8, 1));
                }
                Turn::Continue
            }
            Some(Event::Written { token, result }) => {
                result.unwrap();
                done.push(token.0);
                if done.len() as u64 == WRITES { Turn::Stop(0) } else { Turn::Continue }
            }
            other => panic!("{other:?}"),
        })
    });
    assert_eq!(status.unwrap(), 0);
    done.sort_unstable();
    assert!(done.iter().copied().eq(0..WRITES), "one event per token");
    let bytes = fs::read(scratch.0.join("log")).unwrap();
    assert!(bytes.chunks(4096).enumerate().all(|(number, chunk)| chunk.iter().all(|&byte| byte == number as u8)));
}

#[test]
fn a_sync_ends_after_the_writes_before_it() {
    let scratch = Scratch::new();
    let mut order = Vec::new();
    run(&options(&scratch.0), |port| {
        let file = boot(port).create("store", 64 * 4096, FileMode::Store, Preparation::Reserve).unwrap();
        let order = &mut order;
        each(move |port: &mut GlommioPort, event| {
            match event {
                None => {
                    for number in 0..32 {
                        Port::write(port, Token(number), file, number * 4096, block(1, 1));
                    }
                    Port::sync(port, Token(100), file);
                    Port::write(port, Token(32), file, 32 * 4096, block(1, 1));
                }
                Some(Event::Written { token, result }) => {
                    result.unwrap();
                    order.push(token.0);
                }
                Some(Event::Synced { token, result }) => {
                    result.unwrap();
                    order.push(token.0);
                }
                other => panic!("{other:?}"),
            }
            if order.len() == 34 { Turn::Stop(0) } else { Turn::Continue }
        })
    })
    .unwrap();
    let synced = order.iter().position(|&token| token == 100).unwrap();
    assert!((0..32).all(|token| order[..synced].contains(&token)), "{order:?}");
}

#[test]
fn a_short_read_and_a_failed_write_are_errors() {
    let scratch = Scratch::new();
    let mut errors = Vec::new();
    run(&options(&scratch.0), |port| {
        let file = boot(port).create("store", 4096, FileMode::Store, Preparation::Reserve).unwrap();
        let log = boot(port).create("log", 4096, FileMode::Log, Preparation::Reserve).unwrap();
        let errors = &mut errors;
        each(move |port: &mut GlommioPort, event| {
            match event {
                None => {
                    Port::read(port, Token(1), file, 0, 8192);
                    // Beyond the largest offset of the file system.
                    Port::write(port, Token(2), file, (i64::MAX as u64) & !4095, block(0, 1));
                    Port::write(port, Token(3), log, (i64::MAX as u64) & !4095, block(0, 1));
                    Port::write(port, Token(4), log, 0, block(4, 1));
                }
                Some(Event::Written { token: Token(4), result }) => result.unwrap(),
                Some(Event::Read { token, result }) => errors.push((token.0, result.unwrap_err().kind())),
                Some(Event::Written { token, result }) => errors.push((token.0, result.unwrap_err().kind())),
                other => panic!("{other:?}"),
            }
            if errors.len() == 3 { Turn::Stop(0) } else { Turn::Continue }
        })
    })
    .unwrap();
    errors.sort_unstable_by_key(|error| error.0);
    assert_eq!(errors[0], (1, std::io::ErrorKind::UnexpectedEof));
    assert_eq!((errors[1].0, errors[2].0), (2, 3));
    assert_eq!(errors[1].1, errors[2].1, "the write's own error, not that its sync was cancelled");
}

#[test]
fn created_files_are_mapped_populated_and_unlinked() {
    let scratch = Scratch::new();
    let path = scratch.0.join("segments/rows-0001");
    let mut file = None;
    run(&options(&scratch.0), |port| {
        boot(port).create_directory("segments").unwrap();
        each(|port: &mut GlommioPort, event| {
            match event {
                None => port.create_segment(),
                Some(Event::Created { token: Token(1), result }) => {
                    let id = result.unwrap();
                    file = Some(id);
                    assert_eq!(port.mapped(id, 0, 16), Some(&[0; 16][..]));
                    assert_eq!(port.mapped(id, (8 << 20) - 16, 17), None, "beyond the end");
                    assert_eq!(port.mapped(id, u64::MAX, 1), None);
                    Port::write(port, Token(2), id, 8192, block(9, 2));
                }
                Some(Event::Written { token: Token(2), result }) => {
                    result.unwrap();
                    port.populate(Token(3), file.unwrap(), 4096, 16384);
                }
                Some(Event::Populated { token: Token(3), result }) => {
                    result.unwrap();
                    let id = file.unwrap();
                    assert_eq!(port.mapped(id, 8192, 8192), Some(&block(9, 2)[..]), "a write is seen in the mapping");
                    Port::read(port, Token(4), id, 4096, 8192);
                }
                Some(Event::Read { token: Token(4), result }) => {
                    assert_eq!(result.unwrap(), [block(0, 1), block(9, 1)].concat());
                    Port::unlink(port, Token(5), file.unwrap(), "segments/rows-0001");
                }
                Some(Event::Renamed { token: Token(5), result }) => {
                    result.unwrap();
                    assert!(!path.exists());
                    Port::create(port, Token(6), "no/such/directory", 4096, FileMode::Log, Preparation::Reserve);
                }
                Some(Event::Created { token: Token(6), result }) => {
                    let error = result.err().unwrap();
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
                    assert!(error.to_string().contains("no/such/directory"), "{error}");
                    return Turn::Stop(0);
                }
                other => panic!("{other:?}"),
            }
            Turn::Continue
        })
    })
    .unwrap();
}

/// Whether this process maps `path`, under this name or after its removal.
fn is_mapped(path: &Path) -> bool {
    fs::read_to_string("/proc/self/maps").unwrap().contains(path.to_str().unwrap())
}

#[test]
fn who_shares_the_mapping_of_an_unlinked_file_reads_on() {
    let scratch = Scratch::new();
    let path = scratch.0.join("segments/rows-0001");
    let mut shared = None;
    run(&options(&scratch.0), |port| {
        boot(port).create_directory("segments").unwrap();
        let log = boot(port).create("log", 4096, FileMode::Log, Preparation::Reserve).unwrap();
        assert!(port.shared_mapping(log).is_none(), "a log is not mapped");
        let file = boot(port).create("segments/rows-0001", 1 << 20, FileMode::Store, Preparation::Reserve).unwrap();
        let (shared, path) = (&mut shared, &path);
        each(move |port: &mut GlommioPort, event| {
            match event {
                None => Port::write(port, Token(1), file, 8192, block(9, 2)),
                Some(Event::Written { token: Token(1), result }) => {
                    result.unwrap();
                    port.populate(Token(2), file, 0, 65_536);
                }
                Some(Event::Populated { token: Token(2), result }) => {
                    result.unwrap();
                    *shared = port.shared_mapping(file);
                    Port::unlink(port, Token(3), file, "segments/rows-0001");
                }
                Some(Event::Renamed { token: Token(3), result }) => {
                    result.unwrap();
                    assert!(!path.exists());
                    return Turn::Stop(0);
                }
                other => panic!("{other:?}"),
            }
            Turn::Continue
        })
    })
    .unwrap();
    let shared = shared.unwrap();
    let reader = thread::spawn(move || {
        assert_eq!(shared.bytes(8192, 8192), Some(&block(9, 2)[..]));
        assert_eq!(shared.bytes((1 << 20) - 16, 16), Some(&[0; 16][..]));
        assert_eq!(shared.bytes((1 << 20) - 16, 17), None, "beyond the end");
        assert_eq!(shared.bytes(u64::MAX, 1), None);
        shared
    });
    let shared = reader.join().unwrap();
    assert!(is_mapped(&path));
    drop(shared);
    assert!(!is_mapped(&path), "the last one frees it");
}

/// Resident bytes of the mappings of `path` in this process.
fn mapped_resident_bytes(path: &Path) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let rest = maps.split_once(path.to_str().unwrap()).expect("the file is mapped").1;
    let line = rest.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// Bytes of the mapped range that the kernel caches.
fn cached_bytes(mapped: &[u8]) -> usize {
    let mut pages = vec![0_u8; mapped.len() / 4096];
    // SAFETY: the range is mapped for as long as it is borrowed, and `pages` has one byte for each of its pages.
    let result = unsafe { libc::mincore(mapped.as_ptr().cast_mut().cast(), mapped.len(), pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().filter(|&&page| page & 1 == 1).count() * 4096
}

#[test]
fn released_pages_leave_memory_and_discarded_ones_the_disk() {
    const PART: usize = 512 << 10;
    let scratch = Scratch::new();
    let path = scratch.0.join("segments/rows-0001");
    let room = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) * 512;
    let mut file = FileId(0);
    let mut full = 0;
    run(&options(&scratch.0), |port| {
        boot(port).create_directory("segments").unwrap();
        each(|port: &mut GlommioPort, event| {
            match event {
                None => port.create_segment(),
                Some(Event::Created { token: Token(1), result }) => {
                    file = result.unwrap();
                    Port::write(port, Token(2), file, 0, vec![7; 2 * PART]);
                }
                Some(Event::Written { token: Token(2), result }) => {
                    result.unwrap();
                    port.populate(Token(3), file, 0, 2 * PART);
                }
                Some(Event::Populated { token: Token(3), result }) => {
                    result.unwrap();
                    assert_eq!(mapped_resident_bytes(&path), 2 * PART as u64, "what was asked for and no more");
                    assert_eq!(cached_bytes(port.mapped(file, 0, 8 << 20).unwrap()), 2 * PART);
                    port.release(file, 65_536, PART - 65_536);
                    // Served after the release.
                    port.populate(Token(4), file, 4 << 20, 4096);
                }
                Some(Event::Populated { token: Token(4), result }) => {
                    result.unwrap();
                    assert_eq!(mapped_resident_bytes(&path), PART as u64 + 65_536 + 4096);
                    assert_eq!(cached_bytes(port.mapped(file, 4 << 20, 1 << 20).unwrap()), 4096, "nothing around it");
                    let unread = port.mapped(file, 6 << 20, 1 << 20).unwrap();
                    assert_eq!((unread[77], cached_bytes(unread)), (0, 4096), "nor around a page that is stumbled on");
                    assert_eq!(
                        cached_bytes(port.mapped(file, 0, PART).unwrap()),
                        65_536,
                        "nor does the kernel keep it"
                    );
                    assert!(port.mapped(file, 0, 2 * PART).unwrap().iter().all(|&byte| byte == 7), "it is read again");
                    full = room();
                    port.discard(Token(5), file, 0, PART as u64);
                }
                Some(Event::Discarded { token: Token(5), result }) => {
                    result.unwrap();
                    assert_eq!(full - room(), PART as u64);
                    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20, "the file keeps its length");
                    let mapped = port.mapped(file, 0, 2 * PART).unwrap();
                    assert!(
                        mapped[..PART].iter().all(|&byte| byte == 0) && mapped[PART..].iter().all(|&byte| byte == 7)
                    );
                    Port::write(port, Token(6), file, 0, vec![8; PART]);
                }
                Some(Event::Written { token: Token(6), result }) => {
                    result.unwrap();
                    assert_eq!(full, room(), "a write takes the room again");
                    return Turn::Stop(0);
                }
                other => panic!("{other:?}"),
            }
            Turn::Continue
        })
    })
    .unwrap();
}

trait CreateSegment {
    fn create_segment(&mut self);
}

impl CreateSegment for GlommioPort {
    fn create_segment(&mut self) {
        Port::create(self, Token(1), "segments/rows-0001", 8 << 20, FileMode::Store, Preparation::Reserve);
    }
}

#[test]
#[should_panic(expected = "I3")]
fn names_stay_inside_the_data_directory() {
    let scratch = Scratch::new();
    let _ = run(&options(&scratch.0), |port| {
        let _ = boot(port).open("../escape", FileMode::Log, 0);
        each(|_, _| Turn::Stop(0))
    });
}

#[test]
fn deadlines_fire_once_not_early_and_can_be_replaced() {
    let scratch = Scratch::new();
    let mut fired = Vec::new();
    run(&options(&scratch.0), |port| {
        let start = port.now();
        let fired = &mut fired;
        each(move |port: &mut GlommioPort, event| {
            match event {
                None => {
                    port.set_deadline(Some(start + 100 * SECOND));
                    port.set_deadline(Some(start + SECOND / 100));
                }
                Some(Event::Timer) => {
                    fired.push(port.now() - start);
                    match fired.len() {
                        // Later than a timer that is still armed, then earlier than it.
                        1 => port.set_deadline(Some(start + SECOND / 20)),
                        2 => port.set_deadline(Some(port.now())),
                        _ => return Turn::Stop(0),
                    }
                }
                other => panic!("{other:?}"),
            }
            Turn::Continue
        })
    })
    .unwrap();
    assert!(fired[0] >= SECOND / 100 && fired[1] >= SECOND / 20 && fired[2] >= fired[1], "{fired:?}");
    assert!(fired[2] < 10 * SECOND, "{fired:?}");
}

#[test]
fn bytes_come_back_in_order_on_many_connections() {
    const CLIENTS: usize = 8;
    serve(echo(CLIENTS), |address| {
        let client = move |seed: usize| {
            let mut stream = TcpStream::connect(address).unwrap();
            let sent: Vec<u8> = (0..3_000_000).map(|number: usize| ((number + seed) % 251) as u8).collect();
            let mut reader = stream.try_clone().unwrap();
            let expected = sent.clone();
            let reading = thread::spawn(move || {
                let mut got = vec![0; expected.len()];
                reader.read_exact(&mut got).unwrap();
                assert!(got == expected, "the echo of client {seed}");
            });
            for part in sent.chunks(70_001 + seed) {
                stream.write_all(part).unwrap();
            }
            reading.join().unwrap();
        };
        let clients: Vec<_> = (0..CLIENTS).map(|seed| thread::spawn(move || client(seed))).collect();
        for client in clients {
            client.join().unwrap();
        }
    });
}

#[test]
fn a_half_closed_peer_still_gets_its_answer() {
    let mut reasons = Vec::new();
    let mut echo = echo(1);
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        if let Some(Event::Closed { reason, .. }) = &event {
            reasons.push(*reason);
        }
        echo(port, event)
    };
    let got = serve(handle, |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"last words").unwrap();
        let mut got = vec![0; 10];
        stream.read_exact(&mut got).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    assert_eq!(got, b"last words");
    assert_eq!(reasons, [CloseReason::EndOfStream]);
}

#[test]
fn a_connection_that_is_not_received_from_pushes_back() {
    const TOTAL: usize = 64 << 20;
    let mut received = 0;
    let mut resumed = false;
    let handle = move |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Accepted { connection, .. }) => {
                port.set_receiving(connection, false);
                port.set_deadline(Some(port.now() + SECOND / 5));
                assert_eq!(connection, ConnectionId(0));
            }
            Some(Event::Received { bytes, .. }) => {
                received += bytes.len();
                assert!(resumed || received <= 1 << 20, "{received} bytes while paused");
            }
            Some(Event::Timer) => {
                resumed = true;
                port.set_receiving(ConnectionId(0), true);
            }
            Some(Event::Closed { reason, .. }) => {
                assert_eq!(reason, CloseReason::EndOfStream);
                assert_eq!(received, TOTAL, "everything came before the end");
                return Turn::Stop(0);
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        Turn::Continue
    };
    let took = serve(handle, |address| {
        let start = Instant::now();
        TcpStream::connect(address).unwrap().write_all(&vec![1; TOTAL]).unwrap();
        start.elapsed()
    });
    assert!(took >= Duration::from_millis(190), "the sender was held up: {took:?}");
}

#[test]
fn close_lets_the_outstanding_send_out_first() {
    const ANSWER: usize = 20 << 20;
    let mut after_close = Vec::new();
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Received { connection, .. }) if after_close.is_empty() => {
                port.send(connection, vec![3; ANSWER]);
                port.close(connection);
                after_close.push("closing".to_owned());
            }
            Some(Event::Closed { reason, .. }) => {
                after_close.push(format!("{reason:?}"));
                // Late enough for the peer to read what lingers in the kernel.
                port.set_deadline(Some(port.now() + SECOND));
            }
            Some(Event::Timer) => return Turn::Stop(0),
            Some(Event::Accepted { .. }) | None => {}
            Some(other) => after_close.push(format!("{other:?}")),
        }
        Turn::Continue
    };
    let got = serve(handle, |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"ask").unwrap();
        // Unread input must not reset the connection under the answer.
        stream.write_all(&[0; 1000]).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got.len()
    });
    assert_eq!(got, ANSWER);
    assert_eq!(after_close, ["closing", "Requested"], "nothing but Closed follows a close");
}

#[test]
fn a_reset_connection_is_reported_and_sends_to_it_are_dropped() {
    let mut gone = false;
    let handle = move |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Received { connection, .. }) => port.send(connection, vec![1; 32 << 20]),
            Some(Event::Closed { connection, reason }) => {
                assert_eq!(reason, CloseReason::Failed);
                assert!(!std::mem::replace(&mut gone, true));
                port.send(connection, vec![1; 10]);
                port.close(connection);
                port.set_deadline(Some(port.now() + SECOND / 50));
            }
            Some(Event::Timer) => return Turn::Stop(0),
            Some(Event::Accepted { .. }) | None => {}
            Some(other) => panic!("{other:?}"),
        }
        Turn::Continue
    };
    serve(handle, |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"much, please").unwrap();
        let mut some = [0; 1 << 16];
        stream.read_exact(&mut some).unwrap();
        // Dropped with unread input: the kernel resets the connection.
    });
}

#[test]
fn thousands_of_idle_connections_do_not_disturb_a_busy_one() {
    const IDLE: usize = 4000;
    serve(echo(IDLE + 1), |address| {
        let mut idle: Vec<_> = (0..IDLE).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut busy = TcpStream::connect(address).unwrap();
        busy.set_nodelay(true).unwrap();
        let mut got = [0; 4];
        for number in 0..200_u32 {
            busy.write_all(&number.to_be_bytes()).unwrap();
            busy.read_exact(&mut got).unwrap();
            assert_eq!(u32::from_be_bytes(got), number);
        }
        // All at once: more ready sockets than a ring has entries.
        for stream in &mut idle {
            stream.write_all(b"wake").unwrap();
        }
        for stream in &mut idle {
            stream.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"wake");
        }
    });
}

#[test]
fn closed_listeners_refuse() {
    let asked = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&asked);
    let handle = |port: &mut GlommioPort, event: Option<Event>| {
        match event {
            Some(Event::Accepted { connection, .. }) => {
                port.close_listeners();
                port.close(connection);
            }
            // It is the listener that refuses, not the end of the run.
            Some(Event::Timer) if asked.load(Ordering::Relaxed) => return Turn::Stop(0),
            Some(Event::Closed { .. } | Event::Timer) => port.set_deadline(Some(port.now() + SECOND / 50)),
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        Turn::Continue
    };
    serve(handle, move |address| {
        let mut first = TcpStream::connect(address).unwrap();
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
        // The listener closes once its accept operation has ended; a connection that slips in before is never answered.
        let start = Instant::now();
        let mut is_open = true;
        while is_open && start.elapsed() < Duration::from_secs(60) {
            is_open = TcpStream::connect(address).is_ok();
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        assert!(!is_open, "the port is still open");
    });
}

#[test]
fn a_taken_port_fails_the_start_with_its_address() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut options = listening(&scratch.0);
    options.listeners[0].address = address.into();
    let result = run(&options, |_| each(|_, _| Turn::Stop(0)));
    let Err(RunError::Environment(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    // The holder goes away while the bind is retried.
    options.bind_retry_max = Duration::from_secs(10);
    let holder = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(taken);
    });
    assert_eq!(run(&options, |_| each(|_, _| Turn::Stop(4))).unwrap(), 4);
    holder.join().unwrap();
}

#[test]
fn a_socket_in_the_file_system_is_served_while_it_is_the_only_one_and_goes_at_the_end() {
    let scratch = Scratch::new();
    let path = scratch.0.join("it.sock");
    // What a killed process left: a socket on which nobody answers.
    drop(UnixListener::bind(&path).unwrap());
    let mut options = options(&scratch.0);
    options.listeners = vec![ListenOptions { address: ListenAddress::Unix(path.clone()), reuse_port: false }];
    let mut client = None;
    let status = run(&options, |port| {
        assert_eq!(port.listener_address(ListenerId(0)), None);
        let second = options.clone();
        let second = thread::spawn(move || run(&second, |_| each(|_, _| Turn::Stop(0))));
        let Err(RunError::Environment(error)) = second.join().unwrap() else { panic!("it is taken") };
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("it.sock"), "{error}");
        let path = path.clone();
        client = Some(thread::spawn(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream.write_all(b"hello").unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).unwrap();
            answer
        }));
        // The second start looks whether somebody answers, and goes away again.
        let mut served = None;
        each(move |port: &mut GlommioPort, event| {
            match event {
                Some(Event::Received { connection, bytes }) => {
                    served = Some(connection);
                    port.send(connection, bytes);
                }
                Some(Event::Closed { connection, .. }) if served == Some(connection) => return Turn::Stop(7),
                _ => {}
            }
            Turn::Continue
        })
    })
    .unwrap();
    assert_eq!((status, client.unwrap().join().unwrap()), (7, *b"hello"));
    assert!(!path.exists(), "it is gone");

    // A file that is no socket is nobody's to remove.
    fs::write(&path, b"mine").unwrap();
    assert!(run(&options, |_| each(|_, _| Turn::Stop(0))).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn a_shell_that_refuses_ends_the_run() {
    let scratch = Scratch::new();
    let result = run(&options(&scratch.0), |_| {
        if scratch.0.exists() { Err("no".to_owned()) } else { each(|_: &mut GlommioPort, _| Turn::Stop(0)) }
    });
    assert!(matches!(result, Err(RunError::Shell(reason)) if reason == "no"));
}

#[test]
fn stop_signals_are_events() {
    let scratch = Scratch::new();
    let mut options = options(&scratch.0);
    options.signals = true;
    let mut signals = Vec::new();
    run(&options, |_| {
        let signals = &mut signals;
        each(move |_: &mut GlommioPort, event| {
            let raise = |signal: &str| {
                let pid = std::process::id().to_string();
                let status = std::process::Command::new("kill").args([signal, pid.as_str()]).status().unwrap();
                assert!(status.success());
            };
            match event {
                None => raise("-TERM"),
                Some(Event::StopRequested { signal }) => {
                    signals.push(signal);
                    if signals.len() == 2 {
                        return Turn::Stop(0);
                    }
                    raise("-INT");
                }
                other => panic!("{other:?}"),
            }
            Turn::Continue
        })
    })
    .unwrap();
    assert_eq!(signals, [15, 2]);
}

#[test]
fn log_records_are_lines_of_every_output() {
    let scratch = Scratch::new();
    let paths = [scratch.0.join("one.log"), scratch.0.join("two.log")];
    let mut options = options(&scratch.0);
    let plain = |path: &std::path::PathBuf| trilith_reactor::LogOutput::File { path: path.clone(), rotation: None };
    options.log_outputs = paths.iter().map(plain).collect();
    run(&options, |port| {
        port.log(b"{\"msg\":\"first\"}");
        each(|port: &mut GlommioPort, _| {
            port.log(b"second");
            Turn::Stop(0)
        })
    })
    .unwrap();
    for path in paths {
        assert_eq!(fs::read(path).unwrap(), b"{\"msg\":\"first\"}\nsecond\n");
    }
}
