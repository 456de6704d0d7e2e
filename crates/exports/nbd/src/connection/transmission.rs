//! The transmission phase: requests in, replies out, until the end.
//!
//! A connection works in turns. A turn does all that can be done without waiting: it receives what there is,
//! submits all requests in it together, and sends all replies there are in one message. Between turns the
//! connection waits for input, for room in the socket, for the disk, or for the end of the server.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use blockyard_blkmq::Bdev;
use blockyard_nbd::MetaContext;
use blockyard_nbd::server::{Negotiated, ReplyEncoder, RequestRules};
use blockyard_nbd::wire::HeaderStyle;
use blockyard_sys::spin::{Arrival, SpinPolicy};

use super::close::Close;
use super::input::Input;
use super::reply::Replies;
use super::requests::Requests;
use super::stall::Stall;
use super::transmit::Transmit;
use super::wire::Wire;
use crate::server::{Registration, Stage};
use crate::thread::Workspace;

/// Turns after which others on the thread get theirs.
const TURNS: u32 = 16;

/// Why a connection ends when a time has passed.
type TimedOut = fn(Duration) -> Close;

pub(super) struct Transmission<'a> {
    pub(super) registration: &'a Registration,
    pub(super) wire: Wire,
    pub(super) bdev: Arc<Bdev>,
    pub(super) style: HeaderStyle,
    pub(super) rules: RequestRules,
    pub(super) contexts: Vec<MetaContext>,
    pub(super) replies: Replies,
    /// The logical block size.
    pub(super) block: u32,
    /// Bits that the address of a write's memory must not have.
    pub(super) dma_alignment: usize,
    pub(super) requests: Requests,
    pub(super) input: Input,
    pub(super) out: Transmit,
    /// No more requests are taken; once all is answered, the connection ends for this reason.
    pub(super) ending: Option<Close>,
    /// Bytes have moved since the last wait.
    moved: bool,
    stall: Stall,
    spin: SpinPolicy,
    /// Since when the connection has been waiting for the client and nothing else.
    dry_since: Option<Instant>,
}

impl<'a> Transmission<'a> {
    pub(super) fn new(
        registration: &'a Registration,
        wire: Wire,
        carry: Vec<u8>,
        negotiated: &Negotiated,
    ) -> Self {
        let config = &registration.server.config;
        let at = usize::try_from(negotiated.export.id).unwrap_or(usize::MAX);
        let bdev = Arc::clone(&config.exports[at].bdev);
        let limits = bdev.limits();
        Self {
            registration,
            wire,
            style: negotiated.style,
            rules: RequestRules::new(negotiated),
            contexts: negotiated.contexts.clone(),
            replies: Replies {
                encoder: ReplyEncoder::new(negotiated.style),
                max_payload: config.limits.max_payload,
            },
            block: limits.logical_block_size.bytes(),
            dma_alignment: limits.dma_alignment as usize,
            bdev,
            requests: Requests::new(Arc::clone(&registration.client.outbox), &config.limits),
            input: Input::new(carry),
            out: Transmit::default(),
            ending: None,
            moved: true,
            stall: Stall::new(tokio::time::Instant::now()),
            spin: SpinPolicy::default(),
            dry_since: None,
        }
    }

    /// Serves until the end, and says why it came.
    pub(super) async fn run(&mut self) -> Close {
        loop {
            match self.work().await {
                Err(close) => return close,
                Ok(()) if self.requests.outstanding() == 0 && self.out.is_empty() => {
                    if let Some(close) = self.ending.take() {
                        return close;
                    }
                }
                Ok(()) => {}
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
        match registration.server.stage() {
            Stage::Serving => {}
            Stage::Draining => _ = self.ending.get_or_insert(Close::Shutdown),
            Stage::Cut => return Err(Close::Shutdown),
        }
        let ws = &mut *registration.thread().workspace.lock();
        let mut progress = self.answer(ws)?;
        progress |= self.resume(ws)?;
        if self.wire.maybe_readable() && self.may_receive() {
            progress |= self.receive(ws)?;
        }
        Ok(progress)
    }

    /// Has the batch carried out. Some of it may have ended when this returns.
    pub(super) fn submit(&mut self) {
        let requests = self.requests.batch_len();
        if requests == 0 {
            return;
        }
        let client = &self.registration.client;
        let thread = self.registration.thread();
        if !thread.is_active(client.id) {
            self.spin.not_alone();
        }
        if let Some(since) = self.dry_since.take() {
            self.spin.arrived(Arrival::Asleep, since.elapsed(), requests);
        }
        self.requests.count(client);
        self.requests.submit(&self.bdev, thread.cpu);
        self.moved = true;
    }

    /// Sends the replies of what has ended; says whether anything was sent.
    pub(super) fn answer(&mut self, ws: &mut Workspace) -> Result<bool, Close> {
        let mut progress = false;
        if self.wire.has_tls() && self.out.is_empty() {
            self.wire.flush_tls()?;
        }
        loop {
            if !self.out.is_empty() {
                let before = self.out.position();
                let all = self.out.send(&mut self.wire, &mut ws.vecs)?;
                let sent = all || self.out.position() != before;
                progress |= sent;
                self.moved |= sent;
                if !all {
                    break;
                }
                self.requests.sent(self.out.take_bios());
            }
            if !self.requests.collect(&self.replies, &mut self.out) {
                break;
            }
        }
        let in_flight = self.requests.outstanding();
        self.registration.client.in_flight.store(in_flight, Ordering::Relaxed);
        Ok(progress)
    }

    /// Looks for the next request for some microseconds, where that has been worth while. Says whether one
    /// came.
    fn look(&mut self) -> Result<bool, Close> {
        let idle = self.requests.outstanding() == 0 && self.out.is_empty() && !self.wire.has_tls();
        let Some(budget) = self.spin.budget().filter(|_| idle) else { return Ok(false) };
        if !self.may_receive() || self.input.is_half_way() {
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

    async fn wait(&mut self) -> Result<(), Close> {
        let now = Instant::now();
        if std::mem::take(&mut self.moved) {
            self.stall.moved(now.into());
        }
        let dry = self.requests.outstanding() == 0 && self.out.is_empty();
        self.dry_since = dry.then_some(now);
        let result = poll_fn(|cx| self.poll_wait(cx)).await;
        self.registration.client.outbox.awake();
        result
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Close>> {
        let ended = self.registration.client.outbox.sleep(cx);
        if ended && self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        // After `sleep`: whoever changes the stage does so before waking.
        let stage = self.registration.server.stage();
        if stage == Stage::Cut || (stage == Stage::Draining && self.ending.is_none()) {
            return Poll::Ready(Ok(()));
        }
        if self.may_receive()
            && let Poll::Ready(ready) = self.wire.poll_readable(cx)
        {
            return Poll::Ready(ready.map_err(Close::from));
        }
        if (!self.out.is_empty() || self.wire.wants_room())
            && let Poll::Ready(ready) = self.wire.poll_writable(cx)
        {
            return Poll::Ready(ready.map_err(Close::from));
        }
        let Some((limit, close)) = self.patience() else {
            self.stall.rest();
            return Poll::Pending;
        };
        self.stall.poll(cx, limit).map(|()| Err(close(limit)))
    }

    /// How long the client may leave the connection as it is, and what happens then. The disk may take its
    /// time.
    fn patience(&mut self) -> Option<(Duration, TimedOut)> {
        let limits = &self.registration.server.config.limits;
        let half_way = !self.out.is_empty() || (self.input.is_half_way() && self.may_receive());
        if half_way {
            return Some((limits.stall_timeout, Close::Stalled));
        }
        let idle = limits.idle_timeout.filter(|_| self.requests.outstanding() == 0)?;
        Some((idle, Close::Idle))
    }

    pub(super) fn into_wire(self) -> Wire {
        self.wire
    }
}
