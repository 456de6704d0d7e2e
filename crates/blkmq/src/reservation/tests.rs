use super::*;
use crate::testing;
use rand::RngExt;
use rand::rngs::StdRng;

const A: Registrant = Registrant(1);
const B: Registrant = Registrant(2);
const C: Registrant = Registrant(3);

/// A and B registered under keys 10 and 20; A has reserved.
fn reserved(kind: PrType) -> Reservations {
    let mut pr = Reservations::new();
    pr.register(A, 0, 10, false).unwrap();
    pr.register(B, 0, 20, false).unwrap();
    pr.reserve(A, 10, kind).unwrap();
    pr
}

#[test]
fn who_may_do_what_is_the_table_of_the_specification() {
    use PrType::*;
    // For the holder, another registrant and anyone else: may read, may write.
    const ALL: [(bool, bool); 3] = [(true, true); 3];
    let table = [
        (WriteExclusive, [(true, true), (true, false), (true, false)]),
        (ExclusiveAccess, [(true, true), (false, false), (false, false)]),
        (WriteExclusiveRegOnly, [(true, true), (true, true), (true, false)]),
        (ExclusiveAccessRegOnly, [(true, true), (true, true), (false, false)]),
        (WriteExclusiveAllRegs, [(true, true), (true, true), (true, false)]),
        (ExclusiveAccessAllRegs, [(true, true), (true, true), (false, false)]),
    ];
    let rows = |pr: &Reservations, reads: &[Op], writes: &[Op]| {
        [Some(A), Some(B), None].map(|who| {
            let read = reads.iter().all(|&op| pr.allows(who, op));
            assert_eq!(read, reads.iter().any(|&op| pr.allows(who, op)));
            let write = writes.iter().all(|&op| pr.allows(who, op));
            assert_eq!(write, writes.iter().any(|&op| pr.allows(who, op)));
            (read, write)
        })
    };
    let reads = [Op::Read, Op::BlockStatus, Op::Prefetch];
    let writes = [Op::Write, Op::Flush, Op::Discard, Op::SecureErase, Op::WriteZeroes];
    for (kind, expected) in table {
        assert_eq!(rows(&reserved(kind), &reads, &writes), expected, "{kind:?}");
    }
    assert_eq!(rows(&Reservations::new(), &reads, &writes), ALL);
    let conflict = reserved(WriteExclusive).check(Some(C), Op::Write);
    assert_eq!(conflict, Err(Status::ReservationConflict));
}

#[test]
fn a_key_is_changed_only_by_who_knows_it_or_does_not_ask() {
    let mut pr = Reservations::new();
    assert_eq!(pr.register(A, 5, 10, false), Err(PrError::Conflict));
    pr.register(A, 0, 10, false).unwrap();
    assert_eq!(pr.register(A, 0, 11, false), Err(PrError::Conflict));
    pr.register(A, 10, 11, false).unwrap();
    pr.register(A, 99, 12, true).unwrap();
    pr.register(B, 0, 0, false).unwrap();
    assert_eq!(pr.read_keys(), Keys { generation: 3, keys: vec![12] });
}

#[test]
fn a_holder_may_repeat_and_only_the_holder_releases_and_with_its_type() {
    let mut pr = reserved(PrType::WriteExclusive);
    let held = Some(Held { key: 10, kind: PrType::WriteExclusive, generation: 2 });
    pr.reserve(A, 10, PrType::WriteExclusive).unwrap();
    assert_eq!(pr.reserve(A, 10, PrType::ExclusiveAccess), Err(PrError::Conflict));
    assert_eq!(pr.reserve(B, 20, PrType::WriteExclusive), Err(PrError::Conflict));
    assert_eq!(pr.reserve(B, 10, PrType::WriteExclusive), Err(PrError::Conflict), "not its key");
    assert_eq!(pr.release(A, 10, PrType::ExclusiveAccess), Err(PrError::WrongType));
    pr.release(B, 20, PrType::WriteExclusive).unwrap();
    assert_eq!(pr.read_reservation(), held);
    pr.release(A, 10, PrType::WriteExclusive).unwrap();
    assert_eq!(pr.read_reservation(), None);
}

#[test]
fn a_reservation_goes_with_its_holder_or_with_the_last_of_all() {
    let mut pr = reserved(PrType::WriteExclusiveRegOnly);
    pr.register(A, 10, 0, false).unwrap();
    assert_eq!(pr.read_reservation(), None);
    let mut pr = reserved(PrType::WriteExclusiveAllRegs);
    pr.register(A, 10, 0, false).unwrap();
    let held = pr.read_reservation().unwrap();
    assert_eq!((held.key, held.kind), (0, PrType::WriteExclusiveAllRegs));
    pr.register(B, 20, 0, false).unwrap();
    assert_eq!(pr.read_reservation(), None);
}

#[test]
fn preempting_the_holder_takes_the_reservation_over() {
    let mut pr = reserved(PrType::WriteExclusive);
    assert_eq!(pr.preempt(B, 10, 10, PrType::ExclusiveAccess), Err(PrError::Conflict));
    assert_eq!(pr.preempt(B, 20, 0, PrType::ExclusiveAccess), Err(PrError::InvalidKey));
    assert_eq!(pr.preempt(B, 20, 77, PrType::ExclusiveAccess), Err(PrError::Conflict));
    assert_eq!(pr.preempt(B, 20, 10, PrType::ExclusiveAccess), Ok(vec![A]));
    let held = Held { key: 20, kind: PrType::ExclusiveAccess, generation: 3 };
    assert_eq!(pr.read_reservation(), Some(held));
    assert!(!pr.allows(Some(A), Op::Read) && pr.allows(Some(B), Op::Write));
}

#[test]
fn preempting_another_leaves_the_reservation_and_preempting_all_takes_it() {
    let mut pr = reserved(PrType::WriteExclusive);
    assert_eq!(pr.preempt(A, 10, 20, PrType::ExclusiveAccess), Ok(vec![B]));
    assert_eq!(pr.read_reservation().map(|held| held.kind), Some(PrType::WriteExclusive));
    let mut pr = reserved(PrType::WriteExclusiveAllRegs);
    pr.register(C, 0, 30, false).unwrap();
    assert_eq!(pr.preempt(B, 20, 30, PrType::ExclusiveAccess), Ok(vec![C]));
    assert_eq!(pr.read_reservation().map(|held| held.key), Some(0));
    assert_eq!(pr.preempt(B, 20, 0, PrType::ExclusiveAccess), Ok(vec![A]));
    assert_eq!(pr.read_reservation().map(|held| held.key), Some(20));
}

#[test]
fn clearing_takes_everything_and_counts_once() {
    let mut pr = reserved(PrType::ExclusiveAccess);
    assert_eq!(pr.clear(C, 10), Err(PrError::Conflict));
    pr.clear(B, 20).unwrap();
    assert_eq!(pr.read_keys(), Keys { generation: 3, keys: vec![] });
    assert!(pr.read_reservation().is_none() && pr.allows(None, Op::Write));
}

#[test]
fn registrants_have_a_bound() {
    let mut pr = Reservations::new();
    for who in 0..MAX_REGISTRANTS as u64 {
        pr.register(Registrant(who), 0, 1, false).unwrap();
    }
    let more = pr.register(Registrant(u64::MAX), 0, 1, false);
    assert_eq!(more.map_err(PrError::status), Err(Status::Resource));
    pr.register(Registrant(0), 1, 2, false).unwrap();
}

/// The same rules over a list of who has which key and whether it holds.
#[derive(Default)]
struct Model {
    members: Vec<(Registrant, u64, bool)>,
    kind: Option<PrType>,
    generation: u32,
}

impl Model {
    fn is(&self, who: Registrant, key: u64) -> Result<(), PrError> {
        let found = self.members.iter().any(|&(other, own, _)| (other, own) == (who, key));
        found.then_some(()).ok_or(PrError::Conflict)
    }

    fn hold(&mut self, who: Registrant, kind: PrType) {
        self.kind = Some(kind);
        for (other, _, holds) in &mut self.members {
            *holds = kind.is_all_regs() || *other == who;
        }
    }

    fn settle(&mut self) {
        if !self.members.iter().any(|member| member.2) {
            self.kind = None;
        }
        self.generation += 1;
    }

    fn holds(&self, who: Registrant) -> bool {
        self.members.iter().any(|&(other, _, holds)| other == who && holds)
    }

    fn register(
        &mut self,
        who: Registrant,
        old: u64,
        new: u64,
        ignore: bool,
    ) -> Result<(), PrError> {
        let at = self.members.iter().position(|member| member.0 == who);
        let current = at.map_or(0, |at| self.members[at].1);
        match (at, new) {
            _ if !ignore && old != current => return Err(PrError::Conflict),
            (None, 0) => return Ok(()),
            (Some(at), 0) => drop(self.members.remove(at)),
            (Some(at), new) => self.members[at].1 = new,
            (None, new) => {
                self.members.push((who, new, self.kind.is_some_and(PrType::is_all_regs)));
            }
        }
        self.settle();
        Ok(())
    }

    fn preempt(
        &mut self,
        who: Registrant,
        key: u64,
        victim: u64,
        kind: PrType,
    ) -> Result<usize, PrError> {
        self.is(who, key)?;
        let all = self.kind.is_some_and(PrType::is_all_regs);
        let hit = |member: &&(Registrant, u64, bool)| victim == 0 || member.1 == victim;
        if victim == 0 && !all {
            return Err(PrError::InvalidKey);
        }
        if self.members.iter().filter(hit).count() == 0 {
            return Err(PrError::Conflict);
        }
        let over = if all { victim == 0 } else { self.members.iter().filter(hit).any(|m| m.2) };
        let before = self.members.len();
        self.members.retain(|member| member.0 == who || !(victim == 0 || member.1 == victim));
        if over {
            self.hold(who, kind);
        }
        self.settle();
        Ok(before - self.members.len())
    }
}

fn step(rng: &mut StdRng, pr: &mut Reservations, model: &mut Model) {
    let who = Registrant(rng.random_range(0..4));
    let (key, other) = (rng.random_range(0..4), rng.random_range(0..4));
    let kind = PrType::ALL[rng.random_range(0..6)];
    match rng.random_range(0..10) {
        0..3 => {
            let ignore = rng.random_bool(0.3);
            let expected = model.register(who, key, other, ignore);
            assert_eq!(pr.register(who, key, other, ignore), expected);
        }
        3..6 => {
            let expected = model.is(who, key).and_then(|()| match model.kind {
                None => {
                    model.hold(who, kind);
                    Ok(())
                }
                Some(held) if held == kind && model.holds(who) => Ok(()),
                Some(_) => Err(PrError::Conflict),
            });
            assert_eq!(pr.reserve(who, key, kind), expected);
        }
        6..8 => {
            let expected = model.is(who, key).and_then(|()| match model.kind {
                Some(held) if model.holds(who) && held != kind => Err(PrError::WrongType),
                _ => Ok(()),
            });
            assert_eq!(pr.release(who, key, kind), expected);
            if expected.is_ok() && model.holds(who) {
                model.kind = None;
                model.members.iter_mut().for_each(|member| member.2 = false);
            }
        }
        8 => {
            let expected = model.preempt(who, key, other, kind);
            assert_eq!(pr.preempt(who, key, other, kind).map(|gone| gone.len()), expected);
        }
        _ if rng.random_bool(0.1) => {
            let expected = model.is(who, key);
            assert_eq!(pr.clear(who, key), expected);
            if expected.is_ok() {
                model.members.clear();
                model.settle();
            }
        }
        _ => {}
    }
}

#[test]
fn random_operations_keep_to_the_rules_over_a_list() {
    let mut rng = testing::rng("reservations");
    let (mut pr, mut model) = (Reservations::new(), Model::default());
    let mut reserved = 0;
    for _ in 0..20_000 {
        step(&mut rng, &mut pr, &mut model);
        let mut keys: Vec<u64> = model.members.iter().map(|member| member.1).collect();
        let mut read = pr.read_keys();
        assert_eq!(read.generation, model.generation);
        keys.sort_unstable();
        read.keys.sort_unstable();
        assert_eq!(read.keys, keys);
        assert_eq!(pr.read_reservation().map(|held| held.kind), model.kind);
        reserved += u32::from(model.kind.is_some());
        let free = model.kind.is_none();
        assert_eq!(pr.is_reserved(), !free);
        let regs = model.kind.is_some_and(PrType::lets_registrants_write);
        let writers = |who| {
            free || model.holds(who) || regs && model.members.iter().any(|member| member.0 == who)
        };
        for who in (0..4).map(Registrant) {
            assert_eq!(pr.allows(Some(who), Op::Write), writers(who));
        }
    }
    assert!(reserved > 1000, "the test did nothing");
}
