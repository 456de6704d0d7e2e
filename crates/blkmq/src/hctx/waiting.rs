//! Bios that wait to be let in, and whose turn it is.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Hctx, State, Todo};
use crate::bio::Bio;
use crate::driver::Driver;
use crate::op::{Flags, Op, Status};
use crate::reservation::Registrant;

/// A bio that wants to get in: by which software queue, and from whom.
pub(crate) struct Arrival {
    pub(crate) ctx: usize,
    pub(crate) from: Registrant,
    pub(crate) bio: Box<Bio>,
}

impl Arrival {
    /// The limits of the disk have let it in.
    pub(super) fn paid(mut self) -> Self {
        self.bio.paid = true;
        self
    }
}

/// What a bio stands in line for. Within a lane they are let in in the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Steps of what was let in before: they go first, into a frozen queue too.
    Inside,
    /// Those that may have a reserved tag, which stand behind no others.
    Reserved,
    /// Most.
    Ordinary,
    /// Those that a scheduler lets have some of the requests only.
    Limited,
    /// What is left of bios that are cut.
    Rests,
}

impl Lane {
    const COUNT: usize = 5;
    /// Those that take turns.
    const TURNS: [Self; 3] = [Self::Ordinary, Self::Limited, Self::Rests];
}

/// All that wait.
#[derive(Default)]
pub(super) struct Waiting {
    lanes: [VecDeque<Arrival>; Lane::COUNT],
    count: usize,
    turn: usize,
    /// The next of the rests found no tag or request: who comes now is not to have the next one.
    rests_starve: bool,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn has_inside(&self) -> bool {
        !self.lanes[Lane::Inside as usize].is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arrival> {
        self.lanes.iter().flatten()
    }

    pub(super) fn push_back(&mut self, lane: Lane, arrival: Arrival) {
        self.count += 1;
        self.lanes[lane as usize].push_back(arrival);
    }

    fn push_front(&mut self, lane: Lane, arrival: Arrival) {
        self.count += 1;
        self.lanes[lane as usize].push_front(arrival);
    }

    fn pop_front(&mut self, lane: Lane) -> Option<Arrival> {
        let arrival = self.lanes[lane as usize].pop_front()?;
        self.count -= 1;
        Some(arrival)
    }

    /// Takes all, whatever they wait for.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Arrival> + use<> {
        self.count = 0;
        std::mem::take(&mut self.lanes).into_iter().flatten()
    }

    /// Whether one that comes now has to stand behind others.
    fn is_behind(&self, lane: Lane) -> bool {
        let starve = self.rests_starve && matches!(lane, Lane::Ordinary | Lane::Limited);
        starve || !self.lanes[lane as usize].is_empty()
    }

    fn next_turn(&mut self) -> Lane {
        self.turn = (self.turn + 1) % Lane::TURNS.len();
        Lane::TURNS[self.turn]
    }
}

impl<D: Driver> State<D> {
    /// Whether the scheduler lets such an operation have some of the requests only.
    pub(super) fn is_limited(&self, bio: &Bio) -> bool {
        self.elevator
            && !matches!(bio.op, Op::Read | Op::Flush)
            && !bio.flags.intersects(Flags::FUA | Flags::PREFLUSH)
    }

    fn lane_of(&self, bio: &Bio) -> Lane {
        if bio.inside {
            Lane::Inside
        } else if bio.is_piece() {
            Lane::Rests
        } else if bio.flags.contains(Flags::RESERVED) {
            Lane::Reserved
        } else if self.is_limited(bio) {
            Lane::Limited
        } else {
            Lane::Ordinary
        }
    }
}

impl<D: Driver> Hctx<D> {
    /// Lets a bio in, or has it wait.
    pub(super) fn enter(
        self: &Arc<Self>,
        st: &mut State<D>,
        arrival: Arrival,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) {
        if st.dying {
            return todo.ended_bios.push((arrival.bio, Status::Offline));
        }
        let passed = match &mut st.gate {
            Some(gate) => gate.enter(arrival, now_ns, todo).map(Arrival::paid),
            None => Some(arrival),
        };
        if let Some(arrival) = passed {
            self.enter_paid(st, arrival, now_ns, todo);
        }
    }

    /// The same of what the limits of the disk allow.
    pub(super) fn enter_paid(
        self: &Arc<Self>,
        st: &mut State<D>,
        arrival: Arrival,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) {
        let behind = (st.frozen > 0 || !st.waiting.is_empty()) && {
            let lane = st.lane_of(&arrival.bio);
            (st.frozen > 0 && lane != Lane::Inside) || st.waiting.is_behind(lane)
        };
        let nowait = arrival.bio.flags.contains(Flags::NOWAIT);
        let left = if behind { Some(arrival) } else { self.admit(st, arrival, now_ns, todo) };
        match left {
            Some(arrival) if nowait => {
                todo.ended_bios.push((arrival.bio, Status::Again));
                todo.wake |= self.leave_tags_if_idle(st);
            }
            Some(arrival) => {
                let lane = st.lane_of(&arrival.bio);
                st.waiting.rests_starve |= lane == Lane::Rests && arrival.bio.has_room();
                st.waiting.push_back(lane, arrival);
            }
            None => {}
        }
    }

    /// Admits bios that wait, as far as there are requests and tags: the lanes take turns, and what is left of a bio
    /// that is cut goes behind the others of its kind after each of its pieces.
    pub(super) fn admit_waiting(
        self: &Arc<Self>,
        st: &mut State<D>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) {
        if st.waiting.is_empty() {
            return;
        }
        while self.admit_one(st, Lane::Inside, now_ns, todo) {}
        if st.frozen > 0 {
            return;
        }
        while self.admit_one(st, Lane::Reserved, now_ns, todo) {}
        let mut idle = 0;
        while idle < Lane::TURNS.len() {
            let admitted = match st.waiting.next_turn() {
                Lane::Rests => self.resume_one(st, now_ns, todo),
                lane => self.admit_one(st, lane, now_ns, todo),
            };
            idle = if admitted { 0 } else { idle + 1 };
        }
        todo.wake |= self.leave_tags_if_idle(st);
    }

    /// Admits the first of a lane; says whether it was, or a piece of it.
    fn admit_one(
        self: &Arc<Self>,
        st: &mut State<D>,
        lane: Lane,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) -> bool {
        let Some(arrival) = st.waiting.pop_front(lane) else { return false };
        if arrival.bio.is_abandoned() {
            todo.ended_bios.push((arrival.bio, Status::Offline));
            return true;
        }
        match self.admit(st, arrival, now_ns, todo) {
            None => true,
            Some(rest) if lane != Lane::Inside && rest.bio.is_piece() => {
                st.waiting.push_back(Lane::Rests, rest);
                true
            }
            Some(same) => {
                st.waiting.push_front(lane, same);
                false
            }
        }
    }

    /// Admits the next piece of a bio that is cut; says whether there was one.
    fn resume_one(self: &Arc<Self>, st: &mut State<D>, now_ns: u64, todo: &mut Todo<D>) -> bool {
        st.waiting.rests_starve = false;
        for _ in 0..st.waiting.lanes[Lane::Rests as usize].len() {
            let Some(arrival) = st.waiting.pop_front(Lane::Rests) else { return false };
            if !arrival.bio.has_room() {
                st.waiting.push_back(Lane::Rests, arrival);
                continue;
            }
            let before = arrival.bio.len();
            match self.admit(st, arrival, now_ns, todo) {
                None => return true,
                Some(rest) if rest.bio.len() < before => {
                    st.waiting.push_back(Lane::Rests, rest);
                    return true;
                }
                Some(same) => {
                    st.waiting.rests_starve = true;
                    st.waiting.push_front(Lane::Rests, same);
                    return false;
                }
            }
        }
        false
    }
}
