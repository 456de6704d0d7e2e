//! Entries of directories.

use std::mem::MaybeUninit;

use blockyard_fuse::dirent::{Dirent, Entries};
use blockyard_fuse::wire::{EntryOut, FopenFlags, OpenOut, ReadIn};
use blockyard_fuse::{Errno, Name};
use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};

use super::{CachePolicy, Passthrough, errno};
use crate::filesystem::Outcome;

/// Bytes of entries that are asked of the system at a time.
const BATCH: usize = 32 << 10;

/// What kind of file an entry is (`DT_*`).
const fn dirent_kind(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    }
}

impl Passthrough {
    pub(super) fn open_directory(&self, node: u64) -> Outcome<OpenOut> {
        let inode = self.at(node)?;
        if inode.kind != FileType::Directory {
            return Err(Errno::ENOTDIR);
        }
        let directory = self.reopen(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let open_flags = match self.options.cache {
            CachePolicy::Never | CachePolicy::Auto => FopenFlags::empty(),
            CachePolicy::Always => FopenFlags::KEEP_CACHE | FopenFlags::CACHE_DIR,
        };
        let fh = self.directories.insert(Mutex::new(directory));
        Ok(OpenOut { fh, open_flags, ..OpenOut::default() })
    }

    pub(super) fn list(
        &self,
        node: u64,
        args: &ReadIn,
        plus: bool,
        entries: &mut Entries<'_>,
    ) -> Outcome {
        let parent = self.at(node)?;
        let directory = self.directories.find(args.fh)?;
        // It has one position, and a reader at a time.
        let directory = directory.lock();
        rustix::fs::seek(&*directory, SeekFrom::Start(args.offset)).map_err(errno)?;
        let mut room = vec![MaybeUninit::uninit(); BATCH];
        let mut raw = RawDir::new(&*directory, &mut room);
        let mut any = false;
        while let Some(found) = raw.next() {
            let found = match found {
                Ok(found) => found,
                // What there is is told first.
                Err(_) if any => break,
                Err(err) => return Err(errno(err)),
            };
            let Ok(name) = Name::new(found.file_name().to_bytes()) else { continue };
            let kind = dirent_kind(found.file_type());
            let ino = self.devices.ino(parent.device(), found.ino());
            let entry = Dirent { ino, next: found.next_entry_cookie(), kind, name };
            if !entries.room_for(name) {
                break;
            }
            if plus {
                // Nobody gives the lookups of the dots back; what is gone by now is an entry all the same.
                let looked_up = if name.is_dots() {
                    EntryOut::default()
                } else {
                    self.place(&parent, name).and_then(|it| self.entry(it)).unwrap_or_default()
                };
                entries.add_plus(&looked_up, &entry);
            } else {
                entries.add(&entry);
            }
            any = true;
        }
        Ok(())
    }
}
