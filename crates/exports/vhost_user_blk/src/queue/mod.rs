//! A virtqueue and the task on its queue thread that serves it; the session tells it what to do, and waits until that is done.

mod io;
mod request;
mod serving;
mod slot;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use blockyard_blkmq::Bio;
use blockyard_buf::{GuestMemory, Segment, SharedMapping};
use blockyard_sys::PeerEvent;
use blockyard_vhost_user::queue::{QueueError, RingPlace};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::device::Device;
use worker::Worker;

/// Bios on their way through a queue: the block layer takes and gives boxes.
type Bios = Vec<Box<Bio>>;

/// Commands that wait: the session sends one at a time.
const COMMANDS: usize = 2;

/// Why a queue did not do what it was told.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    /// The ring or its in-flight region cannot be.
    #[error("queue {0}: {1}")]
    Queue(u32, QueueError),
    /// Its event cannot be waited for.
    #[error("queue {0}: cannot wait for its event: {1}")]
    Event(u32, std::io::Error),
    /// Its thread has ended.
    #[error("queue {0}: its thread has exited")]
    Gone(u32),
}

/// All that a queue needs to start.
pub(crate) struct Setup {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) place: RingPlace,
    /// Where in the available ring to begin, unless the in-flight region knows better.
    pub(crate) base: u16,
    pub(crate) kick: Arc<PeerEvent>,
    pub(crate) call: Option<Arc<PeerEvent>>,
    pub(crate) err: Option<Arc<PeerEvent>>,
    pub(crate) enabled: bool,
    /// Indirect descriptors were agreed upon.
    pub(crate) indirect: bool,
    /// The driver can flush.
    pub(crate) cached: bool,
    /// A write can be made durable.
    pub(crate) has_durability: bool,
    /// Its part of the in-flight region.
    pub(crate) region: Option<RegionPart>,
}

/// A queue's part of the in-flight region.
pub(crate) struct RegionPart {
    /// Of which mapping.
    pub(crate) mapping: Arc<SharedMapping>,
    /// Where in it.
    pub(crate) part: Segment,
}

enum Command {
    Start(Box<Setup>),
    Update {
        kick: Arc<PeerEvent>,
        call: Option<Arc<PeerEvent>>,
        err: Option<Arc<PeerEvent>>,
        enabled: bool,
    },
    Memory(Arc<GuestMemory>),
    /// Answered with where in the available ring, when nothing is in flight any more.
    Stop,
}

type Answer = Result<u16, CommandError>;

struct Envelope {
    command: Command,
    reply: SyncSender<Answer>,
}

/// The session's end of a queue. Dropping it ends the queue once nothing is in flight.
pub(crate) struct QueueHandle {
    index: u32,
    commands: mpsc::Sender<Envelope>,
}

/// A queue that is stopping.
pub(crate) struct Stopping {
    index: u32,
    reply: Receiver<Answer>,
}

impl Stopping {
    /// Waits until it has.
    ///
    /// # Errors
    /// [`CommandError::Gone`].
    pub(crate) fn wait(self) -> Answer {
        self.reply.recv().unwrap_or(Err(CommandError::Gone(self.index)))
    }
}

impl QueueHandle {
    /// Queue `index` lives on `threads[index % n]`.
    pub(crate) fn spawn(device: Arc<Device>, threads: &[Handle], index: u32) -> Self {
        let (commands, received) = mpsc::channel(COMMANDS);
        let cpu = usize::try_from(index).unwrap_or(0) % threads.len();
        let worker = Worker::new(device, cpu, index, threads[cpu].clone(), received);
        threads[cpu].spawn(worker.run());
        Self { index, commands }
    }

    fn begin(&self, command: Command) -> Stopping {
        let (reply, answer) = sync_channel(1);
        // If nobody takes it, its sender is dropped, which is an answer.
        let _ = self.commands.blocking_send(Envelope { command, reply });
        Stopping { index: self.index, reply: answer }
    }

    pub(crate) fn start(&self, setup: Setup) -> Result<(), CommandError> {
        self.begin(Command::Start(Box::new(setup))).wait().map(drop)
    }

    pub(crate) fn update(
        &self,
        kick: Arc<PeerEvent>,
        call: Option<Arc<PeerEvent>>,
        err: Option<Arc<PeerEvent>>,
        enabled: bool,
    ) -> Result<(), CommandError> {
        self.begin(Command::Update { kick, call, err, enabled }).wait().map(drop)
    }

    pub(crate) fn set_memory(&self, memory: Arc<GuestMemory>) -> Result<(), CommandError> {
        self.begin(Command::Memory(memory)).wait().map(drop)
    }

    /// Stops it. What it has in flight ends first.
    pub(crate) fn stop(&self) -> Answer {
        self.begin_stop().wait()
    }

    pub(crate) fn begin_stop(&self) -> Stopping {
        self.begin(Command::Stop)
    }
}
