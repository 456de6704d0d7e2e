//! `MOSDOpReply`.

use super::code::OpCode;
use super::op::{MAX_OPS, OP_LEN, Op};
use crate::encoding::{Decode, Eversion, ObjectLocator, ObjectName, PgId, Reader};
use crate::error::{Error, Result};
use crate::msgr::Message;
use bytes::Bytes;

/// The message's kind, and the versions that are read: 8 since Ceph 12.
pub(crate) const OP_REPLY: u16 = 43;
const OLDEST: u16 = 8;
const DOING: &str = "reading an OSD's reply";

/// What came of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpResult {
    /// Which one it was.
    pub code: OpCode,
    /// 0 or more, or a negative error number.
    pub result: i32,
    /// What it gave.
    pub data: Bytes,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's number.
    pub tid: u64,
    /// The object's name.
    pub object: ObjectName,
    /// 0 or more, or a negative error number of the request as a whole.
    pub result: i32,
    /// The epoch of the map that the OSD has.
    pub epoch: u32,
    /// Which of the attempts is answered: 0 is the first.
    pub attempt: u32,
    /// The operations, in order.
    pub ops: Vec<OpResult>,
    /// The version of the object in its group.
    pub version: Eversion,
    /// The version of the object as clients count it.
    pub user_version: u64,
    /// If the object is elsewhere: where the request is to be sent.
    pub redirect: Option<Box<Redirect>>,
}

/// Where an object is, if not where the request went (ceph: `src/osd/osd_types.h`, `request_redirect_t`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The pool, the key and the namespace.
    pub locator: ObjectLocator,
    /// The object's name; empty if that stays.
    pub object: ObjectName,
}

impl Decode for Redirect {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut fields = reader.versioned(1)?.fields;
        Ok(Self { locator: fields.get()?, object: fields.name()? })
    }
}

impl Reply {
    /// Reads the message.
    ///
    /// # Errors
    /// Another message, one that is cut, or one whose operations give more data than there is.
    pub fn parse(message: &Message) -> Result<Self> {
        if message.kind != OP_REPLY {
            return Err(Error::violation(DOING, "a reply has another type", message.kind.into()));
        }
        let mut r = message.reader(DOING);
        if message.version < OLDEST {
            return Err(r.violation("a reply is of Ceph 12 or newer", message.version.into()));
        }
        let object = r.name()?;
        r.get::<PgId>()?;
        r.u64()?;
        let result = r.i32()?;
        r.get::<Eversion>()?;
        let epoch = r.u32()?;
        let count = r.count(OP_LEN)?;
        if count > MAX_OPS {
            let (got, limit) = (count as u64, MAX_OPS as u64);
            return Err(Error::too_big(DOING, "operations of a reply", got, limit));
        }
        let heads = (0..count).map(|_| Op::decode_result(&mut r)).collect::<Result<Vec<_>>>()?;
        let attempt = r.u32()?;
        let mut rest = message.data.clone();
        let mut ops = Vec::with_capacity(count);
        for (code, len) in heads {
            let result = r.i32()?;
            let len = len as usize;
            if len > rest.len() {
                return Err(r.violation("operations give as much data as there is", len as u64));
            }
            ops.push(OpResult { code, result, data: rest.split_to(len) });
        }
        let (version, user_version) = (r.get()?, r.u64()?);
        let redirect = if r.bool()? { Some(Box::new(r.get()?)) } else { None };
        let tid = message.tid;
        Ok(Self { tid, object, result, epoch, attempt, ops, version, user_version, redirect })
    }
}
