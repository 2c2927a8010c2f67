//! A log file that is set aside when it is full.
//!
//! Owns: the file, the names of those set aside (`name-2026-01-02T03-04-05.678.log`), how many and how long they stay,
//! their compression. Does not know: what a record says.
//!
//! Files set aside are compressed and removed by a thread of its own: a core has no time for it.
//!
//! Invariants
//! - I1: a record is never split between two files.
//! - I2: only files whose names have this file's prefix, a time and its extension are ever removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::calendar::civil_date;
use crate::log::in_context;
use crate::options::LogRotation;
use crate::sys;

const DAY: Duration = Duration::from_secs(86_400);
/// Ends the name of a compressed file.
const COMPRESSED: &str = ".gz";

pub(crate) struct LogFile {
    path: PathBuf,
    rotation: Option<LogRotation>,
    file: File,
    bytes: u64,
}

impl LogFile {
    pub(crate) fn open(path: &Path, rotation: Option<LogRotation>) -> io::Result<Self> {
        let open = || {
            let file = open_appending(path)?;
            Ok(Self { path: path.to_owned(), rotation, bytes: file.metadata()?.len(), file })
        };
        let this: Self =
            open().map_err(|error| in_context(error, &format!("cannot open log output {}", path.display())))?;
        this.tidy_up();
        Ok(this)
    }

    /// Sets the file aside if `bytes` more do not fit.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let Some(rotation) = self.rotation else { return Ok(()) };
        if self.bytes == 0 || self.bytes + bytes <= rotation.bytes_max {
            return Ok(());
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        fs::rename(&self.path, Names::of(&self.path).set_aside(since_epoch, rotation.is_local_time))?;
        self.file = open_appending(&self.path)?;
        self.bytes = 0;
        self.tidy_up();
        Ok(())
    }

    fn tidy_up(&self) {
        let Some(rotation) = self.rotation else { return };
        let path = self.path.clone();
        // Without a thread files stay until the next one is set aside.
        let _ = thread::Builder::new().name("trilith-log".to_owned()).spawn(move || {
            // There is nobody to tell: the log itself may be what fails.
            let _ = tidy_up(&path, rotation, SystemTime::now());
        });
    }
}

impl Write for LogFile {
    /// Takes whole records: line by line where they do not fit together.
    fn write(&mut self, records: &[u8]) -> io::Result<usize> {
        let limit = self.rotation.map_or(u64::MAX, |rotation| rotation.bytes_max);
        let mut taken = records.len();
        if taken as u64 > limit {
            taken = records.iter().position(|&byte| byte == b'\n').map_or(taken, |end| end + 1);
        }
        // A name that is taken, a directory that is gone: better a file too long than no log.
        let _ = self.make_room(taken as u64);
        self.file.write_all(&records[..taken])?;
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open_appending(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The names of a log file and of its predecessors.
struct Names {
    directory: PathBuf,
    prefix: String,
    extension: String,
}

impl Names {
    fn of(path: &Path) -> Self {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let part =
            |part: Option<&std::ffi::OsStr>| part.map_or_else(String::new, |part| part.to_string_lossy().into_owned());
        let extension = part(path.extension());
        Self {
            directory: directory.map_or_else(|| PathBuf::from("."), Path::to_path_buf),
            prefix: format!("{}-", part(path.file_stem())),
            extension: if extension.is_empty() { extension } else { format!(".{extension}") },
        }
    }

    fn set_aside(&self, since_epoch: Duration, is_local_time: bool) -> PathBuf {
        let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
        let offset = if is_local_time { sys::local_time_offset(seconds) } else { 0 };
        let time = time_text(seconds.saturating_add(offset).max(0).unsigned_abs(), since_epoch.subsec_millis());
        self.directory.join(format!("{}{time}{}", self.prefix, self.extension))
    }

    /// The time in the name of a predecessor, compressed or not (I2).
    fn time_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        let name = name.strip_suffix(COMPRESSED).unwrap_or(name);
        let time = name.strip_prefix(&self.prefix)?.strip_suffix(&self.extension)?;
        let pattern = b"0000-00-00T00-00-00.000";
        let fits = |(&byte, &form): (&u8, &u8)| if form == b'0' { byte.is_ascii_digit() } else { byte == form };
        (time.len() == pattern.len() && time.as_bytes().iter().zip(pattern).all(fits)).then_some(time)
    }

    /// The predecessors, the newest first: names sort as times do.
    fn predecessors(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if self.time_of(&name).is_some() {
                names.push(name);
            }
        }
        names.sort_unstable_by(|one, other| self.time_of(other).cmp(&self.time_of(one)));
        Ok(names)
    }
}

/// `2026-01-02T03-04-05.678` of a time since the Unix epoch.
fn time_text(seconds: u64, milliseconds: u32) -> String {
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{milliseconds:03}")
}

/// Removes what is too old or too many, compresses what stays.
fn tidy_up(path: &Path, rotation: LogRotation, now: SystemTime) -> io::Result<()> {
    let names = Names::of(path);
    let oldest = now.checked_sub(DAY * u32::try_from(rotation.days_max).unwrap_or(u32::MAX).min(36_500));
    for (position, name) in names.predecessors()?.iter().enumerate() {
        let found = names.directory.join(name);
        let is_too_many = rotation.files_max > 0 && position as u64 >= rotation.files_max;
        // What was written last was written when the file was set aside.
        let modified = fs::metadata(&found).and_then(|metadata| metadata.modified());
        let is_too_old = rotation.days_max > 0 && modified.ok().zip(oldest).is_some_and(|(time, oldest)| time < oldest);
        if is_too_many || is_too_old {
            fs::remove_file(&found)?;
        } else if rotation.is_compressed && !name.ends_with(COMPRESSED) {
            compress(&found)?;
        }
    }
    Ok(())
}

fn compress(path: &Path) -> io::Result<()> {
    let target = PathBuf::from(format!("{}{COMPRESSED}", path.display()));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&target)?;
    let copied = File::open(path).and_then(|mut source| {
        let mut encoder = GzEncoder::new(file, Compression::default());
        io::copy(&mut source, &mut encoder)?;
        encoder.finish()?.sync_all()
    });
    // Half a copy is worse than none.
    let unwanted = if copied.is_ok() { path } else { &target };
    fs::remove_file(unwanted)?;
    copied
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    const NONE: LogRotation =
        LogRotation { bytes_max: 10, days_max: 0, files_max: 0, is_local_time: false, is_compressed: false };

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("trilith-log-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_set_aside_between_records() {
        let folder = folder("full");
        let path = folder.join("t.log");
        fs::write(&path, "older\n").unwrap();
        let mut file = LogFile::open(&path, Some(NONE)).unwrap();
        file.write_all(b"1234\n").unwrap();
        file.write_all(b"a record longer than a file\nx\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        let aside = Names::of(&path).predecessors().unwrap();
        let texts: Vec<String> =
            aside.iter().rev().map(|name| fs::read_to_string(folder.join(name)).unwrap()).collect();
        // Two files set aside within one millisecond have one name, and the later one takes it.
        assert_eq!(texts.last().unwrap(), "a record longer than a file\n");
        assert!(texts.len() <= 3 && texts.iter().all(|text| text.ends_with('\n')), "{texts:?}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn without_rotation_a_file_grows() {
        let folder = folder("grow");
        let path = folder.join("plain");
        let mut file = LogFile::open(&path, None).unwrap();
        for _ in 0..100 {
            file.write_all(b"0123456789\n").unwrap();
        }
        assert_eq!((fs::metadata(&path).unwrap().len(), names(&folder).len()), (1_100, 1));
        fs::remove_dir_all(&folder).unwrap();
        assert!(LogFile::open(&folder.join("gone/x"), None).err().unwrap().to_string().contains("log output"));
    }

    #[test]
    fn the_oldest_leave_and_the_rest_is_compressed() {
        let folder = folder("tidy");
        let path = folder.join("t.log");
        for name in [
            "t-2026-01-01T00-00-00.000.log",
            "t-2026-01-02T00-00-00.000.log.gz",
            "t-2026-01-03T00-00-00.000.log",
            "t-2026-01-04T00-00-00.000.log",
            "t-2026-01-05.log",
            "other-2026-01-01T00-00-00.000.log",
            "t.log",
        ] {
            fs::write(folder.join(name), name).unwrap();
        }
        tidy_up(&path, LogRotation { files_max: 3, is_compressed: true, ..NONE }, SystemTime::now()).unwrap();
        assert_eq!(
            names(&folder),
            [
                "other-2026-01-01T00-00-00.000.log",
                "t-2026-01-02T00-00-00.000.log.gz",
                "t-2026-01-03T00-00-00.000.log.gz",
                "t-2026-01-04T00-00-00.000.log.gz",
                "t-2026-01-05.log",
                "t.log",
            ]
        );
        let mut text = String::new();
        let packed = File::open(folder.join("t-2026-01-04T00-00-00.000.log.gz")).unwrap();
        GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "t-2026-01-04T00-00-00.000.log");
        let later = SystemTime::now() + 2 * DAY;
        tidy_up(&path, LogRotation { days_max: 3, ..NONE }, later).unwrap();
        assert_eq!(names(&folder).len(), 6, "two days are not three");
        tidy_up(&path, LogRotation { days_max: 1, ..NONE }, later).unwrap();
        assert_eq!(names(&folder), ["other-2026-01-01T00-00-00.000.log", "t-2026-01-05.log", "t.log"]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn names_carry_the_time() {
        let names = Names::of(Path::new("logs/t.log"));
        let name = names.set_aside(Duration::from_millis(1_709_210_096_789), false);
        assert_eq!(name, Path::new("logs/t-2024-02-29T12-34-56.789.log"));
        assert_eq!(
            Names::of(Path::new("t")).set_aside(Duration::ZERO, false),
            Path::new("./t-1970-01-01T00-00-00.000")
        );
    }
}
