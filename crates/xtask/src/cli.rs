//! The command line, as it was typed.

use clap::{Parser, Subcommand};

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
