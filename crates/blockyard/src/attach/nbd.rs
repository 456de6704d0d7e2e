//! A disk of the kernel by its NBD client: our NBD server at one end of some pairs of sockets, the kernel at the
//! other.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bdev, Disk, DiskListener, Event as DiskEvent};
use blockyard_export_kernel_nbd::{self as kernel, Driver, IoctlDevice, Links, Setup, Sizer};
use blockyard_export_nbd::Server;
use blockyard_nbd::client::{Config, Event, Handshake, Negotiated, TlsMode};
use blockyard_nbd::wire::HeaderStyle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

use super::kernel::Below;
use super::record::Record;
use super::{Wish, helper};
use crate::error::{Error, ErrorKind, Result};

/// How long our own server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether what a dead connection had asked has ended.
const POLL: Duration = Duration::from_millis(10);
/// How long nothing is tried after the kernel has refused new connections.
const PAUSE: Duration = Duration::from_secs(1);
/// Blocks of a page are the largest that the kernel takes.
const MAX_BLOCK: u32 = 4096;
/// After how long the kernel gives a connection up, unless told otherwise. What was asked on one that has died is asked
/// again after that, too.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A device that is set up by ioctls has one connection, ends with it, and gives it up for nothing else. Zero is not never to
/// the driver (`nbd_xmit_timeout`); this is about the longest that its counter of ticks can hold, at 1000 a second.
const NEVER: Duration = Duration::from_secs(49 * 24 * 60 * 60);
/// So often in the time after which the kernel gives a connection up, all that the disk was asked has ended.
const BARRIERS: u32 = 4;

/// A device of the kernel's NBD client that was set up by netlink.
pub(super) struct NbdDevice {
    index: u32,
    identifier: String,
    /// The kernel shows that: older ones do not.
    is_marked: bool,
    is_recoverable: bool,
    _resized: Arc<dyn DiskListener>,
    keeper: JoinHandle<()>,
}

/// Where connections come from.
#[derive(Clone)]
struct Source {
    server: Arc<Server>,
    export: String,
}

impl Source {
    fn of(below: &Below<'_>) -> Self {
        Self { server: Arc::clone(below.server), export: below.export.into() }
    }

    /// A connection past its handshake, and what was agreed on.
    fn connection(&self) -> Result<(OwnedFd, Negotiated)> {
        let (ours, theirs) = UnixStream::pair()
            .map_err(|err| Error::failed("cannot make a pair of sockets").caused_by(err))?;
        self.server.serve(ours.into());
        let negotiated = shake_hands(&theirs, &self.export);
        let negotiated = negotiated
            .map_err(|err| Error::failed("our own server does not answer").caused_by(err))?;
        Ok((theirs.into(), negotiated))
    }

    fn connections(&self, count: usize) -> Result<(Vec<OwnedFd>, Negotiated)> {
        let (first, negotiated) = self.connection()?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(self.connection()?.0);
        }
        Ok((sockets, negotiated))
    }
}

/// Opens an export, as the kernel wants it: it speaks with simple headers only, and not before the handshake is
/// over.
fn shake_hands(mut stream: &UnixStream, export: &str) -> io::Result<Negotiated> {
    let config = Config { tls: TlsMode::Off, best_style: HeaderStyle::Simple };
    let mut handshake = Handshake::new(config);
    handshake.go(export).map_err(io::Error::other)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut input = Vec::new();
    loop {
        match handshake.poll_event() {
            // What follows is the kernel's to read.
            Some(Event::Done(negotiated)) if input.is_empty() => {
                stream.set_read_timeout(None)?;
                return Ok(*negotiated);
            }
            Some(other) => return Err(io::Error::other(format!("it answered {other:?}"))),
            None => {}
        }
        let mut output = Vec::new();
        if handshake.poll_transmit(&mut output) {
            stream.write_all(&output)?;
        }
        let taken = handshake.receive(&input).map_err(io::Error::other)?;
        input.drain(..taken);
        if taken == 0 {
            let mut chunk = [0; 512];
            let count = match stream.read(&mut chunk) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            input.extend_from_slice(&chunk[..count]);
        }
    }
}

fn borrow(sockets: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    sockets.iter().map(AsFd::as_fd).collect()
}

/// The identifier of a device with that mark.
pub(super) fn identifier(mark: u64) -> String {
    format!("blockyard-{mark:016x}")
}

/// The mark in the identifier of a device of ours.
pub(super) fn mark(identifier: &str) -> Option<u64> {
    u64::from_str_radix(identifier.strip_prefix("blockyard-")?, 16).ok()
}

fn setup(wish: &Wish, mark: u64, negotiated: &Negotiated, outlives_us: bool) -> Result<Setup> {
    let info = &negotiated.export;
    let block_size = info.block_sizes.as_ref().map_or(512, |sizes| sizes.minimum()).max(512);
    if block_size > MAX_BLOCK {
        let what = format!("blocks of {block_size} bytes are more than the kernel takes");
        return Err(Error::failed(what).help(format!("use block={MAX_BLOCK}")));
    }
    Ok(Setup {
        index: wish.number,
        size: info.size,
        block_size,
        server_flags: info.flags.bits(),
        timeout: timeout(wish),
        // Nobody else could go on with it.
        dead_conn_timeout: Duration::from_secs(if outlives_us {
            wish.dead_timeout_seconds
        } else {
            0
        }),
        identifier: identifier(mark),
    })
}

/// How long the kernel waits for an answer.
fn timeout(wish: &Wish) -> Duration {
    wish.timeout_seconds.map_or(TIMEOUT, Duration::from_secs)
}

/// The kernel that waits too long asks the same on another connection at once, while what it had asked first may still be
/// with the disk, and end after something newer. With several connections nothing is let in, every so often, before all
/// that came earlier has ended: what is asked again finds the first one ended.
fn barrier_interval(wish: &Wish) -> Option<Duration> {
    (wish.connections > 1).then(|| timeout(wish) / BARRIERS)
}

/// One that comes late puts off the next: several at once would only keep requests out.
fn barriers(wish: &Wish) -> Option<Interval> {
    let mut interval = tokio::time::interval(barrier_interval(wish)?);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(interval)
}

/// Whether something is with the disk that the kernel may ask again before the next but one barrier.
fn is_barrier_due(disk: &Disk, timeout: Duration) -> bool {
    let half = timeout / 2;
    disk.in_flight().iter().any(|(_, request)| Duration::from_nanos(request.age_ns) >= half)
}

/// A device of the kernel's NBD client that was set up by ioctls.
pub(super) struct NbdIoctlDevice {
    device: IoctlDevice,
    _resized: Arc<dyn DiskListener>,
    follower: JoinHandle<()>,
}

impl NbdIoctlDevice {
    /// Sets one up. Must be called within a runtime, which sees to its size.
    pub(super) fn attach(wish: &Wish, below: &Below<'_>) -> Result<Self> {
        let (socket, negotiated) = Source::of(below).connection()?;
        let mut setup = setup(wish, 0, &negotiated, false)?;
        setup.timeout = NEVER;
        let device = IoctlDevice::connect(&setup, socket).map_err(nbd_error)?;
        scan(device.index());
        let (resized, size) = Resized::subscribe(&below.bdev);
        let follower = tokio::spawn(follow(device.sizer(), size));
        Ok(Self { device, _resized: resized, follower })
    }

    pub(super) fn index(&self) -> u32 {
        self.device.index()
    }

    /// Ends it, and waits until the kernel has let go of it.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.device.disconnect().map_err(nbd_error)?;
        self.follower.abort();
        Ok(())
    }
}

/// Tells the kernel of each new size.
async fn follow(sizer: Sizer, mut size: watch::Receiver<u64>) {
    while size.changed().await.is_ok() {
        let bytes = *size.borrow_and_update();
        let sizer = sizer.clone();
        match tokio::task::spawn_blocking(move || sizer.resize(bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => warn_of_size(&err),
            Err(_ended) => return,
        }
    }
}

fn warn_of_size(err: &kernel::Error) {
    tracing::warn!(err = said(err), "the kernel does not know of the new size");
}

/// The kernel looks for partitions when its disk is opened next. That is for another process to do: until they
/// are read, one that opens it cannot end, and if it were us, nobody could take over from us.
fn scan(index: u32) {
    if let Err(err) = helper::look_at(&kernel::path(index), None) {
        tracing::warn!(%err, "partitions are found when the disk is opened next");
    }
}

impl NbdDevice {
    /// Sets one up by netlink. Must be called within a runtime, which sees to dead connections.
    pub(super) fn attach(wish: &Wish, mark: u64, below: &Below<'_>) -> Result<Self> {
        let mut driver = Driver::open().map_err(nbd_error)?;
        let links = driver.links().map_err(nbd_error)?;
        let (sockets, negotiated) = Source::of(below).connections(wish.connections.into())?;
        let setup = setup(wish, mark, &negotiated, below.outlives_us)?;
        let index = driver.connect(&setup, &borrow(&sockets)).map_err(nbd_error)?;
        scan(index);
        Ok(Self::running(driver, index, mark, links, wish, below))
    }

    /// Goes on with one whose connections have died with their server.
    pub(super) fn take_over(record: &Record, below: &Below<'_>) -> Result<Self> {
        let Record { wish, number: index, mark, .. } = record;
        let (index, mark) = (*index, *mark);
        let mut driver = Driver::open().map_err(nbd_error)?;
        let links = driver.links().map_err(nbd_error)?;
        let (sockets, negotiated) = Source::of(below).connections(wish.connections.into())?;
        // A connection that was made before that writes again as soon as the disk is writable.
        below.make_read_only_again(record);
        driver.reconnect(index, &identifier(mark), &borrow(&sockets)).map_err(nbd_error)?;
        // It may have grown meanwhile. Not with the sockets: the kernel may wait for what it has asked, which needs
        // them.
        if let Err(err) = driver.resize(index, &identifier(mark), negotiated.export.size) {
            warn_of_size(&err);
        }
        Ok(Self::running(driver, index, mark, links, wish, below))
    }

    fn running(
        driver: Driver,
        index: u32,
        mark: u64,
        links: Links,
        wish: &Wish,
        below: &Below<'_>,
    ) -> Self {
        let (resized, size) = Resized::subscribe(&below.bdev);
        let keeper = Keeper {
            driver,
            index,
            identifier: identifier(mark),
            source: Source::of(below),
            bdev: Arc::clone(&below.bdev),
            connections: wish.connections.into(),
            dead: 0,
            barriers: barriers(wish),
            timeout: timeout(wish),
        };
        let identifier = keeper.identifier.clone();
        let keeper = tokio::spawn(keeper.keep(links, size));
        let is_recoverable = below.outlives_us;
        let is_marked = !matches!(kernel::backend(index), Ok(None));
        Self { index, identifier, is_marked, is_recoverable, _resized: resized, keeper }
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Whether the kernel waits for another daemon.
    pub(super) fn is_recoverable(&self) -> bool {
        self.is_recoverable
    }

    /// Ends it, and waits until the kernel has let go of it.
    pub(super) fn remove(&mut self) -> Result<()> {
        let disconnect = |index| {
            Driver::open().and_then(|mut driver| driver.disconnect(index)).map_err(nbd_error)
        };
        self.remove_by(kernel::backend(self.index), disconnect)
    }

    /// Its connections are kept until the kernel has given it up, and by itself it asks for no others after that.
    fn remove_by(
        &mut self,
        backend: io::Result<Option<String>>,
        disconnect: impl FnOnce(u32) -> Result<()>,
    ) -> Result<()> {
        let path = kernel::path(self.index);
        match backend {
            Ok(Some(backend)) if backend == self.identifier => disconnect(self.index)?,
            Ok(Some(_)) => return Err(Error::failed(format!("{path} is another's now"))),
            Ok(None) if !self.is_marked => disconnect(self.index)?,
            // Somebody was faster.
            Ok(None) => {}
            Err(err) => {
                let what = format!("cannot look whose {path} is");
                return Err(Error::failed(what).caused_by(err));
            }
        }
        self.keeper.abort();
        Ok(())
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Told of a new size.
struct Resized(watch::Sender<u64>);

impl Resized {
    /// Listens as long as the first of these lives; the other has what is heard, in bytes.
    fn subscribe(bdev: &Bdev) -> (Arc<dyn DiskListener>, watch::Receiver<u64>) {
        let (tell, told) = watch::channel(bdev.capacity().bytes());
        let listener: Arc<dyn DiskListener> = Arc::new(Self(tell));
        bdev.disk().subscribe(&listener);
        (listener, told)
    }
}

impl DiskListener for Resized {
    fn event(&self, _disk: &Disk, event: DiskEvent) {
        if let DiskEvent::Resized { to, .. } = event {
            self.0.send_replace(to.bytes());
        }
    }
}

/// Sees to it that the kernel has as many connections as it should.
struct Keeper {
    driver: Driver,
    index: u32,
    identifier: String,
    source: Source,
    bdev: Arc<Bdev>,
    connections: usize,
    /// Connections that the kernel has given up, and has no others for.
    dead: usize,
    /// When newer requests may have to wait for older ones.
    barriers: Option<Interval>,
    /// How long the kernel waits for an answer.
    timeout: Duration,
}

impl Keeper {
    async fn keep(mut self, links: Links, mut size: watch::Receiver<u64>) {
        loop {
            tokio::select! {
                dead = links.dead() => match dead {
                    Ok(Some(index)) if index != self.index => continue,
                    // The kernel tells once of each connection.
                    Ok(Some(_)) => self.dead += 1,
                    Ok(None) => self.dead = self.connections.saturating_sub(self.alive()),
                    Err(err) => {
                        tracing::error!(%err, "dead connections are not heard of any more");
                        return;
                    }
                },
                () = next(self.barriers.as_mut()) => {
                    let bdev = Arc::clone(&self.bdev);
                    if is_barrier_due(bdev.disk(), self.timeout) {
                        let ended = move || until_all_has_ended(bdev.disk());
                        // It does not panic, nor is it cancelled.
                        let _ = tokio::task::spawn_blocking(ended).await;
                    }
                }
                changed = size.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let bytes = *size.borrow_and_update();
                    if let Err(err) = self.driver.resize(self.index, &self.identifier, bytes) {
                        warn_of_size(&err);
                    }
                }
            }
            while self.dead > 0 {
                self.replace().await;
            }
        }
    }

    /// Connections that are served.
    fn alive(&self) -> usize {
        self.source.server.clients().len()
    }

    /// Gives the kernel new connections for dead ones, once all that those had asked has ended: what the kernel
    /// asks again on a new one must not be overtaken by what it asked on the old one.
    async fn replace(&mut self) {
        let gone = self.connections.saturating_sub(self.alive()).min(self.dead);
        if gone == 0 {
            tokio::time::sleep(POLL).await;
            return;
        }
        let (source, bdev) = (self.source.clone(), Arc::clone(&self.bdev));
        let made = tokio::task::spawn_blocking(move || {
            until_all_has_ended(bdev.disk());
            source.connections(gone)
        });
        let made = made.await;
        let replaced = match made {
            Ok(Ok((sockets, _))) => self
                .driver
                .reconnect(self.index, &self.identifier, &borrow(&sockets))
                .map_err(|err| said(&err)),
            Ok(Err(err)) => Err(err.to_string()),
            Err(err) => Err(err.to_string()),
        };
        let device = kernel::path(self.index);
        match replaced {
            Ok(()) => {
                tracing::warn!(device, gone, "dead connections were replaced");
                self.dead -= gone;
            }
            Err(err) => {
                tracing::warn!(device, err, "the kernel takes no new connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The next tick; never without.
async fn next(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => _ = interval.tick().await,
        None => std::future::pending().await,
    }
}

/// Waits for all that the disk was asked so far, and lets nothing in meanwhile. A connection may be gone while what it had
/// asked is still with the disk.
fn until_all_has_ended(disk: &Disk) {
    disk.freeze();
    disk.unfreeze();
}

fn said(err: &kernel::Error) -> String {
    let source = std::error::Error::source(err).map(|source| format!(": {source}"));
    format!("{err}{}", source.unwrap_or_default())
}

pub(super) fn nbd_error(err: kernel::Error) -> Error {
    use kernel::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::Unavailable => ErrorKind::Unavailable,
        Kind::Busy => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::NotFound | Kind::Unsuitable | Kind::Io => ErrorKind::Failed,
    };
    let error = Error::new(kind, "nbd").caused_by(err);
    if kind == ErrorKind::NotPermitted { error.help("run as root") } else { error }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{Bio, BlockLayer, Clock, MonotonicClock, Op, OpenMode, Sector, Status};

    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    #[test]
    fn what_is_asked_again_on_another_connection_comes_after_a_barrier() {
        let wish =
            |connections, timeout_seconds| Wish { connections, timeout_seconds, ..Wish::default() };
        assert_eq!(timeout(&wish(1, None)), TIMEOUT);
        assert_eq!(timeout(&wish(1, Some(3))), Duration::from_secs(3));
        assert_eq!(barrier_interval(&wish(1, None)), None, "it has no other to ask on");
        for seconds in [1, 3, 86400] {
            let interval = barrier_interval(&wish(2, Some(seconds))).unwrap();
            assert!(!interval.is_zero() && interval * 2 < Duration::from_secs(seconds));
        }
        // The kernel counts ticks in 32 bits (`nbd_set_cmd_timeout`), a thousand a second at most.
        assert!(NEVER.as_millis() < u128::from(u32::MAX));
    }

    #[tokio::test]
    async fn a_barrier_that_comes_late_is_not_made_up_for() {
        let wish = |connections| Wish { connections, ..Wish::default() };
        assert!(barriers(&wish(1)).is_none());
        let barriers = barriers(&wish(2)).unwrap();
        assert_eq!(barriers.missed_tick_behavior(), MissedTickBehavior::Delay);
        // What has its first barrier behind it has another before it is asked again.
        assert!(barriers.period() * 2 <= TIMEOUT / 2);
    }

    /// A disk that takes its time.
    #[test]
    fn a_barrier_lets_nothing_in_before_what_came_earlier_has_ended() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let plan = "null:1M?latency=200ms".parse().unwrap();
        let open = DiskMaker::new(&layer, threads.handles(), clock).open(&plan).unwrap();
        let disk = Arc::clone(open.disk());
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        let write = |name: &'static str| {
            let (bdev, tell) = (Arc::clone(&bdev), tell.clone());
            let ended = move |bio: Box<Bio>| tell.send((name, bio.status())).unwrap();
            let bio = Bio::new(Op::WriteZeroes, Sector(0), 4096).on_end(Arc::new(ended));
            threads.handles()[0].spawn(async move { bdev.submit(0, bio) });
        };
        write("first");
        while disk.in_flight().is_empty() {
            std::thread::yield_now();
        }
        assert!(!is_barrier_due(&disk, Duration::from_secs(3600)), "it is young");
        assert!(is_barrier_due(&disk, Duration::ZERO));
        until_all_has_ended(&disk);
        assert!(!is_barrier_due(&disk, Duration::ZERO), "nothing is with the disk");
        // It has ended by now, and nothing waits.
        assert_eq!(told.try_recv().unwrap(), ("first", Status::Ok));
        write("again");
        assert_eq!(told.recv().unwrap(), ("again", Status::Ok));
        layer.del_disk(&disk);
        threads.shutdown();
    }

    #[tokio::test]
    async fn a_device_is_kept_until_the_kernel_has_given_it_up() {
        let device = || NbdDevice {
            index: 5,
            identifier: identifier(7),
            is_marked: true,
            is_recoverable: true,
            _resized: Arc::new(Resized(watch::channel(0).0)),
            keeper: tokio::spawn(std::future::pending()),
        };
        let refused = |_| Err(Error::failed("no memory"));
        let (ours, another) = (Ok(Some(identifier(7))), Ok(Some(identifier(8))));
        let unknown = Err(io::ErrorKind::PermissionDenied.into());
        let mut kept = device();
        for (backend, says) in [(ours, "no memory"), (another, "another's"), (unknown, "whose")] {
            let err = kept.remove_by(backend, refused).unwrap_err();
            assert!(err.to_string().contains(says), "{err}");
            tokio::task::yield_now().await;
            assert!(!kept.keeper.is_finished(), "{says}");
        }
        let mut asked = None;
        let disconnect = |index| {
            asked = Some(index);
            Ok(())
        };
        kept.remove_by(Ok(Some(identifier(7))), disconnect).unwrap();
        assert_eq!(asked, Some(5));
        assert!((&mut kept.keeper).await.unwrap_err().is_cancelled());
        // Where no device shows an identifier, none is missing.
        let mut unmarked = device();
        unmarked.is_marked = false;
        unmarked.remove_by(Ok(None), refused).unwrap_err();
        // Without an identifier it is nobody's, and there is nothing to end.
        let mut gone = device();
        gone.remove_by(Ok(None), |_| panic!("it may be another's by then")).unwrap();
        assert!((&mut gone.keeper).await.unwrap_err().is_cancelled());
    }

    #[test]
    fn an_identifier_has_the_mark_in_it() {
        assert_eq!(mark(&identifier(0x4259_5244_0000_0007)), Some(0x4259_5244_0000_0007));
        assert_eq!(mark("blockyard-"), None);
        assert_eq!(mark("somebody-elses"), None);
    }
}
