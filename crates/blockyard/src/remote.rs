//! Disks at NBD servers: asking, connecting, following their size, and leaving.

use std::error::Error as StdError;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use blockyard_blkmq::{Bio, Disk, Features, OpenMode, StatGroup, Status};
use blockyard_driver_nbd::{
    self as nbd, Description, ErrorKind as NbdErrorKind, Export, Nbd, NbdConfig, Offer, Server,
    TlsFiles,
};
use blockyard_nbd::uri::{Transport, Uri};
use blockyard_nbd::wire::ReplyType;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, timeout_at};

use crate::daemon::FlushFailed;
use crate::error::{Error, ErrorKind, Result};

/// How long a server may take to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a server has on offer.
///
/// # Errors
/// It cannot be reached, or does not tell.
pub fn offers(uri: &Uri, tls: &TlsFiles) -> Result<Vec<Offer>> {
    let failed = |err| explained(err, uri);
    let server = Server::new(uri.clone(), tls.clone(), ANSWER_LIMIT).map_err(failed)?;
    runtime()?.block_on(server.offers()).map_err(failed)
}

/// What the export of a URI is.
///
/// # Errors
/// The server cannot be reached, or has no such export.
pub fn describe(uri: &Uri, tls: &TlsFiles) -> Result<Description> {
    let failed = |err| explained(err, uri);
    let server = Server::new(uri.clone(), tls.clone(), ANSWER_LIMIT).map_err(failed)?;
    runtime()?.block_on(server.describe()).map_err(failed)
}

fn runtime() -> Result<Runtime> {
    let made = Builder::new_current_thread().enable_all().build();
    made.map_err(|err| Error::failed("cannot start a loop for sockets").caused_by(err))
}

/// Connects on the queue threads. Never called on one of them: it waits.
pub(crate) fn connect(config: NbdConfig, threads: &[Handle]) -> Result<(Arc<Nbd>, Export)> {
    let uri = config.uri.clone();
    let Some(first) = threads.first() else {
        return Err(Error::failed("there is no queue thread"));
    };
    let (tell, told) = mpsc::sync_channel(1);
    let handles = threads.to_vec();
    first.spawn(async move {
        // Whoever waits is there until this has answered.
        let _ = tell.send(Nbd::connect(config, &handles).await);
    });
    match told.recv() {
        Ok(connected) => connected.map_err(|err| explained(err, &uri)),
        Err(_) => Err(Error::failed("the queue thread has ended")),
    }
}

/// An error of the driver's, with what to do.
fn explained(err: nbd::Error, uri: &Uri) -> Error {
    let kind = match err.kind() {
        NbdErrorKind::Config => ErrorKind::Usage,
        NbdErrorKind::Unsupported => ErrorKind::Unavailable,
        _ => ErrorKind::Failed,
    };
    let help = match err.kind() {
        NbdErrorKind::Connect => Some(unreachable_help(&err, &uri.transport).to_owned()),
        NbdErrorKind::Timeout => {
            Some("is the server alive, and is it an NBD server? timeout= sets how long to wait".into())
        }
        NbdErrorKind::Refused if wants_tls(&err) => {
            let secure = Uri { tls: true, ..uri.clone() };
            Some(format!("it wants TLS: use '{secure}'"))
        }
        NbdErrorKind::Refused => {
            let list = Uri { export: String::new(), ..uri.clone() };
            Some(format!("see what is on offer: blockyard list '{list}'"))
        }
        NbdErrorKind::Tls if uri.tls_params.psk_file.is_some() => Some(
            "the server must know the user, the part of the URI before @, by the same key".into(),
        ),
        NbdErrorKind::Tls => Some(
            "name the authority of the server's certificate: --tls-ca FILE, or tls-certificates=DIR in the URI"
                .into(),
        ),
        _ => None,
    };
    let error = Error::new(kind, "the NBD server cannot be used").caused_by(err);
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

fn wants_tls(err: &nbd::Error) -> bool {
    let cause = err.source().and_then(|cause| cause.downcast_ref::<blockyard_nbd::Error>());
    let kind = cause.map(blockyard_nbd::Error::kind);
    matches!(kind, Some(blockyard_nbd::ErrorKind::Refused { reply: ReplyType::ERR_TLS_REQD, .. }))
}

fn unreachable_help(err: &nbd::Error, transport: &Transport) -> &'static str {
    let cause = err.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match (cause.map(io::Error::kind), transport) {
        (Some(io::ErrorKind::NotFound), Transport::Unix { .. }) => {
            "there is no such socket; is the server running?"
        }
        (Some(io::ErrorKind::ConnectionRefused), Transport::Unix { .. }) => {
            "nobody listens to the socket any more; start the server"
        }
        // vsock(7): a port where nobody listens resets the connection.
        (Some(io::ErrorKind::ConnectionRefused), _)
        | (Some(io::ErrorKind::ConnectionReset), Transport::Vsock { .. }) => {
            "nobody listens there; is the server running, on that port?"
        }
        (Some(io::ErrorKind::UnexpectedEof), _) => {
            "the server's own log says why it hung up; it may want TLS (nbds://)"
        }
        (_, Transport::Unix { .. }) => "see that the socket may be used (ls -l)",
        (_, Transport::Tcp { .. }) => "check the host, the port, and the way there (firewall)",
        (_, Transport::Vsock { .. }) => {
            "the module vhost_vsock (host), vmw_vsock_virtio_transport (guest) or vsock_loopback is needed"
        }
    }
}

/// A disk whose server is to be told when it ends.
pub struct Remote {
    disk: Arc<Disk>,
    nbd: Arc<Nbd>,
    /// Nobody waits for the server any more.
    abandoned: AtomicBool,
}

impl Remote {
    pub(crate) fn new(disk: Arc<Disk>, nbd: Arc<Nbd>) -> Self {
        Self { disk, nbd, abandoned: AtomicBool::new(false) }
    }

    /// Fails all that waits for the server, or is out, and with that the last flush. What is asked for after
    /// that may wait again.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.nbd.clear_queue();
    }

    /// What another process has sent before it died may still be carried out: nothing is written until that is over.
    pub(crate) fn hold_writes(&self) {
        self.nbd.hold_writes();
    }

    /// What does that, for whoever learns later that there was another process.
    pub(crate) fn holder(&self) -> Arc<dyn Fn() + Send + Sync> {
        let nbd = Arc::clone(&self.nbd);
        Arc::new(move || nbd.hold_writes())
    }

    /// Whether this is what is behind a disk.
    pub(crate) fn is_of(&self, disk: &Arc<Disk>) -> bool {
        Arc::ptr_eq(&self.disk, disk)
    }

    /// Makes the disk larger when the export is found to have grown.
    pub(crate) fn follow_size(&self, thread: &Handle) {
        let (mut export, disk) = (self.nbd.watch(), Arc::downgrade(&self.disk));
        thread.spawn(async move {
            while export.changed().await.is_ok() {
                let bytes = export.borrow_and_update().bytes();
                if !grow(&disk, bytes) {
                    break;
                }
            }
        });
    }

    /// Flushes, ends what is out and says goodbye. What of all that is not done within `limit` fails: a server that is gone
    /// keeps nobody from ending.
    ///
    /// # Errors
    /// The flush failed: what was written since the last good one may be lost.
    pub(crate) async fn leave(&self, limit: Duration) -> Result<(), FlushFailed> {
        let end = Instant::now() + limit;
        let flushed = match timeout_at(end, self.flush()).await {
            Ok(status) if status.is_ok() => Ok(()),
            Ok(status) => Err(FlushFailed::new(self.disk.name(), &status)),
            Err(_) => {
                self.nbd.clear_queue();
                let why = format!("its NBD server does not answer for {limit:?}");
                Err(FlushFailed::new(self.disk.name(), &why))
            }
        };
        if timeout_at(end, self.nbd.disconnect()).await.is_err() {
            // It waits for what is out, as long as a request may take; with that gone it is through.
            self.nbd.clear_queue();
            self.nbd.disconnect().await;
        }
        // What was to be flushed is flushed, or nobody takes it any more: removing the disk need not try.
        let mut limits = self.disk.limits();
        limits.features.remove(Features::WRITE_CACHE);
        if let Err(err) = self.disk.set_limits(limits) {
            tracing::warn!(disk = self.disk.name(), error = %err, "the disk keeps its cache to the end");
        }
        flushed
    }

    async fn flush(&self) -> Status {
        let can_flush = !self.disk.limits().features.contains(Features::NO_FLUSH);
        if !can_flush || !self.has_been_written() {
            return Status::Ok;
        }
        if self.abandoned.load(Ordering::Acquire) {
            return Status::Io;
        }
        let Ok(bdev) = self.disk.open(None, OpenMode::ReadOnly) else { return Status::Offline };
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let ended = move |bio: Box<Bio>| {
            // Nobody waits any more after the limit.
            let _ = tell.try_send(bio.status());
        };
        bdev.submit(0, Bio::flush().on_end(Arc::new(ended)));
        // A bio always ends.
        told.recv().await.unwrap_or(Status::Io)
    }

    /// Whether anything has ever been written to it: if not, nothing can be lost.
    fn has_been_written(&self) -> bool {
        let (stats, _) = self.disk.stats();
        [StatGroup::Write, StatGroup::Discard].iter().any(|&group| stats.counters(group).ios > 0)
    }

    /// As [`Remote::leave`], where there is no runtime.
    pub(crate) fn leave_and_wait(&self, limit: Duration) -> Result<(), FlushFailed> {
        match runtime() {
            Ok(runtime) => runtime.block_on(self.leave(limit)),
            Err(err) => Err(FlushFailed::new(self.disk.name(), &err)),
        }
    }
}

/// Says whether the disk is still there. Its blocks may be larger than the export's.
fn grow(disk: &Weak<Disk>, bytes: u64) -> bool {
    let Some(disk) = disk.upgrade() else { return false };
    let (capacity, tail_padding) = disk.limits().logical_block_size.padded(bytes);
    if let Err(err) = disk.set_size(capacity, tail_padding) {
        tracing::warn!(disk = disk.name(), error = %err, "the disk does not grow with its export");
        return false;
    }
    tracing::info!(disk = disk.name(), bytes = disk.size_bytes(), "the disk has grown");
    true
}
