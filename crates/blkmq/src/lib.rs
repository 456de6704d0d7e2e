//! A multi-queue block layer in user space.
#![forbid(unsafe_code)]

pub mod badblocks;
pub mod geometry;
pub mod limits;
pub mod major;
pub mod op;
pub mod partition;
pub mod proc_fmt;
pub mod reservation;
pub mod sched;
pub mod stats;
pub mod units;

#[cfg(test)]
mod testing;
