//! Between turns: what a connection waits for, and how long.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use blockyard_nbd::server::{Direction, Ending, Waits};
use tokio::time::Instant;

use super::Transmission;
use crate::connection::close::Close;

/// How often a client that is not received from is looked at, whether it is gone.
const HANG_UP_INTERVAL: Duration = Duration::from_secs(2);

impl Transmission<'_> {
    pub(super) async fn wait(&mut self) -> Result<(), Close> {
        self.note_records();
        if self.connection.ending().is_some_and(|ending| ending != Ending::Shutdown) {
            // Whatever it still gets, it has no place among those who ask for more.
            self.registration.leave();
        }
        self.dry_since = self.connection.is_quiet().then(Instant::now);
        if let Some(now) = self.dry_since {
            self.bios.unflushed.note(now.into_std());
        }
        self.due = None;
        let result = poll_fn(|cx| self.poll_wait(cx)).await;
        self.registration.client.outbox.awake();
        result
    }

    /// Ready when one of the things has happened that the connection [waits for](Connection::waits_for).
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Close>> {
        // The outbox tells of the disk, of memory and of the server's end. Whoever changes the stage, or gives memory, does so
        // before waking.
        let ended = self.registration.client.outbox.sleep(cx);
        let stage = self.registration.stage();
        if ended || self.has_been_flushed() || stage > self.drain.stage {
            return Poll::Ready(Ok(()));
        }
        let Some(waits) = self.connection.waits_for() else { return Poll::Ready(Ok(())) };
        if waits.input
            && self.hears()
            && let Poll::Ready(ready) = self.wire.poll_readable(cx)
        {
            return Poll::Ready(ready.map_err(Close::from));
        }
        if (waits.room || self.wire.wants_room() && self.gone.is_none())
            && let Poll::Ready(ready) = self.wire.poll_writable(cx)
        {
            return Poll::Ready(ready.map_err(Close::from));
        }
        let deadline = self.deadline(waits);
        if self.alarm.poll(cx, deadline).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.out_of_time())
    }

    /// When to look again, if nothing of what is waited for happens. It does not move on while that is the same.
    fn deadline(&mut self, waits: Waits) -> Option<Instant> {
        if let Some((before, deadline)) = self.due
            && before == waits
        {
            return deadline;
        }
        let now = Instant::now();
        let expires = self.connection.deadline(now.into_std()).map(Instant::from_std);
        let look = (!waits.input).then(|| now + HANG_UP_INTERVAL);
        let deadline = [expires, look, self.drain.look_at].into_iter().flatten().min();
        self.due = Some((waits, deadline));
        deadline
    }

    /// The deadline has passed.
    fn out_of_time(&mut self) -> Result<(), Close> {
        // A unix socket tells of room when it has plenty: who takes a little at a time has made some nevertheless.
        self.answer(&mut self.registration.thread().workspace.lock())?;
        if !self.connection.may_receive() && self.wire.is_hung_up() {
            return self.desert(Close::HungUp);
        }
        self.note_records();
        match self.connection.expired(Instant::now().into_std()) {
            Some(expired) => Err(Close::Expired(expired)),
            None => Ok(()),
        }
    }

    /// Bytes of TLS records count as well, before they are a whole one.
    fn note_records(&mut self) {
        let moved = self.wire.took_bytes();
        if moved.received {
            self.connection.moved(Direction::In);
        }
        if moved.sent {
            self.connection.moved(Direction::Out);
        }
    }
}
