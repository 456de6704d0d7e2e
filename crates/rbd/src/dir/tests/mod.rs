//! The store on a disk in memory, which loses what is not synchronised when its power is cut.

mod faults;
mod operations;
mod power;
mod processes;
pub(crate) mod simulated;
