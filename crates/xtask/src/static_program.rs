//! The command without shared libraries, for guests that have none.

use crate::paths;
use crate::run::{capture, cargo, run};
use crate::setup::Tools;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// The profile of the build: what a guest takes along is to be small and soon ready; emulation is slower than any code.
const PROFILE: &str = "quick";

/// Builds `blockyard` and says where it is. A target that is named gets a directory of its own, so
/// that the other builds are not built anew.
///
/// # Errors
/// The compiler does not say what it builds for, or the build fails.
pub fn build(tools: &Tools) -> Result<PathBuf> {
    let target = host_target()?;
    let mut command = cargo(["build", "--quiet", "--profile", PROFILE, "--package", "blockyard"]);
    command.args(["--bin", "blockyard", "--target", &target]);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(tools.apply(&mut command))?;
    Ok(paths::target().join(target).join(PROFILE).join("blockyard"))
}

/// The target that the compiler builds for by itself.
///
/// # Errors
/// It cannot be asked, or does not say.
pub fn host_target() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = capture(Command::new(rustc).arg("-vV"))?;
    let target = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(target.context("rustc -vV names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_this_machine() {
        assert!(host_target().unwrap().starts_with(std::env::consts::ARCH));
    }
}
