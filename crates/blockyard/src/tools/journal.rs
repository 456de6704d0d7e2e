//! What of a copy is done, in a file, so that it can be gone on with. `docs/copy-journal.md` draws it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::ranges::Ranges;
use crate::error::{Error, Result};

/// The first line.
const MAGIC: &str = "blockyard copy journal 1";
/// The longest file that is read: far more than what a copy writes.
const MAX_BYTES: u64 = 16 << 20;

/// Which copy it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The source, as the user wrote it.
    pub source: String,
    /// The target, as the user wrote it.
    pub target: String,
    /// Bytes.
    pub size: u64,
}

/// A journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    job: Job,
}

impl Journal {
    /// The journal of a copy at `path`, and what it says is done; nothing if there is no file yet.
    ///
    /// # Errors
    /// The file is no journal, or that of another copy.
    pub fn open(path: &Path, job: Job) -> Result<(Self, Ranges)> {
        let this = Self { path: path.to_owned(), job };
        let bad = |what: &str| {
            Error::failed(format!("{} {what}", path.display()))
                .help("name another file, or remove it to copy from the start")
        };
        let text = match fs::metadata(path).and_then(|meta| {
            if meta.len() > MAX_BYTES {
                Err(io::ErrorKind::FileTooLarge.into())
            } else {
                fs::read_to_string(path)
            }
        }) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Ok((this, Ranges::default()));
            }
            Err(err) => return Err(bad("cannot be read as the journal of a copy").caused_by(err)),
        };
        let (job, done) = parse(&text).ok_or_else(|| bad("is not the journal of a copy"))?;
        if job != this.job {
            let (was, is) = (describe(&job), describe(&this.job));
            return Err(bad(&format!("is the journal of another copy: of {was}, not of {is}")));
        }
        Ok((this, done))
    }

    /// Says that those ranges are done. They must be durable on the target. Either this takes the place of what was
    /// said before, or nothing changes, whenever the machine stops.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, done: &Ranges) -> Result<()> {
        let new = self.path.with_added_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(render(&self.job, done).as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        let failed = |err: io::Error| {
            let what = format!("cannot write the journal {}", self.path.display());
            Error::failed(what).caused_by(err)
        };
        write().map_err(failed)
    }

    /// The copy is done: there is nothing to go on with.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                let what = format!("cannot remove the journal {}", self.path.display());
                Err(Error::failed(what).caused_by(err))
            }
            _ => Ok(()),
        }
    }
}

fn describe(job: &Job) -> String {
    format!("{} bytes from {} to {}", job.size, job.source, job.target)
}

fn render(job: &Job, done: &Ranges) -> String {
    let mut text = format!(
        "{MAGIC}\nsource {}\ntarget {}\nsize {}\n",
        job.source.escape_default(),
        job.target.escape_default(),
        job.size
    );
    for range in done.iter() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "done {} {}", range.start, range.end);
    }
    let sum = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "crc32c {sum:08x}");
    text
}

/// Nothing if anything is wrong.
fn parse(text: &str) -> Option<(Job, Ranges)> {
    let body_len = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let (body, sum) = text.split_at(body_len);
    let sum = u32::from_str_radix(sum.trim_end().strip_prefix("crc32c ")?, 16).ok()?;
    if sum != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != MAGIC {
        return None;
    }
    let source = unescape(lines.next()?.strip_prefix("source ")?)?;
    let target = unescape(lines.next()?.strip_prefix("target ")?)?;
    let size: u64 = lines.next()?.strip_prefix("size ")?.parse().ok()?;
    let mut done = Ranges::default();
    for line in lines {
        let (start, end) = line.strip_prefix("done ")?.split_once(' ')?;
        let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
        if start >= end || end > size {
            return None;
        }
        done.insert(start..end);
    }
    Some((Job { source, target, size }, done))
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
        Job { source: "nbd://h/x\n\"ä".into(), target: "file:/b".into(), size: 1000 }
    }

    #[test]
    fn what_is_written_is_read_back_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, none) = Journal::open(&path, job()).unwrap();
        assert!(none.is_empty());
        let done: Ranges = [0..10, 90..1000].into_iter().collect();
        journal.write(&done).unwrap();
        assert_eq!(Journal::open(&path, job()).unwrap().1, done);
        let other = Journal::open(&path, Job { size: 1001, ..job() }).unwrap_err();
        assert!(other.to_string().contains("another copy"), "{other}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("blockyard copy journal 1\nsource nbd://h/x\\n"), "{text}");
        for broken in [text.replace("done 0 10", "done 0 11"), text[..text.len() - 20].to_owned()] {
            fs::write(&path, broken).unwrap();
            assert!(Journal::open(&path, job()).is_err());
        }
        fs::write(&path, &text).unwrap();
        journal.remove().unwrap();
        assert!(!path.exists());
    }

    proptest! {
        #[test]
        fn any_text_is_a_journal_or_not(text in "\\PC{0,80}", source in "\\PC{0,20}") {
            let _ = parse(&text);
            prop_assert_eq!(unescape(&source.escape_default().to_string()), Some(source));
        }
    }
}
