//! A virtqueue and the task on its queue thread that serves it; the session tells it what to do, and waits until that is done.

mod bounce;
mod io;
mod request;
mod serving;
mod slot;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use blockyard_blkmq::Bio;
use blockyard_buf::GuestMemory;
use blockyard_vhost_user_backend::{
    Answer, CommandError, Events, Queue, RegionPart, Setup, Stopping,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::device::Device;
pub(crate) use bounce::BounceMemory;
use worker::Worker;

/// Bios on their way through a queue: the block layer takes and gives boxes.
type Bios = Vec<Box<Bio>>;

/// Commands that wait: the session sends one at a time.
const COMMANDS: usize = 2;

enum Command {
    Start(Box<Setup>),
    Update(Events),
    Memory(Arc<GuestMemory>),
    /// Answered with where in the available ring, when nothing is in flight any more.
    Stop,
}

struct Envelope {
    command: Command,
    reply: SyncSender<Answer>,
}

/// The session's end of a queue. Dropping it ends the queue once nothing is in flight.
pub(crate) struct QueueHandle {
    index: u32,
    commands: mpsc::Sender<Envelope>,
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
        let (reply, answer) = Stopping::new(self.index);
        // If nobody takes it, its sender is dropped, which is an answer.
        let _ = self.commands.blocking_send(Envelope { command, reply });
        answer
    }
}

impl Queue for QueueHandle {
    fn start(&self, setup: Setup) -> Result<(), CommandError> {
        self.begin(Command::Start(Box::new(setup))).wait().map(drop)
    }

    fn update(&self, events: Events) -> Result<(), CommandError> {
        self.begin(Command::Update(events)).wait().map(drop)
    }

    fn set_memory(&self, memory: Arc<GuestMemory>) -> Result<(), CommandError> {
        self.begin(Command::Memory(memory)).wait().map(drop)
    }

    fn begin_stop(&self) -> Stopping {
        self.begin(Command::Stop)
    }
}
