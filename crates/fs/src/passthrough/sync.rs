//! All of it made durable: what is below the directory may be of several file systems.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use blockyard_fuse::{Errno, ROOT_ID};
use blockyard_sys::fuse::mounts;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::path::DecInt;

use super::{At, PLACE, Passthrough, RESOLVE, errno, stat};
use crate::filesystem::Outcome;

impl Passthrough {
    /// Each is tried, whatever became of the one before; the first error counts.
    pub(super) fn sync_all(&self) -> Outcome {
        let mut outcome = Ok(());
        for file_system in self.file_systems()? {
            outcome = outcome.and(rustix::fs::syncfs(file_system).map_err(errno));
        }
        outcome
    }

    /// Each by something that is open on it, the directory's own first. They are looked for when they are asked for, as nobody
    /// could unmount what is kept open, and also those of which the client knows no file any more.
    fn file_systems(&self) -> Outcome<Vec<OwnedFd>> {
        let root = self.at(ROOT_ID)?;
        let mut found = vec![self.reopen(&root, OFlags::RDONLY | OFlags::DIRECTORY)?];
        let mut devices = vec![root.device()];
        for path in self.mounted_below(&root)? {
            // Who has unmounted it, or mounted another over it, has that made durable. What may not be opened was not written to.
            let Ok((device, file)) = self.open_below(&root, &path) else { continue };
            if !devices.contains(&device) {
                devices.push(device);
                found.push(file);
            }
        }
        Ok(found)
    }

    /// Where something is mounted, from the directory on.
    fn mounted_below(&self, root: &At) -> Outcome<Vec<PathBuf>> {
        let own = rustix::fs::readlinkat(&self.own_files, DecInt::from_fd(&root.fd), Vec::new());
        let own = PathBuf::from(OsString::from_vec(own.map_err(errno)?.into_bytes()));
        let below = |target: &Path| target.strip_prefix(&own).ok().map(Path::to_path_buf);
        let all = mounts().map_err(|_| Errno::EIO)?;
        let below = all.iter().filter_map(|mount| below(&mount.target));
        Ok(below.filter(|path| !path.as_os_str().is_empty()).collect())
    }

    fn open_below(&self, root: &At, path: &Path) -> Outcome<((u32, u32), OwnedFd)> {
        let place = rustix::fs::openat2(&root.fd, path, PLACE, Mode::empty(), RESOLVE);
        let place = place.map_err(errno)?;
        let found = stat(&place).map_err(errno)?;
        match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::RegularFile | FileType::Directory => {}
            _ => return Err(Errno::EPERM),
        }
        let file = self.open_own(&place, OFlags::RDONLY)?;
        Ok(((found.stx_dev_major, found.stx_dev_minor), file))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::passthrough::Options;

    fn mount(arguments: &[&str], at: &Path) {
        let mut mount = std::process::Command::new("mount");
        assert!(mount.args(arguments).arg(at).status().unwrap().success());
    }

    fn devices(shared: &Passthrough) -> Vec<u64> {
        let found = shared.file_systems().unwrap().into_iter().map(fs::File::from);
        found.map(|file| file.metadata().unwrap().dev()).collect()
    }

    #[test]
    fn all_that_is_mounted_below_is_made_durable_and_can_be_unmounted() {
        blockyard_conformance::in_own_mounts!();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let tmpfs = ["-t", "tmpfs", "tmpfs"];
        let (first, inner) = (path("shared/a first one"), path("shared/a first one/inner"));
        for place in [path("shared"), first.clone(), path("shared-not")] {
            fs::create_dir_all(place).unwrap();
        }
        mount(&tmpfs, &path("shared-not"));
        mount(&tmpfs, &first);
        fs::create_dir(&inner).unwrap();
        mount(&tmpfs, &inner);
        // The same once more, and a file.
        fs::create_dir(path("shared/again")).unwrap();
        mount(&["--bind", first.to_str().unwrap()], &path("shared/again"));
        fs::write(path("shared-not/file"), "").unwrap();
        fs::write(path("shared/file"), "").unwrap();
        mount(&["--bind", path("shared-not/file").to_str().unwrap()], &path("shared/file"));
        let shared = Passthrough::new(&path("shared"), Options::default()).unwrap();
        let expected = [path("shared"), first, inner.clone(), path("shared-not")];
        let expected = expected.map(|path| fs::metadata(path).unwrap().dev());
        let mut found = devices(&shared);
        assert_eq!(found[0], expected[0]);
        found.sort_unstable();
        let mut sorted = expected;
        sorted.sort_unstable();
        assert_eq!(found, sorted);
        assert_eq!(shared.sync_all(), Ok(()));
        let mut unmount = std::process::Command::new("umount");
        assert!(unmount.arg(&inner).status().unwrap().success(), "it is kept busy");
        assert_eq!(devices(&shared).len(), 3);
    }
}
