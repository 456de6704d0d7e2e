//! The NBD protocol, both roles, without I/O.
#![forbid(unsafe_code)]
