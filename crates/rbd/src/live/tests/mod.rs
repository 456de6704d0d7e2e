//! Locks and watches in a simulated cluster, under seeds.

mod cluster;
mod processes;
mod protocol;
