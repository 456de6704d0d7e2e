//! What becomes of a disk while it is used, for those who have to tell others.

use std::sync::Arc;

use blockyard_blkmq::{Changes, Disk, Throttle};

use crate::disks::throttle;

/// What can change of a disk while it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Nobody may change it.
    pub read_only: bool,
    /// Bytes, without what its last block is padded with.
    pub size: u64,
    /// The limits that it keeps to.
    pub throttle: Throttle,
}

impl State {
    /// What it is now.
    #[must_use]
    pub fn of(disk: &Disk) -> Self {
        let (read_only, size) = (disk.is_read_only(), disk.size_bytes());
        Self { read_only, size, throttle: throttle::of(disk) }
    }
}

/// Follows a disk as long as it lives.
pub struct Follow {
    disk: Arc<Disk>,
    changes: Changes,
    seen: State,
}

impl Follow {
    /// From now on.
    #[must_use]
    pub fn of(disk: &Arc<Disk>) -> Self {
        let changes = Changes::of(disk);
        Self { disk: Arc::clone(disk), changes, seen: State::of(disk) }
    }

    /// What it is now. Changes until now are known with that.
    pub fn now(&mut self) -> State {
        self.seen = State::of(&self.disk);
        self.seen
    }

    /// Waits until that changes; says what it is then.
    pub async fn changed(&mut self) -> State {
        loop {
            self.changes.next().await;
            let before = self.seen;
            if self.now() != before {
                return self.seen;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{BlockLayer, Clock, MonotonicClock, Sector};

    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    #[tokio::test]
    async fn what_is_set_of_a_disk_is_followed_while_it_runs() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let open = maker.open(&"null:1M".parse().unwrap()).unwrap();
        let disk = Arc::clone(open.disk());
        let mut follow = Follow::of(&disk);
        let throttle = Throttle::default();
        let mut state = State { read_only: false, size: 1 << 20, throttle };
        assert_eq!(follow.now(), state);
        disk.resize(Sector::from_bytes_floor(3 << 20)).unwrap();
        state.size = 3 << 20;
        assert_eq!(follow.changed().await, state);
        disk.set_read_only(true);
        disk.resize(Sector::from_bytes_floor(2 << 20)).unwrap();
        let mut state = State { read_only: true, size: 2 << 20, throttle };
        assert_eq!(follow.changed().await, state);
        for limit in ["500", "600"] {
            let set = [crate::disks::setting("iops", limit).unwrap()];
            crate::disks::live::set(&open, &set, false).unwrap();
            state.throttle.iops = throttle::parse_rate(limit, false).unwrap();
            assert_eq!(follow.changed().await, state);
        }
        layer.del_disk(&disk);
        threads.shutdown();
    }
}
