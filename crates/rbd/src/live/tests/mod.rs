//! Locks and watches in a simulated cluster, under seeds.

mod changes;
mod cluster;
mod names;
mod processes;
mod protocol;
mod removal;
mod waiting;
