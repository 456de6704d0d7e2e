//! A RADOS client. All but [`net`] is without I/O: bytes and time in, bytes and events out. No Ceph library is linked.
//!
//! - [`encoding`]: Ceph's encoding of structures;
//! - [`msgr`]: messenger 2.1: frames, and a client's session;
//! - [`auth`]: who is who: keys, tickets, authorizers;
//! - [`conf`]: keyrings' and monitors' places, out of `ceph.conf` and arguments;
//! - [`mon`]: the monitors' client: hunting, subscriptions, commands;
//! - [`maps`]: the map of the OSDs, whole and by changes, and where objects are;
//! - [`osd`]: requests to OSDs, and their replies;
//! - [`objecter`]: operations on objects, wherever these are;
//! - [`cluster`]: all of it together;
//! - [`net`]: sockets and time for that: what programs use.
#![forbid(unsafe_code)]

pub mod auth;
pub mod cluster;
pub mod conf;
pub mod encoding;
pub mod error;
pub mod features;
pub mod maps;
pub mod mon;
pub mod msgr;
pub mod net;
pub mod objecter;
pub mod osd;

pub use error::{Blame, Error, ErrorKind, Place, Result};
