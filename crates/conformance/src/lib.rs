//! One suite that every driver runs: whatever is below, a disk behaves the same at its edges.
//!
//! ```text
//! blockyard_conformance::suite!(ram, || Subject::new(open_a_ram_disk(), guard).with(Capabilities { holes: true, ..STORES }));
//! ```
//!
//! The closure makes a fresh disk of at least [`MIN_BYTES`], all zeroes, opened for reading and writing; the guard
//! is whatever has to live as long (a directory, a runtime, a server), and is dropped after the disk. Each case is a
//! test of its own: `ram::out_of_range`, and so on.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a suite of tests"
)]
#![allow(clippy::vec_box, reason = "a bio stays in its box from one use to the next")]

pub mod blk_driver;
pub mod cases;
pub mod faulty;
pub mod front_end;
mod held;
mod loop_device;
mod own_mounts;
mod pause;
mod queue_thread;
mod subject;
mod volatile;

pub use held::{Held, HeldDisk};
pub use loop_device::LoopDevice;
pub use own_mounts::ran_in_own_mounts;
pub use pause::pause;
pub use queue_thread::QueueThread;
pub use subject::{Capabilities, MIN_BYTES, STORES, Subject};
pub use volatile::{Carrier, Volatile};

/// Makes a test of each case, in a module of that name, for the disks that the closure makes.
#[macro_export]
macro_rules! suite {
    ($name:ident, $new:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "what the closure names")]
            use super::*;
            $crate::suite!(@ $new;
                out_of_range unaligned read_only removed removed_under_load resized zero_length
                largest_sizes overlapping_writes flushes block_status write_zeroes discard
                secure_erase supplied_and_own_memory vectored many_queues nowait prefetch
                random_operations any_bytes file_ranges
            );
        }
    };
    (@ $new:expr; $($case:ident)+) => {
        $(
            #[test]
            fn $case() {
                $crate::cases::$case(&$new());
            }
        )+
    };
}
