//! The parts of the toolchain, and programs from crates.io, that the tests need.

use crate::run::{cargo, run, succeeds};
use anyhow::{Context, Result};
use std::process::Command;

/// Each component of the toolchain with the cargo command that it brings.
const COMPONENTS: &[(&str, &str)] = &[("rustfmt", "fmt"), ("clippy", "clippy")];
/// Each package of crates.io with its version, and the cargo command that it brings.
const PROGRAMS: &[(&str, &str, &str)] = &[("cargo-fuzz", "0.13.2", "fuzz")];

/// Installs what is missing.
pub(super) fn ensure() -> Result<()> {
    for (component, command) in COMPONENTS {
        if !succeeds(&mut cargo([command, "--version"])) {
            run(Command::new("rustup").args(["component", "add", component])).with_context(
                || format!("`cargo {command}` is missing; install {component} of your toolchain"),
            )?;
        }
    }
    for (program, version, command) in PROGRAMS {
        if !succeeds(&mut cargo([command, "--version"])) {
            run(&mut cargo(["install", "--locked", "--version", version, program])).with_context(
                || format!("`cargo {command}` is missing; run: cargo install {program}"),
            )?;
        }
    }
    Ok(())
}
