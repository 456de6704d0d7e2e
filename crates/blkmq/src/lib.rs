//! A multi-queue block layer in user space.
#![forbid(unsafe_code)]

pub mod limits;
pub mod op;
pub mod units;
