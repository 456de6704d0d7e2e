//! Listing the objects of a pool, group by group (ceph: `src/osd/PrimaryLogPG.cc`, `do_pg_op`).
//!
//! Objects are in the order of their hashes with the bits reversed, and a group has a range of that order. A listing is
//! a place in the order: the request goes to the group that has it, and the answer brings the next place, which is in
//! another group if this one has no more. So a listing goes on where it was when groups are split.

use super::code::OpCode;
use super::op::Op;
use crate::encoding::{Encode, Hobject, ObjectName, Reader, Writer};
use crate::error::Result;

/// The namespace that stands for all of them (ceph: `src/include/rados/librados.hpp`, `all_nspaces`).
pub const ALL_NAMESPACES: &str = "\u{1}";

/// The place before all objects, of whatever pool (ceph: `src/common/hobject.h`, the default constructor).
#[must_use]
pub fn begin_of_pool() -> Hobject {
    Hobject {
        key: ObjectName::new(),
        name: ObjectName::new(),
        snap: 0,
        hash: 0,
        max: false,
        namespace: ObjectName::new(),
        pool: i64::MIN,
    }
}

impl Op {
    /// Lists at most `max` objects from a place on: see [`Page`]. The request is about the group that has the place: it
    /// names no object, has the place's hash in its locator, and [`OpFlags::PG_OP`](super::OpFlags::PG_OP).
    #[must_use]
    pub fn list(max: u64, from: &Hobject) -> Self {
        let mut args = Writer::new();
        args.u64(max);
        // An epoch, which only old listings need.
        args.u32(0);
        let mut data = Writer::new();
        from.encode(&mut data);
        Self::with_args(OpCode::PG_LIST, args.as_slice(), data.into_bytes().into())
    }
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listed {
    /// Its namespace; empty for the default one.
    pub namespace: ObjectName,
    /// Its name.
    pub name: ObjectName,
    /// Its locator's key; empty if it has none.
    pub key: ObjectName,
}

/// What [`Op::list`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Objects, none of which was listed before.
    pub objects: Vec<Listed>,
    /// Where to go on. After the last group, the place behind all objects ([`Hobject::max`]).
    pub next: Hobject,
}

impl Page {
    /// Reads the data of the operation's result.
    ///
    /// # Errors
    /// It is cut.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let outer = &mut Reader::new("reading a list of objects", data);
        let mut r = outer.versioned(1)?.fields;
        let next = r.get()?;
        let objects =
            r.vec(3 * 4, |r| Ok(Listed { namespace: r.name()?, name: r.name()?, key: r.name()? }))?;
        Ok(Self { objects, next })
    }
}
