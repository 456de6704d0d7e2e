//! Sees to it that a device of the kernel's NBD client has as many connections as it should, knows its size, and is ours.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bdev, Changed, Changes, Disk, WaitLimit};
use blockyard_export_kernel_nbd::{self as kernel, Driver, Links};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::barriers::until_all_has_ended;
use super::nbd::{Source, borrow, said, warn_of_size};

/// How long nothing is tried after the kernel has refused new connections; how long one is missed of which the kernel tells
/// nothing, as when somebody takes the device away, before others are tried.
const PAUSE: Duration = Duration::from_secs(1);
/// What has been out for so long may be held back, and nobody knows until when.
const LONG: Duration = Duration::from_secs(1);
/// How often it is looked whether the kernel may be told of a size.
const LOOK: Duration = Duration::from_millis(100);

/// The kernel's side of a device. Whatever may wait is called from threads that may.
pub(super) trait Kernel: Send + Sync + 'static {
    /// Waits until a connection is dead; says of which device. None: news were lost, so that any may be.
    fn dead(&self) -> impl Future<Output = io::Result<Option<u32>>> + Send;

    /// Gives the device connections in the place of dead ones.
    fn reconnect(&self, sockets: &[OwnedFd]) -> Result<(), String>;

    /// Tells of a new size. The kernel may wait with that until all that it has asked is answered, and takes no connections
    /// meanwhile (`nbd_set_size` freezes the queue, with the lock that connections are added under).
    fn resize(&self, bytes: u64);

    /// Whether it still has the device that we have made.
    fn is_ours(&self) -> bool;
}

/// A device by netlink.
pub(super) struct Device {
    driver: Mutex<Driver>,
    links: Links,
    index: u32,
    identifier: String,
    /// The kernel shows that: older ones do not.
    is_marked: bool,
}

impl Device {
    pub(super) fn new(driver: Driver, links: Links, (index, identifier): (u32, String)) -> Self {
        let is_marked = !matches!(kernel::backend(index), Ok(None));
        Self { driver: Mutex::new(driver), links, index, identifier, is_marked }
    }

    pub(super) fn is_marked(&self) -> bool {
        self.is_marked
    }
}

impl Kernel for Device {
    async fn dead(&self) -> io::Result<Option<u32>> {
        self.links.dead().await
    }

    fn reconnect(&self, sockets: &[OwnedFd]) -> Result<(), String> {
        let mut driver = self.driver.lock();
        let done = driver.reconnect(self.index, &self.identifier, &borrow(sockets));
        done.map_err(|err| said(&err))
    }

    fn resize(&self, bytes: u64) {
        // A way of its own: the other one is for connections.
        let resized = Driver::open()
            .and_then(|mut driver| driver.resize(self.index, &self.identifier, bytes));
        if let Err(err) = resized {
            warn_of_size(&err);
        }
    }

    fn is_ours(&self) -> bool {
        match kernel::backend(self.index) {
            Ok(Some(backend)) => backend == self.identifier,
            Ok(None) => !self.is_marked && kernel::server(self.index).is_some(),
            // Who cannot look has seen nothing.
            Err(_) => true,
        }
    }
}

/// Keeps a device.
pub(super) struct Keeper<K> {
    kernel: Arc<K>,
    index: u32,
    source: Source,
    bdev: Arc<Bdev>,
    connections: usize,
    /// Until then nothing is written: see [`Calm`].
    holds_until: Instant,
    /// New connections are made, and the kernel has not taken them yet.
    replacing: Arc<AtomicBool>,
    /// The kernel has told of a dead connection, and none has been replaced since.
    is_told: bool,
}

/// Whether a device will answer all that it is asked soon. Before that the kernel is told of no size: it would wait for what
/// nobody answers, and could not get the connections that this may need.
struct Calm {
    source: Source,
    connections: usize,
    bdev: Arc<Bdev>,
    /// Writes are held back until then, also those that have just come.
    holds_until: Instant,
    replacing: Arc<AtomicBool>,
    /// While it is waited for.
    waits: Mutex<Option<WaitLimit>>,
}

impl Calm {
    fn is_now(&self) -> bool {
        let disk = self.bdev.disk();
        let is_whole = !self.replacing.load(Ordering::SeqCst)
            && self.source.server.clients().len() >= self.connections
            && Instant::now() >= self.holds_until;
        let is_calm = is_whole && !is_any_out_for(disk, LONG);
        // What the limits of the disk keep so long is let in, once that is all that is missing: it ends, and others of its kind
        // have a moment to come.
        let mut waits = self.waits.lock();
        if is_whole && !is_calm {
            waits.get_or_insert_with(|| disk.limit_waits(LONG));
        } else {
            *waits = None;
        }
        is_calm
    }
}

fn is_any_out_for(disk: &Disk, long: Duration) -> bool {
    disk.oldest().is_some_and(|oldest| oldest >= long)
}

impl<K: Kernel> Keeper<K> {
    pub(super) fn new(
        kernel: Arc<K>,
        index: u32,
        source: Source,
        bdev: Arc<Bdev>,
        connections: usize,
    ) -> Self {
        let (holds_until, replacing) = (Instant::now(), Arc::default());
        Self { kernel, index, source, bdev, connections, holds_until, replacing, is_told: false }
    }

    /// Nothing is written for so long from now on.
    pub(super) fn holding_for(self, time: Duration) -> Self {
        Self { holds_until: self.holds_until + time, ..self }
    }

    /// Does it until the device is not ours any more, of which it tells `gone`.
    pub(super) async fn keep(mut self, changes: Changes, gone: oneshot::Sender<()>) {
        match self.keep_it(changes).await {
            // Nobody may want to know any more.
            Ok(()) => _ = gone.send(()),
            Err(err) => {
                tracing::error!(
                    device = kernel::path(self.index),
                    error = %err,
                    "cannot watch for dead connections; they are not replaced"
                );
                // It is not gone.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn keep_it(&mut self, mut changes: Changes) -> io::Result<()> {
        let calm = Calm {
            source: self.source.clone(),
            connections: self.connections,
            bdev: Arc::clone(&self.bdev),
            holds_until: self.holds_until,
            replacing: Arc::clone(&self.replacing),
            waits: Mutex::default(),
        };
        let sizes = tell_sizes(Arc::clone(&self.kernel), move || calm.is_now())?;
        let mut is_heard = true;
        loop {
            tokio::select! {
                // News may be lost, or come of what is replaced already: they only make it sooner.
                dead = self.kernel.dead(), if is_heard => match dead {
                    Ok(index) => self.is_told |= index.is_none_or(|index| index == self.index),
                    Err(err) => {
                        tracing::error!(error = %err, "netlink events lost; dead connections are no longer replaced");
                        is_heard = false;
                    }
                },
                changed = changes.next() => if changed.contains(Changed::SIZE) {
                    // Its thread is there as long as this end is.
                    let _ = sizes.send(self.bdev.capacity().bytes());
                },
                () = self.missed() => {
                    if !self.kernel.is_ours() {
                        return Ok(());
                    }
                    self.replace().await;
                }
            }
        }
    }

    /// Waits until there are fewer connections than there should be: at our end one has ended when all that it had asked has. It
    /// waits for a while if the kernel tells of none, as of those of a device that somebody takes away.
    async fn missed(&self) {
        self.source.server.fewer_than(self.connections).await;
        if !self.is_told {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Gives the kernel new connections for dead ones, once all that those had asked has ended: what the kernel
    /// asks again on a new one must not be overtaken by what it asked on the old one.
    async fn replace(&mut self) {
        let gone = self.connections.saturating_sub(self.source.server.clients().len());
        if gone == 0 {
            self.replacing.store(false, Ordering::SeqCst);
            return;
        }
        self.replacing.store(true, Ordering::SeqCst);
        let (source, bdev) = (self.source.clone(), Arc::clone(&self.bdev));
        let kernel = Arc::clone(&self.kernel);
        let replaced = tokio::task::spawn_blocking(move || {
            until_all_has_ended(bdev.disk());
            let (sockets, _) = source.connections(gone).map_err(|err| err.to_string())?;
            kernel.reconnect(&sockets)
        });
        let device = kernel::path(self.index);
        match replaced.await.unwrap_or_else(|err| Err(err.to_string())) {
            Ok(()) => {
                tracing::warn!(device, gone, "dead connections replaced");
                self.replacing.store(false, Ordering::SeqCst);
                self.is_told = false;
            }
            Err(err) => {
                tracing::warn!(device, error = err, "kernel refused new connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A thread that tells the kernel of sizes, as soon as that is `calm`: while it waits, connections are looked after. It ends
/// with what this returns.
fn tell_sizes<K: Kernel>(
    kernel: Arc<K>,
    calm: impl Fn() -> bool + Send + 'static,
) -> io::Result<mpsc::Sender<u64>> {
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new().name("nbd-size".into()).spawn(move || {
        while let Ok(mut bytes) = told.recv() {
            while !calm() {
                match told.recv_timeout(LOOK) {
                    Ok(newer) => bytes = newer,
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
            kernel.resize(told.try_iter().last().unwrap_or(bytes));
        }
    })?;
    Ok(tell)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use blockyard_blkmq::{Bio, BlockLayer, Clock, MonotonicClock, Op, OpenMode, Sector};
    use blockyard_export_nbd::{Config, Export, Server};
    use tokio::sync::mpsc as async_mpsc;

    use super::*;
    use crate::disks::{DiskMaker, OpenDisk};
    use crate::yard::queue_threads::QueueThreads;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);
    const INDEX: u32 = 5;

    /// A kernel that resizes when it is let, and hands out what connections it is given.
    struct Fake {
        dead: tokio::sync::Mutex<async_mpsc::UnboundedReceiver<u32>>,
        /// Told of each of its news that the keeper has heard.
        heard: async_mpsc::UnboundedSender<()>,
        given: async_mpsc::UnboundedSender<usize>,
        sockets: Mutex<Vec<OwnedFd>>,
        resizing: async_mpsc::UnboundedSender<u64>,
        may_resize: Mutex<mpsc::Receiver<()>>,
        is_ours: AtomicBool,
        /// Takes no connections so often.
        refusals: AtomicUsize,
    }

    impl Kernel for Fake {
        async fn dead(&self) -> io::Result<Option<u32>> {
            match self.dead.lock().await.recv().await {
                Some(index) => {
                    let _ = self.heard.send(());
                    Ok(Some(index))
                }
                None => Err(io::ErrorKind::BrokenPipe.into()),
            }
        }

        fn reconnect(&self, sockets: &[OwnedFd]) -> Result<(), String> {
            if !self.is_ours() {
                return Err("no such device".into());
            }
            let refused = |left: usize| left.checked_sub(1);
            if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refused).is_ok() {
                let _ = self.given.send(0);
                return Err("not now".into());
            }
            let kept = sockets.iter().map(|socket| socket.try_clone().unwrap());
            self.sockets.lock().extend(kept);
            let _ = self.given.send(sockets.len());
            Ok(())
        }

        fn resize(&self, bytes: u64) {
            let _ = self.resizing.send(bytes);
            let _ = self.may_resize.lock().recv();
        }

        fn is_ours(&self) -> bool {
            self.is_ours.load(Ordering::SeqCst)
        }
    }

    /// A device that is kept, and all ends of it.
    struct Kept {
        kernel: Arc<Fake>,
        die: async_mpsc::UnboundedSender<u32>,
        heard: async_mpsc::UnboundedReceiver<()>,
        given: async_mpsc::UnboundedReceiver<usize>,
        resizing: async_mpsc::UnboundedReceiver<u64>,
        let_resize: mpsc::Sender<()>,
        gone: oneshot::Receiver<()>,
        server: Arc<Server>,
        layer: Arc<BlockLayer>,
        open: OpenDisk,
        threads: QueueThreads,
    }

    impl Kept {
        /// With so many connections.
        fn new(connections: usize) -> Self {
            let threads = QueueThreads::start(1).unwrap();
            let layer = Arc::new(BlockLayer::new());
            let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
            let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
            let open = maker.open(&"ram:1M".parse().unwrap()).unwrap();
            let disk = open.disk();
            let served = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
            let exports = vec![Export::new("x", served)];
            let config = Config { exports, ..Config::default() };
            let server = Server::new(config, threads.handles().to_vec()).unwrap();
            let source = Source::new(Arc::clone(&server), "x");
            let (sockets, _) = source.connections(connections).unwrap();
            let (die, dead) = async_mpsc::unbounded_channel();
            let (hear, heard) = async_mpsc::unbounded_channel();
            let (give, given) = async_mpsc::unbounded_channel();
            let (resize, resizing) = async_mpsc::unbounded_channel();
            let (let_resize, may_resize) = mpsc::channel();
            let kernel = Arc::new(Fake {
                dead: tokio::sync::Mutex::new(dead),
                heard: hear,
                given: give,
                sockets: Mutex::new(sockets),
                resizing: resize,
                may_resize: Mutex::new(may_resize),
                is_ours: AtomicBool::new(true),
                refusals: AtomicUsize::new(0),
            });
            let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
            let keeper = Keeper::new(Arc::clone(&kernel), INDEX, source, bdev, connections);
            let (tell, gone) = oneshot::channel();
            tokio::spawn(keeper.keep(Changes::of(disk), tell));
            Self {
                kernel,
                die,
                heard,
                given,
                resizing,
                let_resize,
                gone,
                server,
                layer,
                open,
                threads,
            }
        }

        fn resize(&self, bytes: u64) {
            self.open.disk().resize(Sector::from_bytes_floor(bytes)).unwrap();
        }

        /// The kernel gives a connection up.
        fn lose_one_silently(&self) {
            drop(self.kernel.sockets.lock().pop());
        }

        /// And says so.
        fn lose_one(&self) {
            self.lose_one_silently();
            self.die.send(INDEX).unwrap();
        }

        async fn end(self) {
            self.kernel.sockets.lock().clear();
            self.server.shutdown(PATIENCE).await;
            tokio::task::spawn_blocking(move || {
                self.layer.del_disk(self.open.disk());
                self.threads.shutdown();
            })
            .await
            .unwrap();
        }
    }

    async fn next<T>(queue: &mut async_mpsc::UnboundedReceiver<T>) -> T {
        let next = tokio::time::timeout(PATIENCE, queue.recv()).await;
        next.expect("the keeper has stopped").unwrap()
    }

    /// It waits for what was asked on a connection that dies meanwhile, and so for the keeper.
    #[tokio::test]
    async fn connections_are_replaced_while_the_kernel_is_told_of_a_size() {
        let mut kept = Kept::new(1);
        kept.resize(2 << 20);
        assert_eq!(next(&mut kept.resizing).await, 2 << 20);
        kept.lose_one();
        assert_eq!(next(&mut kept.given).await, 1);
        // Of several that come meanwhile the last one counts.
        for bytes in [3 << 20, 4 << 20] {
            kept.resize(bytes);
            kept.lose_one();
            assert_eq!(next(&mut kept.given).await, 1);
        }
        kept.let_resize.send(()).unwrap();
        while next(&mut kept.resizing).await != 4 << 20 {
            kept.let_resize.send(()).unwrap();
        }
        kept.let_resize.send(()).unwrap();
        kept.end().await;
    }

    /// It would take no connections while it waits for what is asked on a dead one.
    #[tokio::test]
    async fn the_kernel_is_told_of_no_size_while_a_connection_is_dead() {
        let mut kept = Kept::new(2);
        kept.kernel.refusals.store(2, Ordering::SeqCst);
        kept.lose_one();
        kept.server.fewer_than(2).await;
        kept.resize(2 << 20);
        for given in [0, 0] {
            assert_eq!(next(&mut kept.given).await, given);
            assert!(kept.resizing.try_recv().is_err());
        }
        assert_eq!(next(&mut kept.resizing).await, 2 << 20);
        assert_eq!(kept.given.try_recv().unwrap(), 1);
        kept.let_resize.send(()).unwrap();
        kept.end().await;
    }

    #[test]
    fn what_has_been_out_for_long_may_be_held_back() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let plan = "null:1M?latency=1ms".parse().unwrap();
        let open = DiskMaker::new(&layer, threads.handles(), clock).open(&plan).unwrap();
        let disk = Arc::clone(open.disk());
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let (tell, told) = mpsc::channel();
        let (submit, submitted) = mpsc::channel();
        let (let_go, stands) = mpsc::channel::<()>();
        let ended = move |_: Box<Bio>| tell.send(()).unwrap();
        let bio = Bio::new(Op::WriteZeroes, Sector(0), 4096).on_end(Arc::new(ended));
        let submits = Arc::clone(&bdev);
        threads.handles()[0].spawn(async move {
            submits.submit(0, bio);
            submit.send(()).unwrap();
            // It ends on this thread, after this.
            let _ = stands.recv();
        });
        submitted.recv_timeout(PATIENCE).unwrap();
        assert!(is_any_out_for(&disk, Duration::ZERO));
        assert!(!is_any_out_for(&disk, Duration::from_secs(3600)));
        drop(let_go);
        told.recv_timeout(PATIENCE).unwrap();
        until_all_has_ended(&disk);
        assert!(!is_any_out_for(&disk, Duration::ZERO));
        drop(bdev);
        layer.del_disk(&disk);
        threads.shutdown();
    }

    /// Limits would be none for as long as something else is missing.
    #[test]
    fn limits_give_way_to_a_size_once_nothing_else_is_missing() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let plan = "null:1M?write_bps=1".parse().unwrap();
        let open = DiskMaker::new(&layer, threads.handles(), clock).open(&plan).unwrap();
        let disk = open.disk();
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let exports = vec![Export::new("x", Arc::clone(&bdev))];
        let config = Config { exports, ..Config::default() };
        let server = Server::new(config, threads.handles().to_vec()).unwrap();
        let mut calm = Calm {
            source: Source::new(server, "x"),
            connections: 0,
            bdev: Arc::clone(&bdev),
            holds_until: Instant::now() + 10 * PATIENCE,
            replacing: Arc::default(),
            waits: Mutex::default(),
        };
        let write = Bio::new(Op::WriteZeroes, Sector(0), 4096);
        bdev.submit(0, write.on_end(Arc::new(drop::<Box<Bio>>)));
        let end = Instant::now() + PATIENCE;
        let pass = || {
            assert!(Instant::now() < end, "{}", disk.show());
            blockyard_conformance::pause();
            disk.tick();
        };
        while !is_any_out_for(disk, 2 * LONG) {
            assert!(!calm.is_now());
            pass();
            assert!(disk.oldest().is_some(), "limits are off");
        }
        // Others are looked at before it is.
        calm.holds_until = Instant::now();
        while !calm.is_now() {
            pass();
        }
        assert!(disk.oldest().is_none() && calm.waits.lock().is_none());
        drop((calm, bdev));
        layer.del_disk(disk);
        threads.shutdown();
    }

    #[test]
    fn the_kernel_is_told_of_the_last_size_once_it_is_calm() {
        let (die, dead) = async_mpsc::unbounded_channel();
        let (resize, mut resizing) = async_mpsc::unbounded_channel();
        let (let_resize, may_resize) = mpsc::channel();
        let kernel = Arc::new(Fake {
            dead: tokio::sync::Mutex::new(dead),
            heard: async_mpsc::unbounded_channel().0,
            given: async_mpsc::unbounded_channel().0,
            sockets: Mutex::default(),
            resizing: resize,
            may_resize: Mutex::new(may_resize),
            is_ours: AtomicBool::new(true),
            refusals: AtomicUsize::new(0),
        });
        let (look, looked) = mpsc::sync_channel(0);
        let is_calm = Arc::new(AtomicBool::new(false));
        let calm = Arc::clone(&is_calm);
        let sizes = tell_sizes(kernel, move || {
            let _ = look.send(());
            calm.load(Ordering::SeqCst)
        });
        let sizes = sizes.unwrap();
        for bytes in [1, 2, 3] {
            sizes.send(bytes).unwrap();
            looked.recv_timeout(PATIENCE).unwrap();
        }
        assert!(resizing.try_recv().is_err());
        is_calm.store(true, Ordering::SeqCst);
        drop(looked);
        assert_eq!(resizing.blocking_recv().unwrap(), 3);
        let_resize.send(()).unwrap();
        drop((sizes, die));
    }

    #[tokio::test]
    async fn a_connection_is_replaced_also_if_the_kernel_does_not_tell_of_it() {
        let mut kept = Kept::new(2);
        kept.lose_one_silently();
        assert_eq!(next(&mut kept.given).await, 1);
        // Nor ever again.
        kept.die = async_mpsc::unbounded_channel().0;
        kept.lose_one_silently();
        assert_eq!(next(&mut kept.given).await, 1);
        assert!(kept.gone.try_recv().is_err());
        kept.end().await;
    }

    #[tokio::test]
    async fn a_connection_that_the_kernel_tells_of_twice_is_replaced_once() {
        let mut kept = Kept::new(1);
        kept.lose_one();
        assert_eq!(next(&mut kept.given).await, 1);
        kept.die.send(INDEX).unwrap();
        for _ in 0..2 {
            next(&mut kept.heard).await;
        }
        kept.resize(2 << 20);
        assert_eq!(next(&mut kept.resizing).await, 2 << 20);
        kept.let_resize.send(()).unwrap();
        assert!(kept.given.try_recv().is_err());
        kept.end().await;
    }

    #[tokio::test]
    async fn a_device_that_somebody_takes_away_is_missed() {
        let mut kept = Kept::new(2);
        // One is replaced, and the device is ours.
        kept.lose_one();
        assert_eq!(next(&mut kept.given).await, 1);
        assert!(kept.gone.try_recv().is_err());
        kept.kernel.is_ours.store(false, Ordering::SeqCst);
        kept.kernel.sockets.lock().clear();
        tokio::time::timeout(PATIENCE, &mut kept.gone).await.expect("it is not missed").unwrap();
        kept.end().await;
    }

    #[tokio::test]
    async fn a_device_that_goes_while_its_connections_are_replaced_is_missed() {
        let mut kept = Kept::new(1);
        kept.kernel.is_ours.store(false, Ordering::SeqCst);
        kept.lose_one();
        tokio::time::timeout(PATIENCE, &mut kept.gone).await.expect("it is not missed").unwrap();
        kept.end().await;
    }
}
