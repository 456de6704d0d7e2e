//! Metrics over TCP, for a Prometheus that cannot ask a unix socket. Nothing else is served there: anybody who reaches the
//! address may read it.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;

use crate::api;
use crate::error::{Error, Result};
use crate::yard::Yard;

/// How long a connection is kept, and how long its last answer may take after that: anybody may come, and read nothing.
const LIMIT: Duration = Duration::from_secs(60);

/// Addresses that are taken, at which nobody is answered yet.
#[derive(Debug, Default)]
pub struct Listeners(Vec<TcpListener>);

impl Listeners {
    /// Takes the addresses.
    ///
    /// # Errors
    /// One cannot be had.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self> {
        let bind = |address: &SocketAddr| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let bound = addresses.iter().map(|address| {
            bind(address).map_err(|err: std::io::Error| {
                Error::failed(format!("cannot listen for metrics at {address}"))
                    .caused_by(err)
                    .help("choose another address; --metrics 127.0.0.1:0 takes any free port")
            })
        });
        bound.collect::<Result<_>>().map(Self)
    }

    /// Where they are.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Answers for ever.
    pub(crate) async fn serve(self, yard: Arc<Yard>) {
        let routes = api::metrics_router(yard);
        let mut servers = tokio::task::JoinSet::new();
        for listener in self.0 {
            servers.spawn(serve(listener, routes.clone()));
        }
        servers.join_all().await;
    }
}

async fn serve(listener: TcpListener, routes: Router) {
    match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => api::serve_connections(listener, routes, Some(LIMIT)).await,
        Err(err) => tracing::error!(error = %err, "cannot serve metrics"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::yard::plan::NbdPlan;

    /// Less than an answer.
    const ROOM: usize = 64;

    /// Connections as they are given to it.
    struct Given(tokio::sync::Mutex<UnboundedReceiver<DuplexStream>>);

    impl api::Accept for Given {
        type Stream = DuplexStream;

        async fn accept(&self) -> std::io::Result<Option<DuplexStream>> {
            Ok(self.0.lock().await.recv().await)
        }
    }

    #[tokio::test]
    async fn who_reads_no_answer_does_not_keep_a_connection() {
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        let (give, given) = unbounded_channel();
        let routes = api::metrics_router(Arc::clone(&yard));
        let limit = Some(Duration::from_secs(1));
        let serving = api::serve_connections(Given(given.into()), routes, limit);
        let serving = tokio::spawn(serving);
        let ask = async || {
            let (mut ours, theirs) = tokio::io::duplex(ROOM);
            give.send(theirs).unwrap();
            ours.write_all(b"GET /livez HTTP/1.1\r\nhost: b\r\n\r\n").await.unwrap();
            ours
        };
        let mut silent = Vec::new();
        for _ in 0..api::MAX_CONNECTIONS {
            silent.push(ask().await);
        }
        let answered = async {
            let mut answer = [0; 15];
            while ask().await.read_exact(&mut answer).await.is_err() {}
            answer
        };
        let answer = tokio::time::timeout(Duration::from_secs(60), answered).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        drop(silent);
        serving.abort();
        yard.end(Duration::from_secs(60)).await.into_result().unwrap();
    }
}
