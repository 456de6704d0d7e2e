//! Files that are known without being open (name_to_handle_at(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

/// The longest that the kernel makes (`MAX_HANDLE_SZ`).
const MAX_BYTES: usize = 128;

/// What names a file on its file system, also when another has got its inode number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

/// `struct file_handle`, with room for the longest.
#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; MAX_BYTES],
}

impl FileHandle {
    /// That of an open file, and the number of the mount that it was found by.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system has none.
    pub fn of(fd: impl AsFd) -> io::Result<(Self, i32)> {
        const LEN: u32 = 128;
        let mut raw = Raw { len: LEN, kind: 0, bytes: [0; MAX_BYTES] };
        let mut mount = 0;
        // SAFETY: the name is a string, the handle says how much room it has, and both, as the number, live until the call
        // returns.
        let done = unsafe {
            libc::name_to_handle_at(
                fd.as_fd().as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = raw.bytes.get(..raw.len as usize).unwrap_or(&[]).into();
        Ok((Self { kind: raw.kind, bytes }, mount))
    }

    /// Opens it again, on the file system of `mount`.
    ///
    /// # Errors
    /// `ESTALE` if there is no such file any more, `EPERM` without `CAP_DAC_READ_SEARCH`.
    pub fn open(&self, mount: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(0);
        let mut raw = Raw { len, kind: self.kind, bytes: [0; MAX_BYTES] };
        if let Some(place) = raw.bytes.get_mut(..self.bytes.len()) {
            place.copy_from_slice(&self.bytes);
        }
        let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
        let mount = mount.as_fd().as_raw_fd();
        // SAFETY: the handle says how long it is, and lives until the call returns.
        let fd = unsafe { libc::open_by_handle_at(mount, (&raw mut raw).cast(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just opened, and is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_file_is_found_by_its_handle_wherever_it_is_by_now() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "content").unwrap();
        let (handle, number) = FileHandle::of(std::fs::File::open(&one).unwrap()).unwrap();
        let mount = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(FileHandle::of(&mount).unwrap().1, number);
        std::fs::rename(&one, &two).unwrap();
        assert_eq!(
            FileHandle::of(std::fs::File::open(&two).unwrap()).unwrap(),
            (handle.clone(), number)
        );
        let opened = handle.open(&mount, OFlags::RDONLY);
        if !rustix::process::geteuid().is_root() {
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        let mut text = String::new();
        std::fs::File::from(opened.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        std::fs::remove_file(&two).unwrap();
        let gone = handle.open(&mount, OFlags::RDONLY).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESTALE));
    }
}
