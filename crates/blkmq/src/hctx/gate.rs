//! Before a hardware queue: bios that wait until the limits of their disk let them in.
//!
//! Reads wait for reads and writes for writes, in the order in which they came. What is let in is paid for, however long it waits
//! for a tag then.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use super::waiting::Arrival;
use super::{Hctx, State, Todo};
use crate::bio::Bio;
use crate::driver::Driver;
use crate::op::{Flags, Status};
use crate::throttle::{Rates, ThrottleGroup, Unit, Way};

/// How often those are looked for of whom nobody wants to hear any more.
const LOOK_NS: u64 = 100_000_000;
/// For how long others wait, at most, for what was let in before its time. Otherwise who is let in again and again would keep
/// those behind it for as long as it likes.
const MAX_DEBT_NS: u64 = 1_000_000_000;

/// What a line has bought of one rate of a group.
#[derive(Clone, Copy, Default)]
struct Purse {
    has: u64,
    /// On its way.
    bought: u64,
    from_ns: u64,
}

/// What a line has bought of one group.
#[derive(Clone, Default)]
struct Account {
    epoch: u64,
    rates: Arc<Rates>,
    /// By unit.
    purses: [Purse; 2],
    /// Until then it waits for what was let in before its time. That is its own: the others of the group have their turns as
    /// before.
    owes_until_ns: u64,
}

impl Account {
    /// Keeps up with the group. What was bought of a limit that is no more is not used, nor waited for.
    fn update(&mut self, group: &ThrottleGroup, way: Way) {
        let epoch = group.epoch();
        if self.epoch == epoch {
            return;
        }
        let rates = group.rates();
        for unit in Unit::ALL {
            if !rates.is_as(&self.rates, unit, way) {
                self.purses[unit as usize] = Purse::default();
                self.owes_until_ns = 0;
            }
        }
        (self.epoch, self.rates) = (epoch, rates);
    }

    /// Has so much at hand, or says when to try again.
    fn gather(&mut self, unit: Unit, way: Way, cost: u64, now_ns: u64) -> Result<(), u64> {
        let purse = &mut self.purses[unit as usize];
        while purse.has < cost {
            if purse.bought == 0 {
                let need = cost - purse.has;
                let Some((bought, from_ns)) = self.rates.buy(unit, way, need, now_ns) else {
                    // There is no such limit.
                    purse.has = cost;
                    break;
                };
                (purse.bought, purse.from_ns) = (bought, from_ns);
            }
            if purse.from_ns > now_ns {
                return Err(purse.from_ns);
            }
            purse.has = purse.has.saturating_add(std::mem::take(&mut purse.bought));
        }
        Ok(())
    }

    /// Pays with what was bought, for whenever that is; the rest is owed.
    fn owe(&mut self, unit: Unit, way: Way, cost: u64, now_ns: u64) {
        let purse = &mut self.purses[unit as usize];
        let mut left = cost;
        for has in [&mut purse.has, &mut purse.bought] {
            let spent = left.min(*has);
            (*has, left) = (*has - spent, left - spent);
        }
        let until_ns = self.owes_until_ns.max(now_ns);
        let until_ns = until_ns.saturating_add(self.rates.takes_ns(unit, way, left));
        self.owes_until_ns = until_ns.min(now_ns.saturating_add(MAX_DEBT_NS));
    }
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Arrival>,
    /// One for each group.
    accounts: Vec<Account>,
    /// When the first of those that wait may be let in, at the earliest.
    due_ns: u64,
}

impl Line {
    /// Pays for a bio, or says when to try again.
    fn pay(
        &mut self,
        groups: &[Arc<ThrottleGroup>],
        way: Way,
        bio: &Bio,
        now_ns: u64,
    ) -> Result<(), u64> {
        let mut due_ns = 0;
        let mut costs: SmallVec<[[u64; 2]; 2]> = SmallVec::new();
        for (group, account) in groups.iter().zip(&mut self.accounts) {
            account.update(group, way);
            let cost = Unit::ALL.map(|unit| account.rates.cost(unit, bio));
            costs.push(cost);
            if account.owes_until_ns > now_ns {
                due_ns = due_ns.max(account.owes_until_ns);
                continue;
            }
            for unit in Unit::ALL {
                if let Err(at_ns) = account.gather(unit, way, cost[unit as usize], now_ns) {
                    due_ns = due_ns.max(at_ns);
                }
            }
        }
        if due_ns > 0 {
            return Err(due_ns);
        }
        for (account, cost) in self.accounts.iter_mut().zip(costs) {
            for unit in Unit::ALL {
                account.purses[unit as usize].has -= cost[unit as usize];
            }
        }
        Ok(())
    }

    /// Ends those of whom nobody wants to hear any more.
    fn drop_abandoned<D: Driver>(&mut self, todo: &mut Todo<D>) {
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front() {
                Some(arrival) if arrival.bio.is_abandoned() => {
                    todo.ended_bios.push((arrival.bio, Status::Offline));
                }
                kept => self.waiting.extend(kept),
            }
        }
    }
}

/// The limits of a disk, as one of its hardware queues keeps to them.
#[derive(Default)]
pub(super) struct Gate {
    groups: Vec<Arc<ThrottleGroup>>,
    /// By way.
    lines: [Line; Way::COUNT],
    /// When those were looked for last of whom nobody wants to hear any more.
    looked_ns: u64,
    /// For how long a bio waits at most.
    longest_ns: u64,
    /// What came until then does not wait.
    admitted_until_ns: u64,
}

impl Gate {
    fn new(groups: Vec<Arc<ThrottleGroup>>, longest_ns: u64, admitted_until_ns: u64) -> Self {
        let line = || Line { accounts: vec![Account::default(); groups.len()], ..Line::default() };
        let lines = [line(), line()];
        Self { groups, lines, looked_ns: 0, longest_ns, admitted_until_ns }
    }

    /// Whether a bio has waited for as long as any may.
    fn is_admitted(&self, bio: &Bio, now_ns: u64) -> bool {
        bio.came_ns <= self.admitted_until_ns
            || now_ns.saturating_sub(bio.came_ns) >= self.longest_ns
    }

    /// Gives back what may go on, and keeps what has to wait.
    pub(super) fn enter<D: Driver>(
        &mut self,
        arrival: Arrival,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) -> Option<Arrival> {
        let way = Way::of(arrival.bio.op).filter(|_| !arrival.bio.inside && !arrival.bio.paid);
        let Some(way) = way else { return Some(arrival) };
        if self.longest_ns == 0 || arrival.bio.came_ns <= self.admitted_until_ns {
            self.owe(&arrival.bio, now_ns);
            return Some(arrival);
        }
        let line = &mut self.lines[way as usize];
        let first = line.waiting.is_empty();
        if first {
            match line.pay(&self.groups, way, &arrival.bio, now_ns) {
                Ok(()) => return Some(arrival),
                Err(due_ns) => line.due_ns = due_ns,
            }
        }
        if arrival.bio.flags.contains(Flags::NOWAIT) {
            todo.ended_bios.push((arrival.bio, Status::Again));
        } else {
            line.waiting.push_back(arrival);
            todo.alarm |= first;
        }
        None
    }

    /// The next one of a line that may go on.
    fn next(&mut self, way: Way, now_ns: u64) -> Option<Arrival> {
        let arrival = self.lines[way as usize].waiting.pop_front()?;
        if self.is_admitted(&arrival.bio, now_ns) {
            self.owe(&arrival.bio, now_ns);
            return Some(arrival);
        }
        let line = &mut self.lines[way as usize];
        if let Err(due_ns) = line.pay(&self.groups, way, &arrival.bio, now_ns) {
            line.due_ns = due_ns;
            line.waiting.push_front(arrival);
            return None;
        }
        Some(arrival)
    }

    /// Pays for a bio that does not wait.
    fn owe(&mut self, bio: &Bio, now_ns: u64) {
        let Some(way) = Way::of(bio.op) else { return };
        let accounts = &mut self.lines[way as usize].accounts;
        for (group, account) in self.groups.iter().zip(accounts) {
            account.update(group, way);
            for unit in Unit::ALL {
                account.owe(unit, way, account.rates.cost(unit, bio), now_ns);
            }
        }
    }

    /// When the first of those came that wait.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        let first = self.lines.iter().filter_map(|line| line.waiting.front());
        first.map(|arrival| arrival.bio.came_ns).min()
    }

    fn due_ns(&self) -> Option<u64> {
        let due = |line: &Line| {
            let came_ns = line.waiting.front()?.bio.came_ns;
            Some(line.due_ns.min(came_ns.saturating_add(self.longest_ns)))
        };
        self.lines.iter().filter_map(due).min()
    }
}

impl<D: Driver> State<D> {
    /// Bios that the limits of the disk keep waiting.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Bio> {
        let lines = self.gate.iter().flat_map(|gate| &gate.lines);
        lines.flat_map(|line| &line.waiting).map(|arrival| &*arrival.bio)
    }

    /// All that wait at the gate, in the order in which they came each way.
    pub(super) fn take_kept(&mut self) -> Vec<Arrival> {
        let lines = self.gate.iter_mut().flat_map(|gate| &mut gate.lines);
        lines.flat_map(|line| line.waiting.drain(..)).collect()
    }
}

impl<D: Driver> Hctx<D> {
    /// Nothing is kept for longer than that from now on. What has been is let in when the gate is opened.
    pub(crate) fn set_longest_wait(&self, longest_ns: u64) {
        let mut st = self.lock();
        st.longest_wait_ns = longest_ns;
        if let Some(gate) = &mut st.gate {
            gate.longest_ns = longest_ns;
        }
    }

    /// Nothing that has come by then is kept any longer. What has been is let in when the gate is opened.
    pub(crate) fn set_admitted_until(&self, time_ns: u64) {
        let mut st = self.lock();
        st.admitted_until_ns = time_ns;
        if let Some(gate) = &mut st.gate {
            gate.admitted_until_ns = time_ns;
        }
    }

    /// Lets in what may go on by now.
    pub(crate) fn admit_due(self: &Arc<Self>) {
        let mut todo = Todo::default();
        {
            let now_ns = self.shared.clock.now_ns();
            // The next tick finds out when to look again.
            let _due_ns = self.open_gate(&mut self.lock(), now_ns, &mut todo);
        }
        self.settle(&mut todo);
    }

    /// Keeps to other limits from now on: what waits, too.
    pub(crate) fn set_throttle(self: &Arc<Self>, groups: &[Arc<ThrottleGroup>]) {
        let mut todo = Todo::default();
        {
            let now_ns = self.shared.clock.now_ns();
            let mut st = self.lock();
            let kept = st.take_kept();
            let (longest_ns, until_ns) = (st.longest_wait_ns, st.admitted_until_ns);
            let gate = || Box::new(Gate::new(groups.to_vec(), longest_ns, until_ns));
            st.gate = (!groups.is_empty()).then(gate);
            for arrival in kept {
                self.enter(&mut st, arrival, now_ns, &mut todo);
            }
        }
        self.settle(&mut todo);
    }

    /// Lets in what the limits allow by now. Says when to look again.
    pub(super) fn open_gate(
        self: &Arc<Self>,
        st: &mut State<D>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) -> Option<u64> {
        // They have no part in what others may have.
        if let Some(gate) =
            st.gate.as_mut().filter(|gate| now_ns.saturating_sub(gate.looked_ns) >= LOOK_NS)
        {
            gate.looked_ns = now_ns;
            gate.lines.iter_mut().for_each(|line| line.drop_abandoned(todo));
        }
        for way in [Way::Read, Way::Write] {
            while let Some(arrival) = st.gate.as_mut().and_then(|gate| gate.next(way, now_ns)) {
                let waited_ns = now_ns.saturating_sub(arrival.bio.came_ns);
                st.stats.throttled(arrival.bio.op, waited_ns);
                self.enter_paid(st, arrival.paid(), now_ns, todo);
            }
        }
        let gate = st.gate.as_ref()?;
        gate.due_ns().map(|due_ns| due_ns.min(now_ns.saturating_add(LOOK_NS)))
    }
}
