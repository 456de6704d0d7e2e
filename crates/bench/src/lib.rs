//! `cargo xtask bench`: us and our peers, measured in turn in the same run.
//!
//! Figures of a shared machine wander by tens of percents within minutes, so none is compared with one of
//! another run: a case runs every contender once a round, in an order that turns with the round, and compares
//! the medians of the rounds.
//!
//! To add a benchmark, write a file with a function that returns its cases (`Case`: contenders, each with a
//! function that measures it once, and targets), and add a line to `BENCHES`. What is common is in `servers`,
//! `fio` and `process`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command for a terminal: stdout is where its results go")]

mod blkmq;
pub mod cli;
mod copy;
mod crush;
mod fio;
mod fuse;
mod idle;
mod measure;
mod nbd;
mod nbd_client;
mod nbd_file;
mod nbd_light;
mod process;
mod rados;
mod report;
mod servers;
mod vhost_user_blk;

use crate::cli::BenchOptions;
use anyhow::{Context as _, Result, bail};
use measure::{Case, Measured};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use xtask::paths;
use xtask::run::{capture, cargo};
use xtask::setup::Tools;

/// One benchmark.
struct Bench {
    /// The name on the command line, and of the file with its results.
    name: &'static str,
    /// What it measures.
    about: &'static str,
    /// What has to be built: packages and their programs.
    programs: &'static [(&'static str, &'static str)],
    /// Its cases.
    cases: fn(&Context) -> Vec<Case>,
}

const BLOCKYARD: (&str, &str) = ("blockyard", "blockyard");
const CEILING: (&str, &str) = ("blockyard-bench", "ceiling");
const VHOST_USER_LOAD: (&str, &str) =
    ("blockyard-export-vhost-user-blk", "examples/vhost_user_load");

const BENCHES: &[Bench] = &[
    Bench {
        name: "nbd",
        about: "NBD servers on memory, loaded by fio",
        programs: &[BLOCKYARD],
        cases: nbd::cases,
    },
    Bench {
        name: "nbd-file",
        about: "NBD servers on a cached file, loaded by fio and nbdcopy",
        programs: &[BLOCKYARD],
        cases: nbd_file::cases,
    },
    Bench {
        name: "nbd-light",
        about: "NBD servers on memory, loaded by `blockyard bench`, and the bare socket",
        programs: &[BLOCKYARD, CEILING],
        cases: nbd_light::cases,
    },
    Bench {
        name: "nbd-client",
        about: "our NBD driver beside libnbd, and a proxy beside its upstream",
        programs: &[BLOCKYARD],
        cases: nbd_client::cases,
    },
    Bench {
        name: "copy",
        about: "copying disks, beside nbdcopy, qemu-img and cp",
        programs: &[BLOCKYARD],
        cases: copy::cases,
    },
    Bench {
        name: "vhost-user-blk",
        about: "disks of virtual machines, beside qemu-storage-daemon",
        programs: &[BLOCKYARD, VHOST_USER_LOAD],
        cases: vhost_user_blk::cases,
    },
    Bench {
        name: "fuse",
        about: "disks as files, beside qemu-storage-daemon",
        programs: &[BLOCKYARD],
        cases: fuse::cases,
    },
    Bench {
        name: "idle",
        about: "starting, and then doing nothing",
        programs: &[BLOCKYARD],
        cases: idle::cases,
    },
    Bench {
        name: "blkmq",
        about: "the block layer on its own",
        programs: &[],
        cases: blkmq::cases,
    },
    Bench {
        name: "crush",
        about: "CRUSH placement, and Ceph's crushtool in turn",
        programs: &[],
        cases: crush::cases,
    },
    Bench {
        name: "rados",
        about: "our RADOS client beside librados, on a Ceph cluster on loopback",
        programs: &[BLOCKYARD],
        cases: rados::cases,
    },
];

/// What a benchmark is given.
pub(crate) struct Context {
    tools: Tools,
    /// How long one measurement loads a server.
    seconds: u64,
    /// Whether peers that no target names are measured.
    all_peers: bool,
    /// The profile that our own programs are built in.
    profile: String,
}

impl Context {
    /// A command in the environment of the benchmarks.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        self.tools.apply(&mut command);
        command
    }

    /// A program of the newest QEMU that setup has brought.
    fn qemu(&self, program: &str) -> Command {
        self.command(self.tools.qemu_modern().join(program))
    }

    /// What is measured, for whoever reads the results later: the versions of the peers that are here, and our program, if
    /// it is not of this tree.
    fn versions(&self) -> Value {
        let peers = ["nbdkit", "nbdcopy", "fio"].map(|name| (name, self.command(name)));
        let qemu = ["qemu-storage-daemon", "qemu-nbd"].map(|name| (name, self.qemu(name)));
        let versions = peers.into_iter().chain(qemu).filter_map(|(name, mut command)| {
            let said = capture(command.arg("--version")).ok()?;
            Some((name.to_owned(), said.lines().next()?.into()))
        });
        let ours =
            std::env::var("BLOCKYARD_BIN").ok().map(|bin| ("BLOCKYARD_BIN".to_owned(), bin.into()));
        Value::Object(versions.chain(ours).collect())
    }

    /// Our own command, as it was built, or the one that `BLOCKYARD_BIN` names.
    fn blockyard(&self) -> Command {
        self.command(named_program().unwrap_or_else(|| self.built(BLOCKYARD.1)))
    }

    /// A program that was built, or an example.
    fn built(&self, program: &str) -> PathBuf {
        paths::target().join(&self.profile).join(program)
    }

    /// Builds a program, or an example; what cargo says goes to stderr, so that stdout holds results only.
    fn build(&self, package: &str, program: &str) -> Result<()> {
        if program == BLOCKYARD.1 && named_program().is_some() {
            return Ok(());
        }
        let (kind, name) = program
            .strip_prefix("examples/")
            .map_or(("--bin", program), |name| ("--example", name));
        let args = ["build", "--profile", &self.profile, "--quiet", "-p", package, kind, name];
        if !cargo(args).status()?.success() {
            bail!("{program} of {package} does not build");
        }
        Ok(())
    }
}

/// The program that is measured instead of the one of this tree.
fn named_program() -> Option<PathBuf> {
    std::env::var_os("BLOCKYARD_BIN").map(PathBuf::from)
}

/// Runs the benchmarks that were asked for, prints what came out, and appends it to `target/bench/NAME.jsonl`.
/// A missed target is shown, but is no failure.
///
/// # Errors
/// A benchmark is named that does not exist, something cannot be built, started or measured, or a result cannot
/// be written.
pub fn run(options: &BenchOptions) -> Result<()> {
    if options.list {
        for bench in BENCHES {
            println!("{:<14} {}", bench.name, bench.about);
        }
        return Ok(());
    }
    let chosen = choose(&options.names)?;
    let context = Context {
        tools: xtask::setup::ensure()?,
        seconds: options.seconds,
        all_peers: options.all_peers,
        profile: options.profile.clone(),
    };
    let versions = context.versions();
    for bench in chosen {
        for (package, program) in bench.programs {
            context.build(package, program)?;
        }
        let cases = (bench.cases)(&context);
        let is_chosen = |case: &Case| {
            options.case.as_ref().is_none_or(|text| case.name.contains(text.as_str()))
        };
        for case in cases.iter().filter(|case| is_chosen(case)) {
            let measured = measure(case, &context, options.rounds)
                .with_context(|| format!("the benchmark {}, case {}", bench.name, case.name))?;
            let mut record = report::record(bench.name, case, &measured, options);
            record["versions"] = versions.clone();
            report::append(bench.name, &record)?;
            if options.json {
                println!("{record}");
            } else {
                print!("{}", report::table(bench.name, case, &measured));
            }
        }
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<&'static Bench>> {
    if let Some(unknown) =
        names.iter().find(|name| BENCHES.iter().all(|bench| bench.name != name.as_str()))
    {
        let known: Vec<_> = BENCHES.iter().map(|bench| bench.name).collect();
        bail!("no benchmark `{unknown}`; supported: {}", known.join(" "));
    }
    Ok(BENCHES
        .iter()
        .filter(|bench| names.is_empty() || names.iter().any(|name| name == bench.name))
        .collect())
}

/// Measures every contender once a round, each round starting with another one.
fn measure(case: &Case, context: &Context, rounds: u32) -> Result<Vec<Measured>> {
    let mut measured: Vec<_> =
        case.contenders.iter().map(|contender| Measured::of(contender.name)).collect();
    for round in 0..rounds as usize {
        for turn in 0..case.contenders.len() {
            let index = (round + turn) % case.contenders.len();
            let contender = &case.contenders[index];
            let sample = (contender.measure)(context)
                .with_context(|| format!("measuring {}", contender.name))?;
            measured[index].add(&sample);
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_benchmark_is_refused_with_the_known_ones() {
        let error =
            choose(&["nbdd".to_owned()]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("`nbdd`") && error.contains("nbd-light"), "{error}");
        assert_eq!(choose(&[]).map(|all| all.len()).unwrap_or_default(), BENCHES.len());
    }
}
