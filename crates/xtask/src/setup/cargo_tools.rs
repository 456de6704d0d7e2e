//! The parts of the toolchain, and programs from crates.io, that the tests need.

use crate::run::{cargo, run, succeeds};
use anyhow::{Context, Result};
use std::process::Command;

/// Each component of the toolchain with the cargo command that it brings.
const COMPONENTS: &[(&str, &str)] = &[("rustfmt", "fmt"), ("clippy", "clippy")];
/// Each package of crates.io with the cargo command that it brings.
const PROGRAMS: &[(&str, &str)] = &[("cargo-fuzz", "fuzz")];

/// Installs what is missing.
pub(super) fn ensure() -> Result<()> {
    for (component, command) in COMPONENTS {
        if !succeeds(&mut cargo([command, "--version"])) {
            run(Command::new("rustup").args(["component", "add", component])).with_context(
                || format!("`cargo {command}` is missing; install {component} of your toolchain"),
            )?;
        }
    }
    for (program, command) in PROGRAMS {
        if !succeeds(&mut cargo([command, "--version"])) {
            run(&mut cargo(["install", "--locked", program])).with_context(|| {
                format!("`cargo {command}` is missing; run: cargo install {program}")
            })?;
        }
    }
    Ok(())
}
