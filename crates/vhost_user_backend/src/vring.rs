//! A virtqueue as the front-end has described it so far.

use std::sync::Arc;

use blockyard_sys::PeerEvent;
use blockyard_vhost_user::queue::RingPlace;
use blockyard_vhost_user::wire::VringAddr;

use crate::device::Events;

/// What is known of a queue.
pub(crate) struct Vring<Q> {
    /// Descriptors; 0 before it is known.
    pub(crate) size: u16,
    /// Where it is.
    pub(crate) addr: Option<VringAddr>,
    /// Where in the available ring to begin.
    pub(crate) base: u16,
    /// What the driver signals it by.
    pub(crate) kick: Option<Arc<PeerEvent>>,
    /// What the driver is signalled by.
    pub(crate) call: Option<Arc<PeerEvent>>,
    /// What the front-end is signalled by if it breaks.
    pub(crate) err: Option<Arc<PeerEvent>>,
    /// It is to be served once it has started.
    pub(crate) enabled: bool,
    /// It has started.
    pub(crate) running: bool,
    /// It has started in this session, with the in-flight region that there is, if there is one.
    pub(crate) was_served: bool,
    /// Who serves it.
    pub(crate) queue: Option<Q>,
}

impl<Q> Default for Vring<Q> {
    fn default() -> Self {
        Self {
            size: 0,
            addr: None,
            base: 0,
            kick: None,
            call: None,
            err: None,
            enabled: false,
            running: false,
            was_served: false,
            queue: None,
        }
    }
}

impl<Q> Vring<Q> {
    /// How driver and front-end are heard and told, once the driver is heard.
    pub(crate) fn events(&self) -> Option<Events> {
        let kick = self.kick.clone()?;
        let (call, err) = (self.call.clone(), self.err.clone());
        Some(Events { kick, call, err, enabled: self.enabled })
    }

    /// Where it is, once that is known.
    pub(crate) fn place(&self, event_idx: bool) -> Option<RingPlace> {
        let addr = self.addr.filter(|_| self.size > 0)?;
        Some(RingPlace {
            descriptors: addr.descriptor,
            available: addr.available,
            used: addr.used,
            size: self.size,
            event_idx,
        })
    }
}
