//! What becomes of a disk while it is used, for those who have to tell others.

use std::sync::Arc;

use blockyard_blkmq::{Disk, DiskListener, Event};
use tokio::sync::watch;

/// What can change of a disk while it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Nobody may change it.
    pub read_only: bool,
    /// Bytes, without what its last block is padded with.
    pub size: u64,
}

impl State {
    /// What it is now.
    #[must_use]
    pub fn of(disk: &Disk) -> Self {
        Self { read_only: disk.is_read_only(), size: disk.size_bytes() }
    }
}

/// Told what the disk becomes.
struct Told(watch::Sender<State>);

impl DiskListener for Told {
    fn event(&self, disk: &Disk, event: Event) {
        match event {
            Event::ReadOnly(read_only) => self.0.send_modify(|state| state.read_only = read_only),
            Event::Resized { .. } => self.0.send_modify(|state| state.size = disk.size_bytes()),
            _ => {}
        }
    }
}

/// Listens as long as it lives.
pub struct Follow {
    told: watch::Receiver<State>,
    _listener: Arc<dyn DiskListener>,
}

impl Follow {
    /// From now on.
    #[must_use]
    pub fn of(disk: &Disk) -> Self {
        let (tell, told) = watch::channel(State::of(disk));
        let listener = Arc::new(Told(tell));
        let also: Arc<dyn DiskListener> = Arc::clone(&listener) as _;
        disk.subscribe(&also);
        // What has come before it was told of.
        listener.0.send_modify(|state| *state = State::of(disk));
        Self { told, _listener: listener }
    }

    /// What it is now. Changes until now are known with that.
    pub fn now(&mut self) -> State {
        *self.told.borrow_and_update()
    }

    /// Waits until that changes; says what it is then.
    pub async fn changed(&mut self) -> State {
        if self.told.changed().await.is_err() {
            // Nobody is left who could change it.
            std::future::pending::<()>().await;
        }
        self.now()
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{BlockLayer, Clock, MonotonicClock, Sector};

    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    #[tokio::test]
    async fn a_size_and_read_only_are_followed_while_it_runs() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let open = maker.open(&"null:1M".parse().unwrap()).unwrap();
        let disk = Arc::clone(open.disk());
        let mut follow = Follow::of(&disk);
        let mut state = State { read_only: false, size: 1 << 20 };
        assert_eq!(follow.now(), state);
        disk.resize(Sector::from_bytes_floor(3 << 20)).unwrap();
        state.size = 3 << 20;
        assert_eq!(follow.changed().await, state);
        disk.set_read_only(true);
        disk.resize(Sector::from_bytes_floor(2 << 20)).unwrap();
        let state = State { read_only: true, size: 2 << 20 };
        assert_eq!(follow.changed().await, state);
        layer.del_disk(&disk);
        threads.shutdown();
    }
}
