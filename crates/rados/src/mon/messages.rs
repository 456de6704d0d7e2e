//! Messages to monitors and from them (ceph: `src/messages/`, named by their classes).

use super::monmap::MonMap;
use crate::encoding::{Fsid, Reader, Writer};
use crate::error::{Error, Result};
use crate::msgr::Message;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Kinds of messages (ceph: `src/include/ceph_fs.h`, `CEPH_MSG_*`, and `src/msg/Message.h`, `MSG_*`).
pub(super) const MON_MAP: u16 = 4;
pub(super) const SUBSCRIBE: u16 = 15;
pub(super) const AUTH: u16 = 17;
pub(super) const AUTH_REPLY: u16 = 18;
const GET_VERSION: u16 = 19;
pub(super) const VERSION: u16 = 20;
pub(super) const OSD_MAP: u16 = 41;
pub(super) const POOL_OP_REPLY: u16 = 48;
const POOL_OP: u16 = 49;
const COMMAND: u16 = 50;
pub(super) const COMMAND_ACK: u16 = 51;

/// Most maps of one message.
const MAX_MAPS: usize = 4096;

/// An operation on a pool (`MPoolOp`, `POOL_OP_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolOp {
    /// Makes a snapshot of the pool.
    CreateSnapshot(String),
    /// Removes it.
    DeleteSnapshot(String),
    /// Gives a number for a snapshot that clients make themselves.
    CreateUnmanagedSnapshot,
    /// Gives it back.
    DeleteUnmanagedSnapshot(u64),
}

/// What is asked of the monitors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The newest version of a map, such as "osdmap".
    GetVersion(String),
    /// A command, as JSON, with input.
    Command {
        /// Such as `{"prefix": "osd blocklist", "blocklistop": "add", "addr": "..."}`.
        command: String,
        /// What some commands read.
        input: Bytes,
    },
    /// An operation on a pool.
    Pool {
        /// The pool.
        pool: u32,
        /// The operation.
        op: PoolOp,
    },
}

/// What the monitors answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::GetVersion`].
    Version {
        /// The newest one.
        newest: u64,
        /// The oldest one that is kept.
        oldest: u64,
    },
    /// To [`Request::Command`].
    Command {
        /// 0, or a positive error number.
        errno: i32,
        /// A word on the outcome.
        status: String,
        /// What was asked for.
        output: Bytes,
    },
    /// To [`Request::Pool`].
    Pool {
        /// 0, or a positive error number.
        errno: i32,
        /// The epoch of the OSD map in which it is done.
        epoch: u32,
        /// The number of an unmanaged snapshot, encoded.
        data: Bytes,
    },
}

/// The header of messages that are forwarded between monitors: version, and two fields that are gone.
fn paxos(writer: &mut Writer) {
    writer.u64(0);
    writer.u16(u16::MAX);
    writer.u64(0);
}

fn skip_paxos(reader: &mut Reader<'_>) -> Result<()> {
    reader.raw(8 + 2 + 8).map(|_| ())
}

impl Request {
    /// The message: `tid` numbers the request.
    pub(super) fn message(&self, tid: u64, fsid: Fsid) -> Message {
        let mut writer = Writer::new();
        let (kind, version, data) = match self {
            Self::GetVersion(what) => {
                writer.u64(tid);
                writer.string(what);
                (GET_VERSION, 1, Bytes::new())
            }
            Self::Command { command, input } => {
                paxos(&mut writer);
                writer.put(&fsid);
                writer.vec(&[command], |w, word| w.string(word));
                (COMMAND, 1, input.clone())
            }
            Self::Pool { pool, op } => {
                paxos(&mut writer);
                writer.put(&fsid);
                pool_op(&mut writer, *pool, op);
                (POOL_OP, 4, Bytes::new())
            }
        };
        let compat = if kind == POOL_OP { 2 } else { 1 };
        Message { tid, data, ..Message::new(kind, version, compat, writer.into_bytes()) }
    }
}

fn pool_op(writer: &mut Writer, pool: u32, op: &PoolOp) {
    let (code, snapshot, name) = match op {
        PoolOp::CreateSnapshot(name) => (0x11, 0, name.as_str()),
        PoolOp::DeleteSnapshot(name) => (0x12, 0, name.as_str()),
        PoolOp::CreateUnmanagedSnapshot => (0x21, 0, ""),
        PoolOp::DeleteUnmanagedSnapshot(id) => (0x22, *id, ""),
    };
    writer.u32(pool);
    writer.u32(code);
    // An owner, which is gone.
    writer.u64(0);
    writer.u64(snapshot);
    writer.string(name);
    // A byte that is not used, and the CRUSH rule of a new pool.
    writer.u8(0);
    writer.u16(0);
}

impl Answer {
    /// Reads an answer, and the number of what it answers.
    pub(super) fn parse(message: &Message) -> Result<(u64, Self)> {
        let mut reader = message.reader("reading a monitor's answer");
        match message.kind {
            VERSION => {
                let (tid, newest) = (reader.u64()?, reader.u64()?);
                let oldest = if reader.is_empty() { 0 } else { reader.u64()? };
                Ok((tid, Self::Version { newest, oldest }))
            }
            COMMAND_ACK => {
                skip_paxos(&mut reader)?;
                let errno = reader.i32()?.saturating_abs();
                let status = String::from_utf8_lossy(reader.bytes()?).into_owned();
                Ok((message.tid, Self::Command { errno, status, output: message.data.clone() }))
            }
            POOL_OP_REPLY => {
                skip_paxos(&mut reader)?;
                reader.get::<Fsid>()?;
                let (errno, epoch) = (reader.i32()?.saturating_abs(), reader.u32()?);
                let data = if reader.bool()? {
                    Bytes::copy_from_slice(reader.bytes()?)
                } else {
                    Bytes::new()
                };
                Ok((message.tid, Self::Pool { errno, epoch, data }))
            }
            other => Err(reader.violation("an answer has another type", other.into())),
        }
    }
}

/// `MMonSubscribe`: maps, each with the first epoch wanted, and whether that is all.
pub(super) fn subscribe(wanted: &BTreeMap<String, (u64, bool)>) -> Message {
    let mut writer = Writer::new();
    let wanted: Vec<_> = wanted.iter().collect();
    writer.vec(&wanted, |w, (what, (start, once))| {
        w.string(what);
        w.u64(*start);
        w.bool(*once);
    });
    // The machine's name, which only logs use.
    writer.string("");
    Message::new(SUBSCRIBE, 3, 1, writer.into_bytes())
}

/// `MAuth`: a request for new tickets.
pub(super) fn auth(method: u32, payload: &[u8]) -> Message {
    let mut writer = Writer::new();
    paxos(&mut writer);
    writer.u32(method);
    writer.bytes(payload);
    writer.u32(0);
    Message::new(AUTH, 1, 1, writer.into_bytes())
}

/// `MAuthReply`: a negative error number or 0, and the method's answer.
pub(super) fn auth_reply(message: &Message) -> Result<(i32, Vec<u8>)> {
    let mut reader = message.reader("renewing tickets");
    reader.u32()?;
    let result = reader.i32()?;
    reader.u64()?;
    Ok((result, reader.bytes()?.to_vec()))
}

/// `MMonMap`.
pub(super) fn mon_map(message: &Message) -> Result<MonMap> {
    let mut reader = message.reader("reading a monitor map");
    Reader::new("reading a monitor map", reader.bytes()?).get()
}

/// Maps of the OSDs, encoded (`MOSDMap`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsdMaps {
    /// The cluster.
    pub fsid: Fsid,
    /// Changes, by the epoch that they lead to.
    pub changes: BTreeMap<u32, Bytes>,
    /// Whole maps, by epoch.
    pub whole: BTreeMap<u32, Bytes>,
    /// The oldest and the newest epoch that the sender has; 0 if it does not say.
    pub oldest: u32,
    /// The newest one.
    pub newest: u32,
}

impl OsdMaps {
    /// The message's kind (`CEPH_MSG_OSD_MAP`).
    pub(crate) const KIND: u16 = OSD_MAP;

    /// Reads the message, from a monitor or an OSD.
    ///
    /// # Errors
    /// A message that is cut, or has too many maps.
    pub fn parse(message: &Message) -> Result<Self> {
        let mut reader = message.reader("reading OSD maps");
        let fsid = reader.get()?;
        let (changes, whole) = (maps(&mut reader)?, maps(&mut reader)?);
        let (oldest, newest) =
            if reader.rest().len() < 8 { (0, 0) } else { (reader.u32()?, reader.u32()?) };
        Ok(Self { fsid, changes, whole, oldest, newest })
    }

    /// The last epoch in it.
    #[must_use]
    pub fn last(&self) -> u32 {
        let last = |maps: &BTreeMap<u32, Bytes>| maps.keys().next_back().copied().unwrap_or(0);
        last(&self.changes).max(last(&self.whole))
    }
}

fn maps(reader: &mut Reader<'_>) -> Result<BTreeMap<u32, Bytes>> {
    let maps = reader.map(4 + 4, |r| Ok((r.u32()?, Bytes::copy_from_slice(r.bytes()?))))?;
    if maps.len() > MAX_MAPS {
        let (got, limit) = (maps.len() as u64, MAX_MAPS as u64);
        return Err(Error::too_big(reader.doing(), "maps of a message", got, limit));
    }
    Ok(maps)
}
