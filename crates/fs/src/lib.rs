//! File systems served by FUSE, and the one that passes a directory of the host through.
//!
//! ```text
//! kernel -> /dev/fuse -> Server (a thread a request) -> answer -> FileSystem -> Passthrough -> the directory
//! ```
//!
//! A guest's requests come by another way, and take the same from [`Answers::answer_in_place`] on.
//!
//! [`FileSystem`] is what a file system answers, one method an operation, with what it does not know left out. [`Server`] serves
//! one on channels of the device. [`Passthrough`] is one: what is in a directory, by file descriptors that were opened below it,
//! so that no path, link or rename leads out of it.
#![forbid(unsafe_code)]

mod answer;
mod filesystem;
mod handshake;
mod passthrough;
mod server;

pub use answer::{Answers, put};
pub use filesystem::{FileSystem, Outcome, Who};
pub use handshake::greet;
pub use passthrough::{CachePolicy, Options, Passthrough};
pub use server::Server;
