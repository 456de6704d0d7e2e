//! The program behind `cargo xtask bench`.
#![forbid(unsafe_code)]

use blockyard_bench::cli::BenchOptions;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match blockyard_bench::run(&BenchOptions::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
