//! `cargo xtask lab`: the laboratories of the tests, for trying things by hand.

pub mod ceph;
pub mod vm;

use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// A laboratory.
#[derive(Debug, Subcommand)]
pub enum Lab {
    /// A Linux guest under software emulation that runs a script; exits as the script does
    Vm(vm::Options),
    /// A cluster of Ceph's own daemons on loopback, and a shell (or a command) that finds it; it ends with that
    Ceph(ceph::Options),
}

/// Runs a laboratory, or lists them.
///
/// # Errors
/// It cannot be set up, or does not come to its end.
pub fn run(lab: Option<&Lab>) -> Result<ExitCode> {
    match lab {
        None => {
            list();
            Ok(ExitCode::SUCCESS)
        }
        Some(Lab::Vm(options)) => vm::run(options),
        Some(Lab::Ceph(options)) => ceph::run(options),
    }
}

/// Each laboratory, with what it is.
fn list() {
    for lab in Lab::augment_subcommands(clap::Command::new("lab")).get_subcommands() {
        println!("{:<10} {}", lab.get_name(), lab.get_about().unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_laboratory_says_what_it_is() {
        let labs = Lab::augment_subcommands(clap::Command::new("lab"));
        assert!(labs.get_subcommands().all(|lab| lab.get_about().is_some()));
    }
}
