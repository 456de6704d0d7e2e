//! Files that images go to and come from.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What stands for standard input and output.
pub(super) const STANDARD: &str = "-";

pub(super) fn is_standard(path: &Path) -> bool {
    path.as_os_str() == STANDARD
}

/// Opens a file to read it once, from its start to its end.
pub(super) fn input(path: &Path) -> Result<Box<dyn Read>> {
    if is_standard(path) {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path)
        .map_err(|err| Error::failed(format!("cannot open {}", path.display())).caused_by(err))?;
    Ok(Box::new(BufReader::new(file)))
}

/// A file that is made; one that is not finished is removed again.
pub(super) struct Output {
    to: To,
    path: PathBuf,
    is_done: bool,
}

enum To {
    File(File),
    Standard(io::StdoutLock<'static>),
}

impl Output {
    /// Makes a file. One that is there is nobody's to overwrite.
    pub(super) fn make(path: &Path) -> Result<Self> {
        let to = if is_standard(path) {
            To::Standard(io::stdout().lock())
        } else {
            let made = OpenOptions::new().write(true).create_new(true).open(path);
            To::File(made.map_err(|err| {
                let error = Error::failed(format!("cannot create {}", path.display()));
                let is_there = err.kind() == io::ErrorKind::AlreadyExists;
                let error = error.caused_by(err);
                if is_there { error.help("remove the file, or name another one") } else { error }
            })?)
        };
        Ok(Self { to, path: path.to_owned(), is_done: false })
    }

    /// The file, where bytes have a place; none if it is standard output.
    pub(super) fn file(&self) -> Option<&File> {
        match &self.to {
            To::File(file) => Some(file),
            To::Standard(_) => None,
        }
    }

    /// What was written is all.
    pub(super) fn finish(mut self) -> Result<()> {
        let flushed = match &mut self.to {
            To::File(file) => file.sync_all(),
            To::Standard(out) => out.flush(),
        };
        flushed.map_err(|err| self.failed(err))?;
        self.is_done = true;
        Ok(())
    }

    /// Writes what comes next.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|err| self.failed(err))
    }

    pub(super) fn failed(&self, err: io::Error) -> Error {
        Error::failed(format!("cannot write {}", self.path.display())).caused_by(err)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            To::File(file) => file.write(bytes),
            To::Standard(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.is_done && matches!(self.to, To::File(_)) {
            // It is the error before that that is told.
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}
