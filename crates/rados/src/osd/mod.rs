//! Requests to OSDs and their replies (ceph: `src/messages/MOSDOp.h`, `MOSDOpReply.h`, `src/include/rados.h`).

mod op;
mod reply;
mod request;

pub use op::{MAX_OPS, Op, OpCode};
pub use reply::{OpResult, Reply};
pub use request::{OpFlags, OsdRequest, SnapContext, Target};
