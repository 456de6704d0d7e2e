//! Ceph's encoding of structures (ceph: `doc/dev/encoding.rst`, `src/include/encoding.h`).
//!
//! Everything is little-endian and packed. Strings, vectors and maps start with a u32 count. A versioned structure
//! starts with u8 version, u8 oldest version that can read it, u32 length: a reader skips what it does not know behind
//! the fields that it does.

mod addr;
mod name;
mod object;
mod reader;
mod scalar;
mod writer;

pub use addr::{AddrType, EntityAddr, EntityAddrs, MAX_ADDRS};
pub use name::ObjectName;
pub use object::{
    Eversion, Hobject, NO_POOL, NOSNAP, ObjectLocator, PgId, PgShard, RequestId, SNAPDIR,
};
pub use reader::{Decode, Reader, Versioned};
pub use scalar::{EntityName, EntityType, Fsid, Utime};
pub use writer::{Encode, Writer, encoded};
