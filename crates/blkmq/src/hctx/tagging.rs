//! The tags of a hardware queue: its share of them, and who waits for one.

use std::sync::Arc;

use super::{Hctx, State};
use crate::driver::Driver;
use crate::tags::Waiter;

impl<D: Driver> Hctx<D> {
    /// Takes a tag, or queues up for one.
    pub(super) fn get_tag(self: &Arc<Self>, st: &mut State<D>, reserved: bool) -> Option<u32> {
        if let Some(tag) = self.try_tag(st, reserved) {
            return Some(tag);
        }
        if !std::mem::replace(&mut st.waits_for_tag[usize::from(reserved)], true) {
            self.tags.wait(Arc::clone(self) as Arc<dyn Waiter>, reserved);
        }
        // One may have been freed before the queue for it was joined.
        self.try_tag(st, reserved)
    }

    fn try_tag(&self, st: &mut State<D>, reserved: bool) -> Option<u32> {
        let shared = self.tags.is_shared();
        if shared && !st.tags_active {
            st.tags_active = true;
            self.tags.set_active(true);
        }
        if shared && !reserved && st.tags_held >= self.tags.share() {
            return None;
        }
        let tag = self.tags.get(reserved)?;
        st.tags_held += 1;
        Some(tag)
    }

    /// The caller wakes those who wait for one, once it has let go of the state.
    pub(super) fn put_tag(&self, st: &mut State<D>, tag: u32) {
        st.tags_held -= 1;
        let _woken_anyway = self.leave_tags_if_idle(st);
        self.tags.put(tag);
    }

    /// One that holds no tag and waits for none leaves its share to others; says whether they have more now.
    #[must_use]
    pub(super) fn leave_tags_if_idle(&self, st: &mut State<D>) -> bool {
        let leaves = st.tags_active && st.tags_held == 0 && st.waiting.is_empty();
        if leaves {
            st.tags_active = false;
            self.tags.set_active(false);
        }
        leaves
    }
}

impl<D: Driver> Waiter for Hctx<D> {
    fn tag_freed(self: Arc<Self>, reserved: bool) {
        self.state.lock().waits_for_tag[usize::from(reserved)] = false;
        self.run();
    }
}
