//! A disk of the kernel by its NBD client: our NBD server at one end of some pairs of sockets, the kernel at the
//! other.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bdev, Changed, Changes};
use blockyard_export_kernel_nbd::{self as kernel, Driver, IoctlDevice, Links, Setup, Sizer};
use blockyard_export_nbd::Server;
use blockyard_nbd::client::{Config, Event, Handshake, Negotiated, TlsMode};
use blockyard_nbd::wire::HeaderStyle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::barriers::Barriers;
use super::keeper::{self, Keeper};
use super::kernel::Below;
use super::record::Record;
use super::{Wish, helper};
use crate::error::{Error, ErrorKind, Result};

/// How long our own server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Blocks of a page are the largest that the kernel takes.
const MAX_BLOCK: u32 = 4096;
/// After how long the kernel gives a connection up, unless told otherwise. What was asked on one that has died is asked
/// again after that, too, and not before.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A device that is set up by ioctls has one connection, ends with it, and gives it up for nothing else. Zero is not never to
/// the driver (`nbd_xmit_timeout`); this is about the longest that its counter of ticks can hold, at 1000 a second.
const NEVER: Duration = Duration::from_secs(49 * 24 * 60 * 60);

/// A device of the kernel's NBD client that was set up by netlink.
pub(super) struct NbdDevice {
    index: u32,
    identifier: String,
    /// The kernel shows that: older ones do not.
    is_marked: bool,
    is_recoverable: bool,
    keeper: JoinHandle<()>,
    _barriers: Option<Barriers>,
    /// Told when somebody else has taken the device away.
    gone: oneshot::Receiver<()>,
}

/// Where connections come from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) server: Arc<Server>,
    export: String,
}

impl Source {
    pub(super) fn new(server: Arc<Server>, export: &str) -> Self {
        Self { server, export: export.into() }
    }

    fn of(below: &Below<'_>) -> Self {
        Self::new(Arc::clone(below.server), below.export)
    }

    /// A connection past its handshake, and what was agreed on.
    fn connection(&self) -> Result<(OwnedFd, Negotiated)> {
        let (ours, theirs) = UnixStream::pair()
            .map_err(|err| Error::failed("cannot create a pair of sockets").caused_by(err))?;
        self.server.serve(ours.into());
        let negotiated = shake_hands(&theirs, &self.export);
        let negotiated = negotiated.map_err(|err| {
            Error::failed("the internal NBD server does not answer").caused_by(err)
        })?;
        Ok((theirs.into(), negotiated))
    }

    pub(super) fn connections(&self, count: usize) -> Result<(Vec<OwnedFd>, Negotiated)> {
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
            Some(other) => {
                return Err(io::Error::other(format!("unexpected handshake event {other:?}")));
            }
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

pub(super) fn borrow(sockets: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
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
        let what = format!("the kernel does not support blocks of {block_size} bytes");
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

/// The kernel gives a connection up on which a write is not answered, takes no other before that has ended, and then waits no
/// longer than for any: what is only kept back must not fail.
///
/// # Errors
/// A disk may keep writes back for longer, `fence`.
pub(crate) fn check_times(wish: &Wish, fence: Option<Duration>) -> Result<()> {
    let (timeout, dead) = (timeout(wish), Duration::from_secs(wish.dead_timeout_seconds));
    let fails = |fence: &Duration| !wish.read_only && timeout + dead <= *fence;
    let Some(fence) = fence.filter(fails) else { return Ok(()) };
    let what = format!(
        "{} may hold writes back for {fence:?} (fence_timeout), and --kernel-timeout and --kernel-dead-conn-timeout \
         make them fail after {timeout:?} and {dead:?}",
        wish.uri
    );
    Err(Error::usage(what)
        .help("increase --kernel-dead-conn-timeout, or decrease fence_timeout= in the URI"))
}

/// How long the kernel waits for an answer.
fn timeout(wish: &Wish) -> Duration {
    wish.timeout_seconds.map_or(TIMEOUT, Duration::from_secs)
}

/// A device of the kernel's NBD client that was set up by ioctls.
pub(super) struct NbdIoctlDevice {
    device: IoctlDevice,
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
        let changes = Changes::of(below.bdev.disk());
        let follower = tokio::spawn(follow(device.sizer(), changes, Arc::clone(&below.bdev)));
        Ok(Self { device, follower })
    }

    pub(super) fn index(&self) -> u32 {
        self.device.index()
    }

    /// Waits until somebody else has taken it away.
    pub(super) async fn gone(&mut self) {
        self.device.ended().await;
    }

    /// Ends it, and waits until the kernel has let go of it.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.device.disconnect().map_err(nbd_error)?;
        self.follower.abort();
        Ok(())
    }
}

/// Tells the kernel of each new size.
async fn follow(sizer: Sizer, mut changes: Changes, bdev: Arc<Bdev>) {
    loop {
        if !changes.next().await.contains(Changed::SIZE) {
            continue;
        }
        let (sizer, bytes) = (sizer.clone(), bdev.capacity().bytes());
        match tokio::task::spawn_blocking(move || sizer.resize(bytes)).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => warn_of_size(&err),
            Err(_ended) => return,
        }
    }
}

pub(super) fn warn_of_size(err: &kernel::Error) {
    tracing::warn!(error = said(err), "cannot tell the kernel the new size");
}

/// The kernel looks for partitions when its disk is opened next. That is for another process to do: until they
/// are read, one that opens it cannot end, and if it were us, nobody could take over from us.
fn scan(index: u32) {
    if let Err(err) = helper::look_at(&kernel::path(index), None) {
        tracing::warn!(error = %err, "partition scan failed; the kernel scans at the next open");
    }
}

impl NbdDevice {
    /// Sets one up by netlink. Must be called within a runtime, which sees to dead connections.
    pub(super) fn attach(wish: &Wish, mark: u64, below: &Below<'_>) -> Result<Self> {
        let mut driver = Driver::open().map_err(nbd_error)?;
        check_times(wish, below.fence)?;
        let links = driver.links().map_err(nbd_error)?;
        let (sockets, negotiated) = Source::of(below).connections(wish.connections.into())?;
        let setup = setup(wish, mark, &negotiated, below.outlives_us)?;
        let index = driver.connect(&setup, &borrow(&sockets)).map_err(nbd_error)?;
        scan(index);
        let changes = Changes::of(below.bdev.disk());
        Ok(Self::running(driver, links, (index, mark), wish, below, Duration::ZERO, changes))
    }

    /// Goes on with one whose connections have died with their server.
    pub(super) fn take_over(record: &Record, below: &Below<'_>) -> Result<Self> {
        let Record { wish, number: index, mark, .. } = record;
        let (index, mark) = (*index, *mark);
        let mut driver = Driver::open().map_err(nbd_error)?;
        let links = driver.links().map_err(nbd_error)?;
        let (sockets, _) = Source::of(below).connections(wish.connections.into())?;
        // A connection that was made before that writes again as soon as the disk is writable.
        below.make_read_only_again(record);
        driver.reconnect(index, &identifier(mark), &borrow(&sockets)).map_err(nbd_error)?;
        let held = below.fence.unwrap_or_default();
        let changes = Changes::of(below.bdev.disk());
        // It may have grown meanwhile. Not with the sockets: the kernel may wait for what it has asked, which needs them.
        changes.repeat(Changed::SIZE);
        Ok(Self::running(driver, links, (index, mark), wish, below, held, changes))
    }

    fn running(
        driver: Driver,
        links: Links,
        (index, mark): (u32, u64),
        wish: &Wish,
        below: &Below<'_>,
        held: Duration,
        changes: Changes,
    ) -> Self {
        let identifier = identifier(mark);
        let kernel = keeper::Device::new(driver, links, (index, identifier.clone()));
        let is_marked = kernel.is_marked();
        let (source, bdev) = (Source::of(below), Arc::clone(&below.bdev));
        let keeper = Keeper::new(Arc::new(kernel), index, source, bdev, wish.connections.into());
        let keeper = keeper.holding_for(held);
        let barriers = Barriers::start(&below.bdev, wish.connections.into(), timeout(wish));
        let barriers = barriers.inspect_err(|err| {
            tracing::warn!(error = %err, "cannot start a thread; repeated requests of the kernel may be reordered");
        });
        let barriers = barriers.ok();
        let (tell, gone) = oneshot::channel();
        let keeper = tokio::spawn(keeper.keep(changes, tell));
        let is_recoverable = below.outlives_us;
        Self { index, identifier, is_marked, is_recoverable, keeper, _barriers: barriers, gone }
    }

    /// Waits until somebody else has taken it away.
    pub(super) async fn gone(&mut self) {
        if (&mut self.gone).await.is_err() {
            // Its keeper has ended, of which nothing follows.
            std::future::pending::<()>().await;
        }
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
            Ok(Some(_)) => return Err(Error::failed(format!("{path} is used by another process"))),
            Ok(None) if !self.is_marked => disconnect(self.index)?,
            // Somebody was faster.
            Ok(None) => {}
            Err(err) => {
                let what = format!("cannot find the owner of {path}");
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

pub(super) fn said(err: &kernel::Error) -> String {
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
    use super::*;

    #[test]
    fn the_kernel_gives_a_connection_up_in_time() {
        let wish = |timeout_seconds| Wish { timeout_seconds, ..Wish::default() };
        assert_eq!(timeout(&wish(None)), TIMEOUT);
        assert_eq!(timeout(&wish(Some(3))), Duration::from_secs(3));
        // The kernel counts ticks in 32 bits (`nbd_set_cmd_timeout`), a thousand a second at most.
        assert!(NEVER.as_millis() < u128::from(u32::MAX));
    }

    #[test]
    fn what_a_disk_only_keeps_back_does_not_fail_in_the_kernel() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let wish = |timeout_seconds, dead_timeout_seconds| Wish {
            uri: "nbd://host/x".into(),
            timeout_seconds,
            dead_timeout_seconds,
            ..Wish::default()
        };
        for (timeout, dead) in [(Some(3), 57), (Some(1), 1), (None, 30)] {
            let err = check_times(&wish(timeout, dead), seconds(60)).unwrap_err();
            let said = err.to_string();
            for word in
                ["nbd://host/x", "fence_timeout", "--kernel-timeout", "--kernel-dead-conn-timeout"]
            {
                assert!(said.contains(word), "{said}");
            }
            check_times(&wish(timeout, dead), None).unwrap();
            let reader = Wish { read_only: true, ..wish(timeout, dead) };
            check_times(&reader, seconds(60)).unwrap();
            check_times(&wish(timeout, dead), seconds(1)).unwrap();
        }
        for (timeout, dead) in [(Some(3), 58), (Some(61), 1), (None, 31), (None, 300)] {
            check_times(&wish(timeout, dead), seconds(60)).unwrap();
        }
    }

    #[tokio::test]
    async fn a_device_is_kept_until_the_kernel_has_given_it_up() {
        let device = || NbdDevice {
            index: 5,
            identifier: identifier(7),
            is_marked: true,
            is_recoverable: true,
            keeper: tokio::spawn(std::future::pending()),
            _barriers: None,
            gone: oneshot::channel().1,
        };
        let refused = |_| Err(Error::failed("no memory"));
        let (ours, another) = (Ok(Some(identifier(7))), Ok(Some(identifier(8))));
        let unknown = Err(io::ErrorKind::PermissionDenied.into());
        let mut kept = device();
        for (backend, says) in
            [(ours, "no memory"), (another, "another process"), (unknown, "owner")]
        {
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
