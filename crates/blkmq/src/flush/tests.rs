use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, PartialEq, Eq)]
struct Rq {
    id: usize,
    steps: Steps,
}

impl Sequenced for Rq {
    fn steps_mut(&mut self) -> &mut Steps {
        &mut self.steps
    }
}

#[test]
fn the_steps_follow_what_the_disk_can_do() {
    let fua_write = |fua| Steps::of(Op::Write, Flags::FUA, fua);
    assert_eq!(fua_write(false), Steps::DATA | Steps::POSTFLUSH);
    assert!(fua_write(true).is_plain());
    assert_eq!(
        Steps::of(Op::Write, Flags::PREFLUSH | Flags::FUA, true),
        Steps::PREFLUSH | Steps::DATA
    );
    assert_eq!(Steps::of(Op::Flush, Flags::empty(), true), Steps::PREFLUSH);
}

#[test]
fn flushes_that_come_while_one_is_out_share_the_next() {
    let (mut queue, mut todo) = (FlushQueue::default(), Vec::new());
    for id in 0..4 {
        queue.start(Rq { id, steps: Steps::PREFLUSH }, 0, &mut todo);
    }
    assert_eq!(std::mem::take(&mut todo), [Next::Flush]);
    queue.flush_done(Status::Ok, 0, &mut todo);
    assert!(
        matches!(&todo[..], [Next::End(Rq { id: 0, .. }, Status::Ok), Next::Flush]),
        "{todo:?}"
    );
    todo.clear();
    queue.flush_done(Status::Ok, 0, &mut todo);
    assert_eq!(todo.len(), 3);
}

#[test]
fn a_failed_step_ends_the_request() {
    let (mut queue, mut todo) = (FlushQueue::default(), Vec::new());
    queue.start(Rq { id: 0, steps: Steps::all() }, 0, &mut todo);
    queue.flush_done(Status::Medium, 0, &mut todo);
    assert!(matches!(&todo[..], [Next::Flush, Next::End(_, Status::Medium)]), "{todo:?}");
}

#[test]
fn data_in_flight_holds_a_flush_back_but_not_for_ever() {
    let (mut queue, mut todo) = (FlushQueue::default(), Vec::new());
    queue.start(Rq { id: 0, steps: Steps::DATA | Steps::POSTFLUSH }, 0, &mut todo);
    queue.start(Rq { id: 1, steps: Steps::PREFLUSH }, 10, &mut todo);
    assert!(matches!(&todo[..], [Next::Data(Rq { id: 0, .. })]), "{todo:?}");
    queue.kick(PENDING_TIMEOUT_NS, &mut todo);
    assert_eq!(todo.len(), 1);
    assert_eq!(queue.deadline_ns(), Some(10 + PENDING_TIMEOUT_NS));
    queue.kick(10 + PENDING_TIMEOUT_NS, &mut todo);
    assert_eq!(todo.last(), Some(&Next::Flush));
}

/// The trivial reference: a disk with a cache that a flush empties. A write is in the cache when its data step
/// ends.
#[derive(Default)]
struct Model {
    next_write: u64,
    /// What the flush that is out will make durable.
    flush_covers: Option<u64>,
    durable: u64,
}

proptest! {
    #[test]
    fn what_ends_kept_its_promise(
        kinds in prop::collection::vec(0u8..5, 1..40),
        order in prop::collection::vec(any::<u16>(), 400),
    ) {
        let (mut queue, mut model, mut todo) = (FlushQueue::default(), Model::default(), Vec::new());
        let (mut out_data, mut ended) = (Vec::new(), BTreeMap::new());
        let mut written_at = BTreeMap::new();
        let mut waits_for = BTreeMap::new();
        let (mut started, mut flush_failures, mut data_failed) = (0, 0, BTreeSet::new());
        for turn in order {
            let status = if turn >> 8 & 7 == 0 { Status::Medium } else { Status::Ok };
            let flush_out = model.flush_covers.is_some();
            match turn % 3 {
                0 if started < kinds.len() => {
                    let (id, kind) = (started, kinds[started]);
                    started += 1;
                    let steps = match kind {
                        0 => Steps::PREFLUSH,
                        1 => Steps::PREFLUSH | Steps::DATA,
                        2 => Steps::DATA | Steps::POSTFLUSH,
                        _ => Steps::all(),
                    };
                    // What a preflush promises: all that was in the cache when it began.
                    waits_for.insert(id, (steps, model.next_write, flush_failures));
                    queue.start(Rq { id, steps }, 0, &mut todo);
                }
                1 if flush_out => {
                    let covered = model.flush_covers.take().unwrap();
                    if status.is_ok() {
                        model.durable = covered.max(model.durable);
                    } else {
                        flush_failures += 1;
                    }
                    queue.flush_done(status, 0, &mut todo);
                }
                _ if !out_data.is_empty() => {
                    let rq: Rq = out_data.swap_remove(turn as usize % out_data.len());
                    if status.is_ok() {
                        model.next_write += 1;
                        written_at.insert(rq.id, model.next_write);
                    } else {
                        data_failed.insert(rq.id);
                    }
                    queue.data_done(rq, status, 0, &mut todo);
                }
                _ => {}
            }
            for next in todo.drain(..) {
                match next {
                    Next::Flush => {
                        prop_assert!(model.flush_covers.is_none(), "two flushes out");
                        model.flush_covers = Some(model.next_write);
                    }
                    Next::Data(rq) => {
                        let (steps, before, _) = waits_for[&rq.id];
                        prop_assert!(!steps.contains(Steps::PREFLUSH) || model.durable >= before, "data before its preflush");
                        out_data.push(rq);
                    }
                    Next::End(rq, Status::Ok) => {
                        let (steps, before, _) = waits_for[&rq.id];
                        prop_assert!(!data_failed.contains(&rq.id), "its data was not written");
                        prop_assert!(!steps.contains(Steps::PREFLUSH) || model.durable >= before);
                        if steps.contains(Steps::POSTFLUSH) {
                            prop_assert!(model.durable >= written_at[&rq.id], "ended before its data was durable");
                        }
                        prop_assert!(ended.insert(rq.id, ()).is_none(), "ended twice");
                    }
                    Next::End(rq, _) => {
                        let (_, _, failures) = waits_for[&rq.id];
                        let failed = data_failed.contains(&rq.id) || flush_failures > failures;
                        prop_assert!(failed, "nothing of it has failed");
                        prop_assert!(ended.insert(rq.id, ()).is_none(), "ended twice");
                    }
                }
            }
        }
        // Let everything that is out end: nothing may be left behind.
        while ended.len() < started {
            if let Some(rq) = out_data.pop() {
                queue.data_done(rq, Status::Ok, 0, &mut todo);
            } else {
                model.flush_covers = None;
                queue.flush_done(Status::Ok, 0, &mut todo);
            }
            for next in todo.drain(..) {
                match next {
                    Next::Flush => model.flush_covers = Some(model.next_write),
                    Next::Data(rq) => out_data.push(rq),
                    Next::End(rq, _) => { ended.insert(rq.id, ()); }
                }
            }
        }
    }
}
