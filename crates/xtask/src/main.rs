//! The `cargo xtask` command.
#![forbid(unsafe_code)]
fn main() {}
