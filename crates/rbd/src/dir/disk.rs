//! The files of a store: the few things that it asks of a file system, so that a simulated one can fail in between.

use redb::{Builder, Database, DatabaseError};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A folder with files. Paths are relative to it.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// A lock that ends when it is dropped, or its process dies.
    type Lock: Send + Sync + 'static;

    /// Whether another process can have the folder.
    fn is_shared(&self) -> bool {
        false
    }

    /// Makes a file, which must not be there. Its name is durable when its folder is synchronised.
    ///
    /// # Errors
    /// Those of the file system; so it is with the others.
    fn create(&self, path: &str) -> io::Result<Self::File>;

    /// Opens a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`].
    fn open(&self, path: &str) -> io::Result<Self::File>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`].
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Gives a file another name, in the same folder: it has the one or the other, whatever happens.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes a folder that survives a power cut, if it is not there yet.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn make_folder(&self, path: &str) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn sync_folder(&self, path: &str) -> io::Result<()>;

    /// The names in a folder; none if it is not there.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// Makes everything durable that any process has written here.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn sync_all(&self) -> io::Result<()>;

    /// Opens or makes the database.
    ///
    /// # Errors
    /// See [`Builder::create`].
    fn database(&self, path: &str, builder: &Builder) -> Result<Database, DatabaseError>;

    /// Waits for the lock on a file, which is made if it is not there.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn lock(&self, path: &str) -> io::Result<Self::Lock>;

    /// The lock on a file, if nobody has it.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn try_lock(&self, path: &str) -> io::Result<Option<Self::Lock>>;

    /// Writes down, in the file of a lock that one has, who that is.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn note(&self, _lock: &Self::Lock, _text: &str) -> io::Result<()> {
        Ok(())
    }

    /// What the one has written down who has a lock.
    ///
    /// # Errors
    /// See [`create`](Self::create).
    fn note_of(&self, _path: &str) -> io::Result<String> {
        Ok(String::new())
    }
}

/// Longest note of the owner of a lock.
const MAX_NOTE: u64 = 256;

/// An open file.
pub trait DiskFile: Send + Sync + 'static {
    /// Its bytes.
    ///
    /// # Errors
    /// Those of the file system; so it is with the others.
    fn size(&self) -> io::Result<u64>;

    /// Reads as much as there is, up to the whole buffer.
    ///
    /// # Errors
    /// See [`size`](Self::size).
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all.
    ///
    /// # Errors
    /// See [`size`](Self::size).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts it, or grows it with zeroes.
    ///
    /// # Errors
    /// See [`size`](Self::size).
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Makes a range inside of it zero.
    ///
    /// # Errors
    /// See [`size`](Self::size).
    fn zero(&self, range: Range<u64>) -> io::Result<()>;

    /// The parts of a range that may be something else than zeroes.
    ///
    /// # Errors
    /// See [`size`](Self::size).
    fn data(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>>;

    /// Shares the bytes of another file, if the file system can do that and has done so.
    fn share(&self, _from: &Self) -> bool {
        false
    }

    /// Makes its bytes durable.
    ///
    /// # Errors
    /// See [`size`](Self::size).
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the system's.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// The one at a path, which is there.
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn lock_file(&self, path: &str) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).open(self.0.join(path))
    }
}

impl Disk for Directory {
    type File = File;
    type Lock = File;

    fn is_shared(&self) -> bool {
        true
    }

    fn create(&self, path: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(self.0.join(path))
    }

    fn open(&self, path: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.0.join(path))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        match fs::create_dir(self.0.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => {
                made?;
                let above = Path::new(path).parent().and_then(Path::to_str).unwrap_or_default();
                self.sync_folder(above)
            }
        }
    }

    fn sync_folder(&self, path: &str) -> io::Result<()> {
        File::open(self.0.join(path))?.sync_all()
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.0.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.0)?)?)
    }

    fn database(&self, path: &str, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create(self.0.join(path))
    }

    fn lock(&self, path: &str) -> io::Result<File> {
        let file = self.lock_file(path)?;
        file.lock()?;
        Ok(file)
    }

    fn try_lock(&self, path: &str) -> io::Result<Option<File>> {
        let file = self.lock_file(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn note(&self, lock: &File, text: &str) -> io::Result<()> {
        lock.set_len(0)?;
        lock.write_all_at(text.as_bytes(), 0)
    }

    fn note_of(&self, path: &str) -> io::Result<String> {
        let mut text = Vec::new();
        File::open(self.0.join(path))?.take(MAX_NOTE).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Most parts of a file that are told at a time.
const MAX_PARTS: usize = 1 << 16;

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        use blockyard_sys::fallocate::{Allocate, allocate, is_not_supported};
        match allocate(self.as_fd(), Allocate::PunchHole, &range) {
            Err(error) if is_not_supported(&error) => {
                let zeroes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
                self.write_all_at(&zeroes, range.start)
            }
            done => done,
        }
    }

    fn data(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let mut at = range.start;
        let runs = blockyard_sys::holes::map(self.as_fd(), range.clone(), MAX_PARTS)?;
        let mut parts = Vec::new();
        for run in runs {
            if !run.hole {
                parts.push(at..at + run.len);
            }
            at += run.len;
        }
        if at < range.end {
            parts.push(at..range.end);
        }
        Ok(parts)
    }

    fn share(&self, from: &Self) -> bool {
        rustix::fs::ioctl_ficlone(self, from).is_ok()
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
