//! A ring that has started: chains are taken from it, and given back.

use std::sync::Arc;

use blockyard_buf::{GuestMemory, GuestView, losses};
use blockyard_sys::PeerEvent;
use blockyard_vhost_user::queue::{Chain, F_INDIRECT_DESC, QueueError, Ring, RingPlace};
use blockyard_vhost_user_backend::{Events, Setup};

use crate::exchange::{Broken, Exchange};

/// What a driver did that its queue does not survive.
pub(crate) type Fault = blockyard_vhost_user_backend::Fault<Broken>;

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Self::Request(broken)
    }
}

/// What is found in a ring.
pub(crate) enum Next {
    /// Nothing; the driver tells of what comes.
    Nothing,
    /// Something came just now: look again.
    Again,
    /// A request, by its first descriptor; more may wait behind it.
    Request { head: u16, more: bool },
}

pub(crate) struct Serving {
    ring: Ring,
    place: RingPlace,
    guest: GuestView,
    pub(crate) events: Events,
    indirect: bool,
    /// Chains that are not given back, by their first descriptor.
    taken: Box<[bool]>,
    /// What [`losses`] was when the guest's memory was last looked at.
    losses: Option<u64>,
    memory_lost: bool,
    pub(crate) broken: bool,
}

impl Serving {
    pub(crate) fn new(setup: Setup) -> Result<Self, QueueError> {
        let ring = Ring::new(&setup.memory, &setup.place, setup.base)?;
        Ok(Self {
            taken: vec![false; ring.size().into()].into(),
            ring,
            place: setup.place,
            guest: GuestView::new(setup.memory),
            events: setup.events,
            indirect: setup.features & F_INDIRECT_DESC != 0,
            losses: None,
            memory_lost: false,
            broken: false,
        })
    }

    pub(crate) fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Result<(), QueueError> {
        self.ring.remap(&memory, &self.place)?;
        self.guest = GuestView::new(memory);
        self.losses = None;
        Ok(())
    }

    /// Where in the available ring it is.
    pub(crate) fn base(&self) -> u16 {
        self.ring.next_available()
    }

    /// Chains are taken from it.
    pub(crate) const fn is_active(&self) -> bool {
        self.events.enabled && !self.broken
    }

    /// Takes the next request.
    ///
    /// # Errors
    /// [`Fault`]: no more may be taken.
    pub(crate) fn take(
        &mut self,
        chain: &mut Chain,
        exchange: &mut Exchange,
    ) -> Result<Next, Fault> {
        self.ring.disable_notify();
        let Some(head) = self.ring.pop()? else {
            let is_more = self.ring.enable_notify()?;
            return Ok(if is_more { Next::Again } else { Next::Nothing });
        };
        let taken = self.taken.get_mut(usize::from(head));
        if taken.is_none_or(|taken| std::mem::replace(taken, true)) {
            return Err(QueueError::Busy(head).into());
        }
        let read = chain.read(&self.ring, &self.guest, self.indirect, head).map_err(Fault::from);
        let read = read.and_then(|()| exchange.read(chain, &self.guest).map_err(Fault::from));
        if let Err(fault) = read {
            if let Some(taken) = self.taken.get_mut(usize::from(head)) {
                *taken = false;
            }
            return Err(fault);
        }
        if self.has_lost_memory() {
            return Err(Fault::MemoryLost);
        }
        Ok(Next::Request { head, more: self.ring.waiting()? > 0 })
    }

    /// Whether its memory is lost: what was read from it was not the guest's, and nobody sees what is written to it. It stays so.
    pub(crate) fn has_lost_memory(&mut self) -> bool {
        let now = losses();
        if self.losses.replace(now) != Some(now) {
            self.memory_lost |= self.guest.memory().is_lost();
        }
        self.memory_lost
    }

    /// Gives a chain back, to which `len` bytes were written. Says who wants to be told.
    ///
    /// # Errors
    /// [`Fault::MemoryLost`]: the driver does not see it.
    pub(crate) fn give_back(
        &mut self,
        head: u16,
        len: u32,
    ) -> Result<Option<&Arc<PeerEvent>>, Fault> {
        if let Some(taken) = self.taken.get_mut(usize::from(head)) {
            *taken = false;
        }
        if self.has_lost_memory() {
            return Err(Fault::MemoryLost);
        }
        self.ring.push(head, len);
        self.ring.publish();
        let wants = self.ring.wants_signal();
        Ok(self.events.call.as_ref().filter(|_| wants))
    }
}
