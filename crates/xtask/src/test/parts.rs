//! The parts of a full check.
//!
//! The tests run by `cargo test`: it is there wherever cargo is, while a runner of tests would have to be built
//! first on a fresh machine, which takes longer than it saves.

use super::fuzz;
use crate::paths;
use crate::run::{cargo, run};
use crate::setup::Tools;
use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand, Package};

/// The name of the part that prepares the machine for the others.
pub(super) const SETUP: &str = "setup";

/// What the parts are given.
pub(super) struct Context {
    /// What setup found; `None` if it did not run or failed.
    pub tools: Option<Tools>,
    /// How long each fuzz target runs.
    pub fuzz_seconds: u64,
}

impl Context {
    /// The tools, for a part that cannot do without.
    pub(super) fn tools(&self) -> Result<&Tools> {
        self.tools.as_ref().context("setup failed, and this part needs what it installs")
    }
}

/// One part.
#[derive(Debug)]
pub(super) struct Part {
    /// The name on the command line.
    pub name: &'static str,
    /// What it checks.
    pub about: &'static str,
    /// Whether it needs more than a Rust toolchain.
    pub needs_setup: bool,
    /// Runs it.
    pub run: fn(&Context) -> Result<()>,
}

/// All parts, in the order in which they run: what fails quickest comes first.
pub(super) const PARTS: &[Part] = &[
    part(SETUP, "the peers and tools that the other parts need are installed", true, |_| Ok(())),
    part("fmt", "the sources are formatted", false, fmt),
    part("clippy", "no lint has anything to say", true, clippy),
    part("build", "everything builds: tests for debugging, the command for release", true, build),
    part("tidy", "the rules of the house: dependencies, licences, sizes, words", false, tidy),
    part("unit", "tests of the crates", true, unit),
    part("doc", "examples in the documentation run, its links lead somewhere", false, doc),
    part(
        "features",
        "crates with optional features: lints and tests with all of them",
        true,
        features,
    ),
    part("e2e", "the command against its peers", true, e2e),
    part("fuzz", "a short run of every fuzz target from its corpus", true, fuzz::run_all),
];

const fn part(
    name: &'static str,
    about: &'static str,
    needs_setup: bool,
    run: fn(&Context) -> Result<()>,
) -> Part {
    Part { name, about, needs_setup, run }
}

const COMMAND: &str = "blockyard";

fn fmt(_: &Context) -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    run(&mut cargo(["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"]))
}

fn clippy(context: &Context) -> Result<()> {
    let mut command = cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    run(context.tools()?.apply(&mut command))
}

fn build(context: &Context) -> Result<()> {
    let tools = context.tools()?;
    run(tools.apply(&mut cargo([
        "test",
        "--workspace",
        "--exclude",
        COMMAND,
        "--tests",
        "--no-run",
        "--quiet",
    ])))?;
    run(tools.apply(&mut cargo(["test", "-p", COMMAND, "--lib", "--bins", "--no-run", "--quiet"])))?;
    run(tools.apply(&mut cargo([
        "test",
        "-p",
        COMMAND,
        "--release",
        "--test",
        "*",
        "--no-run",
        "--quiet",
    ])))
}

fn tidy(_: &Context) -> Result<()> {
    run(&mut cargo(["test", "-p", "xtask", "--test", "tidy"]))
}

fn unit(context: &Context) -> Result<()> {
    let tools = context.tools()?;
    let others = ["test", "--workspace", "--exclude", "xtask", "--exclude", COMMAND, "--tests"];
    run(tools.apply(&mut cargo(["test", "-p", "xtask", "--lib", "--bins"])))?;
    run(tools.apply(&mut cargo(others)))?;
    run(tools.apply(&mut cargo(["test", "-p", COMMAND, "--lib", "--bins"])))
}

fn doc(_: &Context) -> Result<()> {
    run(&mut cargo(["test", "--workspace", "--doc"]))?;
    run(cargo(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn features(context: &Context) -> Result<()> {
    let tools = context.tools()?;
    let metadata = MetadataCommand::new().current_dir(paths::root()).no_deps().exec()?;
    let packages: Vec<_> =
        metadata.packages.iter().filter(|package| has_optional_features(package)).collect();
    println!("{} crates have optional features", packages.len());
    for package in packages {
        let name = package.name.as_str();
        let lint =
            ["clippy", "-p", name, "--all-targets", "--all-features", "--", "-D", "warnings"];
        run(tools.apply(&mut cargo(lint)))?;
        let mut test = cargo(["test", "-p", name, "--all-features"]);
        run(tools.apply(&mut test))?;
    }
    Ok(())
}

fn has_optional_features(package: &Package) -> bool {
    package.features.keys().any(|feature| feature != "default")
}

fn e2e(context: &Context) -> Result<()> {
    let metadata = MetadataCommand::new().current_dir(paths::root()).no_deps().exec()?;
    if !has_integration_tests(&metadata) {
        bail!("crates/{COMMAND}/tests holds no test of the command");
    }
    let tools = context.tools()?;
    run(tools.apply(&mut cargo(["test", "-p", COMMAND, "--release", "--test", "*"])))
}

fn has_integration_tests(metadata: &Metadata) -> bool {
    let command = metadata.packages.iter().filter(|package| package.name.as_str() == COMMAND);
    command.flat_map(|package| &package.targets).any(cargo_metadata::Target::is_test)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_part_has_a_name_of_its_own() {
        let names: HashSet<_> = PARTS.iter().map(|part| part.name).collect();
        assert_eq!(names.len(), PARTS.len());
    }
}
