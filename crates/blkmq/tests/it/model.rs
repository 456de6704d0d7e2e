//! The trivial reference: what each sector may hold now, and after a power cut.

use crate::script::SECTOR;

/// The bytes of `sector` after it was written with `stamp`; 0 stamps zeroes.
pub fn pattern(stamp: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if stamp != 0 {
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            let mixed = (stamp ^ sector.rotate_left(40))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(i as u64);
            word.copy_from_slice(&mixed.to_le_bytes());
        }
    }
    bytes
}

#[derive(Clone, Copy, Debug)]
struct Write {
    stamp: u64,
    /// Its place in the order of acknowledgements. None: it failed, or was not acknowledged yet.
    acked: Option<u64>,
}

/// Writes of a sector, oldest first, from the one that is known to be durable on.
#[derive(Clone, Debug)]
struct Cell(Vec<Write>);

impl Cell {
    fn current(&self) -> &[Write] {
        let last = self.0.iter().rposition(|write| write.acked.is_some()).unwrap_or(0);
        &self.0[last..]
    }

    /// What was acknowledged up to `point` is durable.
    fn durable_up_to(&mut self, point: u64) {
        if let Some(last) =
            self.0.iter().rposition(|write| write.acked.is_some_and(|acked| acked <= point))
        {
            self.0.drain(..last);
        }
    }
}

pub struct Model {
    cells: Vec<Cell>,
    acks: u64,
    /// Whether a write is durable only after a flush.
    pub cached: bool,
}

impl Model {
    pub fn new(sectors: u64, cached: bool) -> Self {
        let zero = Cell(vec![Write { stamp: 0, acked: Some(0) }]);
        Self { cells: vec![zero; sectors as usize], acks: 0, cached }
    }

    /// A moment to which [`Model::flushed`] may refer.
    pub fn now(&self) -> u64 {
        self.acks
    }

    pub fn write_begins(&mut self, start: u64, sectors: u64, stamp: u64) {
        for cell in self.range(start, sectors) {
            cell.0.push(Write { stamp, acked: None });
        }
    }

    /// Writes of a range do not overlap while they are under way: the last of each sector is this one.
    pub fn write_acked(&mut self, start: u64, sectors: u64, durable: bool) {
        self.acks += 1;
        let (acks, durable) = (self.acks, durable || !self.cached);
        for cell in self.range(start, sectors) {
            cell.0.last_mut().unwrap().acked = Some(acks);
            if durable {
                cell.durable_up_to(acks);
            }
        }
    }

    /// A flush that began at `since` was acknowledged.
    pub fn flushed(&mut self, since: u64) {
        self.cells.iter_mut().for_each(|cell| cell.durable_up_to(since));
    }

    /// Compares what was read.
    pub fn check(&self, start: u64, bytes: &[u8], what: &str) {
        self.compare(start, bytes, what, |cell| cell.current());
    }

    /// Compares what a power cut has left.
    pub fn check_survivors(&self, bytes: &[u8]) {
        self.compare(0, bytes, "after a power cut", |cell| &cell.0);
    }

    fn compare(&self, start: u64, bytes: &[u8], what: &str, allowed: impl Fn(&Cell) -> &[Write]) {
        for (sector, found) in (start..).zip(bytes.chunks_exact(SECTOR)) {
            let allowed = allowed(&self.cells[sector as usize]);
            let fits = allowed.iter().any(|write| pattern(write.stamp, sector)[..] == *found);
            assert!(
                fits,
                "{what}: sector {sector} starts with {:x?}, which is none of {allowed:?}",
                &found[..16]
            );
        }
    }

    fn range(&mut self, start: u64, sectors: u64) -> &mut [Cell] {
        &mut self.cells[start as usize..(start + sectors) as usize]
    }
}
