//! The daemon's end of a control socket.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use blockyard_sys::SocketFile;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Attached, MAX_CONNECTIONS, MAX_SAME_PID, directory, routes, socket_name};
use crate::error::{Error, Result};
use crate::yard::Yard;

/// How long a connection may take for the head of a request, or ask nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long nothing is accepted when the system is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control socket. It is removed in the end.
pub struct Server {
    listener: UnixListener,
    _file: SocketFile,
    routes: Router,
}

impl Server {
    /// Makes the socket of this process in the runtime directory.
    ///
    /// # Errors
    /// The directory cannot be made or written to.
    pub fn bind(yard: Arc<Yard>, attached: Option<Attached>) -> Result<Self> {
        Self::bind_in(&directory::runtime_dir()?, std::process::id(), yard, attached)
    }

    pub(crate) fn bind_in(
        directory: &Path,
        pid: u32,
        yard: Arc<Yard>,
        attached: Option<Attached>,
    ) -> Result<Self> {
        let made = directory::make(directory).and_then(|()| listen(directory, pid));
        let (listener, file) = made.map_err(|err| {
            Error::failed(format!("cannot create a control socket in {}", directory.display()))
                .caused_by(err)
                .help("set BLOCKYARD_RUNTIME_DIR to a writable directory")
        })?;
        Ok(Self { listener, _file: file, routes: routes::router(yard, attached) })
    }

    /// Answers for ever.
    pub async fn serve(self) {
        serve_connections(self.listener, self.routes, None).await;
    }
}

/// Where clients come in.
pub(crate) trait Accept: Send + Sync {
    /// What one speaks by.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one; none if it was refused.
    fn accept(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = Self::accept(self).await?;
        if is_ours(&stream) {
            return Ok(Some(stream));
        }
        tracing::warn!("control connection of another user refused");
        Ok(None)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<Option<TcpStream>> {
        Self::accept(self).await.map(|(stream, _)| Some(stream))
    }
}

/// Answers whoever comes, for ever. A connection has no more than the answer that is on its way after `limit`, and ends after as
/// long again: who reads no answer does not keep it.
pub(crate) async fn serve_connections(
    listener: impl Accept,
    routes: Router,
    limit: Option<Duration>,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Those that are being answered end with this.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok(Some(stream)) => {
                let routes = routes.clone();
                connections.spawn(async move {
                    answer(stream, routes, limit).await;
                    drop(place);
                });
            }
            Ok(None) => {}
            Err(err) => {
                tracing::warn!(error = %err, "cannot accept a connection to the API");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The file lets nobody else in; who was let in by its owner's mistake is not.
fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn answer<S>(stream: S, routes: Router, limit: Option<Duration>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
    );
    let ended = match limit {
        None => served.await,
        Some(limit) => match tokio::time::timeout(limit, served.as_mut()).await {
            Ok(ended) => ended,
            Err(_) => {
                // Who asks regularly may be asking now: it is answered.
                served.as_mut().graceful_shutdown();
                tokio::time::timeout(limit, served).await.unwrap_or_else(|_| {
                    tracing::debug!("connection closed: the client does not read its answer");
                    Ok(())
                })
            }
        },
    };
    if let Err(err) = ended {
        tracing::debug!(error = %err, "control connection closed");
    }
}

/// A process of another PID namespace that uses the same directory may have our number: then our socket has another name.
fn listen(directory: &Path, pid: u32) -> io::Result<(UnixListener, SocketFile)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for index in 0..MAX_SAME_PID {
        let path = directory.join(socket_name(pid, index));
        match SocketFile::bind(&path, Some(0o600), BACKLOG) {
            Ok((socket, file)) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                return Ok((UnixListener::from_std(listener)?, file));
            }
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => last = err,
            Err(err) => return Err(err),
        }
    }
    Err(last)
}
