//! What a person or CI runs: `cargo xtask setup`, `cargo xtask test`, `cargo xtask soak`, `cargo xtask lab`; and
//! `cargo xtask bench`, which is in a crate of its own.
//!
//! - [`setup`] brings the machine to the state that the tests need: one table of packages, one of cargo's
//!   tools.
//! - [`test`](mod@test) runs the parts of a full check in order, and sums them up.
//! - [`soak`](mod@soak) runs what finds more the longer it runs.
//! - [`lab`](mod@lab) starts what the tests run against, for trying things by hand.
//! - [`job`] is a command with a limit, whose failure is told briefly; [`side_by_side`] runs several at a time.
//! - [`child`] starts servers, and ends those that it started, however its owner leaves.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command for a terminal: stdout is where its results go")]

pub mod child;
pub mod cli;
pub mod job;
pub mod lab;
pub mod paths;
mod places;
mod processes;
pub mod run;
pub mod setup;
pub mod side_by_side;
pub mod soak;
pub mod static_program;
pub mod test;
pub mod verdict;
