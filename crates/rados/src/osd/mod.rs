//! Requests to OSDs and their replies (ceph: `src/messages/MOSDOp.h`, `MOSDOpReply.h`, `src/include/rados.h`).

mod backoff;
mod op;
mod reply;
mod request;
mod watch;

pub use backoff::{Backoff, BackoffOp};
pub use op::{MAX_OPS, Op, OpCode};
pub use reply::{OpResult, Redirect, Reply};
pub use request::{OpFlags, OsdRequest, SnapContext, Target};
pub use watch::{WatchEvent, WatchNotify, WatchOp};

pub(crate) use backoff::BACKOFF;
pub(crate) use reply::OP_REPLY;
pub(crate) use watch::WATCH_NOTIFY;
