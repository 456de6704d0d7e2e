//! The command line, as it was typed.

use clap::Parser;

/// Measures us and our peers side by side in one run.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
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
    /// The profile that our own programs are built in
    #[arg(long, value_name = "NAME", default_value = "release")]
    pub profile: String,
    /// Print one JSON object a case instead of tables
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        BenchOptions::command().debug_assert();
    }
}
