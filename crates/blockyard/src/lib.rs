//! The library behind the `blockyard` command: disk URIs, the configuration file, queue threads, daemons and
//! their control sockets, tools for whole disks, and a load generator.
#![forbid(unsafe_code)]

pub mod attach;
pub mod bench;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod disks;
pub mod error;
pub mod housekeeping;
pub mod inspect;
pub mod logging;
pub mod plan;
pub mod queue_threads;
pub mod runner;
pub mod session;
pub mod size;
pub mod suggest;
pub mod term;
pub mod tools;
pub mod uri;

pub use error::{Error, ErrorKind, Result};
