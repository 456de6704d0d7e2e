//! `MOSDOp`, in the form that every OSD since Ceph 12 reads.

use super::op::{MAX_OPS, OP_LEN, Op};
use crate::encoding::{
    Encode, EntityName, EntityType, NOSNAP, ObjectLocator, ObjectName, PgShard, RequestId, Utime,
    Writer,
};
use crate::msgr::Message;
use bitflags::bitflags;
use bytes::{Bytes, BytesMut};

/// The message's kind and versions.
const KIND: u16 = 42;
const VERSION: u16 = 8;
const COMPAT: u16 = 3;
/// Bytes of a place in a trace, which is not used.
const TRACE: usize = 24;

bitflags! {
    /// How a request is to be treated (ceph: `src/include/rados.h`, `CEPH_OSD_FLAG_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpFlags: u32 {
        /// Answer when it is safe on disk.
        const ONDISK = 0x4;
        /// It was sent before.
        const RETRY = 0x8;
        /// It reads.
        const READ = 0x10;
        /// It writes.
        const WRITE = 0x20;
        /// Fail with an old snapshot context (errno 85).
        const ORDER_SNAP = 0x40;
        /// It is about a group, and not an object.
        const PG_OP = 0x400;
        /// Any OSD of the group may answer.
        const BALANCE_READS = 0x100;
        /// A near OSD of the group may answer.
        const LOCALIZE_READS = 0x2000;
        /// A reply's redirect is to be followed, and this side says whether it was.
        const KNOWN_REDIRECT = 0x40_0000;
        /// Fail where the cluster is full, and do not wait.
        const FULL_TRY = 0x80_0000;
        /// The object is the one that a cache redirected to, which is asked as it is.
        const IGNORE_CACHE = 0x8000;
        /// The pool is the one to ask, and not the cache in front of it.
        const IGNORE_OVERLAY = 0x2_0000;
        /// A redirect was followed.
        const REDIRECTED = 0x20_0000;
        /// Write even if the cluster is full.
        const FULL_FORCE = 0x100_0000;
        /// There are others.
        const _ = !0;
    }
}

/// The snapshots that exist when an object is written: the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapContext {
    /// The newest number that was given.
    pub seq: u64,
    /// Those that exist, in falling order.
    pub snaps: Vec<u64>,
}

/// Where a request goes, by a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The group, and the shard of it that the OSD serves.
    pub pg: PgShard,
    /// The hash of the object's name.
    pub hash: u32,
    /// The epoch of the map.
    pub epoch: u32,
}

/// Operations on one object, which are done together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsdRequest {
    /// The object's name.
    pub object: ObjectName,
    /// Where it is.
    pub locator: ObjectLocator,
    /// What to do, in order; at most [`MAX_OPS`].
    pub ops: Vec<Op>,
    /// The snapshot to read, or [`NOSNAP`].
    pub snap: u64,
    /// The snapshots that a write keeps.
    pub context: SnapContext,
    /// The time of a write.
    pub mtime: Utime,
    /// How it is to be treated, beside what the operations say.
    pub flags: OpFlags,
}

impl OsdRequest {
    /// Operations on the head of an object.
    #[must_use]
    pub fn new(locator: ObjectLocator, object: &(impl AsRef<[u8]> + ?Sized), ops: Vec<Op>) -> Self {
        Self {
            object: object.as_ref().into(),
            locator,
            ops,
            snap: NOSNAP,
            context: SnapContext::default(),
            mtime: Utime::default(),
            flags: OpFlags::ONDISK | OpFlags::KNOWN_REDIRECT,
        }
    }

    pub(crate) fn all_flags(&self, attempt: u32) -> OpFlags {
        let writes = self.ops.iter().any(|op| op.code.is_write());
        let reads = self.ops.iter().any(|op| !op.code.is_write());
        let mut flags = self.flags;
        if writes {
            flags |= OpFlags::WRITE;
        }
        if reads {
            flags |= OpFlags::READ;
        }
        flags.set(OpFlags::RETRY, attempt > 0);
        flags
    }

    /// The message: `tid` is the client's number of the request, `attempt` counts how often it was sent before.
    ///
    /// # Panics
    /// If there are more than [`MAX_OPS`] operations.
    #[must_use]
    pub fn message(&self, tid: u64, target: Target, attempt: u32, features: u64) -> Message {
        assert!(self.ops.len() <= MAX_OPS, "a request of {} operations was built", self.ops.len());
        let mut w = Writer::with_capacity(self.front_len());
        w.put(&target.pg);
        w.u32(target.hash);
        w.u32(target.epoch);
        w.u32(self.all_flags(attempt).bits());
        // Filled in by the OSD, from the session and the message's number.
        let nobody = EntityName { kind: EntityType(0), number: 0 };
        RequestId { client: nobody, tid: 0, incarnation: 0 }.encode(&mut w);
        w.raw(&[0; TRACE]);
        w.u32(0);
        w.put(&self.mtime);
        self.locator.encode_in(target.pg.pg.pool, &mut w);
        w.bytes(&self.object);
        w.u16(u16::try_from(self.ops.len()).unwrap_or(u16::MAX));
        self.ops.iter().for_each(|op| op.encode(&mut w));
        w.u64(self.snap);
        w.u64(self.context.seq);
        w.vec(&self.context.snaps, |w, snap| w.u64(*snap));
        w.u32(attempt);
        w.u64(features);
        Message { tid, data: self.data(), ..Message::new(KIND, VERSION, COMPAT, w.into_bytes()) }
    }

    /// Bytes of the fields, at most.
    fn front_len(&self) -> usize {
        const FIXED: usize = 256;
        let names = self.object.len() + self.locator.key.len() + self.locator.namespace.len();
        FIXED + names + self.ops.len() * OP_LEN + self.context.snaps.len() * size_of::<u64>()
    }

    /// The data of all operations; that of a single one is not copied.
    fn data(&self) -> Bytes {
        let mut with_data = self.ops.iter().filter(|op| !op.data.is_empty());
        match (with_data.next(), with_data.next()) {
            (None, _) => Bytes::new(),
            (Some(one), None) => one.data.clone(),
            _ => {
                let mut all = BytesMut::new();
                self.ops.iter().for_each(|op| all.extend_from_slice(&op.data));
                all.freeze()
            }
        }
    }
}
