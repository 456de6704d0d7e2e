//! A kind of device, and what its queues are told.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use blockyard_buf::{GuestMemory, Segment, SharedMapping};
use blockyard_sys::PeerEvent;
use blockyard_vhost_user::queue::{QueueError, RingPlace};
use blockyard_vhost_user::wire::{ConfigSpan, MAX_CONFIG, ProtocolFeatures};
use thiserror::Error;

use crate::backend::Backend;

/// A kind of device. Its methods are called on the server's thread.
pub trait Device: Send + Sync + 'static {
    /// Its virtqueues.
    type Queue: Queue;

    /// What it shares with its server.
    fn backend(&self) -> &Arc<Backend>;
    /// Queues that a front-end may use, up to [`MAX_QUEUES`](crate::MAX_QUEUES).
    fn queues(&self) -> u16;
    /// What it can do, as virtio and vhost-user have it.
    fn features(&self) -> u64;
    /// Extensions of the protocol that it has.
    fn protocol_features(&self) -> ProtocolFeatures;
    /// The configuration space, zeroes behind.
    fn config(&self) -> [u8; MAX_CONFIG];
    /// A part of the configuration space is written by a driver that has agreed to `features`.
    ///
    /// # Errors
    /// Why it cannot.
    fn set_config(&self, span: &ConfigSpan, features: u64) -> Result<(), String> {
        let _ = features;
        Err(not_writable(span))
    }
    /// A queue of its own for a front-end; it serves nothing yet.
    ///
    /// # Errors
    /// There is no room for it.
    fn make_queue(self: &Arc<Self>, index: u32) -> io::Result<Self::Queue>;
    /// Bytes that it wants behind the in-flight region.
    fn inflight_tail_len(&self) -> usize {
        0
    }
    /// There is an in-flight region now: one that was made, or one that was brought, of which so many bytes are in use.
    fn has_inflight(&self, mapping: &Arc<SharedMapping>, brought: Option<usize>) {
        let _ = (mapping, brought);
    }
    /// A queue is about to start.
    fn queue_starts(&self, start: QueueStart) {
        let _ = start;
    }
    /// How long what a queue has in flight may take when it is to stop. Then the front-end is hung up on, and its memory is out
    /// of reach of what is still in flight. `None`: as long as it takes.
    fn stop_patience(&self) -> Option<Duration> {
        None
    }
    /// The front-end has left. None of its requests is carried out any more.
    fn front_end_left(&self) {}
}

/// Where a queue goes on, and who has served it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueStart {
    /// At the beginning of its ring: nobody.
    New,
    /// Where the same session has stopped it, which has brought no in-flight region since.
    Again,
    /// As its part of the in-flight region says: a back-end that had this region, this one or another.
    Recovered,
    /// In the middle of its ring: a back-end of which nothing is known.
    Elsewhere,
}

/// What is said of a part of the configuration space that is not a driver's to write.
#[must_use]
pub fn not_writable(span: &ConfigSpan) -> String {
    let (len, at) = (span.bytes.len(), span.offset);
    format!("{len} bytes at {at} of the configuration space cannot be written")
}

/// A virtqueue of a device: the session tells it what to do. Dropping it ends it once nothing is in flight.
pub trait Queue {
    /// Serves a ring.
    ///
    /// # Errors
    /// [`CommandError`]: it serves none then.
    fn start(&self, setup: Setup) -> Result<(), CommandError>;
    /// The ring that is served has other events, or is enabled or not.
    ///
    /// # Errors
    /// [`CommandError`].
    fn update(&self, events: Events) -> Result<(), CommandError>;
    /// The guest's memory is another. What is in flight keeps what it is in.
    ///
    /// # Errors
    /// [`CommandError`]: the ring is not in there, and is as it was.
    fn set_memory(&self, memory: Arc<GuestMemory>) -> Result<(), CommandError>;
    /// Takes nothing more from the ring. What is in flight ends first.
    fn begin_stop(&self) -> Stopping;
    /// What is in flight does not end: nothing of it is given back any more, nor waited for. Only of a device that has
    /// [`Device::stop_patience`].
    fn abandon(&self) {}
}

/// Why a queue did not do what it was told.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The ring or its in-flight region cannot be.
    #[error("queue {0}: {1}")]
    Queue(u32, QueueError),
    /// Its event cannot be waited for.
    #[error("queue {0}: cannot wait for its event: {1}")]
    Event(u32, io::Error),
    /// Its thread has ended.
    #[error("queue {0}: its thread has exited")]
    Gone(u32),
    /// What it has in flight does not end.
    #[error("queue {0}: requests in flight did not finish within {1:?}")]
    Hangs(u32, Duration),
}

/// All that a queue needs to start.
pub struct Setup {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Where the ring is.
    pub place: RingPlace,
    /// Where in the available ring to begin, unless the in-flight region knows better.
    pub base: u16,
    /// How driver and front-end are heard and told.
    pub events: Events,
    /// What was agreed upon.
    pub features: u64,
    /// Its part of the in-flight region.
    pub region: Option<RegionPart>,
}

/// The events of a ring.
#[derive(Clone)]
pub struct Events {
    /// What the driver signals it by.
    pub kick: Arc<PeerEvent>,
    /// What the driver is signalled by.
    pub call: Option<Arc<PeerEvent>>,
    /// What the front-end is signalled by if it breaks.
    pub err: Option<Arc<PeerEvent>>,
    /// It is to be served.
    pub enabled: bool,
}

/// A queue's part of the in-flight region.
pub struct RegionPart {
    /// Of which mapping.
    pub mapping: Arc<SharedMapping>,
    /// Where in it.
    pub part: Segment,
}

/// What comes of a command: where in the available ring, of one that stops.
pub type Answer = Result<u16, CommandError>;

/// A queue that does what it was told.
pub struct Stopping {
    index: u32,
    reply: Receiver<Answer>,
}

impl Stopping {
    /// That of queue `index`, and how it says that it is done.
    #[must_use]
    pub fn new(index: u32) -> (SyncSender<Answer>, Self) {
        let (sender, reply) = sync_channel(1);
        (sender, Self { index, reply })
    }

    /// Waits until it is.
    ///
    /// # Errors
    /// What it says; [`CommandError::Gone`] if it says nothing.
    pub fn wait(self) -> Answer {
        self.reply.recv().unwrap_or(Err(CommandError::Gone(self.index)))
    }

    /// Waits until it is, or patience, if there is a limit to it, is at its end.
    ///
    /// # Errors
    /// As of [`Stopping::wait`]; [`CommandError::Hangs`] if it is not in time.
    pub(crate) fn wait_for(self, patience: Option<Duration>) -> Answer {
        let Some(patience) = patience else { return self.wait() };
        match self.reply.recv_timeout(patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(CommandError::Hangs(self.index, patience)),
            Err(RecvTimeoutError::Disconnected) => Err(CommandError::Gone(self.index)),
        }
    }
}
