//! A virtqueue, and the threads that serve it.
//!
//! One of them at a time has the [turn](crate::turn): it waits for the driver, and takes the next request. It passes the turn on
//! before it does what may take long, or where more waits, and gets in line again behind it. So requests that take no time need
//! no other thread, and one that does keeps nobody waiting; nor does one that should take no time and hangs, for long.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use blockyard_buf::GuestMemory;
use blockyard_fuse::wire::Opcode;
use blockyard_sys::credentials::use_rights_to_files_only;
use blockyard_sys::{Event, Signaller};
use blockyard_vhost_user::queue::Chain;
use blockyard_vhost_user_backend::{Answer, CommandError, Events, Queue, Setup, Stopping};
use parking_lot::{Condvar, Mutex};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::os::fd::OwnedFd;

use crate::connection::Guest;
use crate::device::Device;
use crate::exchange::Exchange;
use crate::serving::{Fault, Next, Serving};
use crate::turn::{Turn, Turns};

/// Bytes of stack of a thread. Nothing on it recurses.
const STACK_BYTES: usize = 512 << 10;
/// Events that a queue waits for: of the driver, and of the session.
const WAITED_FOR: usize = 2;

/// The session's end of a queue.
pub(crate) struct FsQueue(Arc<Shared>);

/// What the session and the threads share.
struct Shared {
    device: Arc<Device>,
    index: u32,
    state: Mutex<State>,
    /// Threads that wait for their turn.
    line: Condvar,
    /// Tells of the driver's event and of `wake`, each time that they happen: neither is read.
    poll: OwnedFd,
    wake: Event,
    signaller: Signaller,
}

#[derive(Default)]
struct State {
    serving: Option<Serving>,
    /// Chains that are not given back.
    in_flight: usize,
    /// Nothing is taken any more; who asked for it waits until nothing is in flight.
    stop: Option<SyncSender<Answer>>,
    /// The threads are to end.
    ending: bool,
    turns: Turns,
}

impl State {
    fn stop_if_idle(&mut self) -> Option<Serving> {
        let reply = self.stop.take_if(|_| self.in_flight == 0)?;
        let serving = self.serving.take();
        // The session waits for it, unless it has ended.
        let _ = reply.send(Ok(serving.as_ref().map_or(0, Serving::base)));
        serving
    }
}

impl FsQueue {
    pub(crate) fn spawn(device: Arc<Device>, index: u32, threads: u16) -> io::Result<Self> {
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = Event::new()?;
        watch(&poll, &wake)?;
        let shared = Arc::new(Shared {
            device,
            index,
            state: Mutex::default(),
            line: Condvar::new(),
            poll,
            wake,
            signaller: Signaller::new()?,
        });
        // Dropped, it ends those that were started.
        let queue = Self(shared);
        for _ in 0..threads {
            let shared = Arc::clone(&queue.0);
            let thread = std::thread::Builder::new().name(format!("virtiofs-{index}"));
            thread.stack_size(STACK_BYTES).spawn(move || serve(&shared))?;
        }
        Ok(queue)
    }
}

impl Drop for FsQueue {
    fn drop(&mut self) {
        self.0.state.lock().ending = true;
        self.0.wake.signal();
    }
}

fn watch(poll: &OwnedFd, event: impl std::os::fd::AsFd) -> rustix::io::Result<()> {
    epoll::add(poll, event, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)
}

impl Queue for FsQueue {
    fn start(&self, setup: Setup) -> Result<(), CommandError> {
        let Shared { index, poll, wake, .. } = &*self.0;
        let serving = Serving::new(setup).map_err(|err| CommandError::Queue(*index, err))?;
        watch(poll, &*serving.events.kick)
            .map_err(|err| CommandError::Event(*index, err.into()))?;
        self.0.state.lock().serving = Some(serving);
        wake.signal();
        Ok(())
    }

    fn update(&self, events: Events) -> Result<(), CommandError> {
        let Shared { index, poll, wake, .. } = &*self.0;
        let mut state = self.0.state.lock();
        let Some(serving) = &mut state.serving else { return Ok(()) };
        if !Arc::ptr_eq(&serving.events.kick, &events.kick) {
            watch(poll, &*events.kick).map_err(|err| CommandError::Event(*index, err.into()))?;
            self.0.forget(serving);
        }
        serving.events = events;
        wake.signal();
        Ok(())
    }

    fn set_memory(&self, memory: Arc<GuestMemory>) -> Result<(), CommandError> {
        let mut state = self.0.state.lock();
        let Some(serving) = &mut state.serving else { return Ok(()) };
        serving.set_memory(memory).map_err(|err| CommandError::Queue(self.0.index, err))
    }

    fn abandon(&self) {
        let mut state = self.0.state.lock();
        (state.stop, state.in_flight) = (None, 0);
        if let Some(serving) = state.serving.take() {
            self.0.forget(&serving);
        }
    }

    fn begin_stop(&self) -> Stopping {
        let (reply, stopping) = Stopping::new(self.0.index);
        let mut state = self.0.state.lock();
        state.stop = Some(reply);
        self.0.stop_if_idle(&mut state);
        stopping
    }
}

/// What whoever has the turn finds.
enum Found<'s> {
    /// Nothing yet.
    Nothing,
    /// Something came just now.
    Again,
    Request(Taken<'s>),
    /// That it is another's turn.
    TakenOver,
    /// It is over.
    End,
}

/// A chain that is to be given back: if not before, when it is dropped.
struct Taken<'s> {
    shared: &'s Shared,
    head: u16,
    /// The turn is kept over it.
    keeps_turn: bool,
    written: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.shared.give_back(self.head, u32::try_from(self.written).unwrap_or(u32::MAX));
    }
}

impl Shared {
    /// The event of a ring is not waited for any more.
    fn forget(&self, serving: &Serving) {
        // Whoever has made it may keep it, and it would be told of on and on.
        let _ = epoll::delete(&self.poll, &*serving.events.kick);
    }

    fn stop_if_idle(&self, state: &mut State) {
        if let Some(serving) = state.stop_if_idle() {
            self.forget(&serving);
        }
    }

    /// Waits until it is the calling thread's turn.
    fn turn(&self) -> Turn {
        Turns::wait(&self.line, &mut self.state.lock(), |state| &mut state.turns)
    }

    fn find(&self, turn: Turn, chain: &mut Chain, exchange: &mut Exchange) -> Found<'_> {
        let mut state = self.state.lock();
        if !state.turns.resume(turn) {
            return Found::TakenOver;
        }
        if state.ending {
            state.turns.pass_on(&self.line);
            return Found::End;
        }
        let State { serving, in_flight, stop, turns, .. } = &mut *state;
        let active = serving.as_mut().filter(|serving| stop.is_none() && serving.is_active());
        let Some(serving) = active else { return Found::Nothing };
        match serving.take(chain, exchange) {
            Ok(Next::Request { head, more }) => {
                *in_flight += 1;
                let keeps_turn = !more && !may_take_long(exchange.opcode());
                if keeps_turn {
                    turns.keep(&self.line);
                } else {
                    turns.pass_on(&self.line);
                }
                Found::Request(Taken { shared: self, head, keeps_turn, written: 0 })
            }
            Ok(Next::Again) => Found::Again,
            Ok(Next::Nothing) => Found::Nothing,
            Err(fault) => {
                self.broke(serving, &fault);
                Found::Nothing
            }
        }
    }

    fn give_back(&self, head: u16, written: u32) {
        let mut state = self.state.lock();
        if let Some(serving) = &mut state.serving {
            match serving.give_back(head, written) {
                Ok(Some(call)) => self.device.backend.signal(&self.signaller, call),
                Ok(None) => {}
                Err(fault) => self.broke(serving, &fault),
            }
        }
        state.in_flight = state.in_flight.saturating_sub(1);
        self.stop_if_idle(&mut state);
    }

    #[cold]
    fn broke(&self, serving: &mut Serving, fault: &Fault) {
        let backend = &self.device.backend;
        // Rings and requests that cannot be may be what is left of lost memory.
        if matches!(fault, Fault::MemoryLost) || serving.has_lost_memory() {
            backend.tell_memory_lost();
        } else if !serving.broken {
            tracing::warn!(
                socket = backend.name(),
                queue = self.index,
                error = %fault,
                "guest driver violated virtio; queue stopped"
            );
        }
        serving.broken = true;
        serving.events.err.iter().for_each(|err| backend.signal(&self.signaller, err));
    }

    /// Waits until there may be something. Only who has the turn may: each event is told once.
    fn wait(&self, events: &mut Vec<epoll::Event>) {
        events.clear();
        // It fails when a signal comes, and is tried again.
        let _ = epoll::wait(&self.poll, spare_capacity(events), None);
    }
}

/// Whether a request moves data, or waits for them to be durable.
fn may_take_long(opcode: u32) -> bool {
    use Opcode::*;
    matches!(
        Opcode::new(opcode),
        Some(
            Read | Write
                | Fsync
                | Fsyncdir
                | Flush
                | Syncfs
                | Fallocate
                | CopyFileRange
                | CopyFileRange64
                | Setattr
        )
    )
}

/// A thread of a queue.
fn serve(shared: &Shared) {
    if let Err(err) = use_rights_to_files_only() {
        tracing::warn!(%err, "what is served is not bound by quotas");
    }
    let (mut chain, mut exchange, mut guest) =
        (Chain::default(), Exchange::default(), Guest::default());
    let mut events = Vec::with_capacity(WAITED_FOR);
    let mut turn = None;
    loop {
        let mine = turn.take().unwrap_or_else(|| shared.turn());
        let mut taken = match shared.find(mine, &mut chain, &mut exchange) {
            Found::Nothing => {
                exchange.clear();
                shared.wait(&mut events);
                turn = Some(mine);
                continue;
            }
            Found::Again => {
                turn = Some(mine);
                continue;
            }
            Found::TakenOver => continue,
            Found::End => return,
            Found::Request(taken) => taken,
        };
        turn = taken.keeps_turn.then_some(mine);
        shared.device.backend.count_requests(1);
        taken.written = guest.answer(&shared.device.connection, &exchange);
        // The driver may do with its memory what it likes once it is given back.
        exchange.clear();
        drop(taken);
    }
}
