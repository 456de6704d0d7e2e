//! The nodes that the client knows: each is a file of the directory, open or known by its handle, found again by what it is.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use blockyard_fuse::{Errno, ROOT_ID};
use blockyard_sys::file_handle::FileHandle;
use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::filesystem::Outcome;

/// `ESTALE`: there is no such node.
const ESTALE: Errno = Errno::from_raw(116);

/// What tells a file from all others: for ever with its handle, and as long as it is open without.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: (u32, u32),
    pub(super) ino: u64,
    pub(super) handle: Option<FileHandle>,
}

/// Where a file is.
pub(super) enum Place {
    /// Open, so that nothing can be read by it (`O_PATH`).
    Open(Arc<OwnedFd>),
    /// To be opened.
    Handle(FileHandle),
}

/// A file that the client knows.
pub(super) struct Inode {
    pub(super) id: u64,
    pub(super) place: Place,
    pub(super) kind: FileType,
    key: Key,
}

impl Inode {
    /// Of the file system that it is on.
    pub(super) fn device(&self) -> (u32, u32) {
        self.key.device
    }
}

struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

struct Table {
    /// Nodes that are open, and how many may be where they need not.
    open: usize,
    most_open: usize,
    by_id: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
    next: u64,
}

/// All of them, as many as the kernel holds. Where there are handles, few are open; without, as many as files may be.
pub(super) struct Inodes(Mutex<Table>);

impl Inodes {
    /// With the root, which is never forgotten.
    pub(super) fn new(fd: OwnedFd, key: Key, most_open: usize) -> Self {
        let (place, kind) = (Place::Open(Arc::new(fd)), FileType::Directory);
        let root = Arc::new(Inode { id: ROOT_ID, place, kind, key: key.clone() });
        let known = Known { inode: root, lookups: u64::MAX };
        Self(Mutex::new(Table {
            open: 1,
            most_open,
            by_id: [(ROOT_ID, known)].into(),
            by_key: [(key, ROOT_ID)].into(),
            next: ROOT_ID + 1,
        }))
    }

    pub(super) fn find(&self, id: u64) -> Outcome<Arc<Inode>> {
        self.0.lock().by_id.get(&id).map(|known| Arc::clone(&known.inode)).ok_or(ESTALE)
    }

    /// The node of an open file, and a lookup of it more.
    pub(super) fn look_up(&self, fd: OwnedFd, key: Key, kind: FileType) -> Arc<Inode> {
        let mut table = self.0.lock();
        let table = &mut *table;
        if let Some(known) = table.by_key.get(&key).and_then(|id| table.by_id.get_mut(id)) {
            known.lookups = known.lookups.saturating_add(1);
            return Arc::clone(&known.inode);
        }
        let id = table.next;
        table.next += 1;
        let place = match &key.handle {
            Some(handle) if table.open >= table.most_open => Place::Handle(handle.clone()),
            _ => {
                table.open += 1;
                Place::Open(Arc::new(fd))
            }
        };
        let inode = Arc::new(Inode { id, place, kind, key: key.clone() });
        table.by_key.insert(key, id);
        table.by_id.insert(id, Known { inode: Arc::clone(&inode), lookups: 1 });
        inode
    }

    /// Gives lookups back. More than there were are as good as all; of a node that there is not, nothing.
    pub(super) fn forget(&self, id: u64, lookups: u64) {
        let mut table = self.0.lock();
        if id == ROOT_ID {
            return;
        }
        let Some(known) = table.by_id.get_mut(&id) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        let forgotten = table.by_id.remove(&id);
        if let Some(known) = &forgotten {
            table.by_key.remove(&known.inode.key);
            if matches!(known.inode.place, Place::Open(_)) {
                table.open -= 1;
            }
        }
        // Closing may take its time.
        drop(table);
        drop(forgotten);
    }

    /// Forgets all but the root. They are closed by who drops them.
    #[must_use]
    pub(super) fn clear(&self) -> Vec<Arc<Inode>> {
        let mut table = self.0.lock();
        let root = table.by_id.remove(&ROOT_ID);
        let forgotten = std::mem::take(&mut table.by_id);
        table.by_key.clear();
        if let Some(known) = root {
            table.by_key.insert(known.inode.key.clone(), ROOT_ID);
            table.by_id.insert(ROOT_ID, known);
        }
        table.open = 1;
        drop(table);
        forgotten.into_values().map(|known| known.inode).collect()
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.lock().by_id.len()
    }
}

/// Open files, by the numbers that the client has for them.
pub(super) struct Handles<T>(Mutex<(HashMap<u64, Arc<T>>, u64)>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self(Mutex::new((HashMap::new(), 1)))
    }
}

impl<T> Handles<T> {
    pub(super) fn insert(&self, file: T) -> u64 {
        let mut handles = self.0.lock();
        let fh = handles.1;
        handles.1 += 1;
        handles.0.insert(fh, Arc::new(file));
        fh
    }

    pub(super) fn find(&self, fh: u64) -> Outcome<Arc<T>> {
        self.0.lock().0.get(&fh).map(Arc::clone).ok_or(Errno::EBADF)
    }

    pub(super) fn remove(&self, fh: u64) {
        let closed = self.0.lock().0.remove(&fh);
        drop(closed);
    }

    /// Nobody finds any of them from now on. They are closed by who drops them.
    pub(super) fn take_all(&self) -> Vec<Arc<T>> {
        std::mem::take(&mut self.0.lock().0).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> OwnedFd {
        std::fs::File::open("/").unwrap().into()
    }

    #[test]
    fn a_file_is_one_node_until_all_its_lookups_are_given_back() {
        let key = |ino| Key { device: (1, 2), ino, handle: None };
        let inodes = Inodes::new(place(), key(1), 9);
        let first = inodes.look_up(place(), key(7), FileType::RegularFile).id;
        assert_eq!(inodes.look_up(place(), key(7), FileType::RegularFile).id, first);
        assert_ne!(inodes.look_up(place(), key(8), FileType::RegularFile).id, first);
        inodes.forget(first, 1);
        assert!(inodes.find(first).is_ok());
        inodes.forget(first, 99);
        assert_eq!(inodes.find(first).err(), Some(ESTALE));
        inodes.forget(first, 1);
        inodes.forget(ROOT_ID, u64::MAX);
        inodes.forget(12345, 1);
        assert!(inodes.find(ROOT_ID).is_ok());
        assert_eq!(inodes.count(), 2);
        // A number is never given to another.
        assert_ne!(inodes.look_up(place(), key(7), FileType::RegularFile).id, first);
    }

    #[test]
    fn what_is_forgotten_is_closed_by_who_drops_it() {
        let key = |ino| Key { device: (1, 2), ino, handle: None };
        let inodes = Inodes::new(place(), key(1), 9);
        let ids = [7, 8].map(|ino| inodes.look_up(place(), key(ino), FileType::RegularFile).id);
        let forgotten = inodes.clear();
        let mut found: Vec<_> = forgotten.iter().map(|inode| inode.id).collect();
        found.sort_unstable();
        assert_eq!(found, ids);
        let is_open = |inode: &Arc<Inode>| matches!(&inode.place, Place::Open(fd) if rustix::fs::fstat(fd).is_ok());
        assert!(forgotten.iter().all(is_open));
        assert!(ids.iter().all(|id| inodes.find(*id).is_err()) && inodes.find(ROOT_ID).is_ok());
    }
}
