//! Operations on one object, which are done together or not at all.

use super::{Extents, NOSNAP, SnapContext, Snapshots, Stat, ValuePage, Watcher};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Operations that are done together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// They only read.
    Read {
        /// What is read: a snapshot, or [`NOSNAP`].
        snap: u64,
        /// The operations.
        ops: Vec<Op>,
    },
    /// At least one of them writes.
    Write {
        /// The snapshots that exist of what the object belongs to. What the object was in those that it does not know
        /// of is kept.
        context: SnapContext,
        /// The operations.
        ops: Vec<Op>,
    },
}

impl Request {
    /// Reads the object as it is.
    #[must_use]
    pub const fn read(ops: Vec<Op>) -> Self {
        Self::Read { snap: NOSNAP, ops }
    }

    /// Writes an object that has no snapshots, as headers are.
    #[must_use]
    pub fn write(ops: Vec<Op>) -> Self {
        Self::Write { context: SnapContext::default(), ops }
    }

    /// The operations.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        match self {
            Self::Read { ops, .. } | Self::Write { ops, .. } => ops,
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing, if the object is as expected; else the request fails.
    Guard(Guard),
    /// Reads.
    Query(Query),
    /// Writes.
    Mutate(Mutation),
    /// Runs a method of a class beside the object. In a [`Request::Read`] it may only read.
    Exec {
        /// The class.
        class: &'static str,
        /// Its method.
        method: &'static str,
        /// The method's input, in the method's encoding.
        input: Bytes,
    },
}

/// What has to be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The object is there; else ENOENT.
    Exists,
    /// These bytes are at this place. What lies behind the object's end counts as zeroes.
    CompareExtent {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
}

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Bytes; fewer at the object's end. A length of 0 is up to the end.
    Read {
        /// From here on.
        offset: u64,
        /// So many.
        length: u64,
    },
    /// Bytes, and where there are any.
    SparseRead {
        /// From here on.
        offset: u64,
        /// So many.
        length: u64,
    },
    /// Size and time.
    Stat,
    /// One attribute; ENODATA if it is not there.
    Xattr(String),
    /// The values of those of the keys that are there.
    OmapGet(Vec<Bytes>),
    /// Keys and values in order.
    OmapList {
        /// Behind this key.
        after: Bytes,
        /// Only those that start like this.
        prefix: Bytes,
        /// At most so many.
        max: u64,
    },
    /// The clones that are kept for snapshots, the head last.
    Snapshots,
    /// Who watches.
    Watchers,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Makes the object.
    Create {
        /// EEXIST if it is there.
        exclusive: bool,
    },
    /// Writes bytes; makes the object if it is not there.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Replaces all bytes; makes the object if it is not there.
    WriteFull(Bytes),
    /// Writes the same bytes again and again.
    WriteSame {
        /// Where.
        offset: u64,
        /// So many bytes: a multiple of what is written.
        length: u64,
        /// What.
        data: Bytes,
    },
    /// Makes a range zero without making the object longer. An object that is not there stays so.
    Zero {
        /// From here on.
        offset: u64,
        /// So many bytes.
        length: u64,
    },
    /// Cuts the object, or grows it with zeroes. An object that is not there stays so.
    Truncate {
        /// The new size.
        size: u64,
    },
    /// Removes the object; ENOENT if it is not there. Its clones stay.
    Remove,
    /// Makes the object's bytes what they were in a snapshot.
    Rollback {
        /// Which.
        snap: u64,
    },
    /// Sets an attribute; makes the object if it is not there.
    SetXattr(String, Bytes),
    /// Removes an attribute.
    RemoveXattr(String),
    /// Sets keys; makes the object if it is not there.
    OmapSet(BTreeMap<Bytes, Bytes>),
    /// Removes keys.
    OmapRemove(Vec<Bytes>),
    /// Removes all keys.
    OmapClear,
}

/// The answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// Bytes: of a read, an attribute, a method.
    Data(Bytes),
    /// Of a sparse read. Its ranges are from the start of the object.
    Extents(Extents),
    /// Of a stat.
    Stat(Stat),
    /// Keys and values.
    Omap(ValuePage),
    /// Clones.
    Snapshots(Snapshots),
    /// Watchers.
    Watchers(Vec<Watcher>),
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $kind:ty),*) = $value:expr;)*) => {
        /// Short forms.
        impl Op {
            $($(#[$doc])* #[must_use] pub fn $name($($argument: $kind),*) -> Self { $value.into() })*
        }
    };
}

operations! {
    /// [`Guard::Exists`].
    assert_exists() = Guard::Exists;
    /// [`Guard::CompareExtent`].
    compare_extent(offset: u64, data: Bytes) = Guard::CompareExtent { offset, data };
    /// [`Query::Read`].
    read(offset: u64, length: u64) = Query::Read { offset, length };
    /// [`Query::SparseRead`].
    sparse_read(offset: u64, length: u64) = Query::SparseRead { offset, length };
    /// [`Query::Stat`].
    stat() = Query::Stat;
    /// [`Mutation::Create`].
    create(exclusive: bool) = Mutation::Create { exclusive };
    /// [`Mutation::Write`].
    write(offset: u64, data: impl Into<Bytes>) = Mutation::Write { offset, data: data.into() };
    /// [`Mutation::WriteFull`].
    write_full(data: impl Into<Bytes>) = Mutation::WriteFull(data.into());
    /// [`Mutation::Zero`].
    zero(offset: u64, length: u64) = Mutation::Zero { offset, length };
    /// [`Mutation::Truncate`].
    truncate(size: u64) = Mutation::Truncate { size };
    /// [`Mutation::Remove`].
    remove() = Mutation::Remove;
    /// [`Mutation::Rollback`].
    rollback(snap: u64) = Mutation::Rollback { snap };
}

impl Op {
    /// [`Op::Exec`].
    #[must_use]
    pub fn exec(class: &'static str, method: &'static str, input: impl Into<Bytes>) -> Self {
        Self::Exec { class, method, input: input.into() }
    }
}

impl From<Guard> for Op {
    fn from(guard: Guard) -> Self {
        Self::Guard(guard)
    }
}

impl From<Query> for Op {
    fn from(query: Query) -> Self {
        Self::Query(query)
    }
}

impl From<Mutation> for Op {
    fn from(mutation: Mutation) -> Self {
        Self::Mutate(mutation)
    }
}

impl Answer {
    /// The bytes, if it is some.
    #[must_use]
    pub fn into_data(self) -> Bytes {
        match self {
            Self::Data(data) => data,
            Self::Extents(extents) => extents.data,
            _ => Bytes::new(),
        }
    }
}
