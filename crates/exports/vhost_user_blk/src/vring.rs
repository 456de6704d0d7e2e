//! A virtqueue as the front-end has described it so far.

use std::sync::Arc;

use blockyard_sys::PeerEvent;
use blockyard_vhost_user::queue::RingPlace;
use blockyard_vhost_user::wire::VringAddr;

use crate::queue::QueueHandle;

/// What is known of a queue.
#[derive(Default)]
pub(crate) struct Vring {
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
    /// Who serves it.
    pub(crate) queue: Option<QueueHandle>,
}

impl Vring {
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
