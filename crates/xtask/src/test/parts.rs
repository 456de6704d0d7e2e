//! The parts of a full check.
//!
//! The tests run by `cargo test`: it is there wherever cargo is, while a runner of tests would have to be built
//! first on a fresh machine, which takes longer than it saves.

use super::fuzz;
use crate::paths;
use crate::run::{cargo, run, run_tests};
use crate::setup::Tools;
use crate::static_program;
use anyhow::{Context as _, Result, bail};
use cargo_metadata::{MetadataCommand, Package};
use std::process::Command;

/// The name of the part that prepares the machine for the others.
pub(super) const SETUP: &str = "setup";

/// What the parts are given.
pub(super) struct Context {
    /// What setup found; `None` if it did not run or failed.
    pub tools: Option<Tools>,
    /// How long each fuzz target runs.
    pub fuzz_seconds: u64,
    /// Arguments for the tests of the command.
    pub args: Vec<String>,
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
    part(
        "build",
        "everything builds: tests for debugging, the command optimised and for guests",
        true,
        build,
    ),
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
    part("lab", "the command in guests with a kernel of their own", true, lab),
    part("fuzz", "a short run of every fuzz target from its corpus", true, fuzz),
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
/// The profile that the command is tested in: optimised, and linked without optimising anew.
const QUICK: &str = "quick";
/// Tests of the command that run in a laboratory: those in a file or folder of this name, or of a name that
/// goes on with `_`.
const LABS: &[&str] = &["vm", "ceph"];

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
        "--profile",
        QUICK,
        "--test",
        "*",
        "--no-run",
        "--quiet",
    ])))?;
    static_program::build(tools).map(drop)
}

fn fuzz(context: &Context) -> Result<()> {
    fuzz::run_all(context.tools()?, context.fuzz_seconds)
}

fn tidy(_: &Context) -> Result<()> {
    run_tests(&mut cargo(["test", "-p", "xtask", "--test", "tidy"]))
}

fn unit(context: &Context) -> Result<()> {
    let tools = context.tools()?;
    let mut of_xtask = cargo(["test", "-p", "xtask", "--lib", "--bins"]);
    let mut of_crates = cargo(["test", "--workspace", "--exclude", "xtask", "--exclude", COMMAND]);
    of_crates.args(["--tests", "--no-fail-fast"]);
    let mut of_command = cargo(["test", "-p", COMMAND, "--lib", "--bins"]);
    run_tests(tools.apply(&mut of_xtask))?;
    run_tests(tools.apply(&mut of_crates))?;
    run_tests(tools.apply(&mut of_command))
}

fn doc(_: &Context) -> Result<()> {
    run_tests(&mut cargo(["test", "--workspace", "--doc"]))?;
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
        let mut test = cargo(["test", "-p", name, "--all-features", "--lib", "--bins"]);
        // What the command does without them is tested end to end already.
        let is_chosen: fn(&str) -> bool =
            if name == COMMAND { sees_features } else { |name| !runs_in_a_lab(name) };
        test.args(chosen_tests(package, is_chosen));
        run_tests(tools.apply(&mut test))?;
    }
    Ok(())
}

/// Tests of the command that see its features.
fn sees_features(name: &str) -> bool {
    name == "psk"
}

fn has_optional_features(package: &Package) -> bool {
    package.features.keys().any(|feature| feature != "default")
}

fn e2e(context: &Context) -> Result<()> {
    run_tests(&mut command_tests(context, |name| !runs_in_a_lab(name))?)
}

/// One guest at a time: each keeps a processor busy, and its server another.
fn lab(context: &Context) -> Result<()> {
    let program = static_program::build(context.tools()?)?;
    let mut tests = command_tests(context, runs_in_a_lab)?;
    run_tests(tests.arg("--test-threads=1").env("BLOCKYARD_STATIC", program))
}

/// The integration tests of the command with these names, optimised.
fn command_tests(context: &Context, is_chosen: fn(&str) -> bool) -> Result<Command> {
    let metadata = MetadataCommand::new().current_dir(paths::root()).no_deps().exec()?;
    let mut packages = metadata.packages.iter();
    let package = packages.find(|package| package.name.as_str() == COMMAND);
    let tests = chosen_tests(package.context("the command has no package")?, is_chosen);
    if tests.is_empty() {
        bail!("crates/{COMMAND}/tests holds no such test of the command");
    }
    let mut command = cargo(["test", "-p", COMMAND, "--profile", QUICK, "--no-fail-fast"]);
    context.tools()?.apply(&mut command).args(tests).arg("--").args(&context.args);
    Ok(command)
}

/// `--test NAME` for each integration test that is chosen.
fn chosen_tests(package: &Package, is_chosen: fn(&str) -> bool) -> Vec<&str> {
    let tests = package.targets.iter().filter(|target| target.is_test() && is_chosen(&target.name));
    tests.flat_map(|target| ["--test", target.name.as_str()]).collect()
}

fn runs_in_a_lab(name: &str) -> bool {
    LABS.contains(&name.split_once('_').map_or(name, |(lab, _)| lab))
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

    #[test]
    fn tests_in_a_lab_are_told_by_their_names() {
        assert!(["vm", "vm_attach", "ceph_images"].into_iter().all(runs_in_a_lab));
        assert!(!["serving", "vms", "up"].into_iter().any(runs_in_a_lab));
    }
}
