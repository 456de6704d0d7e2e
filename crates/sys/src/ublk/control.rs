//! Control commands: devices come, start, stop and go.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::abi::{self, BasicParams, ControlCommand, DeviceInfo, DiscardParams, Features, Params};
use crate::uring::Unavailable;

/// How long it takes at most to remove a device that nobody uses.
const DELETED: Duration = Duration::from_secs(1);

/// Why there is no way to the driver.
#[derive(Debug)]
pub enum OpenError {
    /// Its file cannot be opened: `ENOENT` where the driver is not there, `EACCES` for whom may not use it.
    Driver(io::Error),
    /// Commands go by an io_uring, and there is none.
    Ring(Unavailable),
}

/// The way to the driver. A command waits until the driver has answered; that may take as long as a disk takes.
pub struct Control {
    file: OwnedFd,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
}

impl Control {
    /// Opens `/dev/ublk-control`.
    ///
    /// # Errors
    /// [`OpenError`] says which half of it is not to be had.
    pub fn open() -> Result<Self, OpenError> {
        let file = OpenOptions::new().read(true).write(true).open(abi::CONTROL_PATH);
        let file = file.map_err(OpenError::Driver)?.into();
        let ring = IoUring::builder().dontfork().build(1);
        let ring = ring.map_err(|err| OpenError::Ring(err.into()))?;
        Ok(Self { file, ring })
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where it cannot be asked: a kernel before Linux 6.5.
    pub fn features(&mut self) -> io::Result<Features> {
        let mut features = Box::new(0_u64);
        self.command(abi::GET_FEATURES, abi::ANY_DEVICE, 0, Some(&mut features))?;
        Ok(Features::from_bits_retain(*features))
    }

    /// Makes a device with no disk yet, numbered `id`, or as the driver likes. Says how it came out.
    ///
    /// # Errors
    /// `EEXIST` if the number is taken, `EINVAL` if there is none such: all of its bits set ask for any.
    pub fn add(&mut self, id: Option<u32>, info: &DeviceInfo) -> io::Result<DeviceInfo> {
        if id == Some(abi::ANY_DEVICE) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let id = id.unwrap_or(abi::ANY_DEVICE);
        let mut info = Box::new(*info);
        info.dev_id = id;
        self.command(abi::ADD_DEV, id, 0, Some(&mut info))?;
        Ok(*info)
    }

    /// Says what the disk of a device is to be like, before it starts.
    ///
    /// # Errors
    /// `EINVAL` for what cannot be.
    pub fn set_params(
        &mut self,
        id: u32,
        basic: BasicParams,
        discard: DiscardParams,
    ) -> io::Result<()> {
        let mut params = Box::new(Params::new(basic, discard));
        self.command(abi::SET_PARAMS, id, 0, Some(&mut params))
    }

    /// Makes the disk of a device, once each of its queues has fetched: waits for that, and for the partition
    /// scan, which reads from the disk.
    ///
    /// # Errors
    /// What the driver says.
    pub fn start(&mut self, id: u32, pid: u32) -> io::Result<()> {
        self.command::<u64>(abi::START_DEV, id, pid.into(), None)
    }

    /// Takes the disk away: waits for what is with the server, then fails what comes, then ends all of the
    /// queues' commands.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device.
    pub fn stop(&mut self, id: u32) -> io::Result<()> {
        self.command::<u64>(abi::STOP_DEV, id, 0, None)
    }

    /// Removes a device; it is gone when all that is open of it has been closed.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device.
    pub fn delete(mut self, id: u32) -> io::Result<()> {
        match self.command::<u64>(abi::DEL_DEV_ASYNC, id, 0, None) {
            Err(err) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => self.delete_and_wait(id),
            deleted => deleted,
        }
    }

    /// Before Linux 6.9 there is only the command that waits until the device is gone. What it does before it
    /// waits is enough.
    fn delete_and_wait(&mut self, id: u32) -> io::Result<()> {
        let mut command = ControlCommand::default();
        command.dev_id = id;
        command.queue_id = abi::NO_QUEUE;
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), abi::DEL_DEV)
            .cmd(command.bytes())
            .build();
        // SAFETY: the command has no memory of ours.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
        let enough = types::Timespec::from(DELETED);
        let args = types::SubmitArgs::new().timespec(&enough);
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(err) if err.raw_os_error() != Some(libc::ETIME) => return Err(err),
            _ => {}
        }
        match self.ring.completion().next() {
            Some(entry) if entry.result() < 0 => Err(io::Error::from_raw_os_error(-entry.result())),
            _ => Ok(()),
        }
    }

    /// What a device is.
    ///
    /// # Errors
    /// `ENODEV` if there is no such device.
    pub fn info(&mut self, id: u32) -> io::Result<DeviceInfo> {
        let mut query = Box::new(InfoQuery { path: [0; PATH_LEN], info: DeviceInfo::default() });
        let path = super::device_path(id);
        query.path[..path.len()].copy_from_slice(path.as_bytes());
        let mut command = ControlCommand::default();
        command.dev_path_len = u16::try_from(PATH_LEN).unwrap_or(u16::MAX);
        self.run(abi::GET_DEV_INFO2, id, command, Some(&mut query))?;
        Ok(query.info)
    }

    /// Takes a device over whose server is gone: its queues may fetch anew.
    ///
    /// # Errors
    /// `EBUSY` while its server, or what is left of it, still lives; `EINVAL` if it is not made for recovery.
    pub fn start_recovery(&mut self, id: u32) -> io::Result<()> {
        self.command::<u64>(abi::START_USER_RECOVERY, id, 0, None)
    }

    /// Lets the disk go on, once each of its queues has fetched: waits for that.
    ///
    /// # Errors
    /// What the driver says.
    pub fn end_recovery(&mut self, id: u32, pid: u32) -> io::Result<()> {
        self.command::<u64>(abi::END_USER_RECOVERY, id, pid.into(), None)
    }

    /// Changes the size of a running disk.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the driver lacks [`Features::UPDATE_SIZE`].
    pub fn update_size(&mut self, id: u32, sectors: u64) -> io::Result<()> {
        self.command::<u64>(abi::UPDATE_SIZE, id, sectors, None)
    }

    fn command<T: Buffer>(
        &mut self,
        op: u32,
        id: u32,
        data: u64,
        buffer: Option<&mut Box<T>>,
    ) -> io::Result<()> {
        let mut command = ControlCommand::default();
        command.data = data;
        self.run(op, id, command, buffer)
    }

    fn run<T: Buffer>(
        &mut self,
        op: u32,
        id: u32,
        mut command: ControlCommand,
        buffer: Option<&mut Box<T>>,
    ) -> io::Result<()> {
        command.dev_id = id;
        command.queue_id = abi::NO_QUEUE;
        // The kernel works on memory of its own lifetime: if it cannot be waited for, it stays.
        let mut memory = buffer.as_ref().map(|buffer| Box::new(***buffer));
        if let Some(memory) = &mut memory {
            command.addr = std::ptr::from_mut::<T>(&mut **memory).expose_provenance() as u64;
            command.len = u16::try_from(size_of::<T>()).unwrap_or(u16::MAX);
        }
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), op)
            .cmd(command.bytes())
            .build();
        // SAFETY: the driver reads and writes `len` bytes at `addr`, which is `memory`, a plain structure for
        // which all bytes are values (see `Buffer`). It stays until the completion has come, or for ever.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        let result = pushed.map_err(|_| io::Error::from_raw_os_error(libc::EBUSY));
        match result.and_then(|()| self.wait()) {
            Ok(result) => {
                if let (Some(buffer), Some(memory)) = (buffer, memory) {
                    **buffer = *memory;
                }
                if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
            }
            Err(err) => {
                std::mem::forget(memory);
                Err(err)
            }
        }
    }

    /// Submits, and waits for the one completion.
    fn wait(&mut self) -> io::Result<i32> {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(err) if err.kind() != io::ErrorKind::Interrupted => return Err(err),
                _ => {}
            }
            if let Some(entry) = self.ring.completion().next() {
                return Ok(entry.result());
            }
        }
    }
}

/// Bytes of the path of a character device, with zeroes at its end.
const PATH_LEN: usize = 64;

/// What goes with [`abi::GET_DEV_INFO2`]: the driver checks who asks against the path of the character device,
/// and writes its answer after that.
#[repr(C)]
#[derive(Clone, Copy)]
struct InfoQuery {
    path: [u8; PATH_LEN],
    info: DeviceInfo,
}

/// What the driver may read and write: structures of integers.
trait Buffer: Copy {}

impl Buffer for u64 {}
impl Buffer for DeviceInfo {}
impl Buffer for Params {}
impl Buffer for InfoQuery {}

/// A device's character device, which its queues work on. Only one process at a time has it open.
#[derive(Clone)]
pub struct Device(pub(super) Arc<OwnedFd>);

impl Device {
    /// Opens it.
    ///
    /// # Errors
    /// `EBUSY` while another has it open.
    pub fn open(id: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        // A copy never waits: without that flag, io_uring would not know, and have a thread do it.
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(super::device_path(id))?;
        Ok(Self(Arc::new(file.into())))
    }
}
