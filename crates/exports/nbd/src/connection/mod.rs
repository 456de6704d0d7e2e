//! One connection, from its acceptance to its end.

mod close;
mod handshake;
mod input;
mod reply;
mod requests;
mod stall;
mod transmission;
mod transmit;
mod wire;

use std::future::poll_fn;
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

/// How long a client that is told goodbye is given to hang up itself.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a client until it leaves, or has to.
pub(crate) async fn run(registration: Registration, socket: Socket) {
    let (wire, close) = serve(&registration, socket).await;
    close.log(&registration.client.peer);
    let Some(mut wire) = wire else { return };
    wire.finish();
    if !close.peer_has_left() && registration.server.stage() < Stage::Cut {
        let discard = poll_fn(|cx| {
            let mut workspace = registration.thread().workspace.lock();
            match workspace.buffer.get_mut() {
                Some(scratch) => wire.poll_discard(cx, scratch),
                // Writes that are under way hold it. Then the client is hung up on.
                None => Poll::Ready(()),
            }
        });
        let cut = stopped(&registration, Stage::Cut);
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
        () = stopped(registration, Stage::Draining) => Err(Close::Shutdown),
    };
    let negotiated = match opened {
        Ok(negotiated) => negotiated,
        Err(close) => return (Some(opening.into_wire()), close),
    };
    registration.client.outbox.awake();
    tracing::info!(
        peer = registration.client.peer,
        export = negotiated.export.info.name,
        tls = negotiated.tls,
        "client connected"
    );
    registration.client.set_session(SessionInfo {
        export: negotiated.export.info.name.clone(),
        style: negotiated.style,
        tls: negotiated.tls,
    });
    let (wire, carry) = opening.into_parts();
    let mut transmission = Transmission::new(registration, wire, carry, &negotiated);
    let close = transmission.run().await;
    (Some(transmission.into_wire()), close)
}

/// Waits until the server's end has come that far.
async fn stopped(registration: &Registration, stage: Stage) {
    let outbox = Arc::clone(&registration.client.outbox);
    poll_fn(|cx| {
        outbox.sleep(cx);
        // In this order: whoever changes the stage does so before waking.
        if registration.server.stage() >= stage { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
