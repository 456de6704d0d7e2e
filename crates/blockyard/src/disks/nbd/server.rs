//! Connecting to NBD servers, and what to do when that fails.

use std::io;
use std::sync::{Arc, mpsc};

use blockyard_driver_nbd::{self as nbd, ErrorKind as NbdErrorKind, Export, Nbd, NbdConfig};
use blockyard_nbd::uri::{Transport, Uri};
use blockyard_nbd::wire::ReplyType;
use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result, quoted};

/// Connects on the queue threads. Never called on one of them: it waits.
pub(super) fn connect(config: NbdConfig, threads: &[Handle]) -> Result<(Arc<Nbd>, Export)> {
    let uri = config.uri.clone();
    let Some(first) = threads.first() else {
        return Err(Error::failed("no queue thread"));
    };
    let (tell, told) = mpsc::sync_channel(1);
    let handles = threads.to_vec();
    first.spawn(async move {
        // Whoever waits is there until this has answered.
        let _ = tell.send(Nbd::connect(config, &handles).await);
    });
    match told.recv() {
        Ok(connected) => connected.map_err(|err| explained(err, &uri)),
        Err(_) => Err(Error::failed("the queue thread has exited")),
    }
}

/// An error of the driver's, with what to do.
pub(super) fn explained(err: nbd::Error, uri: &Uri) -> Error {
    let kind = match err.kind() {
        NbdErrorKind::Config => ErrorKind::Usage,
        NbdErrorKind::Unsupported => ErrorKind::Unavailable,
        _ => ErrorKind::Failed,
    };
    let help = match err.kind() {
        NbdErrorKind::Connect => Some(unreachable_help(&err, &uri.transport)),
        NbdErrorKind::Timeout => {
            Some("check that it is a running NBD server; timeout= sets how long to wait".into())
        }
        NbdErrorKind::Refused if wants_tls(&err) => {
            let secure = Uri { tls: true, ..uri.clone() };
            Some(format!("the server requires TLS: use {}", quoted(secure.to_string())))
        }
        NbdErrorKind::Refused => {
            let list = Uri { export: String::new(), ..uri.clone() };
            Some(format!("list the exports: blockyard list {}", quoted(list.to_string())))
        }
        NbdErrorKind::Tls if uri.tls_params.psk_file.is_some() => Some(
            "the user before @ in the URI must have the same key on the server".into(),
        ),
        NbdErrorKind::Tls => Some(
            "name the CA of the server certificate: --tls-ca FILE, or tls-certificates=DIR in the URI"
                .into(),
        ),
        _ => None,
    };
    let error = Error::new(kind, err.to_string()).caused_by(err);
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

fn wants_tls(err: &nbd::Error) -> bool {
    let cause = err.cause().and_then(|cause| cause.downcast_ref::<blockyard_nbd::Error>());
    let kind = cause.map(blockyard_nbd::Error::kind);
    matches!(kind, Some(blockyard_nbd::ErrorKind::Refused { reply: ReplyType::ERR_TLS_REQD, .. }))
}

fn unreachable_help(err: &nbd::Error, transport: &Transport) -> String {
    let cause = err.cause().and_then(|cause| cause.downcast_ref::<io::Error>());
    let help = match (cause.map(io::Error::kind), transport) {
        (Some(io::ErrorKind::ConnectionRefused), Transport::Tcp { host, port }) => {
            return format!(
                "no server is listening on {host}:{port}; start it, or correct the port"
            );
        }
        (Some(io::ErrorKind::NotFound), Transport::Unix { .. }) => {
            "no such socket; start the server, or correct the path"
        }
        (Some(io::ErrorKind::ConnectionRefused), Transport::Unix { .. }) => {
            "no process listens on the socket; start the server"
        }
        // vsock(7): a port where nobody listens resets the connection.
        (Some(io::ErrorKind::ConnectionRefused), _)
        | (Some(io::ErrorKind::ConnectionReset), Transport::Vsock { .. }) => {
            "no server is listening on that port; start it, or correct the port"
        }
        (Some(io::ErrorKind::UnexpectedEof), _) => {
            "see the log of the server; it may require TLS (nbds://)"
        }
        (_, Transport::Unix { .. }) => "check the permissions of the socket (ls -l)",
        (_, Transport::Tcp { .. }) => "check host name, port and firewall",
        (_, Transport::Vsock { .. }) => {
            "load the module vhost_vsock (host), vmw_vsock_virtio_transport (guest) or vsock_loopback"
        }
    };
    help.to_owned()
}
