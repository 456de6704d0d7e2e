//! The transmission phase: requests in, replies out, until the end.
//!
//! What a message is, and what may begin when, is the protocol's business
//! ([`Connection`]); here are the socket, the disk and the thread's buffers. A connection works in turns. A turn
//! does all that can be done without waiting: it receives what there is, submits all requests in it together, and
//! sends all replies there are in one message. Between turns the connection waits for input, for room in the socket,
//! for the disk, for memory, or for the end of the server.

mod drain;
mod wait;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Wake, Waker};

use blockyard_blkmq::Bdev;
use blockyard_buf::Buffer;
use blockyard_nbd::server::{Connection, ConnectionLimits, Ending, Negotiated, Waits};
use blockyard_nbd::wire::{HeaderStyle, TransmissionFlags};
use blockyard_sys::spin::{Arrival, SpinPolicy};
use tokio::time::Instant;

use super::alarm::Alarm;
use super::bios::{Carrier, Carriers, Room};
use super::close::Close;
use super::send::send;
use super::wire::{Received, Wire};
use crate::catalogue;
use crate::catalogue::Offered;
use crate::client::Client;
use crate::server::{Registration, Stage};
use crate::thread::{RECEIVE_LEN, Workspace};
use drain::Drain;

/// Turns after which others on the thread get theirs.
const TURNS: u32 = 16;
/// Bytes that are still received when the server ends: more than had arrived.
const FAREWELL: usize = 1 << 20;
/// Bytes that are still received of a client that takes no replies any more: more than had arrived.
const LAST_WORDS: usize = 64 << 20;

pub(super) struct Transmission<'a> {
    registration: &'a Registration,
    wire: Wire,
    bdev: Arc<Bdev>,
    /// The block size that the client keeps to.
    block: u32,
    /// Bytes of a request's header.
    header: usize,
    /// The client wants to be told of the end, as it counts what it has not flushed as lost.
    hears_shutdown: bool,
    connection: Connection<Carrier, Room>,
    bios: Carriers,
    /// Receive buffers that writes are still using.
    pinned: Vec<Buffer>,
    /// Bytes that may still be received when the server ends.
    farewell: usize,
    /// Why the client takes no replies any more: that of it is still seen to which had arrived, as there may be a goodbye
    /// behind it.
    gone: Option<Close>,
    drain: Drain,
    alarm: Alarm,
    /// The deadline of the current sleep, and what it was for.
    due: Option<(Waits, Option<Instant>)>,
    spin: SpinPolicy,
    /// Since when the connection has been waiting for the client and nothing else.
    dry_since: Option<Instant>,
}

/// Wakes a connection that waits for memory.
struct Kick(Arc<Client>);

impl Wake for Kick {
    fn wake(self: Arc<Self>) {
        self.0.outbox.kick();
    }
}

impl<'a> Transmission<'a> {
    pub(super) fn new(
        registration: &'a Registration,
        wire: Wire,
        received: &[u8],
        negotiated: &Negotiated,
        offered: &Offered,
    ) -> Self {
        let config = &registration.server.config;
        let bdev = Arc::clone(&offered.export.bdev);
        let disk = bdev.limits();
        let limits = ConnectionLimits {
            in_flight: config.limits.in_flight_per_client,
            memory: config.limits.memory_per_client,
            window: RECEIVE_LEN,
            alignment: disk.dma_alignment as usize,
            stall_timeout: config.limits.stall_timeout,
            idle_timeout: config.limits.idle_timeout,
        };
        let waker = Waker::from(Arc::new(Kick(Arc::clone(&registration.client))));
        let lease = offered.share.lease(waker);
        let mut connection = Connection::new(negotiated, limits, lease);
        connection.stash(received);
        let outbox = Arc::clone(&registration.client.outbox);
        // What is encrypted has to be looked at.
        let flushes = negotiated.export.info.flags.contains(TransmissionFlags::SEND_FLUSH);
        let flushes = flushes.then(|| Arc::clone(&offered.flushes));
        let bios = Carriers::new(outbox, flushes, !wire.has_tls());
        Self {
            registration,
            wire,
            block: negotiated.export.block_sizes().minimum(),
            bdev,
            header: negotiated.style.request_len(),
            hears_shutdown: negotiated.hears_shutdown,
            connection,
            bios,
            pinned: Vec::new(),
            farewell: FAREWELL,
            gone: None,
            drain: Drain::default(),
            alarm: Alarm::default(),
            due: None,
            spin: SpinPolicy::default(),
            dry_since: None,
        }
    }

    /// Serves until the end, and says why it came.
    pub(super) async fn run(&mut self) -> Close {
        let close = self.serve().await;
        self.settle().await;
        close
    }

    /// Waits for what the disk was asked for. Until that has ended, the client is in the list and its socket is open: who
    /// sees a connection end may ask for the same again by another, and nothing old comes after it. Only the end of the
    /// whole server cuts that short, not that of an export.
    async fn settle(&mut self) {
        if self.connection.ending() != Some(Ending::Goodbye) {
            self.bios.abandon();
        }
        self.registration.leave();
        loop {
            self.collect();
            self.unpin();
            self.connection.hang_up();
            let registration = self.registration;
            let client = &registration.client;
            client.in_flight.store(self.connection.outstanding(), Ordering::Relaxed);
            client.at_disk.store(self.bios.at_disk(), Ordering::Relaxed);
            let is_cut = || registration.server.stage() >= Stage::Cut;
            if self.bios.at_disk() == 0 || is_cut() {
                return;
            }
            poll_fn(|cx| {
                let ended = client.outbox.sleep(cx);
                // After `sleep`: whoever changes the stage does so before waking.
                if ended || is_cut() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            client.outbox.awake();
        }
    }

    async fn serve(&mut self) -> Close {
        loop {
            if let Err(close) = self.work().await {
                return close;
            }
            let ending = self.connection.ending();
            // Without a goodbye, what its disk has not begun need not be.
            if matches!(ending, Some(Ending::Left | Ending::Truncated))
                && let Some(close) = self.gone.take()
            {
                return close;
            }
            if self.connection.is_quiet() {
                match ending {
                    Some(Ending::Goodbye | Ending::Left) => return Close::Left,
                    Some(Ending::Truncated) => return Close::Truncated,
                    Some(Ending::Broken) => {
                        return self.connection.violation().map_or(Close::Left, Close::Protocol);
                    }
                    Some(Ending::Shutdown) => return Close::Shutdown,
                    None => {}
                }
            }
            if let Err(close) = self.wait().await {
                return close;
            }
        }
    }

    /// Takes turns until there is nothing to do.
    async fn work(&mut self) -> Result<(), Close> {
        let mut turns = 0;
        loop {
            let progress = self.turn()? || self.look()?;
            if !progress {
                return Ok(());
            }
            turns += 1;
            if turns == TURNS {
                turns = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Does what can be done now; says whether that was anything.
    fn turn(&mut self) -> Result<bool, Close> {
        let registration = self.registration;
        let stage = registration.stage();
        self.drain.stage = stage;
        match stage {
            Stage::Serving => {}
            Stage::Draining => self.drain(),
            Stage::Cut if self.awaits_last_flush() => self.drain_last_flush(),
            Stage::Cut | Stage::Over => {
                if !self.has_last_answer() {
                    registration.client.set_cut_off();
                }
                return Err(Close::Shutdown);
            }
        }
        let ws = &mut *registration.thread().workspace.lock();
        let progress = self.answer(ws)?;
        self.unpin();
        if self.connection.has_backlog() {
            if !self.connection.may_receive() {
                return Ok(progress);
            }
            let len = self.connection.take_backlog(ws.buffer());
            self.take(ws, len)?;
            return Ok(true);
        }
        // Whoever is about to be hung up on is asked once more, whether the runtime knows of input or not.
        let is_last = self.connection.is_shutting_down() || self.gone.is_some();
        let readable = self.wire.maybe_readable() || is_last;
        if readable && self.may_receive() {
            return Ok(self.receive(ws)? || progress);
        }
        Ok(progress)
    }

    fn may_receive(&mut self) -> bool {
        self.hears() && self.connection.may_receive()
    }

    /// Whether what the client sends is of any interest.
    fn hears(&self) -> bool {
        self.farewell > 0 || self.connection.awaits_flush()
    }

    /// Receives once, and does what can be done with it. Says whether anything came.
    fn receive(&mut self, ws: &mut Workspace) -> Result<bool, Close> {
        let pool = &ws.pool;
        let mut head = [0; HeaderStyle::Extended.request_len()];
        if let Some(place) = self.connection.place(&mut |len| Room(pool.get(len))) {
            let missing = place.bytes.len();
            // Behind a payload comes a header, and what comes behind that may belong into a place of its own.
            let received = if place.is_last && !self.wire.has_tls() {
                self.wire.receive_two(place.bytes, &mut head[..self.header])
            } else {
                self.wire.receive(place.bytes)
            };
            let received = self.or_end(received)?;
            let Some(len) = self.received(received)? else { return Ok(received == Received::End) };
            self.connection.placed(len.min(missing));
            let head = &head[..len.saturating_sub(missing)];
            if !head.is_empty() {
                self.update_size();
            }
            self.connection.receive(head, &mut |len| Room(pool.get(len)));
            self.begin(ws, 0);
            self.answer(ws)?;
            return Ok(true);
        }
        // Where there is no memory for more of a payload, what has come of it goes to the disk.
        if self.begin(ws, 0) {
            self.answer(ws)?;
            return Ok(true);
        }
        let window = self.connection.window(RECEIVE_LEN);
        let received = self.wire.receive(&mut ws.buffer()[..window]);
        let received = self.or_end(received)?;
        let Some(len) = self.received(received)? else { return Ok(received == Received::End) };
        self.take(ws, len)?;
        Ok(true)
    }

    /// What came, where a client that is gone says no more by an error either.
    fn or_end(&self, received: io::Result<Received>) -> Result<Received, Close> {
        match received {
            Err(_) if self.gone.is_some() => Ok(Received::End),
            received => Ok(received?),
        }
    }

    /// How many bytes came, if any did.
    fn received(&mut self, received: Received) -> Result<Option<usize>, Close> {
        let is_last = self.connection.is_shutting_down() || self.gone.is_some();
        match received {
            Received::Nothing => {
                if self.gone.is_some() {
                    self.connection.end_of_input();
                }
                Ok(None)
            }
            Received::End => {
                self.connection.end_of_input();
                if !self.connection.is_quiet() && self.wire.is_hung_up() {
                    return Err(Close::HungUp);
                }
                Ok(None)
            }
            Received::Bytes(len) => {
                // As long as a flush is waited for, time is the bound.
                if is_last && !self.connection.awaits_flush() {
                    self.farewell = self.farewell.saturating_sub(len);
                }
                if self.farewell == 0 && self.gone.is_some() {
                    self.connection.end_of_input();
                }
                Ok(Some(len))
            }
        }
    }

    /// Nothing can be sent to the client any more. Behind what has arrived of it may be a goodbye, and what stands before that
    /// is to be done.
    fn desert(&mut self, close: Close) -> Result<(), Close> {
        if let Close::Tls(_) = close {
            return Err(close);
        }
        if self.gone.is_none() {
            self.registration.leave();
            self.connection.desert();
            self.farewell = LAST_WORDS;
            self.gone = Some(close);
        }
        Ok(())
    }

    /// Requests are checked against the size that the disk has when they are looked at.
    fn update_size(&mut self) {
        self.connection.set_size(catalogue::size(&self.bdev, self.block, &self.bdev.limits()));
    }

    /// Takes all requests out of the first `len` bytes of the thread's buffer, has them carried out, and sends
    /// the replies of those that end at once. What finds no room waits.
    fn take(&mut self, ws: &mut Workspace, len: usize) -> Result<(), Close> {
        self.update_size();
        let mut at = 0;
        loop {
            let pool = &ws.pool;
            let bytes = &ws.received()[at..len];
            let taken = self.connection.receive(bytes, &mut |len| Room(pool.get(len)));
            let began = self.begin(ws, at);
            at += taken;
            self.answer(ws)?;
            if (taken == 0 && !began) || at == len || !self.connection.may_receive() {
                break;
            }
        }
        self.connection.stash(&ws.received()[at..len]);
        if let Some(buffer) = ws.exchange() {
            self.pinned.push(buffer);
        }
        self.unpin();
        Ok(())
    }

    /// Has the disk do what was asked for. Some of it may have ended when this returns. Payloads that were left
    /// in the thread's buffer count from `base`. Says whether there was anything.
    fn begin(&mut self, ws: &Workspace, base: usize) -> bool {
        while let Some(request) = self.connection.poll_request() {
            self.bios.add(request, ws.received(), base);
        }
        let requests = self.bios.batch_len();
        if requests == 0 {
            return false;
        }
        let client = &self.registration.client;
        let thread = self.registration.thread();
        if !thread.is_active(client.id) {
            self.spin.not_alone();
        }
        if let Some(since) = self.dry_since.take() {
            self.spin.arrived(Arrival::Asleep, since.elapsed(), requests);
        }
        self.bios.count(client);
        self.bios.submit(&self.bdev, thread.cpu);
        true
    }

    /// Counts the buffers that writes keep.
    fn unpin(&mut self) {
        if !self.pinned.is_empty() {
            self.pinned.retain_mut(|buffer| buffer.get_mut().is_none());
        }
        self.connection.set_pinned(self.pinned.len() * RECEIVE_LEN);
    }

    /// Sends the replies of what has ended; says whether anything was sent.
    fn answer(&mut self, ws: &mut Workspace) -> Result<bool, Close> {
        let mut progress = false;
        if self.wire.has_tls()
            && !self.connection.wants_transmit()
            && self.gone.is_none()
            && let Err(err) = self.wire.flush_tls()
        {
            self.desert(err.into())?;
        }
        loop {
            let mut all = true;
            if self.connection.wants_transmit() {
                let before = self.wire.bytes_sent();
                match send(&mut self.connection, &mut self.wire, &mut ws.vecs) {
                    Ok(sent_all) => all = sent_all,
                    Err(err) => self.desert(err.into())?,
                }
                progress |= self.wire.bytes_sent() != before;
            }
            while let Some(Carrier(bio)) = self.connection.poll_free() {
                self.bios.give_back(bio);
            }
            // Also where there is no room for replies: what has ended may be what the next request waits for.
            let ended = self.collect();
            progress |= ended;
            if !(all && ended) {
                break;
            }
        }
        let in_flight = self.connection.outstanding();
        let client = &self.registration.client;
        client.in_flight.store(in_flight, Ordering::Relaxed);
        client.at_disk.store(self.bios.at_disk(), Ordering::Relaxed);
        Ok(progress)
    }

    /// Makes replies of what has ended; says whether anything has.
    fn collect(&mut self) -> bool {
        let mut ended = self.bios.take_ended();
        let any = !ended.is_empty();
        // Not whether this connection knows of the end already: the flush may have begun before it.
        if self.bios.unflushed.end(&ended) && self.registration.stage() > Stage::Serving {
            // It was others' as well.
            self.registration.server.kick_all();
        }
        for bio in ended.drain(..) {
            if let Some(Carrier(bio)) = self.connection.complete(Carrier(bio)) {
                self.bios.give_back(bio);
            }
        }
        self.bios.keep_list(ended);
        any
    }

    /// Looks for the next request for some microseconds, where that has been worth while. Says whether one
    /// came.
    fn look(&mut self) -> Result<bool, Close> {
        let idle = self.connection.is_between_requests() && !self.wire.has_tls();
        let Some(budget) = self.spin.budget().filter(|_| idle) else { return Ok(false) };
        if !self.may_receive() {
            return Ok(false);
        }
        let registration = self.registration;
        let before = registration.client.requests.load(Ordering::Relaxed);
        let start = Instant::now();
        self.dry_since = None;
        let mut ws = registration.thread().workspace.lock();
        loop {
            if self.receive(&mut ws)? {
                let count = registration.client.requests.load(Ordering::Relaxed) - before;
                let requests = usize::try_from(count).unwrap_or(usize::MAX);
                self.spin.arrived(Arrival::Spinning, start.elapsed(), requests);
                return Ok(true);
            }
            if start.elapsed() > budget {
                self.spin.missed();
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    pub(super) fn into_wire(self) -> Wire {
        self.wire
    }
}
