//! The monitors' client: finds one that answers, keeps subscriptions, asks for versions, sends commands (ceph:
//! `src/mon/MonClient.cc`, `src/messages/M*.h`).

mod client;
mod messages;
mod monmap;

pub use client::{Config, Event, MAX_PENDING, MonClient};
pub use messages::{Answer, OsdMaps, PoolOp, Request};
pub use monmap::{MonMap, Monitor};
