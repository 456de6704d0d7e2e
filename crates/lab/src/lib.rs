//! The laboratory: real kernels in virtual machines and real Ceph clusters on loopback, for tests and, by
//! `cargo xtask lab`, for trying things by hand.
//!
//! - [`vm`]: a Linux guest under software emulation;
//! - [`ceph`]: a cluster of Ceph's own daemons.
//!
//! What a lab needs from Debian is installed or fetched by `cargo xtask setup`; a lab that is dropped takes all that
//! it started with it.
#![forbid(unsafe_code)]

pub mod ceph;
pub mod vm;
