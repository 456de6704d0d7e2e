//! `cargo xtask lab`: what the tests run against, for trying things by hand.

pub mod ceph;

use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// What to start.
#[derive(Debug, Subcommand)]
pub enum Lab {
    /// A cluster of Ceph's own daemons on loopback, and a shell (or a command) that finds it; it ends with that
    Ceph(ceph::Options),
}

/// Starts it, and runs a command with it.
///
/// # Errors
/// What it needs is missing or fails.
pub fn run(lab: &Lab) -> Result<ExitCode> {
    match lab {
        Lab::Ceph(options) => ceph::run(options),
    }
}
