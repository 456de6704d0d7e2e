//! Mounts by fusermount3(1), which may do for a user what only root may.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::Channel;
use super::mount::{MountOptions, Unmount};

/// The program.
const PROGRAM: &str = "fusermount3";
/// The variable that says by which descriptor the device is to be passed.
const COMM_FD: &str = "_FUSE_COMMFD";

/// It opens the device, mounts it, and passes it over its standard input.
pub(super) fn mount(target: &Path, options: &MountOptions<'_>) -> io::Result<Channel> {
    let (near, far) = UnixStream::pair()?;
    let mut text = format!(
        "nosuid,nodev,noatime,default_permissions,fsname={},subtype={}",
        options.source, options.subtype
    );
    if options.allow_other {
        text.push_str(",allow_other");
    }
    if options.read_only {
        text.push_str(",ro");
    }
    let mut command = Command::new(PROGRAM);
    command.args(["-o", &text, "--"]).arg(target);
    command.env(COMM_FD, "0").env("LC_ALL", "C");
    command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|err| {
        io::Error::new(err.kind(), format!("{PROGRAM} cannot be run: {err}; install fuse3"))
    })?;
    // The other end of the pair is the child's alone.
    drop(command);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let what = format!("{PROGRAM} says: {said}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    let fd = receive(&near)?;
    let fd = fd.ok_or_else(|| io::Error::other(format!("{PROGRAM} has passed no device")))?;
    Channel::of(fd)
}

fn receive(near: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(near.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(fds.next().and_then(|mut fds| fds.next()))
}

/// What unmounts; the target is its last argument.
pub(super) fn unmount(how: Unmount) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("-u").args((how == Unmount::Lazily).then_some("-z"));
    command
}
