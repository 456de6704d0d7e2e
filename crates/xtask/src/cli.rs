//! The command line, as it was typed.

use crate::lab::Lab;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;

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
    #[command(disable_help_flag = true)]
    Bench {
        /// What the program `bench` is given; --help says what it takes
        #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
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
