//! Requests of a front-end, and their replies.

use blockyard_buf::RegionSpec;

use super::payload::{
    ConfigSpan, Inflight, Reader, VringAddr, VringState, read_region, write_region,
};
use super::{HEADER_LEN, Header, MAX_CONFIG, MAX_TABLE_REGIONS, WireError};

/// A request of a front-end ("Front-end message types").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// What the device can do.
    GetFeatures,
    /// What of it is to be used.
    SetFeatures(u64),
    /// The session starts.
    SetOwner,
    /// Deprecated: nothing, or all rings stop.
    ResetOwner,
    /// The guest's memory, all of it; a file goes with each region.
    SetMemTable(Vec<RegionSpec>),
    /// How many descriptors a ring has.
    SetVringNum(VringState),
    /// Where a ring is.
    SetVringAddr(VringAddr),
    /// Where in the available ring to go on.
    SetVringBase(VringState),
    /// A ring stops; the reply says where in the available ring.
    GetVringBase(VringState),
    /// What the guest signals a ring by.
    SetVringKick(VringFd),
    /// What the guest is signalled by.
    SetVringCall(VringFd),
    /// What the front-end is signalled by if a ring breaks.
    SetVringErr(VringFd),
    /// Which extensions of the protocol there are.
    GetProtocolFeatures,
    /// Which of them are used.
    SetProtocolFeatures(u64),
    /// How many rings there may be.
    GetQueueNum,
    /// A ring is to be served (1), or not (0).
    SetVringEnable(VringState),
    /// A socket for messages of the back-end.
    SetBackendReqFd,
    /// A part of the configuration space is asked for.
    GetConfig(ConfigSpan),
    /// The guest has written to the configuration space.
    SetConfig(ConfigSpan),
    /// Makes an in-flight region, which comes with the reply.
    GetInflightFd(Inflight),
    /// The in-flight region to use.
    SetInflightFd(Inflight),
    /// All is as in the beginning.
    ResetDevice,
    /// How many regions there may be.
    GetMaxMemSlots,
    /// A region more, whose file goes with it.
    AddMemReg(RegionSpec),
    /// A region less.
    RemMemReg(RegionSpec),
}

/// A ring, and whether an event file descriptor goes with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFd {
    /// Which ring.
    pub index: u32,
    /// Bit 8 of the payload is not set.
    pub has_fd: bool,
}

const NO_FD: u64 = 1 << 8;

/// The number of a request.
mod code {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const RESET_OWNER: u32 = 4;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_VRING_ERR: u32 = 14;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const GET_QUEUE_NUM: u32 = 17;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(super) const GET_CONFIG: u32 = 24;
    pub(super) const SET_CONFIG: u32 = 25;
    pub(super) const GET_INFLIGHT_FD: u32 = 31;
    pub(super) const SET_INFLIGHT_FD: u32 = 32;
    pub(super) const RESET_DEVICE: u32 = 34;
    pub(super) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(super) const ADD_MEM_REG: u32 = 37;
    pub(super) const REM_MEM_REG: u32 = 38;
}

impl Message {
    /// Reads the payload of a request.
    ///
    /// # Errors
    /// [`WireError::Unknown`], [`WireError::Malformed`], [`WireError::Reply`].
    pub fn parse(header: &Header, payload: &[u8]) -> Result<Self, WireError> {
        if header.reply {
            return Err(WireError::Reply);
        }
        let mut reader = Reader(payload);
        let known = Self::read(header.request, &mut reader);
        let known = known.ok_or(WireError::Unknown(header.request))?;
        known.filter(|_| reader.end().is_some()).ok_or(WireError::Malformed(header.request))
    }

    /// `None` for a request that is not known, `Some(None)` for one that is too short or says what cannot be.
    fn read(request: u32, reader: &mut Reader<'_>) -> Option<Option<Self>> {
        Some(match request {
            code::GET_FEATURES => Some(Self::GetFeatures),
            code::SET_FEATURES => reader.u64().map(Self::SetFeatures),
            code::SET_OWNER => Some(Self::SetOwner),
            code::RESET_OWNER => Some(Self::ResetOwner),
            code::SET_MEM_TABLE => read_table(reader).map(Self::SetMemTable),
            code::SET_VRING_NUM => VringState::read(reader).map(Self::SetVringNum),
            code::SET_VRING_ADDR => VringAddr::read(reader).map(Self::SetVringAddr),
            code::SET_VRING_BASE => VringState::read(reader).map(Self::SetVringBase),
            code::GET_VRING_BASE => VringState::read(reader).map(Self::GetVringBase),
            code::SET_VRING_KICK => VringFd::read(reader).map(Self::SetVringKick),
            code::SET_VRING_CALL => VringFd::read(reader).map(Self::SetVringCall),
            code::SET_VRING_ERR => VringFd::read(reader).map(Self::SetVringErr),
            code::GET_PROTOCOL_FEATURES => Some(Self::GetProtocolFeatures),
            code::SET_PROTOCOL_FEATURES => reader.u64().map(Self::SetProtocolFeatures),
            code::GET_QUEUE_NUM => Some(Self::GetQueueNum),
            code::SET_VRING_ENABLE => VringState::read(reader).map(Self::SetVringEnable),
            code::SET_BACKEND_REQ_FD => Some(Self::SetBackendReqFd),
            code::GET_CONFIG => read_config(reader).map(Self::GetConfig),
            code::SET_CONFIG => read_config(reader).map(Self::SetConfig),
            code::GET_INFLIGHT_FD => Inflight::read(reader).map(Self::GetInflightFd),
            code::SET_INFLIGHT_FD => Inflight::read(reader).map(Self::SetInflightFd),
            code::RESET_DEVICE => Some(Self::ResetDevice),
            code::GET_MAX_MEM_SLOTS => Some(Self::GetMaxMemSlots),
            code::ADD_MEM_REG => read_single_region(reader).map(Self::AddMemReg),
            code::REM_MEM_REG => read_single_region(reader).map(Self::RemMemReg),
            _ => return None,
        })
    }

    /// The number of the request.
    #[must_use]
    pub const fn request(&self) -> u32 {
        match self {
            Self::GetFeatures => code::GET_FEATURES,
            Self::SetFeatures(_) => code::SET_FEATURES,
            Self::SetOwner => code::SET_OWNER,
            Self::ResetOwner => code::RESET_OWNER,
            Self::SetMemTable(_) => code::SET_MEM_TABLE,
            Self::SetVringNum(_) => code::SET_VRING_NUM,
            Self::SetVringAddr(_) => code::SET_VRING_ADDR,
            Self::SetVringBase(_) => code::SET_VRING_BASE,
            Self::GetVringBase(_) => code::GET_VRING_BASE,
            Self::SetVringKick(_) => code::SET_VRING_KICK,
            Self::SetVringCall(_) => code::SET_VRING_CALL,
            Self::SetVringErr(_) => code::SET_VRING_ERR,
            Self::GetProtocolFeatures => code::GET_PROTOCOL_FEATURES,
            Self::SetProtocolFeatures(_) => code::SET_PROTOCOL_FEATURES,
            Self::GetQueueNum => code::GET_QUEUE_NUM,
            Self::SetVringEnable(_) => code::SET_VRING_ENABLE,
            Self::SetBackendReqFd => code::SET_BACKEND_REQ_FD,
            Self::GetConfig(_) => code::GET_CONFIG,
            Self::SetConfig(_) => code::SET_CONFIG,
            Self::GetInflightFd(_) => code::GET_INFLIGHT_FD,
            Self::SetInflightFd(_) => code::SET_INFLIGHT_FD,
            Self::ResetDevice => code::RESET_DEVICE,
            Self::GetMaxMemSlots => code::GET_MAX_MEM_SLOTS,
            Self::AddMemReg(_) => code::ADD_MEM_REG,
            Self::RemMemReg(_) => code::REM_MEM_REG,
        }
    }

    /// Whether its answer says more than "done" or "failed". Asking for that as well changes nothing
    /// ("VHOST_USER_PROTOCOL_F_REPLY_ACK").
    #[must_use]
    pub const fn has_reply(&self) -> bool {
        matches!(
            self,
            Self::GetFeatures
                | Self::GetProtocolFeatures
                | Self::GetQueueNum
                | Self::GetVringBase(_)
                | Self::GetConfig(_)
                | Self::GetInflightFd(_)
                | Self::GetMaxMemSlots
        )
    }

    /// How many file descriptors go with it, at least and at most.
    #[must_use]
    pub fn fds(&self) -> (usize, usize) {
        match self {
            Self::SetMemTable(regions) => (regions.len(), regions.len()),
            Self::SetVringKick(ring) | Self::SetVringCall(ring) | Self::SetVringErr(ring) => {
                (ring.has_fd.into(), ring.has_fd.into())
            }
            Self::SetBackendReqFd | Self::SetInflightFd(_) | Self::AddMemReg(_) => (1, 1),
            // "For compatibility with existing incorrect implementations, the back-end MAY accept messages with one".
            Self::RemMemReg(_) => (0, 1),
            _ => (0, 0),
        }
    }

    /// Its bytes, header and payload, as a front-end sends them.
    #[must_use]
    pub fn encode(&self, need_reply: bool) -> Vec<u8> {
        let mut payload = Vec::new();
        match self {
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::SetBackendReqFd
            | Self::ResetDevice
            | Self::GetMaxMemSlots => {}
            Self::SetFeatures(bits) | Self::SetProtocolFeatures(bits) => {
                payload.extend(bits.to_ne_bytes());
            }
            Self::SetMemTable(regions) => {
                let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
                [count, 0].iter().for_each(|word| payload.extend(word.to_ne_bytes()));
                regions.iter().for_each(|region| write_region(region, &mut payload));
            }
            Self::SetVringNum(state)
            | Self::SetVringBase(state)
            | Self::GetVringBase(state)
            | Self::SetVringEnable(state) => state.write(&mut payload),
            Self::SetVringAddr(addr) => addr.write(&mut payload),
            Self::SetVringKick(ring) | Self::SetVringCall(ring) | Self::SetVringErr(ring) => {
                payload.extend(ring.word().to_ne_bytes());
            }
            Self::GetConfig(span) | Self::SetConfig(span) => span.write(&mut payload),
            Self::GetInflightFd(inflight) | Self::SetInflightFd(inflight) => {
                inflight.write(&mut payload);
            }
            Self::AddMemReg(region) | Self::RemMemReg(region) => {
                payload.extend(0_u64.to_ne_bytes());
                write_region(region, &mut payload);
            }
        }
        message(self.request(), false, need_reply, &payload)
    }
}

impl VringFd {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let word = reader.u64()?;
        let index = u32::try_from(word & 0xff).ok()?;
        Some(Self { index, has_fd: word & NO_FD == 0 })
    }

    fn word(self) -> u64 {
        u64::from(self.index) | if self.has_fd { 0 } else { NO_FD }
    }
}

fn read_table(reader: &mut Reader<'_>) -> Option<Vec<RegionSpec>> {
    let (count, _padding) = (reader.u32()?, reader.u32()?);
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_TABLE_REGIONS)?;
    (0..count).map(|_| read_region(reader)).collect()
}

fn read_single_region(reader: &mut Reader<'_>) -> Option<RegionSpec> {
    let _padding = reader.u64()?;
    read_region(reader)
}

fn read_config(reader: &mut Reader<'_>) -> Option<ConfigSpan> {
    let span = ConfigSpan::read(reader)?;
    let end = usize::try_from(span.offset).ok()?.checked_add(span.bytes.len())?;
    (end <= MAX_CONFIG).then_some(span)
}

/// What a back-end answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A number: features, a count, or 0 for "done" where an answer was asked for.
    Number(u64),
    /// Where a ring has stopped.
    Base(VringState),
    /// A part of the configuration space.
    Config(ConfigSpan),
    /// An in-flight region, whose file goes with it.
    Inflight(Inflight),
}

impl Reply {
    /// Its bytes, header and payload, as the answer to that request.
    #[must_use]
    pub fn encode(&self, request: u32) -> Vec<u8> {
        let mut payload = Vec::new();
        match self {
            Self::Number(number) => payload.extend(number.to_ne_bytes()),
            Self::Base(state) => state.write(&mut payload),
            Self::Config(span) => span.write(&mut payload),
            Self::Inflight(inflight) => inflight.write(&mut payload),
        }
        message(request, true, false, &payload)
    }

    /// Reads the payload of the reply to `message`, as a front-end does.
    ///
    /// # Errors
    /// [`WireError::Malformed`].
    pub fn parse(message: &Message, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader(payload);
        let reply = match message {
            Message::GetVringBase(_) => VringState::read(&mut reader).map(Self::Base),
            Message::GetConfig(_) => ConfigSpan::read(&mut reader).map(Self::Config),
            Message::GetInflightFd(_) => Inflight::read(&mut reader).map(Self::Inflight),
            _ => reader.u64().map(Self::Number),
        };
        reply.filter(|_| reader.end().is_some()).ok_or(WireError::Malformed(message.request()))
    }
}

fn message(request: u32, reply: bool, need_reply: bool, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend(Header { request, reply, need_reply, size }.encode());
    bytes.extend(payload);
    bytes
}
