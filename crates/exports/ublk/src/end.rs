//! The end of a device: of the one that is meant, and of no other that has its number by now.
//!
//! The driver gives a number to another device only when all that is open of the first is closed. So whoever serves one keeps
//! it open until it is deleted; whoever does not asks for the mark just before.

use std::io;

use blockyard_sys::ublk::{Control, Device};
use rustix::io::Errno;

use crate::error::Error;
use crate::found::open_control;

/// What the driver is asked for.
pub(crate) trait Driver {
    /// The mark that a device has.
    fn mark(&mut self, id: u32) -> io::Result<u64>;
    fn stop(&mut self, id: u32) -> io::Result<()>;
    /// That takes a way to the driver with it.
    fn delete(&mut self, id: u32) -> io::Result<()>;
}

impl Driver for Control {
    fn mark(&mut self, id: u32) -> io::Result<u64> {
        Ok(self.info(id)?.server_mark)
    }

    fn stop(&mut self, id: u32) -> io::Result<()> {
        Self::stop(self, id)
    }

    fn delete(&mut self, id: u32) -> io::Result<()> {
        open_control().map_err(io::Error::other)?.delete(id)
    }
}

/// Whether device `id` is the one with that mark: `ENODEV` as for one that is not there.
pub(crate) fn check(driver: &mut impl Driver, id: u32, mark: u64) -> io::Result<()> {
    match driver.mark(id) {
        Ok(found) if found == mark => Ok(()),
        Ok(_) => Err(Errno::NODEV.into()),
        // Its file goes before it does: the driver looks at that first.
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(Errno::NODEV.into()),
        Err(err) => Err(err),
    }
}

/// A device that is kept open, and cannot be another's as long as this lives.
pub(crate) struct Kept {
    pub(crate) id: u32,
    pub(crate) mark: u64,
    /// None once it was deleted.
    file: Option<Device>,
}

impl Kept {
    pub(crate) fn new(id: u32, mark: u64, file: Device) -> Self {
        Self { id, mark, file: Some(file) }
    }

    /// Takes its disk away.
    pub(crate) fn stop(&self, driver: &mut impl Driver) -> io::Result<()> {
        check(driver, self.id, self.mark)?;
        driver.stop(self.id)
    }

    /// Deletes it; it goes when nobody has it open any more, as we do until then.
    pub(crate) fn delete(&mut self, driver: &mut impl Driver) -> io::Result<()> {
        delete(driver, self.id, self.mark)?;
        self.file = None;
        Ok(())
    }
}

/// Stops a device and deletes it, as far as it is the one with that mark.
pub(crate) fn stop_and_delete(driver: &mut impl Driver, id: u32, mark: u64) -> io::Result<()> {
    check(driver, id, mark)?;
    driver.stop(id)?;
    delete(driver, id, mark)
}

fn delete(driver: &mut impl Driver, id: u32, mark: u64) -> io::Result<()> {
    check(driver, id, mark)?;
    driver.delete(id)
}

/// The error of an end of device `id`.
pub(crate) fn failed(id: u32, what: &str, err: io::Error) -> Error {
    Error::io(format!("cannot {what} {}", blockyard_sys::ublk::disk_path(id)), err)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver whose device 3 has these marks, one at each look, and what was done to it.
    struct Fake {
        marks: Vec<io::Result<u64>>,
        done: Vec<&'static str>,
    }

    impl Driver for Fake {
        fn mark(&mut self, id: u32) -> io::Result<u64> {
            assert_eq!(id, 3);
            self.marks.remove(0)
        }

        fn stop(&mut self, _: u32) -> io::Result<()> {
            self.done.push("stopped");
            Ok(())
        }

        fn delete(&mut self, _: u32) -> io::Result<()> {
            self.done.push("deleted");
            Ok(())
        }
    }

    #[test]
    fn a_device_that_has_the_number_by_now_is_left_alone() {
        let end = |marks: Vec<io::Result<u64>>| {
            let mut fake = Fake { marks, done: Vec::new() };
            let ended = stop_and_delete(&mut fake, 3, 7);
            (ended.map_err(|err| err.raw_os_error()), fake.done)
        };
        let none = Some(Errno::NODEV.raw_os_error());
        assert_eq!(end(vec![Ok(7), Ok(7)]), (Ok(()), vec!["stopped", "deleted"]));
        assert_eq!(end(vec![Ok(8)]), (Err(none), vec![]));
        assert_eq!(end(vec![Ok(7), Ok(8)]), (Err(none), vec!["stopped"]));
        for gone in [Errno::NODEV, Errno::NOENT] {
            assert_eq!(end(vec![Err(gone.into())]), (Err(none), vec![]));
        }
        let refused = Some(Errno::PERM.raw_os_error());
        assert_eq!(end(vec![Err(Errno::PERM.into())]), (Err(refused), vec![]));
    }
}
