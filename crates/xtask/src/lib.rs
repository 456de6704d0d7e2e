//! What a person or CI runs: `cargo xtask setup`, `cargo xtask test`, `cargo xtask bench`.
//!
//! - [`child`] starts servers, and ends those that it started, however its owner leaves.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command for a terminal: stdout is where its results go")]

pub mod child;
pub mod paths;
pub mod run;
