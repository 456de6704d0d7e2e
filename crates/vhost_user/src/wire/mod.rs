//! The messages of the control socket.
//!
//! A message is a header of 12 bytes and a payload, in the byte order of the machine, with file descriptors beside it.

mod message;
mod payload;

use thiserror::Error;

pub use message::{Message, Reply, VringFd};
pub use payload::{ConfigSpan, Inflight, VringAddr, VringState};

/// Bytes of a header.
pub const HEADER_LEN: usize = 12;
/// The longest payload: a memory table of [`MAX_TABLE_REGIONS`], or all of a configuration space.
pub const MAX_PAYLOAD: usize = 512;
/// File descriptors that go with one message (`VHOST_MEMORY_BASELINE_NREGIONS`).
pub const MAX_FDS: usize = 8;
/// Regions of one memory table.
pub const MAX_TABLE_REGIONS: usize = 8;
/// Bytes of a configuration space (`VHOST_USER_MAX_CONFIG_SIZE`).
pub const MAX_CONFIG: usize = 256;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the features of virtio.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

bitflags::bitflags! {
    /// Extensions of the protocol (`VHOST_USER_PROTOCOL_F_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ProtocolFeatures: u64 {
        /// More than one queue.
        const MQ = 1 << 0;
        /// Every message may ask for an answer.
        const REPLY_ACK = 1 << 3;
        /// A socket for messages of the back-end.
        const BACKEND_REQ = 1 << 5;
        /// The back-end has the configuration space.
        const CONFIG = 1 << 9;
        /// The front-end keeps a region where the back-end says what is in flight.
        const INFLIGHT_SHMFD = 1 << 12;
        /// The device can be reset.
        const RESET_DEVICE = 1 << 13;
        /// Memory regions come and go one by one.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
    }
}

/// A message that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Another version of the protocol.
    #[error("a message of version {0}, where there is only 1")]
    Version(u32),
    /// A payload that nobody should need.
    #[error("a payload of {0} bytes; {MAX_PAYLOAD} is the most")]
    TooLong(u32),
    /// A request that is not known, or was not agreed upon.
    #[error("request {0} is not known")]
    Unknown(u32),
    /// A payload of the wrong length, or with a value that cannot be.
    #[error("the payload of request {0} is malformed")]
    Malformed(u32),
    /// A reply where a request was expected.
    #[error("an unexpected reply")]
    Reply,
}

/// What comes first of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which.
    pub request: u32,
    /// It answers one.
    pub reply: bool,
    /// It wants to be answered, whatever it is.
    pub need_reply: bool,
    /// Bytes of payload.
    pub size: u32,
}

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

impl Header {
    /// Reads one.
    ///
    /// # Errors
    /// [`WireError::Version`], [`WireError::TooLong`].
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        let [request, flags, size] = payload::words(bytes);
        if flags & VERSION_MASK != VERSION {
            return Err(WireError::Version(flags & VERSION_MASK));
        }
        if size as usize > MAX_PAYLOAD {
            return Err(WireError::TooLong(size));
        }
        let has = |flag| flags & flag != 0;
        Ok(Self { request, reply: has(FLAG_REPLY), need_reply: has(FLAG_NEED_REPLY), size })
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut flags = VERSION;
        flags |= if self.reply { FLAG_REPLY } else { 0 };
        flags |= if self.need_reply { FLAG_NEED_REPLY } else { 0 };
        let mut bytes = [0; HEADER_LEN];
        for (place, word) in bytes.chunks_exact_mut(4).zip([self.request, flags, self.size]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, whole: what a back-end sends over its own socket when the configuration space
/// has changed. No answer is asked for.
#[must_use]
pub fn config_change() -> [u8; HEADER_LEN] {
    Header { request: 2, reply: false, need_reply: false, size: 0 }.encode()
}
