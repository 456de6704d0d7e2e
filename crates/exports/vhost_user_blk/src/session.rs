//! One front-end, from its connection to its end: what its messages mean.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_buf::{GuestMemory, RegionSpec, SharedMapping};
use blockyard_sys::PeerEvent;
use blockyard_vhost_user::queue::{F_EVENT_IDX, F_INDIRECT_DESC, RingPlace, is_in_use, region_len};
use blockyard_vhost_user::wire::{
    ConfigSpan, F_PROTOCOL_FEATURES, Inflight, Message, ProtocolFeatures, Reply, VringFd,
    VringState, config_change,
};
use rustix::event::PollFlags;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::runtime::Handle;

use crate::channel::{Channel, Close, Incoming, send_some};
use crate::device::{Device, WRITEBACK_AT, feature};
use crate::queue::{QueueHandle, RegionPart, Setup};
use crate::vring::Vring;
use crate::write_cache::{TAIL_LEN, Tail};

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

/// The in-flight region of all queues.
struct InflightFile {
    mapping: Arc<SharedMapping>,
    shape: Inflight,
    tail: Option<Tail>,
}

/// A front-end that is served.
pub(crate) struct Session<'a> {
    device: &'a Arc<Device>,
    threads: &'a [Handle],
    channel: Channel<'a>,
    features: u64,
    protocol: ProtocolFeatures,
    memory: Arc<GuestMemory>,
    vrings: Vec<Vring>,
    inflight: Option<InflightFile>,
    backend: Option<OwnedFd>,
    /// Messages that were answered with an error.
    refusals: u32,
}

impl<'a> Session<'a> {
    pub(crate) fn new(device: &'a Arc<Device>, threads: &'a [Handle], socket: UnixStream) -> Self {
        let queues = usize::from(device.export.queues);
        Self {
            device,
            threads,
            channel: Channel::new(socket, device),
            features: 0,
            protocol: ProtocolFeatures::empty(),
            memory: Arc::default(),
            vrings: std::iter::repeat_with(Vring::default).take(queues).collect(),
            inflight: None,
            backend: None,
            refusals: 0,
        }
    }

    /// Serves until the front-end leaves or has to. All its requests have ended then.
    pub(crate) fn run(mut self) -> Close {
        // What was told of an earlier front-end.
        self.device.take_memory_lost();
        self.device.late_signals.clear();
        let close = loop {
            if let Err(close) = self.turn() {
                break close;
            }
        };
        self.stop_all();
        close
    }

    fn turn(&mut self) -> Result<(), Close> {
        // Before it waits: a message that was answered last may have taken the signal.
        if self.device.take_config_changed() {
            self.tell_config_change();
        }
        // Its queue has stopped for good, even if the front-end has brought other memory since.
        if self.device.take_memory_lost() {
            return Err(Close::MemoryLost);
        }
        self.device.signal_late();
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
                tracing::warn!(socket = self.device.name, "invalid vhost-user request: {what}");
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
                return Ok(number(Device::protocol_features().bits()));
            }
            Message::SetProtocolFeatures(bits) => self.set_protocol_features(bits)?,
            // "It is recommended that back-ends either ignore this message, or use it to disable all rings".
            Message::SetOwner | Message::ResetOwner => {}
            Message::GetQueueNum => return Ok(number(self.device.export.queues.into())),
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
                call.iter().for_each(|call| self.device.signal_from_session(call));
            }
            Message::SetVringErr(ring) => {
                self.vring(ring.index)?.err = event(fds.next())?;
                self.update(ring.index)?;
            }
            Message::SetVringEnable(state) => {
                self.vring(state.index)?.enabled = state.num != 0;
                self.update(state.index)?;
            }
            Message::SetBackendReqFd => self.backend = fds.next(),
            Message::GetConfig(span) => return Ok(Answer::reply(Reply::Config(self.config(span)))),
            Message::SetConfig(span) => self.set_config(&span)?,
            Message::GetInflightFd(shape) => return self.make_inflight(shape),
            Message::SetInflightFd(shape) => self.set_inflight(shape, fds.next())?,
            Message::ResetDevice => {
                self.stop_all();
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
        let features = ProtocolFeatures::from_bits(bits).ok_or_else(|| {
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
        let tell = |queues: &[&QueueHandle], memory: &Arc<GuestMemory>| {
            let failed = |queue: &&QueueHandle| queue.set_memory(Arc::clone(memory)).err();
            queues.iter().enumerate().find_map(|(at, queue)| Some((at, failed(queue)?)))
        };
        let running = self.vrings.iter().filter(|vring| vring.running);
        let queues: Vec<_> = running.filter_map(|vring| vring.queue.as_ref()).collect();
        if let Some((done, err)) = tell(&queues, &memory) {
            // They were in the old memory, and are.
            let _ = tell(&queues[..done], &self.memory);
            return Err(refused(err));
        }
        // The old memory goes here, not on a queue thread: to unmap much of it takes long.
        self.memory = memory;
        Ok(())
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring, Close> {
        let most = self.vrings.len();
        usize::try_from(index)
            .ok()
            .and_then(|index| self.vrings.get_mut(index))
            .ok_or_else(|| Close::Refused(format!("no queue {index}, only {most} queues")))
    }

    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring, Close> {
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
        self.settle_writeback(index, region.as_ref())?;
        let memory = Arc::clone(&self.memory);
        let (indirect, event_idx) =
            (self.features & F_INDIRECT_DESC != 0, self.features & F_EVENT_IDX != 0);
        // Without these, a driver has no way to flush a cache, so that there must be none (section 5.2.6.2).
        let cached = self.features & (feature::FLUSH | feature::CONFIG_WCE) != 0;
        let (device, threads) = (Arc::clone(self.device), self.threads);
        let has_durability = device.has_durability();
        let vring = self.vring(index)?;
        let place = vring.place(event_idx).ok_or_else(|| {
            Close::Refused(format!("queue {index} starts before its size and place are known"))
        })?;
        let queue = match &vring.queue {
            Some(queue) => queue,
            None => vring.queue.insert(QueueHandle::spawn(device, threads, index)),
        };
        let events = vring.kick.clone().map(|kick| (kick, vring.call.clone(), vring.err.clone()));
        let Some((kick, call, err)) = events else { return Ok(()) };
        queue
            .start(Setup {
                memory,
                place,
                base: vring.base,
                kick,
                call,
                err,
                enabled: vring.enabled,
                indirect,
                cached,
                has_durability,
                region,
            })
            .map_err(refused)?;
        vring.running = true;
        self.device.queues.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tells a queue that is served of its events, and whether it is enabled.
    fn update(&mut self, index: u32) -> Result<(), Close> {
        let vring = self.vring(index)?;
        let (Some(queue), Some(kick), true) = (&vring.queue, &vring.kick, vring.running) else {
            return Ok(());
        };
        queue
            .update(Arc::clone(kick), vring.call.clone(), vring.err.clone(), vring.enabled)
            .map_err(refused)
    }

    /// Stops a queue, and says where in its available ring. What it has in flight ends first.
    fn stop_vring(&mut self, index: u32) -> Result<u16, Close> {
        let vring = self.vring(index)?;
        // The next start has to bring these anew ("stop ring upon receiving VHOST_USER_GET_VRING_BASE").
        (vring.kick, vring.call) = (None, None);
        if let (Some(queue), true) = (&vring.queue, vring.running) {
            vring.base = queue.stop().map_err(refused)?;
            vring.running = false;
            let base = vring.base;
            self.device.queues.fetch_sub(1, Ordering::Relaxed);
            return Ok(base);
        }
        Ok(vring.base)
    }

    /// A guest that goes on here may have chosen write-through, and then it does not flush; if nobody can know, every write is
    /// made durable. It stays so until its front-end says otherwise.
    fn settle_writeback(&mut self, index: u32, region: Option<&RegionPart>) -> Result<(), Close> {
        let goes_on = region.is_some_and(|region| is_in_use(&region.part));
        let goes_on = goes_on || self.vring(index)?.base != 0;
        if goes_on && !self.device.writeback_is_known.swap(true, Ordering::SeqCst) {
            self.device.writeback.store(false, Ordering::SeqCst);
            tracing::info!(
                socket = self.device.name,
                "the guest resumed from another back-end and may not flush; every write is made durable"
            );
        }
        Ok(())
    }

    fn set_writeback(&mut self, writeback: bool) {
        self.device.writeback_is_known.store(true, Ordering::SeqCst);
        self.device.writeback.store(writeback, Ordering::SeqCst);
        if let Some(tail) = self.inflight.as_ref().and_then(|inflight| inflight.tail.as_ref()) {
            tail.set_writeback(writeback);
        }
    }

    fn stop_all(&mut self) {
        // Its guest began here, or it was found out above how it goes on.
        if self.vrings.iter().any(|vring| vring.running) {
            self.device.writeback_is_known.store(true, Ordering::SeqCst);
        }
        // All at a time, so that they end together.
        let running = self.vrings.iter_mut().filter(|vring| vring.running);
        let stopping: Vec<_> = running
            .filter_map(|vring| {
                vring.running = false;
                vring.queue.as_ref().map(QueueHandle::begin_stop)
            })
            .collect();
        for stopped in stopping {
            self.device.queues.fetch_sub(1, Ordering::Relaxed);
            // A queue whose thread has ended is stopped.
            let _ = stopped.wait();
        }
    }

    fn config(&self, mut span: ConfigSpan) -> ConfigSpan {
        let space = self.device.config();
        let start = usize::try_from(span.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(span.bytes.len());
        // An empty answer is an error; what is longer than the space was refused before.
        span.bytes = space.get(start..end).unwrap_or_default().to_vec();
        span
    }

    fn set_config(&mut self, span: &ConfigSpan) -> Result<(), Close> {
        let at = WRITEBACK_AT.checked_sub(span.offset).and_then(|at| usize::try_from(at).ok());
        let writeback = at.and_then(|at| span.bytes.get(at));
        let writable = span.offset == WRITEBACK_AT && span.bytes.len() == 1;
        match writeback {
            // With live migration, all of it comes, and the rest is ours to say.
            Some(writeback) if writable || span.flags == 1 => {
                if self.features & feature::CONFIG_WCE == 0 && writable {
                    return Err(Close::Refused(
                        "the write cache was not offered for change".into(),
                    ));
                }
                self.set_writeback(*writeback != 0);
                Ok(())
            }
            _ => Err(Close::Refused(format!(
                "{} bytes at {} of the configuration space cannot be written",
                span.bytes.len(),
                span.offset
            ))),
        }
    }

    fn make_inflight(&mut self, asked: Inflight) -> Result<Answer, Close> {
        RingPlace::check_size(asked.queue_size.into()).map_err(refused)?;
        if asked.num_queues == 0 || usize::from(asked.num_queues) > self.vrings.len() {
            return Err(Close::Refused(format!("{} queues in flight", asked.num_queues)));
        }
        let len = region_len(asked.queue_size) as u64 * u64::from(asked.num_queues);
        let len = len + TAIL_LEN as u64;
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("blockyard-inflight", flags)?;
            ftruncate(&file, len)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok::<_, rustix::io::Errno>(file)
        };
        let file = make().map_err(|err| Close::Io(err.into()))?;
        let shape = Inflight { mmap_size: len, mmap_offset: 0, ..asked };
        let mapping = map_inflight(shape, &file)?;
        let tail = Tail::make(&mapping);
        tail.iter()
            .for_each(|tail| tail.set_writeback(self.device.writeback.load(Ordering::SeqCst)));
        self.inflight = Some(InflightFile { mapping, shape, tail });
        Ok(Answer::Reply(Reply::Inflight(shape), Some(file)))
    }

    fn set_inflight(&mut self, shape: Inflight, fd: Option<OwnedFd>) -> Result<(), Close> {
        let file = fd.ok_or_else(|| Close::Refused("an in-flight region without a file".into()))?;
        RingPlace::check_size(shape.queue_size.into()).map_err(refused)?;
        let needed = region_len(shape.queue_size) as u64 * u64::from(shape.num_queues);
        if shape.num_queues == 0 || shape.mmap_size < needed {
            let what = format!("an in-flight region of {} bytes, not {needed}", shape.mmap_size);
            return Err(Close::Refused(what));
        }
        let mapping = map_inflight(shape, &file)?;
        let tail = Tail::find(&mapping, usize::try_from(needed).unwrap_or(usize::MAX));
        let said = tail.as_ref().map(Tail::writeback);
        self.inflight = Some(InflightFile { mapping, shape, tail });
        said.into_iter().for_each(|writeback| self.set_writeback(writeback));
        Ok(())
    }

    /// The in-flight region of one queue.
    fn inflight_of(&self, index: u32) -> Result<Option<RegionPart>, Close> {
        let Some(InflightFile { mapping, shape, .. }) = &self.inflight else { return Ok(None) };
        if index >= shape.num_queues.into() {
            return Err(Close::Refused(format!("queue {index} is not in the in-flight region")));
        }
        let len = region_len(shape.queue_size);
        let at = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(len);
        Ok(Some(RegionPart { mapping: Arc::clone(mapping), part: mapping.segment(at, len) }))
    }

    fn tell_config_change(&self) {
        let wanted = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::CONFIG;
        let Some(backend) = self.backend.as_ref().filter(|_| self.protocol.contains(wanted)) else {
            return;
        };
        let message = config_change();
        match send_some(backend.as_fd(), &message, None) {
            Ok(sent) if sent == message.len() => {}
            _ => tracing::warn!(
                socket = self.device.name,
                "cannot notify the front-end of a change of the disk"
            ),
        }
    }
}

const fn number(number: u64) -> Answer {
    Answer::reply(Reply::Number(number))
}

fn map_inflight(shape: Inflight, file: &OwnedFd) -> Result<Arc<SharedMapping>, Close> {
    SharedMapping::new(file.as_fd(), shape.mmap_offset, shape.mmap_size)
        .map_err(|err| Close::Refused(format!("the in-flight region cannot be mapped: {err}")))
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
    let event = event.map_err(|err| Close::Refused(format!("an event that is none: {err}")))?;
    Ok(event.map(Arc::new))
}
