//! What others tell each other about an image.

use blockyard_rbd::format::names;
use blockyard_rbd::store::{ObjectStore, StoreWatch, WatchEvent};
use bytes::Bytes;

use super::cannot;
use super::place::Context;
use crate::error::{Error, Result};
use crate::text::term;

pub(super) async fn run(context: &Context<'_>, image: &str) -> Result<()> {
    let target = context.image(image)?;
    let (store, image) = target.read().await?;
    let watch = store.watch(&names::header(image.id())).await;
    let mut watch = watch.map_err(cannot("watch", &target.spec))?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .map_err(|err| Error::failed("cannot catch signals").caused_by(err))?;
    term::tell(format_args!("watching {}; Ctrl-C stops", target.spec));
    loop {
        let event = tokio::select! {
            event = watch.next() => event,
            _ = interrupt.recv() => return Ok(()),
        };
        match event {
            None => return Ok(()),
            Some(WatchEvent::Missed) => term::say("notifications may have been missed")?,
            Some(WatchEvent::Lost(err)) => return Err(cannot("watch", &target.spec)(err)),
            Some(WatchEvent::Notified { notify_id, notifier, payload }) => {
                let length = payload.len();
                term::say(format_args!("client.{notifier} notifies: {length} bytes"))?;
                let answered = watch.acknowledge(notify_id, Bytes::new()).await;
                answered.map_err(cannot("answer about", &target.spec))?;
            }
        }
    }
}
