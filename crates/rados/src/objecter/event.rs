//! What an objecter tells its owner.

use crate::error::{Error, Result};
use crate::osd::{OsdRequest, Reply};
use bytes::Bytes;
use core::net::SocketAddr;

/// A stream to an OSD; numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// The end of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its number.
    pub tid: u64,
    /// What was asked for.
    pub request: OsdRequest,
    /// What came of it. That the OSD answered does not say that it did it: look at [`Reply::result`].
    pub result: Result<Reply>,
}

/// Somebody told the watchers of an object something. It is to be answered with
/// [`Objecter::acknowledge`](super::Objecter::acknowledge).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The watch.
    pub watch: u64,
    /// The OSD's number of it.
    pub notify_id: u64,
    /// The client who told.
    pub notifier: u64,
    /// What was told.
    pub payload: Bytes,
}

/// What happened, or has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Open a stream to an OSD, and say [`connected`](super::Objecter::connected) or
    /// [`failed`](super::Objecter::failed).
    Connect {
        /// What to call it.
        connection: ConnectionId,
        /// The OSD.
        osd: i32,
        /// Where it is.
        addr: SocketAddr,
    },
    /// Close a stream, or give up opening it. Nothing more is taken from it.
    Close(ConnectionId),
    /// An operation ended.
    Completed(Box<Completion>),
    /// Ask the monitors for maps from this epoch on; 0 for a whole one.
    WantMap(u32),
    /// Ask the monitors which epoch is the newest, and say [`newest`](super::Objecter::newest).
    WantNewest,
    /// The map of this epoch is in use.
    Map(u32),
    /// A map cannot be used, and why. The one of before is used meanwhile, and a whole one asked for.
    MapUnusable(Error),
    /// A watch is set.
    Watching(u64),
    /// A watch may have missed something: its session or its interval is over, so that it hears nothing now, or it was
    /// carried over, and hears again. Look at the object again, each time.
    WatchMissed(u64),
    /// A watch is gone. What happened meanwhile is not known; to watch on, watch again.
    WatchLost(u64, Error),
    /// A watched object has something to say.
    Notified(Notification),
    /// A session with an OSD broke, and why. It is opened again if it is needed.
    SessionLost(i32, Error),
}
