//! The yard: what runs. Disks and exports by name, the threads that they live on, and the file that says which there are.

pub mod config;
pub mod housekeeping;
pub mod plan;
pub mod queue_threads;
pub mod report;
