//! What of a copy is done, in a file, so that it can be gone on with. `docs/copy-journal.md` draws it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::sums::Sums;
use crate::disks::identity::DiskIdentity;
use crate::error::{Error, Result};

/// How the first line begins, in every version.
const MAGIC: &str = "blockyard copy journal ";
/// What follows.
const VERSION: &str = "3";
/// The longest file that is read: far more than what a copy writes.
const MAX_BYTES: u64 = 16 << 20;
/// Tells one start of the machine from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which copy it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The source, as the user wrote it, and which disk that is.
    pub source: (String, DiskIdentity),
    /// The same of the target.
    pub target: (String, DiskIdentity),
    /// Bytes.
    pub size: u64,
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Recorded {
    job: Job,
    /// The start of the machine in which it was written.
    boot: String,
    done: Sums,
}

/// Where a journal is, or will be: nothing is written there yet.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// The file that is there.
    file: Option<DiskIdentity>,
    recorded: Option<Recorded>,
}

/// A journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    job: Job,
    /// The file that was read or written last. Only that one is overwritten.
    file: Option<DiskIdentity>,
}

impl Place {
    /// Looks at what is at `path`. It, and the file beside it that takes its place, must be none of `disks`, and must be
    /// journals or not there.
    ///
    /// # Errors
    /// It cannot be the journal of a copy.
    pub fn of(path: &Path, disks: [(&str, &DiskIdentity); 2]) -> Result<Self> {
        let new = beside(path);
        for place in [path, &new] {
            let cannot = |err| {
                let what = format!("{} cannot be the journal of a copy", path.display());
                Error::failed(what).caused_by(err)
            };
            let found = DiskIdentity::of_path(place).map_err(cannot)?;
            for (uri, disk) in disks {
                if found.overlaps(disk) {
                    let what = format!("{} would be overwritten: it is {uri}", place.display());
                    return Err(Error::usage(what).help("name another file for the journal"));
                }
            }
        }
        remove_left_over(&new)?;
        let bad = |what: &str| {
            Error::failed(format!("{} {what}", path.display()))
                .help("name another file, or remove the journal to copy from the start")
        };
        let unreadable = |err| bad("cannot be read as the journal of a copy").caused_by(err);
        let Some((file, text)) = read(path).map_err(unreadable)? else {
            return Ok(Self { path: path.to_owned(), file: None, recorded: None });
        };
        let Some(recorded) = parse(&text) else {
            let version = text.strip_prefix(MAGIC.as_bytes());
            let ours = format!("{VERSION}\n");
            return Err(bad(if version.is_some_and(|rest| !rest.starts_with(ours.as_bytes())) {
                "is the journal of a copy by another version of blockyard"
            } else {
                "is not the journal of a copy"
            }));
        };
        Ok(Self { path: path.to_owned(), file: Some(file), recorded: Some(recorded) })
    }

    /// What is done of a copy, and which bytes that were: nothing if there is no journal yet.
    ///
    /// # Errors
    /// It is the journal of another copy, or the target is not the one that was written to.
    pub fn done(&self, job: &Job) -> Result<Sums> {
        let Some(recorded) = &self.recorded else { return Ok(Sums::new(job.size)) };
        let bad = |what: String| {
            let what = format!("{} belongs to another copy: {what}", self.path.display());
            Err(Error::failed(what)
                .help("name another file, or remove the journal to copy from the start"))
        };
        let was = &recorded.job;
        let same = |now: &DiskIdentity, then: &DiskIdentity| {
            if recorded.boot == boot() { now.same_disk(then) } else { now.is_still(then) }
        };
        let other = |what: &str, now: &(String, DiskIdentity), then: &(String, DiskIdentity)| {
            if now.0 == then.0 {
                format!("the {what} {} was replaced", now.0)
            } else {
                format!("the {what} is {}, not {}", then.0, now.0)
            }
        };
        if was.size != job.size {
            return bad(format!("the source has {} bytes, not {}", was.size, job.size));
        }
        if !same(&job.source.1, &was.source.1) {
            return bad(other("source", &job.source, &was.source));
        }
        if recorded.done.is_empty() || same(&job.target.1, &was.target.1) {
            return Ok(recorded.done.clone());
        }
        if job.target.1.is_absent() {
            let what = format!(
                "{} does not exist, but {} records a part of it as written",
                job.target.0,
                self.path.display()
            );
            return Err(Error::failed(what).help("remove the journal to copy from the start"));
        }
        bad(other("target", &job.target, &was.target))
    }

    /// Begins to write down that copy.
    #[must_use]
    pub fn begin(self, job: Job) -> Journal {
        Journal { path: self.path, job, file: self.file }
    }
}

impl Journal {
    /// Says that those ranges are done. They must be durable on the target. Either this takes the place of what was
    /// said before, or nothing changes, whenever the machine stops.
    ///
    /// # Errors
    /// The file cannot be written, or is not the one that was written before.
    pub fn write(&mut self, done: &Sums) -> Result<()> {
        let new = beside(&self.path);
        let written = self.replace(&new, done).map_err(|err| {
            let what = format!("cannot write the journal {}", self.path.display());
            Error::failed(what).caused_by(err)
        })?;
        self.file = Some(written);
        Ok(())
    }

    fn replace(&self, new: &Path, done: &Sums) -> io::Result<DiskIdentity> {
        let mut file = File::create_new(new)?;
        let mut write = || -> io::Result<DiskIdentity> {
            file.write_all(render(&self.job, done).as_bytes())?;
            file.sync_all()?;
            match &self.file {
                None => rename_to_nothing(new, &self.path)?,
                Some(_) if self.is_ours() => fs::rename(new, &self.path)?,
                Some(_) => {
                    return Err(io::Error::other("the journal was replaced by another file"));
                }
            }
            let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(DiskIdentity::of_metadata(&file.metadata()?))
        };
        write().inspect_err(|_| {
            // It is ours, and of no use. If it has been renamed, it is not there.
            let _ = fs::remove_file(new);
        })
    }

    fn is_ours(&self) -> bool {
        let found = DiskIdentity::of_path(&self.path);
        self.file.as_ref().is_some_and(|file| found.is_ok_and(|found| found.same_disk(file)))
    }

    /// The copy is done: there is nothing to go on with.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                let what = format!("cannot remove the journal {}", self.path.display());
                Err(Error::failed(what).caused_by(err))
            }
            _ => Ok(()),
        }
    }
}

/// Where the next journal is written before it takes the place of the last one.
fn beside(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// Nothing is overwritten.
fn rename_to_nothing(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot tell: it was not there a moment ago.
        Err(Errno::INVAL | Errno::NOSYS) if !to.try_exists()? => fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

/// A run that was killed may have left a journal that had not taken its place yet. Anything else is somebody's.
fn remove_left_over(new: &Path) -> Result<()> {
    let refused = |err: io::Error| {
        Error::failed(format!("{} is in the way of the journal", new.display()))
            .caused_by(err)
            .help("move it away, or name another file for the journal")
    };
    match fs::symlink_metadata(new) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(refused(err)),
        Ok(_) => {}
    }
    let found = read(new).map_err(refused)?;
    if found.is_some_and(|(_, text)| !text.starts_with(MAGIC.as_bytes())) {
        return Err(refused(io::Error::other("not the journal of a copy")));
    }
    fs::remove_file(new).map_err(refused)
}

/// What is in a file, if it is there: a regular one, and no longer than a journal.
fn read(path: &Path) -> io::Result<Option<(DiskIdentity, Vec<u8>)>> {
    // Opening a device may do something, and opening a pipe may wait.
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(io::Error::other("not a regular file")),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some((DiskIdentity::of_metadata(&found), text)))
}

/// Nothing is known of another start if this one cannot be told.
fn boot() -> String {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn render(job: &Job, done: &Sums) -> String {
    let Job { source, target, size } = job;
    let mut text = format!(
        "{MAGIC}{VERSION}\nsource {} {}\ntarget {} {}\nsize {size}\nboot {}\n",
        source.1,
        source.0.escape_default(),
        target.1,
        target.0.escape_default(),
        boot(),
    );
    for (range, sum) in done.iter() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "done {} {} {sum:08x}", range.start, range.end);
    }
    let sum = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "crc32c {sum:08x}");
    text
}

/// Nothing if anything is wrong.
fn parse(text: &[u8]) -> Option<Recorded> {
    let text = str::from_utf8(text).ok()?;
    let body_len = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let (body, sum) = text.split_at(body_len);
    let sum = u32::from_str_radix(sum.trim_end().strip_prefix("crc32c ")?, 16).ok()?;
    if sum != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()?.strip_prefix(MAGIC)? != VERSION {
        return None;
    }
    let source = disk(lines.next()?.strip_prefix("source ")?)?;
    let target = disk(lines.next()?.strip_prefix("target ")?)?;
    let size: u64 = lines.next()?.strip_prefix("size ")?.parse().ok()?;
    let boot = lines.next()?.strip_prefix("boot ")?.to_owned();
    let mut done = Sums::new(size);
    let mut before = 0;
    for line in lines {
        let words: Vec<&str> = line.strip_prefix("done ")?.split(' ').collect();
        let [start, end, sum] = words[..] else { return None };
        let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
        if start < before || start >= end || end > size {
            return None;
        }
        done.insert(start..end, u32::from_str_radix(sum, 16).ok()?);
        before = end;
    }
    Some(Recorded { job: Job { source, target, size }, boot, done })
}

/// Which disk it is, and as what it was written.
fn disk(line: &str) -> Option<(String, DiskIdentity)> {
    let (identity, uri) = line.split_once(' ')?;
    Some((unescape(uri)?, identity.parse().ok()?))
}

/// Undoes [`str::escape_default`].
fn unescape(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            plain.push(c);
            continue;
        }
        plain.push(match rest.next()? {
            't' => '\t',
            'r' => '\r',
            'n' => '\n',
            'u' => {
                let digits: String = rest.by_ref().take_while(|&c| c != '}').collect();
                char::from_u32(u32::from_str_radix(digits.strip_prefix('{')?, 16).ok()?)?
            }
            same @ ('\\' | '\'' | '"') => same,
            _ => return None,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job() -> Job {
        let identity = |text: &str| text.parse().unwrap();
        Job {
            source: ("nbd://h/x\n\"ä".into(), identity("nbd/tcp/h/10809/x")),
            target: ("file:/b".into(), identity("file/8:1/7/5")),
            size: 1000,
        }
    }

    fn place(path: &Path) -> Result<Place> {
        let job = job();
        Place::of(path, [(&job.source.0, &job.source.1), (&job.target.0, &job.target.1)])
    }

    #[test]
    fn what_is_written_is_read_back_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let none = place(&path).unwrap();
        assert!(none.done(&job()).unwrap().is_empty());
        let mut journal = none.begin(job());
        journal.write(&Sums::new(1000)).unwrap();
        let mut done = Sums::new(1000);
        done.insert(0..10, 7);
        done.insert(90..1000, 0xffff_ffff);
        journal.write(&done).unwrap();
        assert_eq!(place(&path).unwrap().done(&job()).unwrap(), done);
        let text = fs::read_to_string(&path).unwrap();
        let start = "blockyard copy journal 3\nsource nbd/tcp/h/10809/x nbd://h/x\\n";
        assert!(text.starts_with(start), "{text}");
        for broken in [text.replace("done 0 10 ", "done 0 11 "), text[..text.len() - 20].to_owned()]
        {
            fs::write(&path, broken).unwrap();
            assert!(place(&path).is_err());
        }
        fs::write(&path, text.replace("journal 3", "journal 2")).unwrap();
        assert!(place(&path).unwrap_err().to_string().contains("another version"));
        fs::write(&path, &text).unwrap();
        journal.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn it_is_that_of_one_copy_whatever_its_disks_are_called() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut done = Sums::new(1000);
        done.insert_zeroes(0..10);
        done.insert_zeroes(20..30);
        place(&path).unwrap().begin(job()).write(&done).unwrap();
        let place = place(&path).unwrap();
        let with = |change: fn(&mut Job)| {
            let mut job = job();
            change(&mut job);
            place.done(&job)
        };
        assert_eq!(with(|job| job.target.0 = "./b".into()).unwrap(), done);
        type Change = fn(&mut Job);
        let others: [(Change, &str); 4] = [
            (|job| job.size = 1001, "1000 bytes, not 1001"),
            (|job| job.source.1 = "nbd/tcp/h/10809/y".parse().unwrap(), "was replaced"),
            (|job| job.target.1 = "file/8:1/7/6".parse().unwrap(), "was replaced"),
            (|job| job.target.1 = "absent/8:1/2/b".parse().unwrap(), "does not exist"),
        ];
        for (change, part) in others {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_that_has_taken_its_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = place(&path).unwrap().begin(job());
        // One that came after the look.
        fs::write(&path, "mine").unwrap();
        assert!(journal.write(&Sums::new(1000)).is_err());
        fs::remove_file(&path).unwrap();
        journal.write(&Sums::new(1000)).unwrap();
        fs::write(dir.path().join("other"), "mine").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert!(journal.write(&Sums::new(1000)).is_err());
        journal.remove().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_a_journal_or_not(text in "\\PC{0,80}", source in "\\PC{0,20}") {
            let _ = parse(text.as_bytes());
            prop_assert_eq!(unescape(&source.escape_default().to_string()), Some(source));
        }
    }
}
