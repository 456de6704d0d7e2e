//! A ring that has started: chains are taken from it and become requests, and are given back answered.

use std::sync::Arc;

use blockyard_blkmq::Flags;
use blockyard_buf::{GuestView, SharedMapping, losses};
use blockyard_sys::{EventWatch, PeerEvent};
use blockyard_vhost_user::queue::{
    Buffer, Chain, F_INDIRECT_DESC, InflightRegion, QueueError, Resume, Ring, RingPlace,
};
use tokio::runtime::Handle;

use super::io::{Io, NotBegun};
use super::request::{Answer, Broken, Kind, Ranges, Request};
use super::{CommandError, Events, RegionPart, Setup};
use crate::device::{Device, feature};

/// The most chains that are taken before what they led to is looked at.
pub(super) const BATCH: usize = 128;
/// As many, where all that came before has ended already: the disk may well answer these at once, too, and the driver then goes
/// on with them while the next are worked on.
pub(super) const SMALL_BATCH: usize = 8;
/// Chains that are given back before a driver that sleeps is woken, if there are more to be worked on.
const SIGNAL_AFTER: usize = 16;

/// What a driver did that its queue does not survive.
pub(super) type Fault = blockyard_vhost_user_backend::Fault<Broken>;

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Self::Request(broken)
    }
}

pub(super) struct Serving {
    pub(super) ring: Ring,
    place: RingPlace,
    guest: GuestView,
    pub(super) kick: EventWatch<PeerEvent>,
    call: Option<Arc<PeerEvent>>,
    err: Option<Arc<PeerEvent>>,
    region: Option<InflightRegion>,
    /// What the region is in.
    region_mapping: Option<Arc<SharedMapping>>,
    /// What [`losses`] was when the guest's memory was last looked at.
    losses: Option<u64>,
    /// Chains that a back-end before us had begun, the last one first.
    resume: Vec<u16>,
    pub(super) enabled: bool,
    indirect: bool,
    cached: bool,
    /// A write can be made durable.
    has_durability: bool,
    pub(super) broken: bool,
    /// It was found that memory is lost. Nothing is published any more, whatever memory comes later.
    pub(super) memory_lost: bool,
    /// Chains in the used ring that the driver does not see yet.
    given_back: usize,
    /// Chains that it sees, but was not signalled about.
    unsignalled: usize,
    chain: Chain,
}

impl Serving {
    pub(super) fn new(
        setup: Setup,
        index: u32,
        runtime: &Handle,
        has_durability: bool,
    ) -> Result<Self, CommandError> {
        let failed = |err| CommandError::Queue(index, err);
        let mut ring = Ring::new(&setup.memory, &setup.place, setup.base).map_err(failed)?;
        let (mut region, mut resume) = (None, Resume::default());
        let mut region_mapping = None;
        if let Some(RegionPart { mapping, part }) = setup.region {
            let (attached, found) =
                InflightRegion::attach(part, ring.size(), ring.used_index()).map_err(failed)?;
            (region, resume) = (Some(attached), found);
            region_mapping = Some(mapping);
        }
        if let Some(base) = resume.next_available {
            ring.set_next_available(base);
        }
        resume.chains.reverse();
        let Events { kick, call, err, enabled } = setup.events;
        let kick = EventWatch::new(kick, runtime).map_err(|err| CommandError::Event(index, err))?;
        Ok(Self {
            ring,
            place: setup.place,
            guest: GuestView::new(setup.memory),
            kick,
            call,
            err,
            region,
            region_mapping,
            losses: None,
            resume: resume.chains,
            enabled,
            indirect: setup.features & F_INDIRECT_DESC != 0,
            // Without these, a driver has no way to flush a cache, so that there must be none (section 5.2.6.2).
            cached: setup.features & (feature::FLUSH | feature::CONFIG_WCE) != 0,
            has_durability,
            broken: false,
            memory_lost: false,
            given_back: 0,
            unsignalled: 0,
            chain: Chain::default(),
        })
    }

    /// Chains are taken from it.
    pub(super) fn is_active(&self) -> bool {
        self.enabled && !self.broken
    }

    pub(super) fn set_events(&mut self, call: Option<Arc<PeerEvent>>, err: Option<Arc<PeerEvent>>) {
        (self.call, self.err) = (call, err);
    }

    pub(super) fn set_memory(
        &mut self,
        memory: Arc<blockyard_buf::GuestMemory>,
    ) -> Result<(), QueueError> {
        self.ring.remap(&memory, &self.place)?;
        self.guest = GuestView::new(memory);
        self.losses = None;
        Ok(())
    }

    /// Whether its memory is lost: what was read from it was not the guest's, and nobody sees what is written to it. It stays so.
    /// Costs nothing while no mapping of the process is.
    #[inline]
    pub(super) fn has_lost_memory(&mut self) -> bool {
        let now = losses();
        if self.losses.replace(now) != Some(now) {
            let region = self.region_mapping.as_ref().is_some_and(|region| region.is_lost());
            self.memory_lost |= region || self.guest.memory().is_lost();
        }
        self.memory_lost
    }

    /// Chains to resume are work that no event tells of.
    pub(super) fn has_resume(&self) -> bool {
        !self.resume.is_empty()
    }

    /// Takes up to `limit` chains, and makes them requests; says how many.
    ///
    /// # Errors
    /// [`Fault`]: no more may be taken.
    #[inline]
    pub(super) fn take(
        &mut self,
        limit: usize,
        io: &mut Io,
        device: &Device,
    ) -> Result<usize, Fault> {
        for taken in 0..limit {
            if io.is_full() {
                return Ok(taken);
            }
            let resumed = self.resume.pop();
            let head = match resumed {
                Some(head) => head,
                None => {
                    let Some(head) = self.ring.pop()? else { return Ok(taken) };
                    if io.slot(head).busy {
                        return Err(Fault::Queue(QueueError::Busy(head)));
                    }
                    if let Some(region) = &mut self.region {
                        region.taken(head);
                    }
                    head
                }
            };
            if !self.begin(head, io, device)? {
                self.put_back(head, resumed.is_some());
                return Ok(taken);
            }
        }
        Ok(limit)
    }

    /// A chain that cannot begin now is as if it had not been taken: who stops the queue meanwhile finds it where it was.
    #[cold]
    fn put_back(&mut self, head: u16, was_resumed: bool) {
        if was_resumed {
            self.resume.push(head);
            return;
        }
        if let Some(region) = &mut self.region {
            region.put_back(head);
        }
        self.ring.put_back();
    }

    /// Begins a request. Says whether it could.
    #[inline]
    fn begin(&mut self, head: u16, io: &mut Io, device: &Device) -> Result<bool, Fault> {
        self.chain.read(&self.ring, &self.guest, self.indirect, head)?;
        let request = Request::take(&mut self.chain, &self.guest)?;
        let status_addr = request.status_addr;
        let answer = match request.kind {
            Kind::Read { sector } => {
                let data = &self.chain.writable;
                io.transfer(head, None, sector, data, &self.guest, status_addr)
            }
            Kind::Write { sector } => {
                let data = self.chain.readable.get(request.first..).unwrap_or_default();
                let flags = Some(self.durable(device));
                io.transfer(head, flags, sector, data, &self.guest, status_addr)
            }
            Kind::Flush => {
                io.flush(head, status_addr);
                Ok(())
            }
            Kind::Id => return self.answer_id(head, status_addr, device).map(|()| true),
            Kind::Ranges(op) => {
                let data = self.chain.readable.get(request.first..).unwrap_or_default();
                let ranges = Ranges::read(op, data, &self.guest).map(|ranges| {
                    let flags = self.durable(device);
                    io.ranges(head, op, ranges.as_slice(), flags, status_addr);
                });
                ranges.map_err(NotBegun::from)
            }
            Kind::Unknown => Err(Answer::Unsupported.into()),
        };
        match answer {
            Ok(()) => Ok(true),
            Err(NotBegun::Answered(answer)) => {
                self.give_back(head, status_addr, answer, 0).map(|()| true)
            }
            Err(NotBegun::NoMemory) => Ok(false),
        }
    }

    /// What makes a write durable at once, where the guest cannot or does not want to flush (section 5.2.6.2).
    fn durable(&self, device: &Device) -> Flags {
        let is_cached = self.cached && device.write_cache.is_writeback();
        if is_cached || !self.has_durability { Flags::empty() } else { Flags::FUA }
    }

    fn answer_id(&mut self, head: u16, status_addr: u64, device: &Device) -> Result<(), Fault> {
        let id = device.id();
        let mut rest = id.as_slice();
        let mut answer = Answer::Ok;
        for Buffer { addr, len } in &self.chain.writable {
            let len = usize::try_from(*len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at(len);
            if self.guest.write(*addr, now).is_none() {
                answer = Answer::IoErr;
            }
            rest = later;
        }
        let written = u32::try_from(id.len() - rest.len()).unwrap_or(0);
        self.give_back(head, status_addr, answer, written)
    }

    /// Answers a request; the driver sees it with the next [`Serving::publish`].
    ///
    /// # Errors
    /// The place for the answer is gone.
    #[inline]
    fn give_back(
        &mut self,
        head: u16,
        status_addr: u64,
        answer: Answer,
        written: u32,
    ) -> Result<(), Fault> {
        self.guest.write(status_addr, &[answer as u8]).ok_or(Broken::StatusNowhere)?;
        if let Some(region) = &mut self.region {
            region.used(head);
        }
        // "The device MUST write at least len bytes ... beginning at the first device-writable buffer" (section 2.7.8.2): the
        // status is the last.
        let len = if answer == Answer::Ok { written.saturating_add(1) } else { 0 };
        self.ring.push(head, len);
        self.given_back += 1;
        Ok(())
    }

    /// Gives back what has ended; says whether there was any.
    ///
    /// # Errors
    /// [`Fault`]: the driver has taken memory away that it had offered.
    #[inline]
    pub(super) fn collect(&mut self, io: &mut Io) -> Result<bool, Fault> {
        let mut result = Ok(());
        let any = io.collect(|head, slot| {
            let given = self.give_back(head, slot.status_addr, slot.answer(), slot.read_len);
            if given.is_err() {
                result = given;
            }
        });
        result.map(|()| any)
    }

    /// Shows the driver what was given back. It is signalled if it wants that, but not yet if there is `more` to do first: a
    /// driver that sleeps is woken for several requests at a time, one that looks at the ring by itself sees each.
    #[inline]
    pub(super) fn publish(&mut self, more: bool, device: &Device, cpu: usize) {
        if self.given_back > 0 {
            self.ring.publish();
            if let Some(region) = &mut self.region {
                region.published(self.ring.next_used());
            }
            self.unsignalled += std::mem::take(&mut self.given_back);
        }
        if self.unsignalled > 0 && (!more || self.unsignalled >= SIGNAL_AFTER) {
            self.unsignalled = 0;
            if let Some(call) = &self.call
                && self.ring.wants_signal()
            {
                device.signal(cpu, call);
            }
        }
    }

    /// Takes no more, and tells the front-end.
    pub(super) fn break_down(&mut self, device: &Device, cpu: usize) {
        self.broken = true;
        self.err.iter().for_each(|err| device.signal(cpu, err));
    }
}
