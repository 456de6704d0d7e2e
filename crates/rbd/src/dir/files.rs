//! The files with objects' bytes: where they are, which of them are open, and which a flush has to cover.

use super::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Files of a folder: 2^12.
const FOLDER_BITS: u32 = 12;
/// Most files that are kept open because they may be used again.
const MAX_OPEN: usize = 512;
/// Bytes that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// The files of a store.
pub(super) struct Files<D: Disk> {
    pub(super) disk: D,
    /// The number of this process among all that have had the store open: the high half of its files' numbers.
    session: u32,
    next: AtomicU32,
    open: Mutex<HashMap<u64, Arc<D::File>>>,
    /// What was written in place since the last flush.
    dirty: Mutex<HashMap<u64, Arc<D::File>>>,
    /// Held while files are synchronised: who finds nothing to do waits for the one who does it.
    flushing: Mutex<()>,
    /// Held while a file is made: its folder is durable before another thread puts one into it.
    making: Mutex<()>,
    /// A flush has failed: what it was to cover may be lost, and the system tells that only once.
    failed: AtomicBool,
}

fn folder(number: u64) -> String {
    let (session, index) = (number >> 32, number & u64::from(u32::MAX));
    format!("data/{session:08x}/{:05x}", index >> FOLDER_BITS)
}

/// The path of a file.
fn path(number: u64) -> String {
    format!("{}/{:03x}", folder(number), number & ((1 << FOLDER_BITS) - 1))
}

impl<D: Disk> Files<D> {
    pub(super) fn new(disk: D, session: u32) -> Self {
        Self {
            disk,
            session,
            next: AtomicU32::new(0),
            open: Mutex::default(),
            dirty: Mutex::default(),
            flushing: Mutex::default(),
            making: Mutex::default(),
            failed: AtomicBool::new(false),
        }
    }

    /// A number that no file or object of the store has had.
    pub(super) fn next_number(&self) -> Result<u64> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index == u32::MAX {
            return Err(Error::bad("this process has made 2^32 objects; open the store again"));
        }
        Ok(u64::from(self.session) << 32 | u64::from(index))
    }

    /// Makes a file.
    pub(super) fn create(&self, number: u64) -> Result<Arc<D::File>> {
        let _making = self.making.lock();
        let made = self.disk.create(&path(number)).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            self.disk.make_folder(&format!("data/{:08x}", number >> 32))?;
            self.disk.make_folder(&folder(number))?;
            self.disk.create(&path(number))
        });
        made.map(Arc::new).map_err(Error::io("making a file for an object"))
    }

    /// Opens a file; ESTALE if it was removed: the object has another one by now.
    pub(super) fn open(&self, number: u64) -> Result<Arc<D::File>> {
        if let Some(file) = self.open.lock().get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = match self.disk.open(&path(number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(rustix::io::Errno::STALE.into());
            }
            opened => Arc::new(opened.map_err(Error::io("opening the file of an object"))?),
        };
        self.keep(number, &file);
        Ok(file)
    }

    pub(super) fn keep(&self, number: u64, file: &Arc<D::File>) {
        let mut open = self.open.lock();
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(number, Arc::clone(file));
    }

    /// Makes a new file and its name durable.
    pub(super) fn sync_new(&self, number: u64, file: &D::File) -> Result<()> {
        file.sync().map_err(Error::io("synchronising the file of an object"))?;
        let synced = self.disk.sync_folder(&folder(number));
        synced.map_err(Error::io("synchronising a folder of objects"))
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, number: u64) -> Result<()> {
        self.open.lock().remove(&number);
        self.dirty.lock().remove(&number);
        match self.disk.remove(&path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("removing the file of an object")(error))
            }
            _ => Ok(()),
        }
    }

    /// Notes that a file was written in place.
    pub(super) fn wrote(&self, number: u64, file: &Arc<D::File>) {
        self.dirty.lock().entry(number).or_insert_with(|| Arc::clone(file));
    }

    /// Makes everything durable that was written in place before.
    pub(super) fn flush(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        for file in dirty.values() {
            if let Err(error) = file.sync() {
                self.failed.store(true, Ordering::Release);
                return Err(Error::io("synchronising the file of an object")(error));
            }
        }
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::damaged(
                "an earlier flush has failed, and what it was to cover may be lost; check the disk below the store",
            ));
        }
        Ok(())
    }

    /// The numbers of all files that a session has made.
    pub(super) fn of_session(&self, session: u32) -> Result<Vec<u64>> {
        let top = format!("data/{session:08x}");
        let list =
            |path: &str| self.disk.list(path).map_err(Error::io("listing the files of objects"));
        let mut numbers = Vec::new();
        for name in list(&top)? {
            let Ok(high) = u64::from_str_radix(&name, 16) else { continue };
            for file in list(&format!("{top}/{name}"))? {
                let Ok(low) = u64::from_str_radix(&file, 16) else { continue };
                numbers.push(u64::from(session) << 32 | high << FOLDER_BITS | low);
            }
        }
        Ok(numbers)
    }
}

/// Copies the first `size` bytes of a file into a new one, without its holes.
pub(super) fn copy<F: DiskFile>(from: &F, to: &F, size: u64) -> io::Result<()> {
    if to.share(from) {
        return to.set_size(size);
    }
    to.set_size(size)?;
    let mut buffer = Vec::new();
    for part in from.data(0..size)? {
        let mut at = part.start;
        while at < part.end {
            let length = (part.end - at).min(COPY_BYTES);
            buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            let read = from.read_at(&mut buffer, at)?;
            to.write_at(buffer.get(..read).unwrap_or_default(), at)?;
            at += length;
        }
    }
    Ok(())
}
