//! `MOSDBackoff`: an OSD wants no requests for a range of objects for now (ceph: `doc/dev/osd_internals/backoff.rst`).

use crate::encoding::{Hobject, PgShard, Writer};
use crate::error::{Error, Result};
use crate::msgr::Message;

/// The message's kind and version.
pub(crate) const BACKOFF: u16 = 61;
const VERSION: u16 = 1;
const DOING: &str = "reading an OSD's backoff";

/// What a backoff says (ceph: `src/include/rados.h`, `CEPH_OSD_BACKOFF_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackoffOp {
    /// From the OSD: hold requests back.
    Block,
    /// To the OSD: they are held back.
    AckBlock,
    /// From the OSD: send them again.
    Unblock,
}

impl BackoffOp {
    const fn code(self) -> u8 {
        match self {
            Self::Block => 1,
            Self::AckBlock => 2,
            Self::Unblock => 3,
        }
    }
}

/// The message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The group.
    pub pg: PgShard,
    /// The epoch of the sender's map; an acknowledgement repeats that of the block.
    pub epoch: u32,
    /// What is to be done.
    pub op: BackoffOp,
    /// The OSD's number for the backoff in its session.
    pub id: u64,
    /// The first object.
    pub begin: Hobject,
    /// The first object behind the range; if it is `begin`, the range is that one object.
    pub end: Hobject,
}

impl Backoff {
    /// Reads the message.
    ///
    /// # Errors
    /// Another message, one that is cut, or one that says something unknown.
    pub fn parse(message: &Message) -> Result<Self> {
        if message.kind != BACKOFF {
            return Err(Error::violation(DOING, "a backoff has another type", message.kind.into()));
        }
        let mut r = message.reader(DOING);
        let (pg, epoch) = (r.get()?, r.u32()?);
        let op = match r.u8()? {
            1 => BackoffOp::Block,
            2 => BackoffOp::AckBlock,
            3 => BackoffOp::Unblock,
            other => return Err(r.violation("a backoff blocks or unblocks", other.into())),
        };
        Ok(Self { pg, epoch, op, id: r.u64()?, begin: r.get()?, end: r.get()? })
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> Message {
        let mut w = Writer::new();
        w.put(&self.pg);
        w.u32(self.epoch);
        w.u8(self.op.code());
        w.u64(self.id);
        w.put(&self.begin);
        w.put(&self.end);
        Message::new(BACKOFF, VERSION, VERSION, w.into_bytes())
    }

    /// Whether an object is in the range.
    #[must_use]
    pub fn contains(&self, object: &Hobject) -> bool {
        *object == self.begin || self.begin < *object && *object < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{NOSNAP, PgId};

    fn object(hash: u32) -> Hobject {
        let (key, namespace) = Default::default();
        Hobject { key, name: "o".into(), snap: NOSNAP, hash, max: false, namespace, pool: 2 }
    }

    /// The layout of `src/messages/MOSDBackoff.h`.
    #[test]
    fn a_backoff_comes_back_and_covers_its_range() {
        let backoff = Backoff {
            pg: PgShard { pg: PgId { pool: 2, seed: 1 }, shard: PgShard::NO_SHARD },
            epoch: 77,
            op: BackoffOp::Block,
            id: 5,
            begin: object(1),
            end: object(3),
        };
        let message = backoff.message();
        assert_eq!(
            &message.front[24..],
            [
                &[77, 0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0][..],
                &crate::encoding::encoded(&object(1)),
                &crate::encoding::encoded(&object(3)),
            ]
            .concat()
        );
        assert_eq!(Backoff::parse(&message).unwrap(), backoff);
        assert!(backoff.contains(&object(1)) && backoff.contains(&object(5)));
        assert!(!backoff.contains(&object(3)) && !backoff.contains(&object(0)));
        let one = Backoff { end: object(1), ..backoff };
        assert!(one.contains(&object(1)) && !one.contains(&object(5)));
        for len in 0..message.front.len() {
            let cut = Message { front: message.front.slice(..len), ..message.clone() };
            assert!(Backoff::parse(&cut).is_err());
        }
    }
}
