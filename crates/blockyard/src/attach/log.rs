//! The log of a daemon in the background: a file that its standard error goes to. It is moved aside when it is large, so that
//! there are two of bounded size, and opened anew when somebody else has moved it and says so (SIGHUP).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

/// Bytes of a log before another is begun.
const MAX_BYTES: u64 = 1 << 20;

/// Where a log is kept that was moved aside.
pub(super) fn old(log: &Path) -> PathBuf {
    log.with_extension("old.log")
}

/// Opens a log, or makes it. All who inherit it have its lock, and the last one who closes it gives it up.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.append(true).mode(0o600).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// That of this process.
pub(super) struct Log {
    path: PathBuf,
    /// One at a time changes where standard error goes.
    turning: Mutex<()>,
}

impl Log {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, turning: Mutex::new(()) }
    }

    /// Begins it anew if it is large. Called after each line.
    pub(super) fn look(&self) {
        self.go_on_in(|current| turn_over(&self.path, current, MAX_BYTES));
    }

    /// Goes on in the file that has its name now.
    pub(super) fn reopen(&self) {
        self.go_on_in(|current| reopen(&self.path, current));
    }

    /// What fails is tried again at the next line, and nobody can be told: it goes on where it is.
    fn go_on_in(&self, next: impl FnOnce(&File) -> io::Result<Option<File>>) {
        let Some(_turning) = self.turning.try_lock() else { return };
        let current = rustix::io::dup(rustix::stdio::stderr()).map(File::from);
        if let Ok(Some(next)) = current.map_err(Into::into).and_then(|current| next(&current)) {
            let _ = rustix::stdio::dup2_stderr(&next);
        }
    }
}

/// The file to go on in, if the current one is larger than `max`. One that somebody else has moved is left to him.
fn turn_over(path: &Path, current: &File, max: u64) -> io::Result<Option<File>> {
    let found = current.metadata()?;
    if !found.is_file() || found.len() <= max {
        return Ok(None);
    }
    if is_at(path, current) {
        fs::rename(path, old(path))?;
    }
    open(path, OpenOptions::new().create(true)).map(Some)
}

/// The file to go on in, if the current one is not at its path any more.
fn reopen(path: &Path, current: &File) -> io::Result<Option<File>> {
    if is_at(path, current) {
        return Ok(None);
    }
    open(path, OpenOptions::new().create(true)).map(Some)
}

fn is_at(path: &Path, file: &File) -> bool {
    let found = fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let ours = file.metadata().map(|ours| (ours.dev(), ours.ino()));
    found.is_ok_and(|found| ours.is_ok_and(|ours| found == ours))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_large_log_is_moved_aside_and_there_are_never_more_than_two() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7-0.log");
        let mut current = open(&path, OpenOptions::new().create_new(true)).unwrap();
        for line in ["first\n", "second\n", "third\n"] {
            assert!(turn_over(&path, &current, 3).unwrap().is_none(), "it is not large");
            current.write_all(line.as_bytes()).unwrap();
            current = turn_over(&path, &current, 3).unwrap().unwrap();
            assert_eq!(fs::read_to_string(old(&path)).unwrap(), line);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // Nobody takes it for one that was left.
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    }

    #[test]
    fn a_log_that_somebody_has_moved_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7-0.log");
        let mut current = open(&path, OpenOptions::new().create_new(true)).unwrap();
        assert!(reopen(&path, &current).unwrap().is_none());
        let moved = dir.path().join("7-0.log.1");
        fs::rename(&path, &moved).unwrap();
        current.write_all(b"before\n").unwrap();
        let mut next = reopen(&path, &current).unwrap().unwrap();
        next.write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "before\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
        // What has its name and is another's is not moved.
        fs::rename(&path, &moved).unwrap();
        fs::write(&path, "another's\n").unwrap();
        let next = turn_over(&path, &next, 3).unwrap().unwrap();
        assert!(is_at(&path, &next) && !old(&path).exists());
    }
}
