//! Which requests come next: a generator of numbers that is small, fast, and the same for the same seed.

/// How many of the requests read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Percent.
    pub reads: u8,
}

impl Mix {
    /// Whether anything is written.
    #[must_use]
    pub const fn writes(self) -> bool {
        self.reads < 100
    }
}

/// The requests of one queue.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    mix: Mix,
    /// Where the next sequential request goes; none at random.
    next: Option<u64>,
    first: u64,
    blocks: u64,
    block: u64,
    state: u64,
}

/// A request to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) write: bool,
    /// In bytes.
    pub(super) offset: u64,
}

impl Pattern {
    /// The requests of queue `queue` of `load`, in `blocks` blocks from byte `first` on. Sequential queues
    /// share the disk out.
    pub(super) fn new(load: &super::Load, queue: usize, (first, blocks): (u64, u64)) -> Self {
        let start = u64::try_from(u128::from(blocks) * queue as u128 / load.queues as u128);
        Self {
            mix: load.mix,
            next: (!load.random).then_some(start.unwrap_or(0)),
            first,
            blocks,
            block: load.block.into(),
            state: load.seed.wrapping_add(queue as u64).wrapping_mul(0x2545_f491_4f6c_dd1d),
        }
    }

    /// splitmix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`: the high half of the product (Lemire).
    fn below(&mut self, end: u64) -> u64 {
        u64::try_from((u128::from(self.random()) * u128::from(end)) >> 64).unwrap_or(0)
    }

    pub(super) fn step(&mut self) -> Step {
        let write = match self.mix.reads {
            100 => false,
            0 => true,
            reads => self.below(100) >= u64::from(reads),
        };
        let block = match &mut self.next {
            Some(next) => {
                let block = *next;
                *next = (block + 1) % self.blocks;
                block
            }
            None => {
                let blocks = self.blocks;
                self.below(blocks)
            }
        };
        Step { write, offset: self.first + block * self.block }
    }

    /// Bytes to write, which no disk can keep small.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.random().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Load, Stop};

    fn load(random: bool, reads: u8) -> Load {
        Load {
            mix: Mix { reads },
            random,
            block: 4096,
            depth: 1,
            queues: 2,
            stop: Stop::Count(1),
            offset: 8192,
            size: None,
            seed: 7,
        }
    }

    #[test]
    fn sequential_queues_begin_apart_and_go_round() {
        let mut second = Pattern::new(&load(false, 100), 1, (8192, 4));
        let offsets: Vec<_> = (0..4).map(|_| second.step().offset / 4096).collect();
        assert_eq!(offsets, [4, 5, 2, 3]);
    }

    #[test]
    fn random_requests_are_everywhere_and_mixed_and_the_same_for_a_seed() {
        let steps = || {
            let mut pattern = Pattern::new(&load(true, 70), 0, (8192, 10));
            (0..10_000).map(|_| pattern.step()).collect::<Vec<_>>()
        };
        let all = steps();
        assert_eq!(all, steps());
        let reads = all.iter().filter(|step| !step.write).count();
        assert!((6_800..7_200).contains(&reads), "{reads}");
        for block in 2..12 {
            let count = all.iter().filter(|step| step.offset == block * 4096).count();
            assert!((850..1_150).contains(&count), "block {block}: {count}");
        }
    }
}
