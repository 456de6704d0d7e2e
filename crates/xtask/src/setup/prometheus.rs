//! Prometheus in a private root: a package that is installed starts a server, and it stays.

use super::private_root::PrivateRoot;
use crate::paths;
use crate::run::succeeds;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

const PROGRAMS: &[&str] = &["prometheus", "promtool"];

/// The directory of its programs, which are fetched if they are not there.
pub(super) fn ensure() -> Result<PathBuf> {
    let private = paths::tools().join("prometheus");
    let programs = private.join("bin");
    let answers =
        || PROGRAMS.iter().all(|name| succeeds(Command::new(programs.join(name)).arg("--version")));
    if answers() {
        return Ok(programs);
    }
    eprintln!("setup: fetching Prometheus, which collects metrics in a test");
    let fetch = || {
        let root = PrivateRoot::create(&private)?;
        root.fetch(&[], &["prometheus"])?;
        PROGRAMS.iter().try_for_each(|program| root.write_wrapper(program, &[]))?;
        root.finish()
    };
    fetch().context("cannot fetch Prometheus")?;
    if !answers() {
        bail!("Prometheus does not run; remove {} and try again", private.display());
    }
    Ok(programs)
}
