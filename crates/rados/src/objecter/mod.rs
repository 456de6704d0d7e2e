//! Operations on objects, wherever these are: the machine that sends each request to the OSD that the map names, and
//! again whenever that may have been in vain (ceph: `src/osdc/Objecter.cc`; Linux: `net/ceph/osd_client.c`).
//!
//! An [`Objecter`] does no I/O. Its owner
//! - gives it maps ([`Objecter::take_maps`]) and operations ([`Objecter::submit`]);
//! - opens and closes streams as [`Event::Connect`] and [`Event::Close`] say, and carries bytes between them and
//!   [`Objecter::receive`] and [`Objecter::poll_transmit`];
//! - looks at [`Objecter::poll_event`] after each call, and calls [`Objecter::expire`] at [`Objecter::deadline`].
//!
//! What it promises:
//! - Every operation that was taken ends once: in [`Event::Completed`], or in [`Objecter::cancel`]'s hands.
//! - A write that was acknowledged was done once. One that ended in an error after it was sent was done once or not at
//!   all: OSDs know requests that come again by the client's number and the operation's.
//! - Writes to one object of one [share](Objecter::open_share) are done in the order in which they were submitted. One with
//!   [`OpFlags::FULL_TRY`](crate::osd::OpFlags::FULL_TRY) does not wait for space, and thus for no others. Reads are in
//!   order with writes unless they go to replicas, or the cluster is paused for one kind only.
//! - Once a map has had the client on the blocklist, nothing more of it is sent, and every operation ends with EBLOCKLISTED.
//! - No more operations and bytes are in flight than [`Config`] says, but that each share may have one; others wait for their
//!   turn, and one share does not stop another. What is too much to wait is given back.

mod admission;
mod config;
mod confirm;
mod event;
mod fence;
mod known;
mod machine;
mod maps;
mod operation;
mod replies;
mod routes;
mod session;
mod streams;
mod timers;
mod watches;

pub use admission::ShareId;
pub use config::Config;
pub use event::{Completion, ConnectionId, Event, Notification};
pub use machine::Objecter;
pub use session::MAX_BACKOFFS;
pub use watches::Addressed;
