use super::*;
use crate::testing;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeSet;

const MS: u64 = NS_PER_MS;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rq {
    id: u64,
    op: Op,
    start: u64,
    end: u64,
    prio: IoPrio,
}

impl Item for Rq {
    fn op(&self) -> Op {
        self.op
    }
    fn sector(&self) -> Sector {
        Sector(self.start)
    }
    fn end(&self) -> Sector {
        Sector(self.end)
    }
    fn prio(&self) -> IoPrio {
        self.prio
    }
}

fn rq(id: u64, op: Op, start: u64) -> Rq {
    Rq { id, op, start, end: start + 8, prio: IoPrio::None }
}

fn ids(sched: &mut Deadline<Rq>, now_ns: u64) -> Vec<u64> {
    std::iter::from_fn(|| sched.dispatch(now_ns, &|_| true)).map(|rq| rq.id).collect()
}

#[test]
fn requests_go_in_the_order_of_their_sectors() {
    let mut sched = Deadline::new(64);
    for (id, start) in [(0, 800), (1, 0), (2, 400), (3, 1600)] {
        sched.insert(rq(id, Op::Read, start), false, id);
    }
    assert!(sched.has_work());
    assert_eq!(ids(&mut sched, 10), [1, 2, 0, 3]);
    assert!(!sched.has_work());
}

#[test]
fn an_expired_request_starts_the_next_batch_and_the_order_goes_on_from_there() {
    let mut sched = Deadline::new(64);
    sched.set("fifo_batch", 2).unwrap();
    sched.insert(rq(0, Op::Read, 5000), false, 0);
    for id in 1..=4 {
        sched.insert(rq(id, Op::Read, id * 8), false, 400 * MS);
    }
    sched.insert(rq(5, Op::Read, 6000), false, 400 * MS);
    assert_eq!(ids(&mut sched, 499 * MS)[..1], [1], "not yet");
    let mut sched = Deadline::new(64);
    sched.set("fifo_batch", 2).unwrap();
    sched.insert(rq(0, Op::Read, 5000), false, 0);
    for id in 1..=4 {
        sched.insert(rq(id, Op::Read, id * 8), false, 400 * MS);
    }
    sched.insert(rq(5, Op::Read, 6000), false, 400 * MS);
    assert_eq!(ids(&mut sched, 500 * MS), [0, 5, 1, 2, 3, 4]);
}

#[test]
fn writes_are_passed_over_twice_and_then_have_a_batch() {
    // A new scheduler is in a batch of writes, as the kernel's is.
    let mut sched = Deadline::new(64);
    sched.set("fifo_batch", 1).unwrap();
    for id in 0..6 {
        sched.insert(rq(id, Op::Read, id * 8), false, 0);
        sched.insert(rq(100 + id, Op::Write, id * 8), false, 0);
    }
    assert_eq!(ids(&mut sched, 1)[..9], [100, 0, 1, 101, 2, 3, 102, 4, 5]);
}

#[test]
fn at_head_goes_before_everything_the_latest_first() {
    let mut sched = Deadline::new(64);
    sched.insert(rq(0, Op::Read, 0), false, 0);
    sched.insert(rq(1, Op::Write, 900), true, 0);
    sched.insert(rq(2, Op::Write, 800), true, 0);
    assert_eq!(ids(&mut sched, 0), [2, 1, 0]);
}

#[test]
fn a_class_waits_for_those_above_even_while_they_are_at_the_driver() {
    let mut sched = Deadline::new(64);
    let idle = Rq { prio: IoPrio::Idle, ..rq(0, Op::Read, 0) };
    let real_time = Rq { prio: IoPrio::RealTime(0), ..rq(1, Op::Read, 800) };
    sched.insert(idle, false, 0);
    sched.insert(real_time, false, 0);
    assert_eq!(ids(&mut sched, 0), [1]);
    assert!(sched.has_work() && sched.dispatch(9_999 * MS, &|_| true).is_none());
    sched.completed(IoPrio::RealTime(0));
    assert_eq!(ids(&mut sched, 1), [0]);
}

#[test]
fn completions_of_requests_that_another_scheduler_dispatched_do_no_harm() {
    let mut sched = Deadline::new(64);
    sched.insert(rq(0, Op::Read, 0), false, 0);
    sched.completed(IoPrio::None);
    sched.completed(IoPrio::None);
    assert_eq!(ids(&mut sched, 0), [0]);
}

#[test]
fn an_aged_request_of_a_lower_class_goes_first() {
    let mut sched = Deadline::new(64);
    sched.insert(Rq { prio: IoPrio::Idle, ..rq(0, Op::Write, 0) }, false, 0);
    for id in 1..3 {
        sched.insert(Rq { prio: IoPrio::RealTime(3), ..rq(id, Op::Read, 8) }, false, 9_000 * MS);
    }
    assert_eq!(sched.dispatch(9_999 * MS, &|_| true).unwrap().id, 1);
    assert_eq!(sched.dispatch(10_000 * MS, &|_| true).unwrap().id, 0);
}

#[test]
fn a_bio_joins_behind_or_before_a_request_of_its_kind_and_is_sorted_in_again() {
    let mut sched = Deadline::new(64);
    sched.insert(rq(0, Op::Write, 100), false, 0);
    sched.insert(rq(1, Op::Write, 50), false, 0);
    let bio = |op, start: u64| Candidate {
        op,
        start: Sector(start),
        end: Sector(start + 8),
        prio: IoPrio::BestEffort(4),
    };
    let mut join = |rq: &mut Rq, kind: MergeKind| {
        match kind {
            MergeKind::Back => rq.end += 8,
            MergeKind::Front => rq.start -= 8,
        }
        true
    };
    assert!(sched.try_merge(bio(Op::Write, 108), &|_| true, &mut join));
    assert!(sched.try_merge(bio(Op::Write, 116), &|_| true, &mut join), "found by its new end");
    assert!(!sched.try_merge(bio(Op::Write, 108), &|_| true, &mut join), "not by its old end");
    assert!(!sched.try_merge(bio(Op::Read, 124), &|_| true, &mut join), "not by another operation");
    assert!(!sched.try_merge(bio(Op::WriteZeroes, 124), &|_| true, &mut join));
    assert!(
        !sched.try_merge(bio(Op::Write, 124), &|_| true, &mut |_, _| false),
        "it may be declined"
    );
    for start in (20..100).rev().step_by(8).map(|end| end - 7) {
        let touches_other = start == 50 + 8;
        assert!(sched.try_merge(bio(Op::Write, start), &|_| true, &mut join) || touches_other);
    }
    let first = sched.dispatch(0, &|_| true).unwrap();
    assert_eq!((first.id, first.start, first.end), (0, 20, 124), "it moved before the other one");
    sched.set("front_merges", 0).unwrap();
    assert!(!sched.try_merge(bio(Op::Write, 42), &|_| true, &mut join));
}

#[test]
fn tunables_are_those_of_sysfs_with_the_defaults_of_the_kernel() {
    let mut sched = Deadline::<Rq>::new(128);
    let values: Vec<u64> =
        sched.tunables().iter().map(|tunable| sched.get(tunable.name).unwrap()).collect();
    assert_eq!(values, [500, 5000, 2, 1, 128, 16, 10_000]);
    for tunable in sched.tunables() {
        sched.set(tunable.name, tunable.max).unwrap();
        assert_eq!(sched.get(tunable.name), Ok(tunable.max), "{}", tunable.name);
    }
    let over = sched.set("front_merges", 2).unwrap_err();
    assert_eq!(over.to_string(), "front_merges is from 0 to 1, not 2");
    assert!(sched.get("low_latency").unwrap_err().to_string().contains("fifo_batch"));
    assert_eq!(
        (sched.depth_limit(Op::Read), sched.depth_limit(Op::Write)),
        (None, Some(i32::MAX as u32))
    );
}

/// The algorithm written down again over a plain list, with nothing kept sorted.
struct Model {
    waiting: Vec<(Rq, u64)>,
    heads: Vec<Rq>,
    at_driver: [usize; CLASSES],
    latest_pos: [[u64; 2]; CLASSES],
    last: Dir,
    batching: u64,
    starved: u64,
}

impl Model {
    fn of(&self, class: usize, dir: Dir) -> impl Iterator<Item = &(Rq, u64)> {
        self.waiting
            .iter()
            .filter(move |(rq, _)| class_of(rq.prio) == class && Dir::of(rq.op) == dir)
    }

    fn next(&self, class: usize, dir: Dir) -> Option<u64> {
        let pos = self.latest_pos[class][dir as usize];
        let after = self.of(class, dir).filter(|(rq, _)| rq.start >= pos);
        after.min_by_key(|(rq, _)| rq.start).map(|(rq, _)| rq.id)
    }

    fn choose(&self, class: usize, now: u64) -> Option<(u64, Dir, u64, u64)> {
        if let Some(id) = self.next(class, self.last)
            && self.batching < 16
        {
            return Some((id, self.last, self.batching + 1, self.starved));
        }
        let reads = self.of(class, Dir::Read).count() > 0;
        let writes = self.of(class, Dir::Write).count() > 0;
        let (dir, starved) = if reads && !(writes && self.starved >= 2) {
            (Dir::Read, self.starved + u64::from(writes))
        } else if writes {
            (Dir::Write, 0)
        } else {
            return None;
        };
        let expire = [500 * MS, 5000 * MS][dir as usize];
        let (oldest, since) = self.of(class, dir).next().map(|(rq, since)| (rq.id, *since))?;
        let id =
            if since + expire <= now { oldest } else { self.next(class, dir).unwrap_or(oldest) };
        Some((id, dir, 1, starved))
    }

    fn queued(&self, class: usize) -> bool {
        let here = self.waiting.iter().map(|(rq, _)| rq).chain(&self.heads);
        self.at_driver[class] > 0 || here.into_iter().any(|rq| class_of(rq.prio) == class)
    }

    fn dispatch(&mut self, now: u64) -> Option<Rq> {
        let rq = if let Some(rq) = self.heads.pop() {
            rq
        } else {
            let mixed = (0..CLASSES).filter(|&class| self.queued(class)).count() > 1;
            let aged = (1..CLASSES).filter(|_| mixed).find_map(|class| {
                let choice = self.choose(class, now)?;
                let (_, since) = self.waiting.iter().find(|(rq, _)| rq.id == choice.0)?;
                (since + 10_000 * MS <= now).then_some(choice)
            });
            let first = (0..CLASSES).find(|&class| self.queued(class));
            let (id, dir, batching, starved) = aged.or_else(|| self.choose(first?, now))?;
            (self.last, self.batching, self.starved) = (dir, batching, starved);
            let at = self.waiting.iter().position(|(rq, _)| rq.id == id)?;
            self.waiting.remove(at).0
        };
        self.latest_pos[class_of(rq.prio)][Dir::of(rq.op) as usize] = rq.start;
        self.at_driver[class_of(rq.prio)] += 1;
        Some(rq)
    }
}

fn any_rq(rng: &mut StdRng, id: u64) -> Rq {
    let op = [Op::Read, Op::Read, Op::Write, Op::Write, Op::Discard][rng.random_range(0..5)];
    let prio = [IoPrio::None, IoPrio::BestEffort(2), IoPrio::RealTime(1), IoPrio::Idle];
    let prio = prio[if rng.random_bool(0.7) { 0 } else { rng.random_range(0..4) }];
    let start = rng.random_range(0..2000) * 8;
    Rq { id, op, start, end: start + rng.random_range(1..4) * 8, prio }
}

#[test]
fn it_dispatches_what_the_algorithm_over_a_plain_list_does_and_loses_nothing() {
    let mut rng = testing::rng("deadline");
    let mut sched = Deadline::new(64);
    let mut model = Model {
        waiting: Vec::new(),
        heads: Vec::new(),
        at_driver: [0; CLASSES],
        latest_pos: [[0; 2]; CLASSES],
        last: Dir::Write,
        batching: 0,
        starved: 0,
    };
    let (mut now, mut driver, mut ended) = (0, Vec::new(), BTreeSet::new());
    let mut merged = 0;
    for id in 0..30_000 {
        now += [MS / 10, MS, 20 * MS, 700 * MS]
            [if rng.random_bool(0.99) { 0 } else { rng.random_range(0..4) }];
        let busy = sched.has_work();
        match rng.random_range(0..10) {
            0..4 if model.waiting.len() < 200 => {
                let rq = any_rq(&mut rng, id);
                let at_head = rng.random_bool(0.02);
                sched.insert(rq.clone(), at_head, now);
                if at_head { model.heads.push(rq) } else { model.waiting.push((rq, now)) }
            }
            0..5 => {
                let Rq { op, start, end, prio, .. } = any_rq(&mut rng, id);
                let bio = Candidate { op, start: Sector(start), end: Sector(end), prio };
                let mut taken = None;
                let done = sched.try_merge(bio, &|_| true, &mut |rq, kind| {
                    match kind {
                        MergeKind::Back => assert_eq!(std::mem::replace(&mut rq.end, end), start),
                        MergeKind::Front => {
                            assert_eq!(std::mem::replace(&mut rq.start, start), end);
                        }
                    }
                    taken = Some(rq.clone());
                    true
                });
                assert_eq!(done, taken.is_some());
                if let Some(taken) = taken {
                    merged += 1;
                    assert_eq!((taken.op, class_of(taken.prio)), (op, class_of(prio)));
                    let was = model.waiting.iter_mut().find(|(rq, _)| rq.id == taken.id).unwrap();
                    was.0 = taken;
                }
            }
            5..8 if driver.len() < 32 => {
                let (got, expected) = (sched.dispatch(now, &|_| true), model.dispatch(now));
                assert_eq!(got, expected, "at step {id}");
                assert!(busy || got.is_none());
                driver.extend(got);
            }
            _ if !driver.is_empty() => {
                let rq: Rq = driver.swap_remove(rng.random_range(0..driver.len()));
                sched.completed(rq.prio);
                model.at_driver[class_of(rq.prio)] -= 1;
                assert!(ended.insert(rq.id), "{} ended twice", rq.id);
            }
            _ => {}
        }
    }
    assert!(merged > 10 && ended.len() > 1000, "the test did nothing");
    let mut left: Vec<Rq> = model.heads.iter().rev().cloned().collect();
    left.extend(model.waiting.into_iter().map(|(rq, _)| rq));
    assert_eq!(sched.drain(), left);
    assert!(!sched.has_work());
}

#[test]
fn nobody_waits_past_a_bound_under_a_flood() {
    let mut rng = testing::rng("deadline bound");
    let mut sched = Deadline::new(64);
    let (mut now, mut waiting) = (0, Vec::new());
    // A flood of reads and writes at low sectors, and a few far away that no order by sector reaches.
    for id in 0..20_000u64 {
        now += 5 * MS;
        while waiting.len() < 64 {
            let id = id * 1000 + waiting.len() as u64;
            let op = if rng.random_bool(0.8) { Op::Read } else { Op::Write };
            let far = rng.random_bool(0.02);
            let start = if far { 1 << 30 } else { rng.random_range(0..64) * 8 };
            sched.insert(rq(id, op, start), false, now);
            waiting.push((id, op, now));
        }
        let rq = sched.dispatch(now, &|_| true).expect("64 wait");
        sched.completed(rq.prio);
        let at = waiting.iter().position(|&(id, ..)| id == rq.id).unwrap();
        let (_, op, since) = waiting.remove(at);
        // At most 63 are ahead in the queue of its direction when it expires. Each batch that starts there
        // serves the oldest; of three batches two are of reads, and one at least is of writes.
        let (expire, batches) =
            if op == Op::Read { (500, 64 * 3 / 2 + 2) } else { (5000, 64 * 3 + 2) };
        let bound = expire * MS + batches * 16 * 5 * MS;
        assert!(now - since <= bound, "{op:?} waited for {} ms", (now - since) / MS);
    }
}
