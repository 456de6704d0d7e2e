//! Memory for block I/O: shared segments, pools of aligned buffers, anonymous mappings.
//!
//! The bytes of a disk, of a virtual machine, or of a kernel buffer belong to several parties at once: a reader
//! may be handed memory that a later write changes under it, which is what a disk may do. Rust references
//! cannot say that, so such memory is a [`Segment`]: a run of bytes that is copied in and out of, or handed to
//! the kernel, and never borrowed as a slice. What has one owner is a [`Buffer`], which can be borrowed, and
//! becomes segments when it is handed on.
//!
//! The memory of a virtual machine is a [`GuestMemory`]: descriptors become segments of it, rings [`SharedWords`].
//!
//! What a file has in the page cache is handed on by reference as [`Pages`], and what it has wherever as a [`FileRange`].
//!
//! This crate is one of the two that may hold `unsafe` code.

mod file_range;
mod guest;
mod mapping;
mod pages;
mod pool;
mod segment;
mod sigbus;
mod words;

pub use file_range::FileRange;
pub use guest::{Access, GuestMemory, GuestView, RegionSpec, SharedMapping};
pub use mapping::{Mapping, PAGE_SIZE};
pub use pages::{MAX_PAGES_BYTES, PagePool, Pages};
pub use pool::{Buffer, Pool, PoolLimits};
pub use segment::{Segment, Segments, ZERO_RUN, copy_segments, total_len};
pub use sigbus::losses;
pub use words::SharedWords;
