//! `cargo xtask lab vm`.

use crate::setup;
use crate::static_program;
use anyhow::{Context, Result};
use blockyard_lab::vm::Vm;
use clap::Args;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What a guest does without a script: it shows what it is.
const DEFAULT_SCRIPT: &str = "uname -a; cat /proc/partitions; lsmod";

/// Options of `cargo xtask lab vm`.
#[derive(Args, Debug)]
pub struct Options {
    /// Load a module of the kernel; may be given several times
    #[arg(long = "mod", value_name = "NAME")]
    pub module: Vec<String>,
    /// Take a program along, by its path or its name; may be given several times
    #[arg(long, value_name = "PROGRAM")]
    pub program: Vec<String>,
    /// Build `blockyard` without shared libraries, and take it along
    #[arg(long)]
    pub blockyard: bool,
    /// Boot the newest kernel that Debian has
    #[arg(long)]
    pub newest: bool,
    /// What busybox's shell runs in the guest, as root
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// How long the guest may run
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub limit: u64,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu: Vec<String>,
}

/// Starts a guest, and waits for its script.
///
/// # Errors
/// What it needs is missing, or it does not come to its end.
pub fn run(options: &Options) -> Result<ExitCode> {
    let tools = setup::ensure()?;
    let script = match &options.script {
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => DEFAULT_SCRIPT.to_owned(),
    };
    let mut vm = Vm::new().laboratory(tools.lab()).script(&script).show_console();
    vm = vm.limit(Duration::from_secs(options.limit)).args(&options.qemu);
    if options.newest {
        vm = vm.newest_kernel();
    }
    if options.blockyard {
        vm = vm.program(&static_program::build(&tools)?.display().to_string());
    }
    vm = options.module.iter().fold(vm, |vm, module| vm.module(module));
    vm = options.program.iter().fold(vm, |vm, program| vm.program(program));
    let outcome = vm.boot()?.finish()?;
    Ok(u8::try_from(outcome.status).map_or(ExitCode::FAILURE, ExitCode::from))
}
