//! What is in the frames of the handshake (ceph: `frames_v2.h`).

use super::frame::{Frame, Tag};
use crate::encoding::{
    Decode, Encode, EntityAddr, EntityAddrs, EntityType, Reader, Utime, Writer, encoded,
};
use crate::error::Result;
use std::fmt;

/// A way to authenticate (ceph: `src/include/ceph_fs.h`, `CEPH_AUTH_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuthMethod(pub u32);

impl AuthMethod {
    /// The client's word is taken.
    pub const NONE: Self = Self(1);
    /// Shared secrets and tickets.
    pub const CEPHX: Self = Self(2);
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.write_str("none"),
            Self::CEPHX => f.write_str("cephx"),
            Self(other) => write!(f, "method {other}"),
        }
    }
}

impl fmt::Display for ConnectionMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CRC => f.write_str("crc"),
            Self::SECURE => f.write_str("secure"),
            Self(other) => write!(f, "mode {other}"),
        }
    }
}

/// How frames are protected (`CEPH_CON_MODE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionMode(pub u32);

impl ConnectionMode {
    /// Checksums.
    pub const CRC: Self = Self(1);
    /// Encryption.
    pub const SECURE: Self = Self(2);
}

/// Reads the payload of a control frame.
pub(super) fn payload<T: Decode>(doing: &'static str, frame: &Frame) -> Result<T> {
    T::decode(&mut Reader::new(doing, &frame.segments[0]))
}

/// Makes a control frame.
pub(super) fn frame(tag: Tag, payload: &impl Encode) -> Frame {
    Frame::control(tag, encoded(payload))
}

/// HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the sender is.
    pub kind: EntityType,
    /// Where the sender sees the receiver.
    pub receiver: EntityAddr,
}

impl Encode for Hello {
    fn encode(&self, writer: &mut Writer) {
        writer.u8(self.kind.0);
        writer.put(&self.receiver);
    }
}

impl Decode for Hello {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { kind: EntityType(reader.u8()?), receiver: reader.get()? })
    }
}

/// AUTH_REQUEST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthRequest {
    /// The way to authenticate.
    pub method: AuthMethod,
    /// Ways to protect frames, the preferred one first.
    pub modes: Vec<ConnectionMode>,
    /// The method's first message.
    pub payload: Vec<u8>,
}

impl Encode for AuthRequest {
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.method.0);
        writer.vec(&self.modes, |w, mode| w.u32(mode.0));
        writer.bytes(&self.payload);
    }
}

impl Decode for AuthRequest {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            method: AuthMethod(reader.u32()?),
            modes: reader.vec(4, |r| Ok(ConnectionMode(r.u32()?)))?,
            payload: reader.bytes()?.to_vec(),
        })
    }
}

/// AUTH_BAD_METHOD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthBadMethod {
    /// What was refused.
    pub method: AuthMethod,
    /// Why: a negative error number.
    pub result: i32,
    /// What would be taken.
    pub methods: Vec<AuthMethod>,
    /// How frames may be protected.
    pub modes: Vec<ConnectionMode>,
}

impl Encode for AuthBadMethod {
    fn encode(&self, writer: &mut Writer) {
        writer.u32(self.method.0);
        writer.i32(self.result);
        writer.vec(&self.methods, |w, method| w.u32(method.0));
        writer.vec(&self.modes, |w, mode| w.u32(mode.0));
    }
}

impl Decode for AuthBadMethod {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            method: AuthMethod(reader.u32()?),
            result: reader.i32()?,
            methods: reader.vec(4, |r| Ok(AuthMethod(r.u32()?)))?,
            modes: reader.vec(4, |r| Ok(ConnectionMode(r.u32()?)))?,
        })
    }
}

/// AUTH_DONE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthDone {
    /// The client's number in the cluster.
    pub global_id: u64,
    /// How frames are protected from here on.
    pub mode: ConnectionMode,
    /// The method's last message.
    pub payload: Vec<u8>,
}

impl Encode for AuthDone {
    fn encode(&self, writer: &mut Writer) {
        writer.u64(self.global_id);
        writer.u32(self.mode.0);
        writer.bytes(&self.payload);
    }
}

impl Decode for AuthDone {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            global_id: reader.u64()?,
            mode: ConnectionMode(reader.u32()?),
            payload: reader.bytes()?.to_vec(),
        })
    }
}

/// CLIENT_IDENT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdent {
    /// The client's addresses.
    pub addrs: EntityAddrs,
    /// Whom it wants to reach: a daemon refuses what is meant for its predecessor at the same port.
    pub target: EntityAddr,
    /// The client's number in the cluster, -1 if it has none yet.
    pub global_id: i64,
    /// Counts the client's connections.
    pub global_seq: u64,
    /// Features of messages that the client supports.
    pub supported: u64,
    /// Features that it requires.
    pub required: u64,
    /// Bit 0: the session is lossy.
    pub flags: u64,
    /// Names the session, 0 for lossy ones.
    pub cookie: u64,
}

impl ClientIdent {
    /// The flag of a lossy session (`CEPH_MSG_CONNECT_LOSSY`).
    pub const LOSSY: u64 = 1;
}

impl Encode for ClientIdent {
    fn encode(&self, writer: &mut Writer) {
        writer.put(&self.addrs);
        writer.put(&self.target);
        writer.i64(self.global_id);
        for value in [self.global_seq, self.supported, self.required, self.flags, self.cookie] {
            writer.u64(value);
        }
    }
}

impl Decode for ClientIdent {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            addrs: reader.get()?,
            target: reader.get()?,
            global_id: reader.i64()?,
            global_seq: reader.u64()?,
            supported: reader.u64()?,
            required: reader.u64()?,
            flags: reader.u64()?,
            cookie: reader.u64()?,
        })
    }
}

/// SERVER_IDENT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdent {
    /// The server's addresses.
    pub addrs: EntityAddrs,
    /// A daemon's number.
    pub global_id: i64,
    /// Counts the server's connections.
    pub global_seq: u64,
    /// Features of messages that the server supports.
    pub supported: u64,
    /// Features that it requires.
    pub required: u64,
    /// Bit 0: the session is lossy.
    pub flags: u64,
    /// Names the session.
    pub cookie: u64,
}

impl Encode for ServerIdent {
    fn encode(&self, writer: &mut Writer) {
        writer.put(&self.addrs);
        writer.i64(self.global_id);
        for value in [self.global_seq, self.supported, self.required, self.flags, self.cookie] {
            writer.u64(value);
        }
    }
}

impl Decode for ServerIdent {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            addrs: reader.get()?,
            global_id: reader.i64()?,
            global_seq: reader.u64()?,
            supported: reader.u64()?,
            required: reader.u64()?,
            flags: reader.u64()?,
            cookie: reader.u64()?,
        })
    }
}

/// Bytes behind their count: what carries a method's messages.
pub(super) struct Payload(pub Vec<u8>);

impl Encode for Payload {
    fn encode(&self, writer: &mut Writer) {
        writer.bytes(&self.0);
    }
}

impl Decode for Payload {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self(reader.bytes()?.to_vec()))
    }
}

/// KEEPALIVE2 and its acknowledgement, which repeats it: a time of the sender's.
pub(super) fn keepalive(tag: Tag, stamp: Utime) -> Frame {
    frame(tag, &stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn comes_back<T: Encode + Decode + PartialEq + Debug>(value: &T) {
        let frame = frame(Tag::HELLO, value);
        assert_eq!(payload::<T>("testing", &frame).unwrap(), *value);
        let mut cut = frame;
        cut.segments[0].truncate(cut.segments[0].len() - 1);
        assert!(payload::<T>("testing", &cut).is_err());
    }

    #[test]
    fn payloads_are_read_as_they_were_written() {
        let addr = EntityAddr::msgr2(([127, 0, 0, 1], 3300).into(), 7);
        let addrs = EntityAddrs(vec![addr]);
        comes_back(&Hello { kind: EntityType::MON, receiver: addr });
        let modes = vec![ConnectionMode::SECURE, ConnectionMode::CRC];
        comes_back(&AuthRequest {
            method: AuthMethod::CEPHX,
            modes: modes.clone(),
            payload: vec![1],
        });
        let methods = vec![AuthMethod::NONE];
        comes_back(&AuthBadMethod { method: AuthMethod::CEPHX, result: -95, methods, modes });
        comes_back(&AuthDone { global_id: 9, mode: ConnectionMode::CRC, payload: vec![2, 3] });
        comes_back(&ServerIdent {
            addrs: addrs.clone(),
            global_id: 1,
            global_seq: 2,
            supported: 3,
            required: 4,
            flags: 5,
            cookie: 6,
        });
        comes_back(&ClientIdent {
            addrs,
            target: addr,
            global_id: -1,
            global_seq: 2,
            supported: 3,
            required: 4,
            flags: ClientIdent::LOSSY,
            cookie: 0,
        });
    }
}
