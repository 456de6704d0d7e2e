//! The library behind the `blockyard` command.
#![forbid(unsafe_code)]
