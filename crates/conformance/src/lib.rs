//! One suite that every driver and front-end runs.
#![forbid(unsafe_code)]
