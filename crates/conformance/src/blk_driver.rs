//! A driver of virtio-blk on a front-end: requests with a header and a status, one at a time, well-formed or not.

use crate::front_end::{DATA, FrontEnd, NEXT, WRITE};

/// What a driver of virtio-blk does.
pub trait BlkDriver {
    /// Writes the header of a request at `addr`.
    fn header(&self, addr: u64, kind: u32, sector: u64);
    /// A read or write of `len` bytes at `DATA`, as chain 0, 1, 2 of queue 0, which is not offered yet: the usual one.
    fn chain(&self, kind: u32, sector: u64, len: u32);
    /// The same, offered and answered: the byte of its status.
    fn request(&self, kind: u32, sector: u64, len: u32) -> u8 {
        self.chain(kind, sector, len);
        self.answer(0)
    }
    /// Offers chain `head` of queue 0, and waits for its end: the byte of its status, which is at `DATA - 8`.
    fn answer(&self, head: u16) -> u8;
}

impl BlkDriver for FrontEnd {
    fn header(&self, addr: u64, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.bytes(addr, 16).copy_from(&header);
    }

    fn chain(&self, kind: u32, sector: u64, len: u32) {
        self.header(DATA - 32, kind, sector);
        self.bytes(DATA - 8, 1).copy_from(&[0xff]);
        let way = if kind == 0 || kind == 8 { WRITE } else { 0 };
        self.descriptor(0, 0, DATA - 32, 16, NEXT, 1);
        if len > 0 {
            self.descriptor(0, 1, DATA, len, NEXT | way, 2);
        } else {
            self.descriptor(0, 0, DATA - 32, 16, NEXT, 2);
        }
        self.descriptor(0, 2, DATA - 8, 1, WRITE, 0);
    }

    fn answer(&self, head: u16) -> u8 {
        self.finish(0, head);
        self.bytes(DATA - 8, 1).to_vec()[0]
    }
}
