//! The command line, as it was typed.

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
    /// Install what the tests and benchmarks need and check that it answers (as root; nothing to do takes under a second)
    Setup,
    /// Run every check that a change must pass, or one part of them
    Test(TestOptions),
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
