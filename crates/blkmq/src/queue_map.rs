//! Which CPU submits to which hardware queue (kernel: `struct blk_mq_queue_map`).

use crate::op::{Flags, Op};

/// What a hardware queue is for (kernel: `enum hctx_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// All that has no queue of its own.
    Default = 0,
    /// Reads.
    Read = 1,
    /// What its submitter polls for.
    Poll = 2,
}

impl QueueType {
    /// How many types there are (kernel: `HCTX_MAX_TYPES`).
    pub const COUNT: usize = 3;

    /// The type of queue that an operation goes to, if the disk has such.
    pub(crate) fn of(op: Op, flags: Flags) -> Self {
        if flags.contains(Flags::POLLED) {
            Self::Poll
        } else if op == Op::Read {
            Self::Read
        } else {
            Self::Default
        }
    }
}

/// One map for each type of queue.
#[derive(Clone, Debug)]
pub struct QueueMaps {
    cpus: usize,
    /// Hardware queues of each type, and the index of the first.
    counts: [usize; QueueType::COUNT],
    maps: [Vec<usize>; QueueType::COUNT],
}

impl QueueMaps {
    pub(crate) fn new(cpus: usize, counts: [usize; QueueType::COUNT]) -> Self {
        Self { cpus, counts, maps: std::array::from_fn(|_| vec![0; cpus]) }
    }

    /// CPUs that submit.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// The hardware queues of a type: the index of the first, and how many there are.
    #[must_use]
    pub fn queues(&self, kind: QueueType) -> (usize, usize) {
        let first = self.counts[..kind as usize].iter().sum();
        (first, self.counts[kind as usize])
    }

    /// Lets `cpu` submit what is of `kind` to the hardware queue `hctx`.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn set(&mut self, kind: QueueType, cpu: usize, hctx: usize) {
        self.maps[kind as usize][cpu] = hctx;
    }

    /// Spreads the CPUs evenly over the queues of each type; a type without queues of its own uses the default
    /// ones.
    pub fn spread(&mut self) {
        for kind in [QueueType::Default, QueueType::Read, QueueType::Poll] {
            let (first, count) = match self.queues(kind) {
                (_, 0) => self.queues(QueueType::Default),
                own => own,
            };
            for cpu in 0..self.cpus {
                self.set(kind, cpu, first + cpu % count.max(1));
            }
        }
    }

    pub(crate) fn hctx(&self, kind: QueueType, cpu: usize) -> usize {
        self.maps[kind as usize][cpu % self.cpus]
    }

    pub(crate) fn kind_of(&self, hctx: usize) -> QueueType {
        if hctx < self.counts[0] {
            QueueType::Default
        } else if hctx < self.counts[0] + self.counts[1] {
            QueueType::Read
        } else {
            QueueType::Poll
        }
    }

    /// Whether every entry names a queue that there is.
    pub(crate) fn is_valid(&self) -> bool {
        let total: usize = self.counts.iter().sum();
        self.maps.iter().flatten().all(|&hctx| hctx < total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_without_queues_share_the_default_ones() {
        let mut maps = QueueMaps::new(4, [2, 0, 1]);
        maps.spread();
        assert_eq!(
            (0..4).map(|cpu| maps.hctx(QueueType::Read, cpu)).collect::<Vec<_>>(),
            [0, 1, 0, 1]
        );
        assert_eq!((0..4).map(|cpu| maps.hctx(QueueType::Poll, cpu)).collect::<Vec<_>>(), [2; 4]);
        assert_eq!(maps.kind_of(2), QueueType::Poll);
        assert!(maps.is_valid());
    }
}
