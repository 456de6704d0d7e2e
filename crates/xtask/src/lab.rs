//! `cargo xtask lab`: the laboratories of the tests, for trying things by hand.

use crate::cli::{Lab, VmOptions};
use crate::setup::{self, Tools};
use crate::static_program;
use anyhow::{Context, Result};
use blockyard_lab::vm::Vm;
use clap::Subcommand;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// What a guest does without a script: it shows what it is.
const DEFAULT_SCRIPT: &str = "uname -a; cat /proc/partitions; lsmod";

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
        Some(Lab::Vm(options)) => vm(&setup::ensure()?, options),
    }
}

/// Each laboratory, with what it is.
fn list() {
    for lab in Lab::augment_subcommands(clap::Command::new("lab")).get_subcommands() {
        println!("{:<10} {}", lab.get_name(), lab.get_about().unwrap_or_default());
    }
}

fn vm(tools: &Tools, options: &VmOptions) -> Result<ExitCode> {
    let script = match &options.script {
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => DEFAULT_SCRIPT.to_owned(),
    };
    let mut vm = Vm::new().laboratory(tools.lab()).script(&script).show_console();
    vm = vm.limit(Duration::from_secs(options.limit)).args(&options.qemu);
    if options.blockyard {
        vm = vm.program(&static_program::build(tools)?.display().to_string());
    }
    vm = options.module.iter().fold(vm, |vm, module| vm.module(module));
    vm = options.program.iter().fold(vm, |vm, program| vm.program(program));
    let outcome = vm.boot()?.finish()?;
    Ok(u8::try_from(outcome.status).map_or(ExitCode::FAILURE, ExitCode::from))
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
