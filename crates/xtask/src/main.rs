//! The `cargo xtask` command.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;
use xtask::cli::{Command, Xtask};
use xtask::run::cargo;
use xtask::{lab, setup, soak, test};

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
        Command::Bench { args } => bench(&args),
        Command::Soak(options) => soak::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Lab { lab } => lab::run(lab.as_ref()),
    }
}

/// The benchmarks are a crate of their own, which nothing else has to wait for.
fn bench(args: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut command =
        cargo(["run", "--quiet", "--package", "blockyard-bench", "--bin", "bench", "--"]);
    let status = command.args(args).status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
