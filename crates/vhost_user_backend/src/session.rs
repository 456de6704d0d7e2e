//! One front-end, from its connection to its end: what its messages mean.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use blockyard_buf::{GuestMemory, RegionSpec};
use blockyard_sys::PeerEvent;
use blockyard_vhost_user::queue::{F_EVENT_IDX, RingPlace, is_in_use};
use blockyard_vhost_user::wire::{
    ConfigSpan, F_PROTOCOL_FEATURES, Inflight, Message, ProtocolFeatures, Reply, VringFd,
    VringState, config_change,
};
use rustix::event::PollFlags;

use crate::backend::Backend;
use crate::channel::{Channel, Close, Incoming, send_some};
use crate::device::{CommandError, Device, Queue, QueueStart, RegionPart, Setup};
use crate::inflight::InflightFile;
use crate::vring::Vring;

/// Regions of a guest's memory. Each takes a mapping.
const MAX_REGIONS: usize = 509;
/// Messages that are answered with an error before the front-end is hung up on: each is a line in the log.
const MAX_REFUSALS: u32 = 32;

/// What is answered: nothing but "done", or more, maybe with a file descriptor.
enum Answer {
    Done,
    Reply(Reply, Option<OwnedFd>),
}

impl Answer {
    const fn reply(reply: Reply) -> Self {
        Self::Reply(reply, None)
    }
}

/// A front-end that is served.
pub(crate) struct Session<'a, D: Device> {
    device: &'a Arc<D>,
    backend: &'a Backend,
    channel: Channel<'a>,
    features: u64,
    protocol: ProtocolFeatures,
    memory: Arc<GuestMemory>,
    /// What the memory was before, as long as something in flight is in it.
    earlier: Vec<Weak<GuestMemory>>,
    vrings: Vec<Vring<D::Queue>>,
    inflight: Option<InflightFile>,
    /// Where messages of the back-end go.
    to_front_end: Option<OwnedFd>,
    /// Messages that were answered with an error.
    refusals: u32,
}

impl<'a, D: Device> Session<'a, D> {
    pub(crate) fn new(device: &'a Arc<D>, socket: UnixStream) -> Self {
        let (backend, queues) = (&**device.backend(), usize::from(device.queues()));
        Self {
            device,
            backend,
            channel: Channel::new(socket, backend),
            features: 0,
            protocol: ProtocolFeatures::empty(),
            memory: Arc::default(),
            earlier: Vec::new(),
            vrings: std::iter::repeat_with(Vring::default).take(queues).collect(),
            inflight: None,
            to_front_end: None,
            refusals: 0,
        }
    }

    /// Serves until the front-end leaves or has to. All its requests have ended then.
    pub(crate) fn run(mut self) -> Close {
        self.backend.begin();
        let close = loop {
            if let Err(close) = self.turn() {
                break close;
            }
        };
        if let Some(hangs) = self.stop_all() {
            tracing::warn!(socket = self.backend.name(), "{hangs}");
        }
        self.device.front_end_left();
        close
    }

    fn turn(&mut self) -> Result<(), Close> {
        // Before it waits: a message that was answered last may have taken the signal.
        if self.backend.take_config_changed() {
            self.tell_config_change();
        }
        // Its queue has stopped for good, even if the front-end has brought other memory since.
        if self.backend.take_memory_lost() {
            return Err(Close::MemoryLost);
        }
        self.backend.signal_late();
        if !self.channel.wait(PollFlags::IN)? {
            return Ok(());
        }
        let Some(Incoming { message, need_reply, fds }) = self.channel.receive()? else {
            return Ok(());
        };
        let acks = need_reply && self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        let wants_ack = acks && !message.has_reply();
        let request = message.request();
        let (reply, fd) = match self.handle(message, fds) {
            Ok(Answer::Reply(reply, fd)) => (reply, fd),
            Ok(Answer::Done) if wants_ack => (Reply::Number(0), None),
            Ok(Answer::Done) => return Ok(()),
            Err(Close::Refused(what)) if wants_ack && self.refusals < MAX_REFUSALS => {
                self.refusals += 1;
                tracing::warn!(
                    socket = self.backend.name(),
                    error = what,
                    "invalid vhost-user request"
                );
                (Reply::Number(1), None)
            }
            Err(close) => return Err(close),
        };
        self.channel.send(&reply.encode(request), fd.as_ref().map(AsFd::as_fd))
    }

    fn handle(&mut self, message: Message, fds: Vec<OwnedFd>) -> Result<Answer, Close> {
        let mut fds = fds.into_iter();
        match message {
            Message::GetFeatures => return Ok(number(self.device.features())),
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::GetProtocolFeatures => {
                return Ok(number(self.device.protocol_features().bits()));
            }
            Message::SetProtocolFeatures(bits) => self.set_protocol_features(bits)?,
            // "It is recommended that back-ends either ignore this message, or use it to disable all rings".
            Message::SetOwner | Message::ResetOwner => {}
            Message::GetQueueNum => return Ok(number(self.device.queues().into())),
            Message::GetMaxMemSlots => return Ok(number(MAX_REGIONS as u64)),
            Message::SetMemTable(regions) => self.set_mem_table(&regions, fds)?,
            Message::AddMemReg(region) => self.add_region(&region, fds.next())?,
            Message::RemMemReg(region) => self.remove_region(&region)?,
            Message::SetVringNum(state) => {
                let size = RingPlace::check_size(state.num).map_err(refused)?;
                self.stopped_vring(state.index)?.size = size;
            }
            Message::SetVringAddr(addr) => {
                let vring = self.vring(addr.index)?;
                if vring.running && vring.addr != Some(addr) {
                    return Err(Close::Refused("a ring that is served cannot move".into()));
                }
                vring.addr = Some(addr);
            }
            Message::SetVringBase(state) => {
                let base = u16::try_from(state.num).map_err(|_| {
                    Close::Refused(format!("invalid start of a ring: {}", state.num))
                })?;
                self.stopped_vring(state.index)?.base = base;
            }
            Message::GetVringBase(state) => {
                let num = self.stop_vring(state.index)?.into();
                return Ok(Answer::reply(Reply::Base(VringState { index: state.index, num })));
            }
            Message::SetVringKick(ring) => self.set_kick(ring, fds.next())?,
            Message::SetVringCall(ring) => {
                let call = event(fds.next())?;
                self.vring(ring.index)?.call.clone_from(&call);
                self.update(ring.index)?;
                // The queue has it now. What was used before may have been signalled by the one that it had, or by none.
                call.iter().for_each(|call| self.backend.signal_from_session(call));
            }
            Message::SetVringErr(ring) => {
                self.vring(ring.index)?.err = event(fds.next())?;
                self.update(ring.index)?;
            }
            Message::SetVringEnable(state) => {
                self.vring(state.index)?.enabled = state.num != 0;
                self.update(state.index)?;
            }
            Message::SetBackendReqFd => self.to_front_end = fds.next(),
            Message::GetConfig(span) => return Ok(Answer::reply(Reply::Config(self.config(span)))),
            Message::SetConfig(span) => {
                self.device.set_config(&span, self.features).map_err(Close::Refused)?;
            }
            Message::GetInflightFd(shape) => return self.make_inflight(shape),
            Message::SetInflightFd(shape) => self.set_inflight(shape, fds.next())?,
            Message::ResetDevice => {
                // What is done is out of the way of a driver that begins anew, in the same memory.
                if let Some(hangs) = self.stop_all() {
                    return Err(Close::Hangs(hangs));
                }
                self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
                self.features = 0;
            }
        }
        Ok(Answer::Done)
    }

    fn set_features(&mut self, features: u64) -> Result<(), Close> {
        let unknown = features & !self.device.features();
        if unknown != 0 {
            return Err(Close::Refused(format!("features {unknown:#x} were not offered")));
        }
        self.features = features;
        for index in 0..self.vrings.len() {
            // "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled state."
            if features & F_PROTOCOL_FEATURES == 0 {
                self.vrings[index].enabled = true;
            }
        }
        Ok(())
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<(), Close> {
        let offered = self.device.protocol_features();
        let known = ProtocolFeatures::from_bits(bits).filter(|bits| offered.contains(*bits));
        let features = known.ok_or_else(|| {
            Close::Refused(format!("protocol features {bits:#x} were not all offered"))
        })?;
        self.protocol = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[RegionSpec],
        fds: impl Iterator<Item = OwnedFd>,
    ) -> Result<(), Close> {
        let mut memory = GuestMemory::default();
        for (region, fd) in regions.iter().zip(fds) {
            memory.add(*region, fd.as_fd()).map_err(|err| bad_region(region, &err))?;
        }
        self.set_memory(memory)
    }

    fn add_region(&mut self, region: &RegionSpec, fd: Option<OwnedFd>) -> Result<(), Close> {
        if self.memory.len() >= MAX_REGIONS {
            return Err(Close::Refused(format!("more than {MAX_REGIONS} regions of memory")));
        }
        let fd = fd.ok_or_else(|| Close::Refused("a region without its file".into()))?;
        let mut memory = GuestMemory::clone(&self.memory);
        memory.add(*region, fd.as_fd()).map_err(|err| bad_region(region, &err))?;
        self.set_memory(memory)
    }

    fn remove_region(&mut self, region: &RegionSpec) -> Result<(), Close> {
        let mut memory = GuestMemory::clone(&self.memory);
        if !memory.remove(region) {
            let what = format!("no region at {:#x} to remove", region.guest_addr);
            return Err(Close::Refused(what));
        }
        self.set_memory(memory)
    }

    /// Lets all queues know. What they have in flight keeps the memory that it is in. If the ring of one is not in the new
    /// memory, all keep the old.
    fn set_memory(&mut self, memory: GuestMemory) -> Result<(), Close> {
        let memory = Arc::new(memory);
        let tell = |queues: &[&D::Queue], memory: &Arc<GuestMemory>| {
            let failed = |queue: &&D::Queue| queue.set_memory(Arc::clone(memory)).err();
            queues.iter().enumerate().find_map(|(at, queue)| Some((at, failed(queue)?)))
        };
        let running = self.vrings.iter().filter(|vring| vring.running);
        let queues: Vec<_> = running.filter_map(|vring| vring.queue.as_ref()).collect();
        if let Some((done, err)) = tell(&queues, &memory) {
            // They were in the old memory, and are.
            let _ = tell(&queues[..done], &self.memory);
            // Something may have been taken from it meanwhile.
            self.put_aside(memory);
            return Err(refused(err));
        }
        let old = std::mem::replace(&mut self.memory, memory);
        self.put_aside(old);
        Ok(())
    }

    /// Memory that nothing is taken from any more: it goes with the last of what is in flight in it.
    fn put_aside(&mut self, memory: Arc<GuestMemory>) {
        self.earlier.push(Arc::downgrade(&memory));
        // Here, if it can, not on a queue thread: to unmap much of it takes long.
        drop(memory);
        self.earlier.retain(|memory| memory.strong_count() > 0);
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring<D::Queue>, Close> {
        let most = self.vrings.len();
        usize::try_from(index)
            .ok()
            .and_then(|index| self.vrings.get_mut(index))
            .ok_or_else(|| Close::Refused(format!("no queue {index}, only {most} queues")))
    }

    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring<D::Queue>, Close> {
        let vring = self.vring(index)?;
        if vring.running {
            return Err(Close::Refused(format!("queue {index} is running; stop it first")));
        }
        Ok(vring)
    }

    /// The ring starts.
    fn set_kick(&mut self, ring: VringFd, fd: Option<OwnedFd>) -> Result<(), Close> {
        let kick = event(fd)?.ok_or_else(|| {
            Close::Refused(format!("queue {} without an event to wait for", ring.index))
        })?;
        let vring = self.vring(ring.index)?;
        vring.kick = Some(kick);
        if vring.running {
            return self.update(ring.index);
        }
        self.start_vring(ring.index)
    }

    fn start_vring(&mut self, index: u32) -> Result<(), Close> {
        let region = self.inflight_of(index)?;
        self.device.queue_starts(how_it_starts(self.vring(index)?, region.as_ref()));
        let (memory, features) = (Arc::clone(&self.memory), self.features);
        let device = self.device;
        let vring = self.vring(index)?;
        let place = vring.place(features & F_EVENT_IDX != 0).ok_or_else(|| {
            Close::Refused(format!("queue {index} starts before its size and place are known"))
        })?;
        let Some(events) = vring.events() else { return Ok(()) };
        let queue = match &vring.queue {
            Some(queue) => queue,
            None => vring.queue.insert(device.make_queue(index)?),
        };
        let setup = Setup { memory, place, base: vring.base, events, features, region };
        queue.start(setup).map_err(refused)?;
        (vring.running, vring.was_served) = (true, true);
        self.backend.queues.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tells a queue that is served of its events, and whether it is enabled.
    fn update(&mut self, index: u32) -> Result<(), Close> {
        let vring = self.vring(index)?;
        let (Some(queue), Some(events), true) = (&vring.queue, vring.events(), vring.running)
        else {
            return Ok(());
        };
        queue.update(events).map_err(refused)
    }

    /// Stops a queue, and says where in its available ring. What it has in flight ends first.
    fn stop_vring(&mut self, index: u32) -> Result<u16, Close> {
        let vring = self.vring(index)?;
        // The next start has to bring these anew ("stop ring upon receiving VHOST_USER_GET_VRING_BASE").
        (vring.kick, vring.call) = (None, None);
        let Some(stopping) = vring.queue.as_ref().filter(|_| vring.running).map(Queue::begin_stop)
        else {
            return Ok(vring.base);
        };
        match stopping.wait_for(self.device.stop_patience()) {
            Ok(base) => {
                let vring = self.vring(index)?;
                (vring.base, vring.running) = (base, false);
                self.backend.queues.fetch_sub(1, Ordering::Relaxed);
                Ok(base)
            }
            // All are stopped next, and then it is not waited for again.
            Err(hangs @ CommandError::Hangs(..)) => {
                self.abandon();
                Err(Close::Hangs(hangs))
            }
            Err(err) => Err(refused(err)),
        }
    }

    /// Some of what is in flight does not end. It has nothing to do with the guest any more, which may do with its memory what it
    /// likes.
    fn abandon(&self) {
        // First, so that nothing is taken from what is no ring any more.
        self.vrings.iter().filter_map(|vring| vring.queue.as_ref()).for_each(Queue::abandon);
        let earlier = self.earlier.iter().filter_map(Weak::upgrade);
        let kept = earlier.chain([Arc::clone(&self.memory)]).filter(|memory| !memory.lose());
        if kept.count() > 0 {
            tracing::error!(
                socket = self.backend.name(),
                "memory cannot be taken away from requests in flight, which may still write to it"
            );
        }
    }

    /// Stops all queues. What hangs is abandoned, and said.
    fn stop_all(&mut self) -> Option<CommandError> {
        // All at a time, so that they end together.
        let running = self.vrings.iter_mut().filter(|vring| vring.running);
        let stopping: Vec<_> = running
            .filter_map(|vring| {
                vring.running = false;
                vring.queue.as_ref().map(Queue::begin_stop)
            })
            .collect();
        let end = self.device.stop_patience().map(|patience| Instant::now() + patience);
        let mut hanging = None;
        for stopped in stopping {
            self.backend.queues.fetch_sub(1, Ordering::Relaxed);
            let patience = end.map(|end| end.saturating_duration_since(Instant::now()));
            // A queue whose thread has ended is stopped.
            if let Err(hangs @ CommandError::Hangs(..)) = stopped.wait_for(patience) {
                self.abandon();
                hanging.get_or_insert(hangs);
            }
        }
        hanging
    }

    fn config(&self, mut span: ConfigSpan) -> ConfigSpan {
        let space = self.device.config();
        let start = usize::try_from(span.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(span.bytes.len());
        // An empty answer is an error; what is longer than the space was refused before.
        span.bytes = space.get(start..end).unwrap_or_default().to_vec();
        span
    }

    fn keeps_inflight(&self) -> Result<(), Close> {
        let offered = self.device.protocol_features();
        if offered.contains(ProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(());
        }
        Err(Close::Refused("an in-flight region was not offered".into()))
    }

    fn make_inflight(&mut self, asked: Inflight) -> Result<Answer, Close> {
        self.keeps_inflight()?;
        let tail = self.device.inflight_tail_len();
        let (inflight, file) = InflightFile::make(asked, self.vrings.len(), tail)?;
        let shape = inflight.shape();
        self.has_inflight(inflight, None);
        Ok(Answer::Reply(Reply::Inflight(shape), Some(file)))
    }

    fn set_inflight(&mut self, shape: Inflight, fd: Option<OwnedFd>) -> Result<(), Close> {
        self.keeps_inflight()?;
        let file = fd.ok_or_else(|| Close::Refused("an in-flight region without a file".into()))?;
        let inflight = InflightFile::brought(shape, &file)?;
        let used = inflight.used();
        self.has_inflight(inflight, Some(used));
        Ok(())
    }

    /// Queues that start now go by that region, whatever they did before: a guest may have been put back to an earlier state.
    fn has_inflight(&mut self, inflight: InflightFile, brought: Option<usize>) {
        self.device.has_inflight(&inflight.mapping, brought);
        self.inflight = Some(inflight);
        self.vrings.iter_mut().for_each(|vring| vring.was_served = false);
    }

    /// The in-flight region of one queue.
    fn inflight_of(&self, index: u32) -> Result<Option<RegionPart>, Close> {
        self.inflight.as_ref().map(|inflight| inflight.part(index)).transpose()
    }

    fn tell_config_change(&self) {
        let wanted = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::CONFIG;
        let socket = self.to_front_end.as_ref();
        let Some(socket) = socket.filter(|_| self.protocol.contains(wanted)) else {
            return;
        };
        let message = config_change();
        match send_some(socket.as_fd(), &message, None) {
            Ok(sent) if sent == message.len() => {}
            _ => tracing::warn!(
                socket = self.backend.name(),
                "cannot notify the front-end of a configuration change"
            ),
        }
    }
}

fn how_it_starts<Q>(vring: &Vring<Q>, region: Option<&RegionPart>) -> QueueStart {
    if vring.was_served {
        QueueStart::Again
    } else if region.is_some_and(|region| is_in_use(&region.part)) {
        QueueStart::Recovered
    } else if vring.base == 0 {
        QueueStart::New
    } else {
        QueueStart::Elsewhere
    }
}

const fn number(number: u64) -> Answer {
    Answer::reply(Reply::Number(number))
}

fn refused(err: impl std::fmt::Display) -> Close {
    Close::Refused(err.to_string())
}

fn bad_region(region: &RegionSpec, err: &std::io::Error) -> Close {
    let RegionSpec { guest_addr, size, .. } = region;
    Close::Refused(format!("{size:#x} bytes of memory at {guest_addr:#x} cannot be mapped: {err}"))
}

/// The event that came with a message.
fn event(fd: Option<OwnedFd>) -> Result<Option<Arc<PeerEvent>>, Close> {
    let event = fd.map(PeerEvent::from_fd).transpose();
    let event = event.map_err(|err| Close::Refused(format!("not an eventfd: {err}")))?;
    Ok(event.map(Arc::new))
}
