//! A disk in an RBD image, or in a snapshot of one, on any store of objects.
//!
//! The block layer cuts reads, writes and write-zeroes where objects end (`chunk_sectors`), so that a request is one operation
//! on one object, and joins them again; a discard may be of several objects, one after the other.
//!
//! A request is a task on the runtime of its queue thread, which polls the store's futures and never waits itself. What waits
//! does so where the store says: a cluster's answers come over sockets of that runtime or another; a directory's reads, commits
//! and syncs are made by the runtime's threads for what blocks, of which there are as many as requests are out. A worker for each
//! image, as other drivers of libraries that block have it, would do one thing at a time: a commit waits for the disk, and
//! reads would wait with it.
//!
//! # What goes on at once
//!
//! A disk that is written has its image open beside others (`blockyard_rbd::live`): it takes the image's lock with the first
//! write, gives it to those who ask for it, and takes it again with the next one; what others change is seen. Snapshots, and
//! images that are only looked at, have no lock. If somebody else makes the image smaller, what the disk still shows behind its
//! new end fails, until the disk follows.
//!
//! The image is read-locked by requests, and write-locked by what changes its header: a resize. Writes to one object go on beside
//! each other, as on any disk.
//!
//! # What is durable
//!
//! What was written is durable after a flush, which is the store's. An image whose size is no multiple of a block has padding
//! behind its end, which reads as zeroes and is never written.
#![forbid(unsafe_code)]

mod data;
mod driver;
mod limits;
mod opened;
mod resize;

pub use driver::Rbd;
pub use limits::limits;
pub use opened::{Opened, Still};
