//! The three parts of a ring: the descriptor table, the available ring of the driver, the used ring of the device.

use std::sync::atomic::{Ordering, fence};

use blockyard_buf::{GuestMemory, SharedWords};

use super::{MAX_QUEUE_SIZE, QueueError};

/// Bytes of a descriptor (section 2.7.5).
pub(super) const DESCRIPTOR_LEN: usize = 16;
/// Where the entries of the available and the used ring start.
const ENTRIES: usize = 4;
const AVAILABLE_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;
/// The available ring's flag "do not interrupt me", and the used ring's "do not notify me".
const NO_SIGNAL: u16 = 1;

/// Where a ring is, in the front-end's addresses, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// Descriptors.
    pub size: u16,
    /// [`super::F_EVENT_IDX`] was agreed upon.
    pub event_idx: bool,
}

impl RingPlace {
    /// Whether a ring may have so many descriptors.
    ///
    /// # Errors
    /// [`QueueError::Size`].
    pub fn check_size(size: u32) -> Result<u16, QueueError> {
        u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE)
            .ok_or(QueueError::Size(size))
    }
}

/// A ring that is served.
#[derive(Debug)]
pub struct Ring {
    descriptors: SharedWords,
    available: SharedWords,
    used: SharedWords,
    size: u16,
    event_idx: bool,
    /// What is taken next from the available ring.
    next_available: u16,
    /// The available index when it was last looked at.
    seen_available: u16,
    /// Where the next entry of the used ring goes. The driver does not see it before [`Ring::publish`].
    next_used: u16,
    /// The used index when the driver was last signalled.
    signalled: Option<u16>,
}

impl Ring {
    /// The ring at `place`, to be gone on with at `base` of its available ring.
    ///
    /// # Errors
    /// [`QueueError::Size`], [`QueueError::Place`].
    pub fn new(memory: &GuestMemory, place: &RingPlace, base: u16) -> Result<Self, QueueError> {
        let size = usize::from(RingPlace::check_size(place.size.into())?);
        let [descriptors, available, used] = Self::map(memory, place, size)?;
        let next_used = used.load_u16(2, Ordering::Acquire);
        Ok(Self {
            descriptors,
            available,
            used,
            size: place.size,
            event_idx: place.event_idx,
            next_available: base,
            seen_available: base,
            next_used,
            signalled: None,
        })
    }

    fn map(
        memory: &GuestMemory,
        place: &RingPlace,
        size: usize,
    ) -> Result<[SharedWords; 3], QueueError> {
        // The index of the event that each side waits for stands behind its ring.
        let event = if place.event_idx { 2 } else { 0 };
        let part = |addr, len, alignment, name| {
            memory
                .user_range(addr, len)
                .and_then(|part| SharedWords::with_alignment(part, alignment))
                .ok_or(QueueError::Place(name))
        };
        Ok([
            part(place.descriptors, DESCRIPTOR_LEN * size, 16, "descriptor table")?,
            part(place.available, ENTRIES + AVAILABLE_ENTRY * size + event, 2, "available ring")?,
            part(place.used, ENTRIES + USED_ENTRY * size + event, 4, "used ring")?,
        ])
    }

    /// Goes on in other memory of the same guest, at the same addresses.
    ///
    /// # Errors
    /// [`QueueError::Place`]; the ring is as it was then.
    pub fn remap(&mut self, memory: &GuestMemory, place: &RingPlace) -> Result<(), QueueError> {
        let parts = Self::map(memory, place, self.size.into())?;
        [self.descriptors, self.available, self.used] = parts;
        Ok(())
    }

    /// Descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// What would be taken next from the available ring.
    #[must_use]
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Goes on at `base` of the available ring.
    pub fn set_next_available(&mut self, base: u16) {
        (self.next_available, self.seen_available) = (base, base);
    }

    /// Where the next entry of the used ring goes.
    #[must_use]
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The used index as the driver sees it.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.used.load_u16(2, Ordering::Relaxed)
    }

    /// Takes the next chain from the available ring: its first descriptor.
    ///
    /// # Errors
    /// [`QueueError::AvailableIndex`], [`QueueError::Descriptor`].
    #[inline]
    pub fn pop(&mut self) -> Result<Option<u16>, QueueError> {
        if self.next_available == self.seen_available && self.waiting()? == 0 {
            return Ok(None);
        }
        let at = usize::from(self.next_available & (self.size - 1));
        let head = self.available.load_u16(ENTRIES + AVAILABLE_ENTRY * at, Ordering::Relaxed);
        self.check_descriptor(head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// The chain that was taken last is taken again next.
    pub fn put_back(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Looks how many chains the driver has made available.
    ///
    /// # Errors
    /// [`QueueError::AvailableIndex`].
    #[inline]
    pub fn waiting(&mut self) -> Result<u16, QueueError> {
        let available = self.available.load_u16(2, Ordering::Acquire);
        let waiting = available.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(QueueError::AvailableIndex { available, next: self.next_available });
        }
        self.seen_available = available;
        Ok(waiting)
    }

    pub(super) fn check_descriptor(&self, index: u16) -> Result<(), QueueError> {
        if index < self.size {
            return Ok(());
        }
        Err(QueueError::Descriptor { index, size: self.size.into() })
    }

    /// A descriptor, read once: its address, and length, flags and next in one number.
    ///
    /// # Panics
    /// If there is no such one.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> (u64, u64) {
        let at = usize::from(index) * DESCRIPTOR_LEN;
        let word = |offset| self.descriptors.load_u64(at + offset, Ordering::Relaxed);
        (word(0), word(8))
    }

    /// Puts a chain into the used ring, into which `len` bytes were written. The driver sees it with the next
    /// [`Ring::publish`].
    #[inline]
    pub fn push(&mut self, head: u16, len: u32) {
        let at = ENTRIES + USED_ENTRY * usize::from(self.next_used & (self.size - 1));
        self.used.store_u32(at, head.into(), Ordering::Relaxed);
        self.used.store_u32(at + 4, len, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver what was put into the used ring.
    #[inline]
    pub fn publish(&self) {
        self.used.store_u16(2, self.next_used, Ordering::Release);
    }

    /// Whether the driver wants to be signalled about what was published since the last time (section 2.7.7.2).
    #[inline]
    pub fn wants_signal(&mut self) -> bool {
        // The driver writes what it waits for, then looks at the used index; here it is the other way round.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.available.load_u16(0, Ordering::Relaxed) & NO_SIGNAL == 0;
        }
        let at = ENTRIES + AVAILABLE_ENTRY * usize::from(self.size);
        let event = self.available.load_u16(at, Ordering::Relaxed);
        let new = self.next_used;
        match self.signalled.replace(new) {
            Some(old) => passed(event, new, old),
            None => true,
        }
    }

    /// Asks the driver not to notify while the queue is looked at anyway. A hint.
    #[inline]
    pub fn disable_notify(&self) {
        if !self.event_idx {
            self.used.store_u16(0, NO_SIGNAL, Ordering::Relaxed);
        }
    }

    /// Asks the driver to notify, and says whether it has made more available meanwhile, about which it may not.
    ///
    /// # Errors
    /// As [`Ring::waiting`].
    #[inline]
    pub fn enable_notify(&mut self) -> Result<bool, QueueError> {
        if self.event_idx {
            let at = ENTRIES + USED_ENTRY * usize::from(self.size);
            self.used.store_u16(at, self.next_available, Ordering::Relaxed);
        } else {
            self.used.store_u16(0, 0, Ordering::Relaxed);
        }
        // As in `wants_signal`.
        fence(Ordering::SeqCst);
        Ok(self.waiting()? > 0)
    }
}

/// Whether an index that went from `old` to `new` has passed `event` (`vring_need_event` of the specification).
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_once_and_indexes_wrap() {
        for (event, new, old, wanted) in [
            (5, 6, 5, true),
            (5, 5, 4, false),
            (5, 7, 6, false),
            (5, 9, 2, true),
            (u16::MAX, 0, u16::MAX, true),
            (0, 1, u16::MAX, true),
            (3, 1, u16::MAX, false),
        ] {
            assert_eq!(passed(event, new, old), wanted, "{event} {new} {old}");
        }
    }

    #[test]
    fn sizes_are_powers_of_two() {
        for size in [1, 2, 128, 1024] {
            assert_eq!(RingPlace::check_size(size), Ok(u16::try_from(size).unwrap()));
        }
        for size in [0, 3, 2048, 65536, u32::MAX] {
            assert_eq!(RingPlace::check_size(size), Err(QueueError::Size(size)));
        }
    }
}
