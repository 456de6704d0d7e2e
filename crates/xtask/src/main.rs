//! The `cargo xtask` command.
#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use xtask::cli::{Command, Xtask};
use xtask::{bench, lab, setup, soak, test};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    match Xtask::parse().command {
        Command::Setup => setup::ensure().map(|_| ExitCode::SUCCESS),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Soak(options) => soak::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Lab { lab } => lab::run(lab.as_ref()),
    }
}
