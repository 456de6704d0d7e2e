//! Requests to OSDs and their replies (ceph: `src/messages/MOSDOp.h`, `MOSDOpReply.h`, `src/include/rados.h`).

mod attributes;
mod backoff;
mod class;
mod code;
mod data;
mod guards;
mod list;
mod omap;
mod op;
mod reply;
mod request;
mod snapshots;
mod watch;

pub use attributes::{Compare, xattrs};
pub use backoff::{Backoff, BackoffOp};
pub use code::OpCode;
pub use data::{AllocHint, Extents, Stat};
pub use guards::mismatch;
pub use list::{ALL_NAMESPACES, Listed, Page, begin_of_pool};
pub use omap::{KeyPage, ValuePage, values};
pub use op::{MAX_OPS, Op};
pub use reply::{OpResult, Redirect, Reply};
pub use request::{OpFlags, OsdRequest, SnapContext, Target};
pub use snapshots::{Clone, Snapshots};
pub(crate) use watch::whole_seconds;
pub use watch::{NotifyAnswers, WatchEvent, WatchNotify, WatchOp, Watcher, watchers};

pub(crate) use backoff::BACKOFF;
pub(crate) use reply::OP_REPLY;
pub(crate) use watch::WATCH_NOTIFY;
