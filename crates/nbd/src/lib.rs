//! The NBD protocol, both roles, without I/O.
#![forbid(unsafe_code)]

pub mod client;
pub mod error;
pub mod export;
pub mod server;
pub mod uri;
pub mod wire;

pub use error::{Blame, Error, ErrorKind};
pub use export::{BlockSizes, ExportInfo, MetaContext};
