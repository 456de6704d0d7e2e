//! The task of a queue, on its queue thread.
//!
//! It works in turns. A turn does all that can be done without waiting: it takes what the driver has made available, submits
//! all of it together, gives back what has ended, and signals the driver once. Between turns it waits for the driver, the
//! disk, or the session.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use blockyard_sys::EventWatch;
use blockyard_sys::spin::{Arrival, SpinPolicy};
use blockyard_vhost_user_backend::{Events, Setup};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::Sleep;

use super::io::{Io, LostWrites};
use super::serving::{BATCH, Fault, SMALL_BATCH, Serving};
use super::{Answer, Command, CommandError, Envelope};
use crate::device::Device;

/// Pauses between two looks at a ring: each look takes the cache line that the driver is about to write.
const LOOK_PAUSES: u32 = 4;
/// Turns after which others on the thread get theirs.
const TURNS: u32 = 32;
/// To look at a ring costs no system call, so that it is worth while however many requests come at a time.
const ONE: usize = 1;

/// The limits of the disk give way to a stop no more often than that: a guest that resets its device again and again would have
/// none.
const ADMIT_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    device: Arc<Device>,
    cpu: usize,
    index: u32,
    runtime: Handle,
    commands: mpsc::Receiver<Envelope>,
    /// There will be no more of them.
    abandoned: bool,
    serving: Option<Serving>,
    /// Nothing is taken any more; who asked for it waits until nothing is in flight.
    stop: Option<SyncSender<Answer>>,
    /// Until then the limits of the disk keep what they keep, also of a queue that is to stop.
    keeps_until: Option<Instant>,
    /// While a stop waits.
    admit: Option<Pin<Box<Sleep>>>,
    io: Io,
    /// It was full when the driver was to be asked for more.
    is_full: bool,
    spin: SpinPolicy,
    /// Since when it has been waiting for the driver and nothing else.
    dry_since: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        device: Arc<Device>,
        cpu: usize,
        index: u32,
        runtime: Handle,
        commands: mpsc::Receiver<Envelope>,
    ) -> Self {
        let io = Io::new(Arc::clone(&device.bounce_memory));
        Self {
            device,
            cpu,
            index,
            runtime,
            commands,
            abandoned: false,
            serving: None,
            stop: None,
            keeps_until: None,
            admit: None,
            io,
            is_full: false,
            spin: SpinPolicy::default(),
            dry_since: None,
        }
    }

    /// Serves until the session has no more use for it.
    pub(super) async fn run(mut self) {
        loop {
            let mut turns = 0;
            while self.turn() || self.look() {
                turns += 1;
                if turns == TURNS {
                    turns = 0;
                    tokio::task::yield_now().await;
                }
            }
            if self.abandoned && self.io.outstanding == 0 {
                return;
            }
            if self.may_sleep() {
                self.wait().await;
            }
        }
    }

    /// Does what can be done now; says whether that was anything.
    fn turn(&mut self) -> bool {
        let mut progress = self.command();
        let limit = if self.io.outstanding == 0 { SMALL_BATCH } else { BATCH };
        let taken = self.take(limit);
        progress |= taken > 0;
        progress |= self.collect(taken == limit);
        self.finish_stop();
        progress
    }

    /// Does what the session wants, if it wants anything.
    fn command(&mut self) -> bool {
        match self.commands.try_recv() {
            Ok(envelope) => {
                self.obey(envelope);
                true
            }
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => {
                self.abandoned = true;
                false
            }
        }
    }

    fn obey(&mut self, Envelope { command, reply }: Envelope) {
        let done = match command {
            Command::Stop => {
                self.stop = Some(reply);
                self.admit_kept();
                return;
            }
            Command::Start(setup) => self.start(*setup),
            Command::Update(events) => self.update(events),
            Command::Memory(memory) => match &mut self.serving {
                Some(serving) => {
                    serving.set_memory(memory).map_err(|err| CommandError::Queue(self.index, err))
                }
                None => Ok(()),
            },
        };
        // The session waits for it, unless it has ended.
        let _ = reply.send(done.map(|()| 0));
    }

    /// Lets in what the limits of the disk keep of what is in flight, now or when it may: the front-end waits for that, with all
    /// that it is. Others keep to them.
    fn admit_kept(&mut self) {
        if self.io.outstanding == 0 {
            return;
        }
        let now = Instant::now();
        let again = match self.keeps_until {
            Some(until) if until > now => until,
            _ => {
                self.device.export.bdev.disk().admit_kept();
                *self.keeps_until.insert(now + ADMIT_PAUSE)
            }
        };
        // Also what has waited for memory since.
        self.admit = Some(Box::pin(tokio::time::sleep_until(again.into())));
    }

    fn start(&mut self, setup: Setup) -> Result<(), CommandError> {
        let has_durability = self.device.has_durability();
        let serving = Serving::new(setup, self.index, &self.runtime, has_durability)?;
        self.io.prepare(serving.ring.size(), &self.device.export.bdev);
        if serving.has_resume() {
            tracing::info!(
                socket = self.device.backend.name(),
                queue = self.index,
                "resubmitting requests of the in-flight region"
            );
            if let Some(tell) = &self.device.export.on_resume {
                tell();
            }
        }
        self.serving = Some(serving);
        Ok(())
    }

    fn update(&mut self, events: Events) -> Result<(), CommandError> {
        let Some(serving) = &mut self.serving else { return Ok(()) };
        if !serving.kick.is_of(&events.kick) {
            serving.kick = EventWatch::new(events.kick, &self.runtime)
                .map_err(|err| CommandError::Event(self.index, err))?;
        }
        serving.set_events(events.call, events.err);
        serving.enabled = events.enabled;
        Ok(())
    }

    /// The ring, if chains are to be taken from it.
    fn active(&mut self) -> Option<&mut Serving> {
        let wanted = self.stop.is_none() && !self.abandoned;
        self.serving.as_mut().filter(|serving| wanted && serving.is_active())
    }

    /// Takes up to `limit` chains that the driver has made available; says how many.
    fn take(&mut self, limit: usize) -> usize {
        if self.stop.is_some() || self.abandoned {
            return 0;
        }
        let Some(serving) = self.serving.as_mut().filter(|serving| serving.is_active()) else {
            return 0;
        };
        serving.ring.disable_notify();
        self.io.note_losses();
        let taken = match serving.take(limit, &mut self.io, &self.device) {
            Ok(taken) => taken,
            Err(fault) => {
                self.broke(&fault);
                // What came before the fault was good.
                1
            }
        };
        if taken == 0 {
            return 0;
        }
        self.device.backend.count_requests(taken);
        if !self.device.is_active(self.cpu, self.index) {
            self.spin.not_alone();
        }
        if let Some(since) = self.dry_since.take() {
            self.spin.arrived(Arrival::Asleep, since.elapsed(), ONE);
        }
        if self.serving.as_mut().is_some_and(Serving::has_lost_memory) {
            // Where it goes and what is in it may not be the guest's word.
            self.io.withhold();
            self.broke(&Fault::MemoryLost);
            return taken;
        }
        self.io.submit(&self.device.export.bdev, self.cpu);
        taken
    }

    /// Gives back what has ended, before `more` is taken; says whether that was anything.
    fn collect(&mut self, more: bool) -> bool {
        let Some(serving) = &mut self.serving else { return false };
        let known = serving.memory_lost;
        let mut collected = serving.collect(&mut self.io);
        if !serving.has_lost_memory() {
            serving.publish(more, &self.device, self.cpu);
        } else if !known {
            // Nothing that came out of it is shown to the driver, not now and not later.
            collected = Err(Fault::MemoryLost);
        }
        self.tell_lost_writes();
        match collected {
            Ok(any) => any,
            Err(fault) => {
                self.broke(&fault);
                true
            }
        }
    }

    fn tell_lost_writes(&mut self) {
        if self.io.lost_writes.count == 0 {
            return;
        }
        let LostWrites { count, sectors } = std::mem::take(&mut self.io.lost_writes);
        tracing::error!(
            socket = self.device.backend.name(),
            queue = self.index,
            writes = count,
            first_sector = sectors.start,
            last_sector = sectors.end.saturating_sub(1),
            "guest memory lost; its writes in flight failed, and may have left zeroes in these sectors"
        );
    }

    #[cold]
    fn broke(&mut self, fault: &Fault) {
        let Some(serving) = &mut self.serving else { return };
        // Rings and requests that cannot be may be what is left of lost memory.
        if matches!(fault, Fault::MemoryLost) || serving.has_lost_memory() {
            self.device.backend.tell_memory_lost();
        } else if !serving.broken {
            tracing::warn!(
                socket = self.device.backend.name(),
                queue = self.index,
                error = %fault,
                "guest driver violated virtio; queue stopped"
            );
        }
        serving.break_down(&self.device, self.cpu);
    }

    /// Tells who wants it stopped, once nothing is in flight.
    fn finish_stop(&mut self) {
        if self.io.outstanding > 0 {
            return;
        }
        if let Some(reply) = self.stop.take() {
            self.admit = None;
            let base = self.serving.take().map_or(0, |serving| serving.ring.next_available());
            // As in `obey`.
            let _ = reply.send(Ok(base));
        }
    }

    /// Looks for the next request for some microseconds, where that has been worth while. Says whether one came.
    fn look(&mut self) -> bool {
        let budget = self.spin.budget().filter(|_| self.io.outstanding == 0 && !self.io.is_full());
        let Some(budget) = budget else { return false };
        let Some(serving) = self.active() else { return false };
        let start = Instant::now();
        loop {
            let waiting = match serving.ring.waiting() {
                Ok(waiting) => waiting,
                Err(fault) => {
                    self.broke(&fault.into());
                    return true;
                }
            };
            if waiting > 0 {
                self.dry_since = None;
                self.spin.arrived(Arrival::Spinning, start.elapsed(), ONE);
                return true;
            }
            if start.elapsed() > budget {
                self.spin.missed();
                return false;
            }
            (0..LOOK_PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }

    /// Asks the driver to tell when there is more; says whether there is none yet.
    fn may_sleep(&mut self) -> bool {
        self.is_full = self.io.is_full();
        if self.is_full {
            return true;
        }
        let Some(serving) = self.active() else { return true };
        match serving.ring.enable_notify() {
            Ok(more) => !more,
            Err(fault) => {
                self.broke(&fault.into());
                false
            }
        }
    }

    async fn wait(&mut self) {
        let dry = self.io.outstanding == 0;
        self.dry_since = dry.then(Instant::now);
        poll_fn(|cx| self.poll_wait(cx)).await;
        self.io.ends.0.awake();
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // After `sleep`: memory is given back before anybody is kicked.
        if self.io.ends.0.sleep(cx) || self.is_full && !self.io.is_full() {
            return Poll::Ready(());
        }
        if !self.abandoned
            && let Poll::Ready(envelope) = self.commands.poll_recv(cx)
        {
            match envelope {
                Some(envelope) => self.obey(envelope),
                None => self.abandoned = true,
            }
            return Poll::Ready(());
        }
        if let Some(admit) = &mut self.admit
            && admit.as_mut().poll(cx).is_ready()
        {
            self.admit = None;
            self.admit_kept();
            return Poll::Ready(());
        }
        let Some(serving) = self.active() else { return Poll::Pending };
        // It fails only when the runtime ends, and all tasks with it.
        match serving.kick.poll_happened(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}
