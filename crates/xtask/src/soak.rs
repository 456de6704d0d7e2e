//! `cargo xtask soak`: what `cargo xtask test` runs for seconds, for as long as one likes, under a new seed each round.

use crate::cli::SoakOptions;
use crate::run::{cargo, run_tests};
use crate::setup;
use crate::test::fuzz;
use anyhow::{Context as _, Result, bail};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Something that finds more, the longer it runs.
#[derive(Debug)]
struct Soak {
    /// The name on the command line.
    name: &'static str,
    /// What it looks for.
    about: &'static str,
    /// The tests, as `cargo test` is told them.
    tests: &'static [&'static str],
    /// How much a round does, as the tests are told it.
    amount: &'static [(&'static str, &'static str)],
}

const SOAKS: &[Soak] = &[
    Soak {
        name: "blkmq",
        about: "the block layer against its model, with threads and without",
        tests: &["-p", "blockyard-blkmq", "--test", "it"],
        amount: &[("BLOCKYARD_RUNS", "200")],
    },
    Soak {
        name: "file",
        about: "the file driver against its model, and on a file system that loses what was not synced",
        tests: &["-p", "blockyard-driver-file", "--test", "model", "--test", "durability"],
        amount: &[],
    },
    Soak {
        name: "durable",
        about: "disks that forget what was not flushed, by themselves and behind an NBD server",
        tests: &["-p", "blockyard-conformance", "--test", "durable"],
        amount: &[],
    },
    Soak {
        name: "vhost-user-blk",
        about: "a guest's flushes and durable writes on a disk that forgets the rest",
        tests: &["-p", "blockyard-export-vhost-user-blk", "--test", "durable"],
        amount: &[],
    },
    Soak {
        name: "fuse",
        about: "what was synchronised to a disk that is a file, in power cuts",
        tests: &[
            "-p",
            "blockyard-export-fuse",
            "--test",
            "disks",
            "what_was_synchronised_survives_a_power_cut",
        ],
        amount: &[],
    },
    Soak {
        name: "changes",
        about: "disks that do not answer, added, changed and removed beside verified loads",
        tests: &["-p", "blockyard", "--test", "api", "bystanders"],
        amount: &[("BLOCKYARD_RUNS", "20")],
    },
    Soak {
        name: "copy",
        about: "a copy that is killed, and its target's server with it, at any time",
        tests: &["-p", "blockyard", "--test", "copy_crashes"],
        amount: &[],
    },
    Soak {
        name: "nbd",
        about: "the NBD driver on a network and a server that fail at every point",
        tests: &["-p", "blockyard-driver-nbd", "--lib", "simulation"],
        amount: &[("BLOCKYARD_RUNS", "1000")],
    },
    Soak {
        name: "nbd-server",
        about: "the NBD server with clients that are slow, die, break the protocol and want too much",
        tests: &["-p", "blockyard-export-nbd", "--test", "simulation"],
        amount: &[("BLOCKYARD_RUNS", "1000")],
    },
    Soak {
        name: "crush",
        about: "placement by random maps, against crushtool",
        tests: &["-p", "blockyard-crush", "--test", "crushtool"],
        amount: &[("BLOCKYARD_CRUSH_MAPS", "500")],
    },
    Soak {
        name: "rados",
        about: "the objecter in a simulated cluster that fails at every point",
        tests: &["-p", "blockyard-rados", "--test", "simulation"],
        amount: &[("BLOCKYARD_SEEDS", "1000")],
    },
    Soak {
        name: "object-store",
        about: "the store of objects in a directory, whose power is cut at every point",
        tests: &["-p", "blockyard-rbd", "--lib", "survives_a_power_cut"],
        amount: &[("BLOCKYARD_SEEDS", "10000")],
    },
    Soak {
        name: "images",
        about: "RBD images and clones against their model",
        tests: &["-p", "blockyard-rbd", "--lib", "what_the_model_says"],
        amount: &[("BLOCKYARD_SEEDS", "2000")],
    },
    Soak {
        name: "ceph",
        about: "a real cluster whose daemons are killed under a verified load",
        tests: &["-p", "blockyard-rados", "--test", "cluster_faults"],
        amount: &[],
    },
];
/// The fuzz targets, which are no tests of cargo's.
const FUZZ: &str = "fuzz";
/// How long each fuzz target runs in a round.
const FUZZ_SECONDS: u64 = 60;
/// And all of them.
const FUZZ_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Runs what was chosen, round after round, until the time is over. A round that has begun comes to its end.
///
/// # Errors
/// Nothing of a name exists, or something was found: the error says how to see it again.
pub fn run(options: &SoakOptions) -> Result<()> {
    if options.list {
        for soak in SOAKS {
            println!("{:<15} {}", soak.name, soak.about);
        }
        println!("{FUZZ:<15} every parser on random input");
        return Ok(());
    }
    let chosen = |name: &str| options.names.is_empty() || options.names.iter().any(|it| it == name);
    let is_known = |name: &String| name == FUZZ || SOAKS.iter().any(|soak| soak.name == name);
    if let Some(unknown) = options.names.iter().find(|name| !is_known(name)) {
        bail!("no soak test `{unknown}`; list them: cargo xtask soak --list");
    }
    let tools = setup::ensure()?;
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    for round in 1.. {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
        for soak in SOAKS.iter().filter(|soak| chosen(soak.name)) {
            println!("\n== round {round}, {}: BLOCKYARD_SEED={seed}", soak.name);
            run_tests(tools.apply(&mut soak.command(seed)))
                .with_context(|| soak.seen_again(seed))?;
        }
        if chosen(FUZZ) {
            fuzz::run_all(&tools, FUZZ_SECONDS, Instant::now() + FUZZ_LIMIT)?;
        }
        if Instant::now() > end {
            println!("\nnothing was found in {round} rounds");
            break;
        }
    }
    Ok(())
}

impl Soak {
    fn command(&self, seed: u32) -> Command {
        let mut command = cargo(["test", "--release"]);
        command.args(self.tests).env("BLOCKYARD_SEED", seed.to_string());
        command.envs(self.amount.iter().copied());
        command
    }

    fn seen_again(&self, seed: u32) -> String {
        let amount: String =
            self.amount.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        let tests = self.tests.join(" ");
        format!(
            "to see it again: BLOCKYARD_SEED={seed} {amount}cargo test --release {tests} (a seed that the \
             output names is quicker)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_can_be_seen_again() {
        let soak = SOAKS.iter().find(|soak| soak.name == "rados").unwrap();
        let line = soak.seen_again(7);
        assert!(line.contains("BLOCKYARD_SEED=7 BLOCKYARD_SEEDS=1000 cargo test"), "{line}");
        let told = soak.command(7);
        let env: Vec<_> = told.get_envs().map(|(name, _)| name.to_string_lossy()).collect();
        assert_eq!(env, ["BLOCKYARD_SEED", "BLOCKYARD_SEEDS"]);
    }

    #[test]
    fn an_unknown_soak_is_refused() {
        let options = SoakOptions { names: vec!["rado".to_owned()], list: false, minutes: 1 };
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains("`rado`") && error.contains("--list"), "{error}");
    }
}
