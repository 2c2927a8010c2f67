//! No acknowledgement before durability, seen from outside the server: by the disk's own counter and by a file system
//! that holds the writes of the log.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client::{Connection, runtime};
use crate::holdfs::HoldFs;
use crate::server::{Launch, Server, Subject};
use crate::setup::{Outcome, Setup};

/// Puts one after the other.
const PUTS: u64 = 2000;
/// How long an answer that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(500);
/// A pause of the log after which nothing more is written: far above the delay of its watermark, 2 ms.
const QUIET: Duration = Duration::from_millis(1000);
/// How long what must come may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each of 2,000 puts at depth one costs the disk at least one flush.
pub(super) fn flushes_at_depth_one(setup: &Setup) -> Result<Outcome> {
    let server = setup.start()?;
    let disk = Disk::below(server.data())?;
    let before = disk.as_ref().map(Disk::flushes).transpose()?;
    runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        for number in 0..PUTS {
            client.put(format!("depth-one/{number}").as_bytes(), b"value").await?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let after = disk.as_ref().map(Disk::flushes).transpose()?;
    server.stop(&[])?;
    let (Some(disk), Some(before), Some(after)) = (disk, before, after) else {
        return Ok(Outcome::Inapplicable("the data directory stands on no block device".to_owned()));
    };
    if let Some(reason) = disk.needs_no_flush()? {
        return Ok(Outcome::Inapplicable(reason));
    }
    let flushes = after - before;
    if flushes < PUTS {
        bail!("{PUTS} puts at depth one were acknowledged after {flushes} flushes of {}", disk.name);
    }
    println!("         {PUTS} puts at depth one, {flushes} flushes of the disk");
    Ok(Outcome::Passed)
}

/// A whole block device.
struct Disk {
    name: String,
    queue: PathBuf,
}

impl Disk {
    /// The device that holds the file system of `path`; `None` for file systems without one.
    fn below(path: &Path) -> Result<Option<Self>> {
        let device = std::fs::metadata(path)?.dev();
        let link = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
        let Ok(mut folder) = link.canonicalize() else { return Ok(None) };
        if folder.join("partition").exists() {
            folder = folder.parent().context("a partition stands below its disk")?.to_owned();
        }
        let name = folder.file_name().context("a disk has a name")?.to_string_lossy().into_owned();
        Ok(Some(Self { name, queue: folder.join("queue") }))
    }

    /// Flush requests completed since boot: the 16th counter of the line in /proc/diskstats.
    fn flushes(&self) -> Result<u64> {
        let text = std::fs::read_to_string("/proc/diskstats")?;
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(2) == Some(&self.name.as_str()) {
                return Ok(fields.get(18).context("this kernel counts no flushes")?.parse()?);
            }
        }
        bail!("{} is not in /proc/diskstats", self.name)
    }

    /// Why durable writes of this disk need no flush, if that is so.
    fn needs_no_flush(&self) -> Result<Option<String>> {
        let read =
            |name: &str| Ok::<_, anyhow::Error>(std::fs::read_to_string(self.queue.join(name))?.trim().to_owned());
        if read("write_cache")? == "write through" {
            return Ok(Some(format!("{} has no volatile write cache", self.name)));
        }
        if read("fua")? == "1" {
            return Ok(Some(format!("{} writes through its cache (FUA) without flushes", self.name)));
        }
        Ok(None)
    }
}

/// While the write of a batch is held, its puts are not answered and not visible; releasing the next batch first frees
/// nothing; releasing both answers both.
pub(super) fn held_writes_hold_answers(setup: &Setup) -> Result<Outcome> {
    let (backing, mountpoint) = (setup.fresh_folder("backing")?, setup.fresh_folder("mount")?);
    let disk = match HoldFs::mount(&backing, &mountpoint, setup.subject.wal_folder()) {
        Ok(disk) => disk,
        Err(error) => return Ok(Outcome::Skipped(format!("no FUSE: {error:#}"))),
    };
    let launch = Launch { data: mountpoint.join("data"), ..setup.launch()? };
    let server = launch.start()?;
    let result = hold_two_batches(&server, &disk);
    disk.release_all();
    result?;
    server.stop(&[])?;
    // A restart reads everything back through the file system.
    let server = launch.start()?;
    let found = read(&server)?;
    if found != 3 {
        bail!("{found} of 3 keys are there after a restart");
    }
    server.stop(&[])?;
    disk.unmount()?;
    match setup.subject {
        Subject::Trilithd => Ok(Outcome::Passed),
        Subject::Etcd => Ok(Outcome::Inapplicable("etcd has one log write in flight".to_owned())),
    }
}

fn hold_two_batches(server: &Server, disk: &HoldFs) -> Result<()> {
    runtime()?.block_on(async { Connection::open(server.address()).await?.put(b"held/before", b"v").await })?;
    // The record that marks a quiet log as durable must not take a place beside the batches.
    disk.hold_when_quiet(QUIET, PATIENCE)?;
    let first = put_in_thread(server, "held/first-batch");
    let first_write = disk.wait_held(b"held/first-batch", PATIENCE).context("the first batch was not written")?;
    let second = put_in_thread(server, "held/second-batch");
    if server.subject() == Subject::Trilithd {
        let second_write = disk.wait_held(b"held/second-batch", PATIENCE).context("the second batch waits")?;
        expect_silence(&first, "the first put was answered while its write was held")?;
        expect_silence(&second, "the second put was answered while its write was held")?;
        disk.release(second_write)?;
    }
    expect_silence(&second, "the second put was answered while the write before its own was held")?;
    expect_silence(&first, "releasing the second batch freed the first")?;
    // etcd's raft loop does not turn while it waits for its log, so it serves no linearizable read either.
    if server.subject() == Subject::Trilithd {
        let visible = read(server)?;
        if visible != 1 {
            bail!("{visible} keys instead of 1 are visible to reads while puts are held");
        }
    }
    disk.release(first_write)?;
    if server.subject() == Subject::Etcd {
        disk.release_all();
    }
    let first = first.recv_timeout(PATIENCE).context("the first put was never answered")??;
    let second = second.recv_timeout(PATIENCE).context("the second put was never answered")??;
    disk.release_all();
    if (first, second) != (3, 4) {
        bail!("the puts were answered with revisions {first} and {second} instead of 3 and 4");
    }
    Ok(())
}

fn put_in_thread(server: &Server, key: &'static str) -> Receiver<Result<u64>> {
    let (sender, receiver): (Sender<Result<u64>>, _) = channel();
    let address = server.address();
    std::thread::spawn(move || {
        let put = async { Connection::open(address).await?.put(key.as_bytes(), b"v").await };
        // The test may have failed and gone.
        let _ = sender.send(runtime().and_then(|runtime| runtime.block_on(put)));
    });
    receiver
}

fn expect_silence(answer: &Receiver<Result<u64>>, claim: &'static str) -> Result<()> {
    match answer.recv_timeout(SILENCE) {
        Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => bail!("a client thread ended"),
        Ok(Ok(revision)) => bail!("{claim} (revision {revision})"),
        Ok(Err(error)) => Err(error).context("a held put failed"),
    }
}

fn read(server: &Server) -> Result<usize> {
    runtime()?.block_on(async {
        let client = Connection::open(server.address()).await?;
        Ok(client.range(b"held/", b"held0").await?.len())
    })
}
