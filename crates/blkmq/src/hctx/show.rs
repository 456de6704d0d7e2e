//! A hardware queue, for people who look for what is stuck in it (kernel: block/blk-mq-debugfs.c).

use std::fmt;
use std::sync::atomic::Ordering;

use super::Hctx;
use crate::driver::Driver;
use crate::request::Rq;

impl<D: Driver> fmt::Display for Hctx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let st = self.state.lock();
        writeln!(
            f,
            "queue {} ({:?}): {} of {} requests in use, {} tags held",
            self.index,
            self.kind,
            st.allocated,
            st.allocated + st.free.len(),
            st.tags_held
        )?;
        let driver = if self.driver.is_locked() { "locked" } else { "free" };
        let rerun = self.rerun.load(Ordering::Relaxed);
        writeln!(
            f,
            "  quiesced {} frozen {} dying {} waits for tags {:?} rerun {rerun} driver {driver}",
            st.quiesced, st.frozen, st.dying, st.waits_for_tag
        )?;
        writeln!(f, "  {:?}", st.flush)?;
        for arrival in st.waiting.iter() {
            writeln!(f, "  waits: {:?}", arrival.bio)?;
        }
        for bio in st.kept() {
            writeln!(f, "  is kept by limits: {bio:?}")?;
        }
        for rq in st.dispatch.iter().chain(&st.later).chain(st.ctxs.iter().flatten()) {
            writeln!(f, "  {rq}{}", Shown(&*self.shared.driver, rq))?;
        }
        for held in &st.held {
            writeln!(f, "  is held by a fault: {held}")?;
        }
        let out = (0..).zip(st.slots.iter()).filter_map(|(tag, slot)| Some((tag, slot.what?)));
        for (tag, (op, sector, len)) in out {
            let tag: u32 = tag;
            writeln!(f, "  started: tag {tag} {op:?} sector {sector} len {len}")?;
        }
        Ok(())
    }
}

/// What the driver has to say of a request.
struct Shown<'a, D: Driver>(&'a D, &'a Rq<D>);

impl<D: Driver> fmt::Display for Shown<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(" ")?;
        self.0.show_rq(&self.1.cmd, f)
    }
}
