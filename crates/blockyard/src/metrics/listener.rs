//! Metrics over TCP, for a Prometheus that cannot ask a unix socket. Nothing else is served there: anybody who reaches the
//! address may read it.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;

use crate::api;
use crate::error::{Error, Result};
use crate::yard::Yard;

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
        Ok(listener) => api::serve_connections(listener, routes).await,
        Err(err) => tracing::error!(error = %err, "cannot serve metrics"),
    }
}
