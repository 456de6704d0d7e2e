//! The command line, as it was typed.

use crate::lab::Lab;
use clap::{Args, Parser, Subcommand};

/// Sets a machine up for Blockyard, tests all of it, and measures it against its peers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub struct Xtask {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install what the tests and benchmarks need and check that it answers (as root; nothing to do takes under
    /// a second)
    Setup,
    /// Run every check that a change must pass, or one part of them
    Test(TestOptions),
    /// Measure us and our peers side by side in one run
    Bench(BenchOptions),
    /// Look for rare failures: simulations, models, fuzzing and a shaken cluster, round after round
    Soak(SoakOptions),
    /// Try things by hand in a laboratory of the tests, or list the laboratories
    Lab {
        /// The laboratory
        #[command(subcommand)]
        lab: Option<Lab>,
    },
}

/// Options of `cargo xtask test`.
#[derive(Args, Debug)]
pub struct TestOptions {
    /// Run only this part; may be given several times
    #[arg(long, value_name = "NAME")]
    pub part: Vec<String>,
    /// Say which parts there are, and run none
    #[arg(long)]
    pub list: bool,
    /// How long each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub fuzz_seconds: u64,
    /// Arguments for the tests of the parts e2e and lab, the name of a test for one
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<String>,
}

/// Options of `cargo xtask bench`.
#[derive(Args, Debug)]
pub struct BenchOptions {
    /// The benchmarks to run; all of them if none is named
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Say which benchmarks there are, and run none
    #[arg(long)]
    pub list: bool,
    /// Run only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub case: Option<String>,
    /// How often each case is measured on each server, in turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// How long one measurement loads a server
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// Also measure the peers that no target names (qemu-nbd)
    #[arg(long)]
    pub all_peers: bool,
    /// Print one JSON object a case instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Options of `cargo xtask soak`.
#[derive(Args, Debug)]
pub struct SoakOptions {
    /// What to run; all of it if nothing is named
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Say what there is, and run nothing
    #[arg(long)]
    pub list: bool,
    /// After how long no new round begins
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub minutes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Xtask::command().debug_assert();
    }
}
