//! Tests of the block layer from outside: a scripted driver below it, and models that say what must come of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::vec_box,
    unreachable_pub,
    reason = "tests"
)]

mod age;
mod bytes;
mod faults;
mod model;
mod order;
mod parity;
mod power_cuts;
mod regressions;
mod rig;
mod script;
mod sim;
mod stress;
mod throttle;
mod turns;
