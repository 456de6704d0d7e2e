//! Who has an image of a store: one process, and one disk in it, writes it at a time.

use super::DirStore;
use super::disk::Disk;
use crate::error::{Error, Result};

/// An image that nobody else has. It is given back when this is dropped, or its process dies.
pub struct Owned<D: Disk> {
    _lock: D::Lock,
}

/// The file whose lock is that of an image. No two images of a store have the same id.
fn lock_of(image: &str) -> String {
    format!("locks/image.{image}")
}

impl<D: Disk> DirStore<D> {
    /// Takes an image, by its id, for oneself: `Err` has what the one says of himself who has it. What others have written who
    /// had it before, and have died, survives a power cut from then on.
    ///
    /// # Errors
    /// The outer one: the lock cannot be taken, or what others have left cannot be made durable.
    pub fn own_blocking(
        &self,
        image: &str,
        as_whom: &str,
    ) -> Result<std::result::Result<Owned<D>, String>> {
        let path = lock_of(image);
        let io = |error| Error::io("taking the lock of an image")(error);
        let disk = self.store.disk();
        let Some(lock) = disk.try_lock(&path).map_err(io)? else {
            return Ok(Err(disk.note_of(&path).unwrap_or_default()));
        };
        disk.note(&lock, as_whom).map_err(io)?;
        self.store.take_over()?;
        Ok(Ok(Owned { _lock: lock }))
    }

    /// What the one says of himself who has an image; `None` if nobody has it.
    ///
    /// # Errors
    /// The lock cannot be looked at.
    pub fn owner_blocking(&self, image: &str) -> Result<Option<String>> {
        let path = lock_of(image);
        let disk = self.store.disk();
        let lock = disk.try_lock(&path).map_err(Error::io("looking at the lock of an image"))?;
        Ok(if lock.is_some() { None } else { Some(disk.note_of(&path).unwrap_or_default()) })
    }

    /// Forgets the lock of an image that is gone. To be called by the one who has it.
    pub fn forget_lock_blocking(&self, image: &str) {
        // A file that stays is empty, and in nobody's way.
        let _gone = self.store.disk().remove(&lock_of(image));
    }
}

#[cfg(test)]
mod tests {
    use crate::dir::DirStore;

    #[test]
    fn an_image_has_one_owner_and_a_second_one_is_told_who() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirStore::open(directory.path(), true).unwrap();
        let second = DirStore::open(directory.path(), false).unwrap();
        let owned = first.own_blocking("1a", "process 7").unwrap().ok().unwrap();
        for store in [&first, &second] {
            let refused = store.own_blocking("1a", "me").unwrap().err();
            assert_eq!(refused.as_deref(), Some("process 7"));
            assert_eq!(store.owner_blocking("1a").unwrap().as_deref(), Some("process 7"));
        }
        assert!(second.own_blocking("1b", "me").unwrap().is_ok(), "another image");
        drop(owned);
        assert_eq!(second.owner_blocking("1a").unwrap(), None);
        assert!(second.own_blocking("1a", "a shorter").unwrap().is_ok());
    }
}
