//! Mounting and unmounting.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Channel, fusermount};

/// How a file system is mounted.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions<'a> {
    /// What mount(8) shows as its source: letters, digits and `-:_.` only.
    pub source: &'a str,
    /// What kind of FUSE file system it is: as `source`.
    pub subtype: &'a str,
    /// Its root is a directory, and not a file: as what it is mounted on.
    pub directory: bool,
    /// Other users may use it, as far as its modes let them.
    pub allow_other: bool,
    /// Nothing can be changed.
    pub read_only: bool,
}

impl MountOptions<'_> {
    fn check(&self) -> io::Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-:_.".contains(c);
        if !self.source.chars().all(is_plain) || !self.subtype.chars().all(is_plain) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of a mount"));
        }
        Ok(())
    }
}

/// Mounts a file system on `target`, an absolute path without symbolic links. Without the right to, fusermount3 is asked
/// to do it. The first request is there soon after.
///
/// # Errors
/// `ENOENT` where there is no FUSE, or no `target`; what mount(2) says, or fusermount3.
pub fn mount(target: &Path, options: &MountOptions<'_>) -> io::Result<Channel> {
    options.check()?;
    match mount_directly(target, options) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            fusermount::mount(target, options)
        }
        done => done,
    }
}

fn mount_directly(target: &Path, options: &MountOptions<'_>) -> io::Result<Channel> {
    /// `S_IFMT` of what can be a root.
    const S_IFDIR: u32 = 0o040_000;
    const S_IFREG: u32 = 0o100_000;
    let channel = Channel::open()?;
    let mode = if options.directory { S_IFDIR } else { S_IFREG };
    let mut data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions",
        channel.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let source = string(options.source)?;
    let kind = string(format!("fuse.{}", options.subtype))?;
    let target = string(target.as_os_str())?;
    let data = string(data)?;
    let mut flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME;
    if options.read_only {
        flags |= libc::MS_RDONLY;
    }
    // SAFETY: all four are strings that live until the call returns.
    let done = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(channel) }
}

fn string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes())
        .map_err(|err| io::Error::new(io::ErrorKind::InvalidInput, err))
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// If nobody uses it.
    IfUnused,
    /// Nobody finds it any more; who uses it still may.
    Lazily,
}

/// Unmounts what this process serves, by a process of its own: the kernel may have something to ask before it is done.
/// Must not be called on a thread that serves it.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] if it is used; what umount(8) or fusermount3 says.
pub fn unmount(target: &Path, how: Unmount) -> io::Result<()> {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("umount");
        command.args(["--internal-only", "--no-canonicalize"]);
        command.args((how == Unmount::Lazily).then_some("--lazy"));
        command
    } else {
        fusermount::unmount(how)
    };
    let Err(err) = run(command.arg("--").arg(target)) else { return Ok(()) };
    match expire(&string(target.as_os_str())?) {
        // Used by somebody, or it was until now.
        Err(libc::EBUSY | libc::EAGAIN) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, err.to_string()))
        }
        Err(_) => Err(err),
        Ok(()) => Ok(()),
    }
}

/// Finds out why it could not be unmounted, which umount(8) says in words only. `MNT_EXPIRE` refuses with EBUSY what is used,
/// with EAGAIN what is not, and takes that away if it was asked of it before and nobody has used it since. Only root may ask.
fn expire(path: &CStr) -> Result<(), i32> {
    let flags = libc::MNT_EXPIRE | libc::UMOUNT_NOFOLLOW;
    // SAFETY: a string that lives until the call returns.
    if unsafe { libc::umount2(path.as_ptr(), flags) } < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(())
}

/// Runs it, and makes an error of what it says.
pub(super) fn run(command: &mut Command) -> io::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|err| io::Error::new(err.kind(), format!("{program} cannot be run: {err}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // What fusermount3 says for EBUSY, behind the path.
    let kind = if said.ends_with(": Device or resource busy") {
        io::ErrorKind::ResourceBusy
    } else {
        io::ErrorKind::Other
    };
    Err(io::Error::new(kind, format!("{program} says: {said}")))
}

/// Takes a mount whose server is dead out of the way, whoever still uses it.
///
/// # Errors
/// What umount2(2) says, or fusermount3 where that is not allowed.
pub fn unmount_dead(target: &Path) -> io::Result<()> {
    let path = string(target.as_os_str())?;
    match detach(&path) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            run(fusermount::unmount(Unmount::Lazily).arg("--").arg(target))
        }
        done => done,
    }
}

fn detach(path: &CStr) -> io::Result<()> {
    let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
    // SAFETY: a string that lives until the call returns.
    if unsafe { libc::umount2(path.as_ptr(), flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_cannot_smuggle_others_in() {
        let options = MountOptions {
            source: "a,allow_other",
            subtype: "x",
            directory: true,
            allow_other: false,
            read_only: false,
        };
        let nowhere = Path::new("/nowhere/at/all");
        for options in [options, MountOptions { source: "x", subtype: "a b", ..options }] {
            assert_eq!(mount(nowhere, &options).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_is_no_mount_is_told() {
        let place = tempfile::Builder::new().prefix("busy").tempdir().unwrap();
        let err = unmount(place.path(), Unmount::IfUnused).unwrap_err();
        assert_ne!(err.kind(), io::ErrorKind::ResourceBusy, "{err}");
        assert!(unmount_dead(place.path()).is_err());
    }
}
