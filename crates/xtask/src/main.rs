//! The `cargo xtask` command.
#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use xtask::cli::{Command, Xtask};
use xtask::{setup, test};

fn main() -> anyhow::Result<ExitCode> {
    match Xtask::parse().command {
        Command::Setup => setup::ensure().map(|_| ExitCode::SUCCESS),
        Command::Test(options) => test::run(&options),
    }
}
