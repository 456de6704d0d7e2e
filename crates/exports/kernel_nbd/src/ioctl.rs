//! A device by ioctls: one connection, and a thread that the kernel keeps as long as that lasts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockyard_sys::nbd;
use tokio::sync::oneshot;

use crate::device;
use crate::driver::{Setup, not_loaded};
use crate::error::{Error, ErrorKind};

/// How long the kernel may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Tells the kernel of the size of a device that runs.
#[derive(Clone, Debug)]
pub struct Sizer {
    index: u32,
    device: Arc<File>,
    block_size: u32,
}

impl Sizer {
    /// Changes the size of the device, to whole blocks. May wait for what is asked of it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn resize(&self, bytes: u64) -> Result<(), Error> {
        let blocks = bytes / u64::from(self.block_size);
        nbd::set_size_blocks(self.device.as_fd(), blocks).map_err(|err| {
            Error::io(format!("{} cannot be resized", device::path(self.index)), err)
        })
    }
}

/// What is done to a device before it runs.
trait Commands {
    fn set_socket(&self) -> io::Result<()>;
    fn set_block_size(&self, bytes: u32) -> io::Result<()>;
    fn set_size_blocks(&self, blocks: u64) -> io::Result<()>;
    fn set_timeout(&self, seconds: u64) -> io::Result<()>;
    fn set_flags(&self, flags: u64) -> io::Result<()>;
    fn clear_socket(&self) -> io::Result<()>;
}

/// A device, and the connection for it.
struct OfKernel<'a>(BorrowedFd<'a>, BorrowedFd<'a>);

impl Commands for OfKernel<'_> {
    fn set_socket(&self) -> io::Result<()> {
        nbd::set_socket(self.0, self.1)
    }

    fn set_block_size(&self, bytes: u32) -> io::Result<()> {
        nbd::set_block_size(self.0, bytes)
    }

    fn set_size_blocks(&self, blocks: u64) -> io::Result<()> {
        nbd::set_size_blocks(self.0, blocks)
    }

    fn set_timeout(&self, seconds: u64) -> io::Result<()> {
        nbd::set_timeout(self.0, seconds)
    }

    fn set_flags(&self, flags: u64) -> io::Result<()> {
        nbd::set_flags(self.0, flags)
    }

    fn clear_socket(&self) -> io::Result<()> {
        nbd::clear_socket(self.0)
    }
}

/// Gives a device its connection first: the driver takes one from one process only (`nbd_add_socket`), so that whoever has
/// got that far owns it. Nobody else changes anything of it.
fn set_up(device: &impl Commands, setup: &Setup) -> io::Result<()> {
    device.set_socket()?;
    let the_rest = || {
        device.set_block_size(setup.block_size)?;
        device.set_size_blocks(setup.size / u64::from(setup.block_size))?;
        device.set_timeout(setup.timeout.as_secs().max(1))?;
        device.set_flags(setup.server_flags.into())
    };
    let done = the_rest();
    if done.is_err() {
        // The first error says more.
        let _ = device.clear_socket();
    }
    done
}

/// A device of the kernel that lives as long as this does.
#[derive(Debug)]
pub struct IoctlDevice {
    index: u32,
    device: Arc<File>,
    block_size: u32,
    /// None once it was joined.
    runner: Option<JoinHandle<io::Result<()>>>,
    /// Closed when the kernel's part has ended.
    ended: oneshot::Receiver<()>,
}

impl IoctlDevice {
    /// Makes a device of a connection that is past its handshake.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where there is no driver, [`ErrorKind::Busy`] if the device, or all of them, are
    /// in use.
    pub fn connect(setup: &Setup, socket: OwnedFd) -> Result<Self, Error> {
        let index = match setup.index {
            Some(index) => index,
            None if !device::any() => {
                return Err(not_loaded());
            }
            None => device::first_free().ok_or_else(|| {
                Error::new(ErrorKind::Busy, "all devices of the NBD driver are in use")
                    .help("detach one, or load the driver with more: modprobe nbd nbds_max=N")
            })?,
        };
        let path = device::path(index);
        let failed = |err| Error::io(format!("cannot connect {path}"), err);
        let open = OpenOptions::new().read(true).write(true).open(&path);
        let device = Arc::new(open.map_err(failed)?);
        if device::server(index).is_some() {
            return Err(Error::new(ErrorKind::Busy, format!("{path} is in use")));
        }
        set_up(&OfKernel(device.as_fd(), socket.as_fd()), setup).map_err(failed)?;
        let runner = Arc::clone(&device);
        let (running, ended) = oneshot::channel();
        let runner = std::thread::Builder::new().name(format!("nbd{index}")).spawn(move || {
            let ended = nbd::do_it(runner.as_fd());
            // What is still asked of it fails now, and not when the device file is closed.
            let _ = nbd::clear_queue(runner.as_fd());
            let _ = nbd::clear_socket(runner.as_fd());
            drop((socket, running));
            ended
        });
        let runner = Some(runner.map_err(failed)?);
        let mut made = Self { index, device, block_size: setup.block_size, runner, ended };
        made.wait_for_start()?;
        Ok(made)
    }

    fn wait_for_start(&mut self) -> Result<(), Error> {
        let end = Instant::now() + PATIENCE;
        while device::server(self.index).is_none() {
            if self.runner.as_ref().is_none_or(JoinHandle::is_finished) || Instant::now() > end {
                let path = device::path(self.index);
                let what = format!("{path} did not start");
                // Whatever it waits for, it does not go on with.
                let _ = nbd::clear_socket(self.device.as_fd());
                return Err(match self.join() {
                    Err(err) => Error::io(what, err),
                    Ok(()) => Error::new(ErrorKind::Io, what),
                });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// By which its size is changed, as long as it runs.
    #[must_use]
    pub fn sizer(&self) -> Sizer {
        let (index, block_size) = (self.index, self.block_size);
        Sizer { index, device: Arc::clone(&self.device), block_size }
    }

    /// Waits until the kernel's part has ended, whoever has ended it.
    pub async fn ended(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.ended).await;
    }

    /// Ends it: says goodbye to the server, and waits until the kernel has let it go. Can be tried again where it fails.
    ///
    /// # Errors
    /// What the driver says.
    pub fn disconnect(&mut self) -> Result<(), Error> {
        if self.runner.is_none() {
            return Ok(());
        }
        let index = self.index;
        let failed =
            |err| Error::io(format!("{} cannot be disconnected", device::path(index)), err);
        nbd::disconnect(self.device.as_fd()).map_err(failed)?;
        // The server hangs up on that, and so the kernel's part ends.
        self.join().map_err(failed)
    }

    fn join(&mut self) -> io::Result<()> {
        match self.runner.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(io::Error::other("the thread of the device panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for IoctlDevice {
    fn drop(&mut self) {
        if self.runner.is_some() {
            // Its thread ends with that, whenever the server hangs up.
            let _ = nbd::disconnect(self.device.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Notes what is done to it, and fails at one of it.
    #[derive(Default)]
    struct Fake {
        done: RefCell<Vec<&'static str>>,
        fails: &'static str,
    }

    impl Fake {
        fn does(&self, what: &'static str) -> io::Result<()> {
            self.done.borrow_mut().push(what);
            if what == self.fails { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
        }
    }

    impl Commands for Fake {
        fn set_socket(&self) -> io::Result<()> {
            self.does("socket")
        }

        fn set_block_size(&self, _: u32) -> io::Result<()> {
            self.does("block size")
        }

        fn set_size_blocks(&self, _: u64) -> io::Result<()> {
            self.does("size")
        }

        fn set_timeout(&self, _: u64) -> io::Result<()> {
            self.does("timeout")
        }

        fn set_flags(&self, _: u64) -> io::Result<()> {
            self.does("flags")
        }

        fn clear_socket(&self) -> io::Result<()> {
            self.does("clear")
        }
    }

    #[test]
    fn a_device_that_another_process_sets_up_is_left_alone() {
        let setup = Setup {
            index: Some(0),
            size: 1 << 20,
            block_size: 512,
            server_flags: 1,
            timeout: Duration::from_secs(1),
            dead_conn_timeout: Duration::ZERO,
            identifier: String::new(),
        };
        let done = |fails| {
            let fake = Fake { fails, ..Fake::default() };
            (set_up(&fake, &setup).is_ok(), fake.done.into_inner())
        };
        assert_eq!(done("socket"), (false, vec!["socket"]));
        assert_eq!(done("size"), (false, vec!["socket", "block size", "size", "clear"]));
        assert_eq!(done(""), (true, vec!["socket", "block size", "size", "timeout", "flags"]));
    }
}
