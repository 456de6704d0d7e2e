//! Devices of this machine, whoever made them.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use blockyard_sys::ublk::{CONTROL_PATH, Control, OpenError, State};
use blockyard_sys::uring::Unavailable;

use crate::end;
use crate::error::{Error, ErrorKind};

/// How long a device whose server is gone may take to come to rest.
const REST: Duration = Duration::from_secs(5);
const REST_POLL: Duration = Duration::from_millis(20);

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub id: u32,
    /// How it stands.
    pub state: State,
    /// The mark that its server gave it: see [`Config::mark`](crate::Config::mark).
    pub mark: u64,
    /// The process id of its server, dead or alive; none before it was started.
    pub server: Option<u32>,
}

/// Looks at device `id`; none if there is no such device.
///
/// # Errors
/// The driver is not there, or does not tell.
pub fn find(id: u32) -> Result<Option<Found>, Error> {
    match open_control()?.info(id) {
        Ok(info) => Ok(Some(Found {
            id,
            state: info.state(),
            mark: info.server_mark,
            server: u32::try_from(info.server_pid).ok().filter(|pid| *pid > 0),
        })),
        Err(err) if is_no_device(&err) => Ok(None),
        Err(err) => Err(Error::io(format!("cannot query ublk device {id}"), err)),
    }
}

/// Removes device `id` of that `mark`, whose server is gone. What the kernel still wanted of it fails.
///
/// # Errors
/// There is no such device, or the driver refuses. [`ErrorKind::Busy`] if it has not come to rest: the kernel
/// (6.12, say) looks for partitions while it holds the lock of a device that starts, and waits for its server
/// with that; if the server was killed then, whoever asks for the device waits for ever too, so it is not asked.
pub fn remove(id: u32, mark: u64) -> Result<(), Error> {
    let mut control = open_control()?;
    let failed = |err| Error::io(format!("cannot remove ublk device {id}"), err);
    let end = Instant::now() + REST;
    while control.info(id).map_err(failed)?.state() == State::Live {
        if Instant::now() > end {
            let what = format!(
                "{} was left while the kernel was looking for its partitions, and the kernel still waits; \
                 only a restart of the machine frees it",
                blockyard_sys::ublk::disk_path(id)
            );
            return Err(Error::new(ErrorKind::Busy, what));
        }
        std::thread::sleep(REST_POLL);
    }
    end::stop_and_delete(&mut control, id, mark).map_err(failed)
}

fn is_no_device(err: &io::Error) -> bool {
    err.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
        || err.kind() == io::ErrorKind::NotFound
}

/// The way to the driver, or why there is none and what to do.
pub(crate) fn open_control() -> Result<Control, Error> {
    Control::open().map_err(|err| no_control(err, Path::new(CONTROL_PATH).exists()))
}

fn no_control(err: OpenError, exists: bool) -> Error {
    match err {
        OpenError::Driver(err) => match err.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::Unsupported if !exists => {
                Error::new(ErrorKind::Unavailable, "this kernel has no ublk driver loaded")
                    .help("run: modprobe ublk_drv (Linux 6.0 or newer)")
                    .caused_by(err)
            }
            io::ErrorKind::PermissionDenied => {
                let what = format!("{CONTROL_PATH} is not accessible to this user");
                Error::new(ErrorKind::NotPermitted, what).help("run as root").caused_by(err)
            }
            _ => Error::io(format!("cannot use {CONTROL_PATH}"), err),
        },
        // Where it is forbidden, whoever runs as root may not either.
        OpenError::Ring(err @ Unavailable::Failed(_)) => {
            Error::new(ErrorKind::Io, "cannot create an io_uring for ublk").caused_by(err)
        }
        OpenError::Ring(err) => {
            Error::new(ErrorKind::Unavailable, "ublk needs io_uring").caused_by(err)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_us_from_the_driver_is_told_apart() {
        let kind = |err, exists| no_control(err, exists).kind();
        let driver = |kind| OpenError::Driver(io::Error::from(kind));
        assert_eq!(kind(driver(io::ErrorKind::NotFound), false), ErrorKind::Unavailable);
        assert_eq!(kind(driver(io::ErrorKind::PermissionDenied), true), ErrorKind::NotPermitted);
        assert_eq!(kind(driver(io::ErrorKind::Other), true), ErrorKind::Io);
        for forbidden in
            [Unavailable::Sysctl("2".into()), Unavailable::Policy, Unavailable::Missing]
        {
            assert_eq!(kind(OpenError::Ring(forbidden), true), ErrorKind::Unavailable);
        }
        let no_memory = io::Error::from(io::ErrorKind::OutOfMemory);
        assert_eq!(kind(OpenError::Ring(Unavailable::Failed(no_memory)), true), ErrorKind::Io);
    }
}
