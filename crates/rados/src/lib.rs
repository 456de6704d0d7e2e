//! The inside of a RADOS client: bytes and time in, bytes and events out. No Ceph library is linked.
//!
//! - [`encoding`]: Ceph's encoding of structures.
#![forbid(unsafe_code)]

pub mod encoding;
pub mod error;

pub use error::{Blame, Error, ErrorKind, Result};
