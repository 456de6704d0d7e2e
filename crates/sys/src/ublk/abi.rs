//! What the driver and its server say to each other: `linux/ublk_cmd.h`, as far as it is used here.

use std::mem::size_of;

/// The character device that control commands go to.
pub const CONTROL_PATH: &str = "/dev/ublk-control";
/// The most requests of a queue (`UBLK_MAX_QUEUE_DEPTH`).
pub const MAX_QUEUE_DEPTH: u16 = 4096;
/// Asks the driver to choose a number for a new device.
pub(super) const ANY_DEVICE: u32 = u32::MAX;
/// A control command that concerns no queue.
pub(super) const NO_QUEUE: u16 = u16::MAX;
/// Where the descriptors of the first queue are mapped from (`UBLKSRV_CMD_BUF_OFFSET`).
pub(super) const DESCRIPTORS_OFFSET: u64 = 0;
/// Where the data of requests is read and written from (`UBLKSRV_IO_BUF_OFFSET`): a stretch of
/// `1 << UBLK_TAG_OFF` bytes for each tag, and of `1 << UBLK_QID_OFF` for each queue.
const DATA_OFFSET: u64 = 0x8000_0000;
const TAG_SHIFT: u32 = 25;
const QUEUE_SHIFT: u32 = TAG_SHIFT + 16;

/// Where the data of a request is in the character device.
pub(super) const fn data_offset(queue: u16, tag: u16) -> u64 {
    DATA_OFFSET + ((queue as u64) << QUEUE_SHIFT | (tag as u64) << TAG_SHIFT)
}

bitflags::bitflags! {
    /// What a device, or the driver, can do (`UBLK_F_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// A device outlives its server, and takes another.
        const USER_RECOVERY = 1 << 3;
        /// What was with a server that died is given to the next one.
        const USER_RECOVERY_REISSUE = 1 << 4;
        /// Commands have the numbers of ioctls.
        const CMD_IOCTL_ENCODE = 1 << 6;
        /// The server moves the data of requests itself, by reading and writing the character device (Linux 6.5).
        const USER_COPY = 1 << 7;
        /// The size of a running device can be changed (Linux 6.16).
        const UPDATE_SIZE = 1 << 10;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// What a disk is (`UBLK_ATTR_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Attributes: u32 {
        /// It refuses writes.
        const READ_ONLY = 1 << 0;
        /// Seeking costs time.
        const ROTATIONAL = 1 << 1;
        /// What was written is durable only after a flush.
        const VOLATILE_CACHE = 1 << 2;
        /// Writes can be durable one by one. Means nothing without a cache.
        const FUA = 1 << 3;
    }
}

/// How a device stands (`UBLK_S_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no disk: not started yet, or stopped.
    Dead,
    /// Its server serves it.
    Live,
    /// Its server is gone; what is asked of the disk waits for the next one.
    Quiesced,
    /// One that is not known here.
    Other(u16),
}

impl From<u16> for State {
    fn from(number: u16) -> Self {
        match number {
            0 => Self::Dead,
            1 => Self::Live,
            2 => Self::Quiesced,
            other => Self::Other(other),
        }
    }
}

/// A device, in control commands (`struct ublksrv_ctrl_dev_info`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Queues. The driver makes that no more than there are CPUs.
    pub nr_hw_queues: u16,
    /// Requests of each.
    pub queue_depth: u16,
    state: u16,
    pad0: u16,
    /// Bytes of the longest request. The driver rounds that down to whole pages.
    pub max_io_buf_bytes: u32,
    /// Its number.
    pub dev_id: u32,
    /// The process id of its server.
    pub server_pid: i32,
    pad1: u32,
    flags: u64,
    /// The server's own mark: the driver keeps it, and never looks at it (`ublksrv_flags`).
    pub server_mark: u64,
    owner_uid: u32,
    owner_gid: u32,
    reserved1: u64,
    reserved2: u64,
}

impl DeviceInfo {
    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.into()
    }

    /// What it can do.
    #[must_use]
    pub fn features(&self) -> Features {
        Features::from_bits_retain(self.flags)
    }

    /// With what it is to be able to do.
    #[must_use]
    pub fn with_features(mut self, features: Features) -> Self {
        self.flags = features.bits();
        self
    }
}

/// What a disk is like (`struct ublk_param_basic`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BasicParams {
    attributes: u32,
    /// The unit of its addresses, as a power of two of bytes; 9 to that of a page.
    pub logical_block_shift: u8,
    /// The unit of its writes.
    pub physical_block_shift: u8,
    /// The preferred transfer.
    pub io_opt_shift: u8,
    /// The smallest preferred transfer.
    pub io_min_shift: u8,
    /// The longest request, in sectors.
    pub max_sectors: u32,
    /// No request crosses a multiple of so many sectors; 0 for no such rule.
    pub chunk_sectors: u32,
    /// How large it is, in sectors.
    pub dev_sectors: u64,
    /// Where segments may not meet.
    pub virt_boundary_mask: u64,
}

impl BasicParams {
    /// What the disk is.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        Attributes::from_bits_retain(self.attributes)
    }

    /// With what the disk is.
    #[must_use]
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes.bits();
        self
    }
}

/// What a disk can give up (`struct ublk_param_discard`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardParams {
    /// How far the first unit of discards is from the start, in bytes.
    pub alignment: u32,
    /// The unit of discards, in bytes.
    pub granularity: u32,
    /// The longest discard, in sectors; 0 for none at all.
    pub max_discard_sectors: u32,
    /// The longest write-zeroes, in sectors; 0 for none at all.
    pub max_write_zeroes_sectors: u32,
    /// Ranges of one discard. The driver knows one only.
    pub max_segments: u16,
    reserved: u16,
}

/// All that is said of a disk (the start of `struct ublk_params`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Params {
    len: u32,
    types: u32,
    pub(super) basic: BasicParams,
    pub(super) discard: DiscardParams,
    end: u32,
}

impl Params {
    /// `UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD`.
    const TYPES: u32 = 1 | 2;
    /// Up to the end of the discard parameters: what follows is not known to all kernels.
    #[expect(clippy::cast_possible_truncation, reason = "pinned below")]
    const LEN: u32 = (size_of::<Self>() - size_of::<u32>()) as u32;

    pub(super) fn new(basic: BasicParams, discard: DiscardParams) -> Self {
        // A granularity of 0 is refused, even where there are no discards.
        let granularity = discard.granularity.max(512);
        let discard = DiscardParams { granularity, ..discard };
        Self { len: Self::LEN, types: Self::TYPES, basic, discard, end: 0 }
    }
}

/// The inside of a control command (`struct ublksrv_ctrl_cmd`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ControlCommand {
    pub(super) dev_id: u32,
    pub(super) queue_id: u16,
    pub(super) len: u16,
    pub(super) addr: u64,
    pub(super) data: u64,
    pub(super) dev_path_len: u16,
    pad: u16,
    reserved: u32,
}

impl ControlCommand {
    /// As it is put into a submission queue entry of 128 bytes.
    pub(super) fn bytes(&self) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[0..4].copy_from_slice(&self.dev_id.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.queue_id.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.len.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.data.to_ne_bytes());
        bytes[24..26].copy_from_slice(&self.dev_path_len.to_ne_bytes());
        bytes
    }
}

/// The inside of a queue's command (`struct ublksrv_io_cmd`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IoCommand {
    pub(super) q_id: u16,
    pub(super) tag: u16,
    pub(super) result: i32,
    pub(super) addr: u64,
}

impl IoCommand {
    /// As it is put into a submission queue entry of 64 bytes.
    pub(super) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..2].copy_from_slice(&self.q_id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.result.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_ne_bytes());
        bytes
    }
}

/// A request, as the driver describes it (`struct ublksrv_io_desc`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    op_flags: u32,
    /// How long it is.
    pub nr_sectors: u32,
    /// Where it starts.
    pub start_sector: u64,
    addr: u64,
}

impl Descriptor {
    /// What is asked; none for what is not known here (zones, say).
    #[must_use]
    pub fn op(&self) -> Option<Op> {
        Some(match self.op_flags & 0xff {
            0 => Op::Read,
            1 => Op::Write,
            2 => Op::Flush,
            3 => Op::Discard,
            5 => Op::WriteZeroes,
            _ => return None,
        })
    }

    /// The data is to be durable when the write completes (`UBLK_IO_F_FUA`).
    #[must_use]
    pub fn fua(&self) -> bool {
        self.op_flags & (1 << 13) != 0
    }

    /// It is metadata (`UBLK_IO_F_META`).
    #[must_use]
    pub fn meta(&self) -> bool {
        self.op_flags & (1 << 11) != 0
    }

    /// A write-zeroes keeps its range allocated (`UBLK_IO_F_NOUNMAP`).
    #[must_use]
    pub fn no_unmap(&self) -> bool {
        self.op_flags & (1 << 15) != 0
    }
}

/// What the driver asks for (`UBLK_IO_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Bytes from the disk.
    Read,
    /// Bytes to the disk.
    Write,
    /// What was written is to be durable.
    Flush,
    /// A range is not needed any more.
    Discard,
    /// A range reads as zeroes from now on.
    WriteZeroes,
}

const fn iowr(number: u32, size: usize) -> u32 {
    ioc(3, number, size)
}

const fn ior(number: u32, size: usize) -> u32 {
    ioc(2, number, size)
}

/// `asm-generic/ioctl.h`, with the type `u`.
#[expect(clippy::cast_possible_truncation, reason = "sizes of some tens of bytes")]
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

const CONTROL: usize = size_of::<ControlCommand>();
const IO: usize = size_of::<IoCommand>();

pub(super) const ADD_DEV: u32 = iowr(0x04, CONTROL);
pub(super) const DEL_DEV: u32 = iowr(0x05, CONTROL);
pub(super) const START_DEV: u32 = iowr(0x06, CONTROL);
pub(super) const STOP_DEV: u32 = iowr(0x07, CONTROL);
pub(super) const SET_PARAMS: u32 = iowr(0x08, CONTROL);
pub(super) const START_USER_RECOVERY: u32 = iowr(0x10, CONTROL);
pub(super) const END_USER_RECOVERY: u32 = iowr(0x11, CONTROL);
pub(super) const GET_DEV_INFO2: u32 = ior(0x12, CONTROL);
pub(super) const GET_FEATURES: u32 = ior(0x13, CONTROL);
pub(super) const DEL_DEV_ASYNC: u32 = ior(0x14, CONTROL);
pub(super) const UPDATE_SIZE: u32 = iowr(0x15, CONTROL);
pub(super) const FETCH_REQ: u32 = iowr(0x20, IO);
pub(super) const COMMIT_AND_FETCH_REQ: u32 = iowr(0x21, IO);

const _: () = assert!(size_of::<DeviceInfo>() == 64);
const _: () = assert!(size_of::<BasicParams>() == 32);
const _: () = assert!(size_of::<DiscardParams>() == 20);
const _: () = assert!(size_of::<Params>() == 64 && Params::LEN == 60);
const _: () = assert!(CONTROL == 32 && IO == 16);
const _: () = assert!(size_of::<Descriptor>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    /// As `printf("%x", UBLK_U_CMD_ADD_DEV)` and so on print them.
    #[test]
    fn commands_have_the_numbers_of_the_header() {
        assert_eq!(ADD_DEV, 0xc020_7504);
        assert_eq!(DEL_DEV, 0xc020_7505);
        assert_eq!(START_DEV, 0xc020_7506);
        assert_eq!(STOP_DEV, 0xc020_7507);
        assert_eq!(SET_PARAMS, 0xc020_7508);
        assert_eq!(START_USER_RECOVERY, 0xc020_7510);
        assert_eq!(END_USER_RECOVERY, 0xc020_7511);
        assert_eq!(GET_DEV_INFO2, 0x8020_7512);
        assert_eq!(GET_FEATURES, 0x8020_7513);
        assert_eq!(DEL_DEV_ASYNC, 0x8020_7514);
        assert_eq!(UPDATE_SIZE, 0xc020_7515);
        assert_eq!(FETCH_REQ, 0xc010_7520);
        assert_eq!(COMMIT_AND_FETCH_REQ, 0xc010_7521);
    }

    #[test]
    fn fields_are_where_the_header_has_them() {
        assert_eq!(std::mem::offset_of!(DeviceInfo, max_io_buf_bytes), 8);
        assert_eq!(std::mem::offset_of!(DeviceInfo, server_pid), 16);
        assert_eq!(std::mem::offset_of!(DeviceInfo, flags), 24);
        assert_eq!(std::mem::offset_of!(DeviceInfo, server_mark), 32);
        assert_eq!(std::mem::offset_of!(BasicParams, logical_block_shift), 4);
        assert_eq!(std::mem::offset_of!(BasicParams, dev_sectors), 16);
        assert_eq!(std::mem::offset_of!(DiscardParams, max_segments), 16);
        assert_eq!(std::mem::offset_of!(Params, discard), 40);
    }

    #[test]
    fn commands_are_laid_out_as_their_structures() {
        let command = ControlCommand {
            dev_id: 0x0403_0201,
            queue_id: 0x0605,
            len: 0x0807,
            addr: 0x100f_0e0d_0c0b_0a09,
            data: 0x1817_1615_1413_1211,
            dev_path_len: 0x1a19,
            ..ControlCommand::default()
        };
        let bytes = command.bytes();
        let expected: Vec<u8> = (1..=26).collect();
        if cfg!(target_endian = "little") {
            assert_eq!(&bytes[..26], &expected[..]);
        }
        assert!(bytes[26..].iter().all(|byte| *byte == 0));
        let command =
            IoCommand { q_id: 0x0201, tag: 0x0403, result: -5, addr: 0x100f_0e0d_0c0b_0a09 };
        if cfg!(target_endian = "little") {
            assert_eq!(
                command.bytes(),
                [1, 2, 3, 4, 0xfb, 0xff, 0xff, 0xff, 9, 10, 11, 12, 13, 14, 15, 16]
            );
        }
    }

    #[test]
    fn the_data_of_each_request_is_where_the_header_has_it() {
        assert_eq!(data_offset(0, 0), 0x8000_0000);
        assert_eq!(data_offset(0, 3), 0x8000_0000 + (3 << 25));
        assert_eq!(data_offset(1, 0), 0x8000_0000 + (1 << 41));
        assert_eq!(data_offset(5, 4095), 0x8000_0000 + (5 << 41) + (4095 << 25));
    }

    #[test]
    fn a_descriptor_says_what_is_asked() {
        let op = |op_flags| Descriptor { op_flags, ..Descriptor::default() };
        assert_eq!(op(1 | 1 << 13).op(), Some(Op::Write));
        assert!(op(1 | 1 << 13).fua() && !op(1).fua());
        assert!(op(5 | 1 << 15).no_unmap() && op(1 << 11).meta());
        assert_eq!(
            [2, 3, 5].map(|number| op(number).op()),
            [Some(Op::Flush), Some(Op::Discard), Some(Op::WriteZeroes)]
        );
        assert_eq!(op(15).op(), None, "zones are not asked for");
        assert_eq!(State::from(2), State::Quiesced);
    }
}
