//! How requests and replies lie in memory when they travel over io_uring (7.42).
//!
//! For each entry of a queue the server gives the kernel two areas: a header of [`HEADER_LEN`] bytes and room for data.
//! The header holds an [`InHeader`](crate::wire::InHeader) or, for the reply, an
//! [`OutHeader`](crate::wire::OutHeader); at [`OP_IN_AT`] the first argument of the operation; at [`ENTRY_AT`] a
//! [`RingEntry`]. All other arguments, names and data lie in the room for data, and so does all of a reply behind its
//! header.

use crate::wire::{Reader, Wire, structure};

/// Bytes for the request's or reply's header (`FUSE_URING_IN_OUT_HEADER_SZ`).
pub const OP_IN_AT: usize = 128;
/// Behind the bytes for the first argument (`FUSE_URING_OP_IN_OUT_SZ`).
pub const ENTRY_AT: usize = 256;
/// Bytes of the header of an entry (`struct fuse_uring_req_header`).
pub const HEADER_LEN: usize = ENTRY_AT + RingEntry::LEN;

/// The commands of `IORING_OP_URING_CMD` on the device (`enum fuse_uring_cmd`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// Gives the kernel an entry, and waits for a request in it.
    Register = 1,
    /// Gives the reply that is in an entry, and waits for the next request.
    CommitAndFetch = 2,
}

structure! {
    /// What is said of an entry beside its headers (`struct fuse_uring_ent_in_out`).
    RingEntry: 32 {
        /// None are defined.
        flags: u64,
        /// What the commit of the reply names.
        commit_id: u64,
        /// Bytes in the room for data.
        payload_sz: u32 [pad 12],
    }
}

structure! {
    /// What stands in the command area of a submission, which has 80 bytes (`struct fuse_uring_cmd_req`).
    CommandArea: 24 {
        /// None are defined.
        flags: u64,
        /// The one of the request that is answered.
        commit_id: u64,
        /// The queue: a CPU's number.
        qid: u16 [pad 6],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_length_of_the_kernels() {
        assert_eq!(HEADER_LEN, 288);
        let mut out = Vec::new();
        CommandArea { flags: 0, commit_id: 5, qid: 1 }.write(&mut out);
        assert_eq!(out[8..], [5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((Command::Register as u32, Command::CommitAndFetch as u32), (1, 2));
    }
}
