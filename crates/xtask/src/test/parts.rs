//! The parts of a full check.
//!
//! All tests are built by one call of cargo, in one profile, and run from there. An optimised program is built once, without
//! shared libraries: guests take it along, and one test measures it.

use super::binaries::{self, Built, TestBinary};
use super::fuzz;
use crate::cli::TestOptions;
use crate::job::Job;
use crate::paths;
use crate::run::{cargo, run, run_tests};
use crate::setup::Tools;
use crate::side_by_side::{self, processors};
use crate::static_program;
use anyhow::{Context as _, Result, bail};
use cargo_metadata::{MetadataCommand, Package};
use std::cell::OnceCell;
use std::time::{Duration, Instant};

/// The name of the part that prepares the machine for the others.
pub(super) const SETUP: &str = "setup";
/// How long the whole run may take: longer, and CI would end it without a word of what it has found.
const TOTAL_LIMIT: Duration = Duration::from_secs(80 * 60);
/// Binaries that run beside one for each processor, as most tests wait for something.
const WAITING: usize = 1;
/// Guests at a time: each keeps a processor busy while it boots, and waits for its host after that.
const GUESTS: usize = 2;

/// What the parts are given.
pub(super) struct Context {
    /// What setup found; `None` if it did not run or failed.
    tools: Option<Tools>,
    /// How long each fuzz target runs.
    fuzz_seconds: u64,
    /// When all of it has to have come to its end.
    deadline: Instant,
    /// Arguments for the tests of the command.
    args: Vec<String>,
    packages: Vec<Package>,
    /// All test binaries, once they were built.
    built: OnceCell<Built>,
}

impl Context {
    /// # Errors
    /// Cargo cannot say what is in the workspace.
    pub(super) fn new(tools: Option<Tools>, options: &TestOptions) -> Result<Self> {
        let metadata = MetadataCommand::new().current_dir(paths::root()).no_deps().exec()?;
        Ok(Self {
            tools,
            fuzz_seconds: options.fuzz_seconds,
            deadline: Instant::now() + TOTAL_LIMIT,
            args: options.args.clone(),
            packages: metadata.packages,
            built: OnceCell::new(),
        })
    }

    /// The tools, for a part that cannot do without.
    fn tools(&self) -> Result<&Tools> {
        self.tools.as_ref().context("setup failed, and this part needs what it installs")
    }

    /// All tests of the workspace, and the programs that they run.
    fn built(&self) -> Result<&Built> {
        if let Some(built) = self.built.get() {
            return Ok(built);
        }
        let mut command = cargo(["test", "--workspace", "--tests"]);
        let built = binaries::build(self.tools()?.apply(&mut command), &self.packages)?;
        if let Some(orphan) = orphans(&self.packages, &built.tests).first() {
            bail!(
                "no part runs the tests {orphan}: their target needs a feature that they are not named after"
            );
        }
        Ok(self.built.get_or_init(|| built))
    }

    /// The chosen binaries, those that take longest first.
    fn chosen(&self, is_chosen: fn(&TestBinary) -> bool) -> Result<Vec<&TestBinary>> {
        let mut chosen: Vec<_> =
            self.built()?.tests.iter().filter(|binary| is_chosen(binary)).collect();
        chosen.sort_by_key(|binary| {
            SLOW.iter().position(|&slow| slow == binary.target).unwrap_or(SLOW.len())
        });
        Ok(chosen)
    }

    /// Runs tests, so many jobs at a time.
    fn run(&self, mut jobs: Vec<Job>, at_a_time: usize) -> Result<()> {
        for job in &mut jobs {
            self.tools()?.apply(&mut job.command);
        }
        let counts = side_by_side::run(jobs, at_a_time, self.deadline)?;
        if counts.passed == 0 {
            bail!("there are no such tests");
        }
        println!("{} tests passed", counts.passed);
        Ok(())
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

/// All parts, in the order in which they run: what fails quickest comes first. `features` builds another command in
/// place of the one that the tests before it run.
pub(super) const PARTS: &[Part] = &[
    part(SETUP, "the peers and tools that the other parts need are installed", true, |_| Ok(())),
    part("fmt", "the sources are formatted", false, fmt),
    part("clippy", "no lint has anything to say", true, clippy),
    part("build", "everything builds: the tests, and the optimised command", true, build),
    part("tidy", "the rules of the house: dependencies, licences, sizes, words", true, tidy),
    part("unit", "tests of the crates", true, unit),
    part("doc", "examples in the documentation run, its links lead somewhere", false, doc),
    part("e2e", "the command against its peers", true, e2e),
    part("lab", "the command in guests with a kernel of their own", true, lab),
    part(
        "features",
        "crates with optional features: lints and tests with all of them",
        true,
        features,
    ),
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
/// Binaries whose tests take longest: they are begun first, so that nothing has to wait for one of them alone.
const SLOW: &[&str] = &["cluster_faults", "model", "cluster_access", "simulation", "vm_attach"];
/// The tests that have a part of their own.
const TIDY: &str = "tidy";
/// Tests of the command that run in a laboratory: those in a file or folder of this name, or of a name that
/// goes on with `_`.
const LABS: &[&str] = &[VM, "ceph"];
const VM: &str = "vm";

fn fmt(_: &Context) -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    run(&mut cargo(["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"]))
}

fn clippy(context: &Context) -> Result<()> {
    let mut command = cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    run(context.tools()?.apply(&mut command))
}

fn build(context: &Context) -> Result<()> {
    println!("{} test binaries", context.built()?.tests.len());
    static_program::build(context.tools()?).map(drop)
}

fn fuzz(context: &Context) -> Result<()> {
    fuzz::run_all(context.tools()?, context.fuzz_seconds, context.deadline)
}

fn tidy(context: &Context) -> Result<()> {
    let program = context.built()?.program(COMMAND).context("there is no blockyard")?;
    let is_tidy = |binary: &TestBinary| binary.target == TIDY;
    let mut jobs: Vec<_> = context.chosen(is_tidy)?.iter().map(|binary| binary.job(&[])).collect();
    jobs.iter_mut().for_each(|job| _ = job.command.env("BLOCKYARD_PROGRAM", program));
    context.run(jobs, 1)
}

fn unit(context: &Context) -> Result<()> {
    let is_unit = |binary: &TestBinary| {
        !(binary.is_integration && (binary.package == COMMAND || binary.target == TIDY))
    };
    let jobs = context.chosen(is_unit)?.iter().map(|binary| binary.job(&[])).collect();
    context.run(jobs, processors() + WAITING)
}

/// With examples, the documentation is built from what clippy has checked. Without them cargo enables fewer features of
/// dependencies, and compiles a fifth of these again.
fn doc(_: &Context) -> Result<()> {
    run_tests(&mut cargo(["test", "--workspace", "--doc"]))?;
    let mut doc = cargo(["doc", "--workspace", "--no-deps", "--quiet"]);
    run(doc.args(["--lib", "--bins", "--examples"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Lints everything with all features, and runs the unit tests of the crates that have features, and the tests named after one.
/// The whole workspace is built: each selection of packages enables other features of dependencies, and compiles these again.
fn features(context: &Context) -> Result<()> {
    let tools = context.tools()?;
    let mut lint = cargo(["clippy", "--workspace", "--all-targets", "--all-features"]);
    run(tools.apply(lint.args(["--", "-D", "warnings"])))?;
    let packages: Vec<_> = context.packages.iter().filter(|it| has_optional_features(it)).collect();
    let mut test = cargo(["test", "--workspace", "--all-features", "--lib"]);
    for feature in packages.iter().flat_map(|package| about_features(package)) {
        test.args(["--test", feature]);
    }
    let built = binaries::build(tools.apply(&mut test), &context.packages)?;
    let is_chosen =
        |binary: &&TestBinary| packages.iter().any(|it| it.name.as_str() == binary.package);
    let jobs = built.tests.iter().filter(is_chosen).map(|binary| binary.job(&[])).collect();
    context.run(jobs, processors() + WAITING)
}

fn has_optional_features(package: &Package) -> bool {
    package.features.keys().any(|feature| feature != "default")
}

/// The integration tests that are named as a feature is.
fn about_features(package: &Package) -> impl Iterator<Item = &str> {
    let tests = package.targets.iter().filter(|target| target.is_test());
    tests.map(|target| target.name.as_str()).filter(|name| package.features.contains_key(*name))
}

/// The integration tests that were not built, and are not run by `features` either.
fn orphans(packages: &[Package], built: &[TestBinary]) -> Vec<String> {
    let tests = packages.iter().flat_map(|package| {
        let tests = package.targets.iter().filter(|target| target.is_test());
        tests.map(move |target| (package, target.name.as_str()))
    });
    let is_run = |package: &Package, name: &str| {
        let is_built = |it: &TestBinary| it.package == package.name.as_str() && it.target == name;
        built.iter().any(is_built) || about_features(package).any(|it| it == name)
    };
    let orphans = tests.filter(|&(package, name)| !is_run(package, name));
    orphans.map(|(package, name)| format!("{} {name}", package.name)).collect()
}

fn e2e(context: &Context) -> Result<()> {
    let is_chosen = |binary: &TestBinary| is_of_command(binary) && !runs_in_a_lab(&binary.target);
    let chosen = context.chosen(is_chosen)?;
    let jobs = chosen.iter().map(|binary| binary.job(&context.args)).collect();
    context.run(with_static_program(context, jobs)?, processors() + WAITING)
}

/// A guest is a job of its own: one that hangs takes no other's result along. A cluster is shared by the tests of a binary.
fn lab(context: &Context) -> Result<()> {
    let is_chosen = |binary: &TestBinary| is_of_command(binary) && runs_in_a_lab(&binary.target);
    let mut jobs = Vec::new();
    for binary in context.chosen(is_chosen)? {
        if is_lab(&binary.target, VM) {
            jobs.extend(binary.jobs(&context.args)?);
        } else {
            jobs.push(binary.job(&context.args));
        }
    }
    context.run(with_static_program(context, jobs)?, GUESTS)
}

fn is_of_command(binary: &TestBinary) -> bool {
    binary.is_integration && binary.package == COMMAND
}

/// Integration tests of the command are told where the optimised one is.
fn with_static_program(context: &Context, mut jobs: Vec<Job>) -> Result<Vec<Job>> {
    let program = static_program::build(context.tools()?)?;
    jobs.iter_mut().for_each(|job| _ = job.command.env("BLOCKYARD_STATIC", &program));
    Ok(jobs)
}

fn runs_in_a_lab(name: &str) -> bool {
    LABS.iter().any(|lab| is_lab(name, lab))
}

fn is_lab(name: &str, lab: &str) -> bool {
    name.split_once('_').map_or(name, |(lab, _)| lab) == lab
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
    fn tests_that_nobody_runs_are_found() {
        let metadata = MetadataCommand::new().current_dir(paths::root()).no_deps().exec().unwrap();
        let orphans = orphans(&metadata.packages, &[]);
        let has = |name: &str| orphans.iter().any(|orphan| orphan == name);
        assert!(has("xtask tidy") && !has("blockyard psk"), "{orphans:?}");
    }

    #[test]
    fn tests_in_a_lab_are_told_by_their_names() {
        assert!(["vm", "vm_attach", "ceph_images"].into_iter().all(runs_in_a_lab));
        assert!(!["serving", "vms", "up"].into_iter().any(runs_in_a_lab));
    }
}
