//! RBD images on objects.
//!
//! - [`store`]: what images need of a store of objects: the trait [`ObjectStore`](store::ObjectStore), and the
//!   operations that are done on one object together or not at all; [`store::rados`] is a pool of a cluster;
//! - [`format`](mod@format): Ceph's format of images: names, features, striping, the records of the header, the object map;
//! - [`class`]: the methods of the classes `rbd` and `lock`, which OSDs run beside their objects: without I/O, for
//!   stores that are no cluster;
//! - [`dir`]: a store in a directory;
//! - [`image`]: images: reading and writing, snapshots, clones, over any store;
//! - [`live`]: images that several have open: the exclusive lock, and what watchers tell each other;
//! - [`stream`]: images and what changed in them as streams of bytes, as `rbd export` and `rbd export-diff` write them.
//!
//! Encodings and results of operations are those of `blockyard-rados`: what a cluster answers and what a directory
//! answers are the same types.
#![forbid(unsafe_code)]

pub mod class;
pub mod dir;
mod error;
pub mod format;
pub mod image;
pub mod live;
pub mod store;
pub mod stream;

pub use error::{Error, ErrorKind, Result};
