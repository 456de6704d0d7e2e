//! The library behind the `blockyard` command, room by room: kinds of disks, front-ends, the yard in which both run, daemons
//! and what they are asked, disks of the kernel, tools for whole disks, and a load generator.
#![forbid(unsafe_code)]

pub mod api;
pub mod attach;
pub mod bench;
pub mod cli;
pub mod commands;
pub mod daemon;
pub mod disks;
pub mod error;
pub mod exports;
mod images;
pub mod metrics;
pub mod text;
pub mod tools;
pub mod yard;

pub use error::{Error, ErrorKind, Result};
