//! One connection, from its acceptance to its end.

mod alarm;
mod bios;
mod close;
mod handshake;
mod send;
mod transmission;
mod wire;

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use blockyard_blkmq::Bio;
use socket2::Socket;

use crate::client::SessionInfo;
use crate::listener;
use crate::server::{Registration, Stage};
pub(crate) use close::Close;
use handshake::Opening;
use transmission::Transmission;
use wire::Wire;

/// Bios on their way through a connection: the block layer takes and gives boxes.
type Bios = Vec<Box<Bio>>;

/// How long a client that is told goodbye, or will be whatever it asks for, is given to hang up itself.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Bytes that such a client may send meanwhile.
const LINGER_BYTES: usize = 64 << 20;

/// Serves a client until it leaves, or has to. A panic, which is a bug of ours, costs this connection only.
pub(crate) async fn run(registration: Registration, socket: Socket) {
    let peer = registration.client.peer.clone();
    let mut connection = Box::pin(run_to_its_end(registration, socket));
    let panicked =
        poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| connection.as_mut().poll(cx))) {
            Ok(poll) => poll.map(|()| None),
            Err(panic) => Poll::Ready(Some(panic)),
        })
        .await;
    if let Some(panic) = panicked {
        let what = message_of(&*panic);
        tracing::error!(peer, panic = what, "bug: a panic ended the connection; please report it");
        // Nothing of it is used any more: a second panic has nothing new to say.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(connection)));
    }
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

async fn run_to_its_end(registration: Registration, socket: Socket) {
    let (wire, close) = serve(&registration, socket).await;
    close.log(&registration.client.peer);
    let Some(mut wire) = wire else { return };
    wire.finish();
    let last = if registration.client.awaits_last_flush() { Stage::Over } else { Stage::Cut };
    if !close.peer_has_left() && registration.stage() < last {
        let mut left = LINGER_BYTES;
        let discard = poll_fn(|cx| wire.poll_discard(cx, &mut left));
        let cut = stopped(&registration, last);
        tokio::select! {
            () = discard => {}
            () = cut => {}
            () = tokio::time::sleep(LINGER) => {}
        }
    }
}

async fn serve(registration: &Registration, socket: Socket) -> (Option<Wire>, Close) {
    let wire = listener::tune(&socket).and_then(|()| Wire::new(socket));
    let mut opening = match wire {
        Ok(wire) => Opening::new(registration, wire),
        Err(err) => return (None, Close::Lost(err)),
    };
    let limits = &registration.server.config.limits;
    let opened = tokio::select! {
        opened = tokio::time::timeout(limits.handshake_timeout, opening.run()) => {
            opened.unwrap_or(Err(Close::HandshakeTimeout(limits.handshake_timeout)))
        }
        () = refused(registration) => Err(Close::Shutdown),
        () = evicted(registration) => Err(Close::Crowded),
    };
    let negotiated = match opened {
        Ok(negotiated) => negotiated,
        Err(close) => return (Some(opening.into_wire()), close),
    };
    registration.client.outbox.awake();
    let number = negotiated.export.id;
    if let Err(close) = registration.admit(number) {
        return (Some(opening.into_wire()), close);
    }
    tracing::info!(
        peer = registration.client.peer,
        export = negotiated.export.info.name,
        tls = negotiated.tls,
        "client connected"
    );
    let session = SessionInfo {
        export: negotiated.export.info.name.clone(),
        style: negotiated.style,
        tls: negotiated.tls,
    };
    registration.client.set_session(session);
    // In this order: whoever takes the export away looks for its clients after that.
    let Some(offered) = registration.server.catalogue.get(number) else {
        return (Some(opening.into_wire()), Close::Removed);
    };
    let (wire, received) = opening.into_parts();
    let mut transmission = Transmission::new(registration, wire, &received, &negotiated, &offered);
    drop(offered);
    let close = transmission.run().await;
    (Some(transmission.into_wire()), close)
}

/// Waits until the server ends, and clients that ask for an export meanwhile were told so.
async fn refused(registration: &Registration) {
    stopped(registration, Stage::Draining).await;
    tokio::select! {
        () = tokio::time::sleep(LINGER) => {}
        () = stopped(registration, Stage::Cut) => {}
    }
}

/// Waits until the connection has to make room for younger ones.
async fn evicted(registration: &Registration) {
    poll_fn(|cx| {
        registration.client.outbox.sleep(cx);
        if registration.client.is_evicted() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits until the server's end has come that far.
async fn stopped(registration: &Registration, stage: Stage) {
    let outbox = Arc::clone(&registration.client.outbox);
    poll_fn(|cx| {
        outbox.sleep(cx);
        // In this order: whoever changes the stage does so before waking.
        if registration.stage() >= stage { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
