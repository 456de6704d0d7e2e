//! Requests that faults keep from the driver, with their tags, until their time has come or somebody releases them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Hctx, State, Todo};
use crate::driver::{Driver, InFlight};
use crate::fault::FaultSet;
use crate::op::{Op, Status};
use crate::request::{Request, Role, Rq};

/// How often those are looked for of whom nobody wants to hear any more.
const LOOK_NS: u64 = 100_000_000;

/// What a request waits for.
#[derive(Clone, Copy)]
pub(super) enum Until {
    /// This time, unless the rule that delays it is gone before.
    At(u64, Option<u64>),
    /// That this rule is gone.
    Released(u64),
}

/// A request that is kept from the driver.
pub(super) struct Held<D: Driver> {
    rq: Box<Rq<D>>,
    until: Until,
}

impl<D: Driver> Held<D> {
    pub(super) fn into_rq(self) -> Box<Rq<D>> {
        self.rq
    }

    pub(super) fn in_flight(&self, now_ns: u64) -> InFlight {
        let rq = &self.rq;
        let tag = rq.tag.unwrap_or(u32::MAX);
        InFlight {
            tag,
            cookie: u64::from(rq.generation) << 32 | u64::from(tag),
            op: rq.op,
            sector: rq.sector,
            len: rq.len,
            age_ns: now_ns.saturating_sub(rq.start_ns),
        }
    }

    /// The rule that holds it, and whether somebody has to release it.
    fn by(&self) -> (Option<u64>, bool) {
        match self.until {
            Until::At(_, rule) => (rule, false),
            Until::Released(rule) => (Some(rule), true),
        }
    }
}

impl<D: Driver> fmt::Display for Held<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Until::At(at_ns, _) => write!(f, "{} until {at_ns}", self.rq),
            Until::Released(rule) => write!(f, "{} until {rule} is released", self.rq),
        }
    }
}

impl<D: Driver> Hctx<D> {
    /// Keeps a request from the driver.
    pub(super) fn hold(self: &Arc<Self>, mut rq: Box<Rq<D>>, until: Until, faults: &FaultSet) {
        self.put_budget(&mut rq);
        let is_frozen = {
            let mut st = self.state.lock();
            Self::stop(&mut st, &rq);
            if st.dying && matches!(until, Until::At(_, None)) {
                // It tries again until another one has ended, which may need the driver, and that is what we have.
                drop(st);
                return Self::end_unwanted(vec![rq]);
            }
            if st.dying {
                st.dispatch.push_front(rq);
                self.rerun.store(true, Ordering::SeqCst);
            } else {
                st.held.push(Held { rq, until });
            }
            st.frozen > 0
        };
        if is_frozen && matches!(until, Until::Released(_)) {
            let disk = &faults.tally.disk;
            tracing::warn!(disk, "a change waits for requests that a fault stalls");
        }
        self.shared.ring_alarm();
    }

    /// What is held, each with the rule that holds it, and whether somebody has to release it.
    pub(crate) fn held(&self) -> Vec<(Option<u64>, bool)> {
        self.state.lock().held.iter().map(Held::by).collect()
    }

    /// Lets those go on; says how many there were.
    pub(crate) fn release(self: &Arc<Self>, which: &dyn Fn(Option<u64>) -> bool) -> usize {
        let count = {
            let mut st = self.state.lock();
            let (gone, kept) =
                std::mem::take(&mut st.held).into_iter().partition(|held| which(held.by().0));
            st.held = kept;
            let gone: Vec<Held<D>> = gone;
            let count = gone.len();
            gone.into_iter().rev().for_each(|held| st.dispatch.push_front(held.rq));
            count
        };
        if count > 0 {
            self.run();
        }
        count
    }

    /// Ends all that is held.
    pub(crate) fn fail_held(&self, status: Status) {
        let held = std::mem::take(&mut self.state.lock().held);
        for Held { mut rq, .. } in held {
            (rq.mark, rq.unseen) = (None, true);
            Request::new(rq).end(status);
        }
    }

    /// Lets those go on whose time has come, and takes those out of whom nobody wants to hear any more. Says when to look again.
    pub(super) fn open_held(
        st: &mut State<D>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) -> (Option<u64>, Vec<Box<Rq<D>>>) {
        let (mut due, mut unwanted) = (Vec::new(), Vec::new());
        if st.held.is_empty() {
            return (None, unwanted);
        }
        let mut next_ns: Option<u64> = None;
        for held in std::mem::take(&mut st.held) {
            let at_ns = match held.until {
                Until::At(at_ns, _) if at_ns <= now_ns => {
                    due.push((at_ns, held.rq));
                    continue;
                }
                until if is_wanted(st, &held.rq) => {
                    let look_ns = now_ns.saturating_add(LOOK_NS);
                    if let Until::At(at_ns, _) = until { at_ns.min(look_ns) } else { look_ns }
                }
                // Others may have shared it, and nothing is lost by a flush.
                _ if held.rq.op == Op::Flush => {
                    due.push((now_ns, held.rq));
                    continue;
                }
                _ => {
                    unwanted.push(held.rq);
                    continue;
                }
            };
            next_ns = Some(next_ns.map_or(at_ns, |next_ns| next_ns.min(at_ns)));
            st.held.push(held);
        }
        due.sort_by_key(|(at_ns, _)| *at_ns);
        todo.run |= !due.is_empty();
        due.into_iter().rev().for_each(|(_, rq)| st.dispatch.push_front(rq));
        (next_ns, unwanted)
    }

    pub(super) fn end_unwanted(unwanted: Vec<Box<Rq<D>>>) {
        for mut rq in unwanted {
            rq.mark = None;
            Request::new(rq).end(Status::Offline);
        }
    }
}

/// Whether somebody wants to know how it ends.
fn is_wanted<D: Driver>(st: &State<D>, rq: &Rq<D>) -> bool {
    let is_wanted = |rq: &Rq<D>| rq.bios.iter().any(|bio| !bio.is_abandoned());
    match rq.role {
        Role::Flush { .. } => st.flush.running().any(|rq| is_wanted(rq)),
        _ => is_wanted(rq),
    }
}
