//! The `blockyard` command.
#![forbid(unsafe_code)]
fn main() {}
