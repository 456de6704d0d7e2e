//! A disk in a regular file or a block device.
//!
//! [`File::open`] checks the file and says what a disk in it can do; the [`File`] is then the driver of a tag
//! set. Each hardware queue has an io_uring of its own, or a share of a pool of threads where the kernel
//! refuses io_uring, or has to ask a server for the file, which may not answer; completions come on the queue's
//! thread. A file in memory (tmpfs) is read and written right where it is asked for: nothing there waits for storage,
//! and the kernel's io_uring would hand it to a thread each time.
//!
//! # What is durable
//!
//! The disk has a write cache, the kernel's page cache or the device's own: what was written is durable after a
//! flush, which is fdatasync(2). A FUA write is a write and a flush, but for a block device past the page cache: there it
//! is `RWF_DSYNC`.
//!
//! A flush that fails is final. Linux reports a failed write-back once for each open file description, then forgets it, and
//! the pages that were not written count as clean (fsync(2); "PostgreSQL's fsync() surprise",
//! lwn.net/Articles/752063). The next fdatasync would succeed, and promise what is lost. So after the first
//! failure every flush and every FUA write fails, until the disk is opened anew.
//!
//! Nor may somebody else take the error from the flush. Syncs have an open file description of their own, which nothing
//! else uses, and one owner for all queues: one sync is out at a time, and those who ask meanwhile share the next. Writes
//! to a file through the page cache never are `RWF_DSYNC`: of two at once, one would hear of the other's failure.
//!
//! # Its last block
//!
//! A file may have any size. The disk is as many whole logical blocks as hold it; what the last of them has past the file's
//! end is padding, which reads as zeroes and is never written, so that the file keeps its size. So it is with a device of which
//! only a part is shown. Direct I/O cannot reach an end that is no whole block: the whole page that it is in is read and written
//! through the page cache, by an open file description of its own, and nothing else is. A page that is reached in both ways loses
//! what was written in one of them.
//!
//! # What changes under it
//!
//! A disk is made larger with [`Disk::resize`](blockyard_blkmq::Disk::resize): a regular file is extended if it is too short,
//! while the disk is used. What others append to the file is not part of the disk before that. Nothing is out when the disk
//! gets its new size. A file that others have truncated is not extended.
//!
//! A file that becomes shorter while it is a disk gives I/O errors past its new end, where its map says data, and one line in
//! the log. A read finds it out, and so does a flush as soon as this kernel knows (a queue thread asks no server), which
//! fails then: what was durable is gone. Only the file's size says so: storage that moves less than it is asked to fails that
//! request. It stays so until the file is opened anew, or the disk is made as small as what is left, also if the file becomes
//! longer again: it would be zeroes. A write past the new end that comes before anything else makes the file longer, and is
//! not told from any other.
//!
//! # Memory that goes away
//!
//! Bios of several owners may be one request. If the kernel cannot use the memory of one of them, the others are done without
//! it.
//!
//! Advisory locks keep other careful openers away: see [`FileConfig::lock`].
#![forbid(unsafe_code)]

mod config;
mod context;
mod driver;
mod error;
mod extents;
mod health;
mod job;
mod limits;
mod memory;
mod open;
mod paged;
mod queue;
mod resize;
mod sync;

pub use config::{Engine, FileConfig};
pub use driver::File;
pub use error::{Error, ErrorKind};
pub use limits::Info;
