use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

fn budget() -> (MemoryBudget, MemoryShare) {
    let budget = MemoryBudget::new(64 * MIB, 128, 56 * MIB);
    let share = budget.share(8 * MIB);
    (budget, share)
}

fn lease(share: &MemoryShare) -> Lease {
    share.lease(Waker::noop().clone())
}

#[test]
fn a_budget_leaves_something_for_everybody() {
    let (budget, share) = budget();
    assert_eq!(budget.own(), 64 << 10);
    assert_eq!(budget.largest_lease(), 56 * MIB);
    let mut hog = lease(&share);
    assert!(hog.covers(56 * MIB + budget.own()));
    let mut other = lease(&share);
    assert!(other.covers(budget.own()));
    assert!(!other.covers(budget.own() + 1));
    drop(hog);
    assert!(other.covers(budget.own() + 1));
    assert_eq!(budget.taken(), STEP);
    other.shrink_to(0);
    assert_eq!(budget.taken(), 0);
}

#[test]
fn who_waits_is_served_in_turn() {
    let (budget, share) = budget();
    let own = budget.own();
    let mut first = lease(&share);
    assert!(first.covers(own + 40 * MIB));
    let mut large = lease(&share);
    let mut small = lease(&share);
    assert!(!large.covers_soon(own + 32 * MIB));
    assert!(!small.covers_soon(own + MIB), "there is room, but another has come before");
    assert!(budget.is_pressed() && first.is_wanted() && !large.is_wanted());
    first.shrink_to(own + 30 * MIB);
    assert!(!large.covers_soon(own + 32 * MIB) && !small.covers_soon(own + MIB));
    first.shrink_to(own + 20 * MIB);
    assert!(large.covers_soon(own + 32 * MIB) && small.covers_soon(own + MIB));
    assert!(!budget.is_pressed());
    drop((first, large, small));
    assert_eq!(budget.taken(), 0);
}

#[test]
fn those_who_wait_do_not_wait_for_each_other() {
    let (budget, share) = budget();
    let own = budget.own();
    let mut leases: Vec<_> = (0..3).map(|_| lease(&share)).collect();
    assert!(leases.iter_mut().all(|lease| lease.covers(own + 18 * MIB)));
    assert!(leases.iter_mut().all(|lease| !lease.covers_soon(own + 24 * MIB)));
    // None of them uses what it has, nor gives up what it waits for.
    for lease in &mut leases {
        lease.shrink_to(0);
    }
    assert!(leases[0].covers_soon(own + 24 * MIB) && leases[1].covers_soon(own + 24 * MIB));
    assert!(!leases[2].covers_soon(own + 24 * MIB));
    // Nor does one wait for what it does not need any more.
    assert!(leases[2].covers_soon(own + 8 * MIB));
    assert!(!budget.is_pressed());
}

#[test]
fn a_share_leaves_half_of_the_rest_to_the_others() {
    let budget = MemoryBudget::new(256 * MIB, 1024, 32 * MIB);
    let (own, total) = (budget.own(), budget.largest_lease());
    let shares: Vec<_> = (0..4).map(|_| budget.share(32 * MIB)).collect();
    let mut hung = Vec::new();
    for share in &shares[..2] {
        for _ in 0..64 {
            hung.push(lease(share));
            hung.last_mut().unwrap().covers_soon(own + 8 * MIB);
        }
    }
    assert!(budget.is_pressed() && budget.taken() <= total / 4 * 3);
    // One of a healthy share gets what it needs, again and again, and nobody waits for it.
    for _ in 0..4 {
        let mut healthy = lease(&shares[2]);
        assert!(healthy.covers_soon(own + 32 * MIB) && !healthy.is_wanted());
    }
    drop(hung);
    assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
}

#[test]
fn however_many_shares_hang_the_others_have_their_reserves() {
    let budget = MemoryBudget::new(256 * MIB, 1024, 32 * MIB);
    let (own, total) = (budget.own(), budget.largest_lease());
    let shares: Vec<_> = (0..8).map(|_| budget.share(64 * MIB)).collect();
    let reserve = total / RESERVED / 8;
    let mut hung = Vec::new();
    for share in &shares[..7] {
        for _ in 0..64 {
            hung.push(lease(share));
            hung.last_mut().unwrap().covers_soon(own + 8 * MIB);
        }
    }
    assert!(budget.is_pressed());
    // One of a healthy share that needs more than there is waits, and keeps nobody waiting who does not.
    let mut large = lease(&shares[7]);
    assert!(!large.covers_soon(own + 30 * MIB));
    for _ in 0..4 {
        let (mut at_once, mut soon) = (lease(&shares[7]), lease(&shares[7]));
        assert!(at_once.covers(own + reserve / 2) && soon.covers_soon(own + reserve / 2 - STEP));
        assert!(!lease(&shares[7]).covers_soon(own + MIB), "the reserve has an end");
        assert!(soon.is_wanted(), "by those of its own share");
        drop(large);
        assert!(!soon.is_wanted(), "what others wait for is not in the way of a reserve");
        large = lease(&shares[7]);
        assert!(!large.covers_soon(own + 30 * MIB));
    }
    drop(hung);
    assert!(large.covers_soon(own + 30 * MIB));
    drop(large);
    assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
}

#[test]
fn a_share_that_comes_when_all_is_taken_gets_its_reserve_first() {
    let budget = MemoryBudget::new(256 * MIB, 1024, 32 * MIB);
    let (own, total) = (budget.own(), budget.largest_lease());
    let first = budget.share(64 * MIB);
    let mut all: Vec<_> = (0..8).map(|_| lease(&first)).collect();
    assert!(all.iter_mut().all(|lease| lease.covers(own + total / 8)));
    let second = budget.share(64 * MIB);
    let mut late = lease(&second);
    assert!(!late.covers_soon(own + 32 * MIB));
    all.truncate(6);
    // A quarter is there: its own, and the rest for either.
    let mut other = lease(&first);
    assert!(late.covers_soon(own + 32 * MIB) && !other.covers_soon(own + 26 * MIB));
    late.shrink_to(0);
    assert!(!other.covers_soon(own + 26 * MIB), "what it has given back is its own");
    assert!(late.covers(own + 32 * MIB));
}

#[test]
fn what_waits_in_connections_is_bounded() {
    let budget = MemoryBudget::new(64 * MIB, 128, 32 * MIB);
    let share = budget.share(8 * MIB);
    let most = 256 << 10;
    let mut leases: Vec<_> = (0..128).map(|_| lease(&share)).collect();
    for lease in &mut leases {
        lease.stash(lease.window(most));
    }
    assert_eq!(leases[127].window(most), 4 << 10);
    assert!(budget.stashed() <= 64 * MIB / WAITING + leases.len() * (4 << 10));
    leases[0].stash(0);
    assert_eq!(leases[127].window(most), 4 << 10, "there are still too many");
    leases.truncate(1);
    assert_eq!((budget.stashed(), leases[0].window(most)), (0, most));
}

#[test]
fn a_share_has_its_place_until_the_last_of_it_has_gone() {
    let (budget, share) = budget();
    let (own, total) = (budget.own(), budget.largest_lease());
    for _ in 0..100 {
        let other = budget.share(8 * MIB);
        let mut first = lease(&share);
        assert!(first.covers(own + 4 * MIB) && !lease(&other).covers_soon(own + 48 * MIB));
    }
    assert!(lease(&share).covers(own + total), "it is the only one again");
    let last = lease(&budget.share(8 * MIB));
    assert!(!lease(&share).covers(own + total), "its connection is still there");
    drop(last);
    assert!(lease(&share).covers(own + total));
}

#[test]
fn who_leaves_the_queue_lets_those_behind_pass() {
    let (budget, share) = budget();
    let own = budget.own();
    let mut first = lease(&share);
    assert!(first.covers(own + 40 * MIB));
    let mut large = lease(&share);
    let mut small = lease(&share);
    assert!(!large.covers_soon(own + 32 * MIB) && !small.covers_soon(own + MIB));
    drop(large);
    assert!(small.covers_soon(own + MIB));
    drop((first, small));
    assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_is_too_much(
        steps in prop::collection::vec((0_usize..8, 0_usize..4, 1_usize..(60 * MIB)), 1..200),
    ) {
        let (budget, share) = budget();
        let mut leases: Vec<_> = (0..8).map(|_| lease(&share)).collect();
        for (who, what, bytes) in steps {
            let bytes = bytes.min(budget.largest_lease());
            match what {
                0 => drop(std::mem::replace(&mut leases[who], lease(&share))),
                1 => leases[who].shrink_to(bytes),
                2 => _ = leases[who].covers(bytes),
                _ => _ = leases[who].covers_soon(bytes),
            }
            let granted = |lease: &Lease| lease.bytes + lease.seat.granted.load(Ordering::Relaxed);
            prop_assert_eq!(leases.iter().map(granted).sum::<usize>(), budget.taken());
            prop_assert!(budget.taken() <= budget.largest_lease());
            let waiting = leases.iter()
                .filter(|lease| lease.is_waiting() && lease.seat.granted.load(Ordering::Relaxed) == 0);
            prop_assert_eq!(waiting.count() > 0, budget.is_pressed());
            prop_assert_eq!(share.part.account.taken(), budget.taken());
        }
        leases.clear();
        prop_assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
    }

    #[test]
    fn reserves_are_there_whatever_happens(
        steps in prop::collection::vec((0_usize..9, 0_usize..4, 1_usize..(40 * MIB)), 1..200),
    ) {
        let budget = MemoryBudget::new(64 * MIB, 128, 16 * MIB);
        let shares: Vec<_> = (0..3).map(|_| budget.share(24 * MIB)).collect();
        let mut leases: Vec<_> = (0..9).map(|n| lease(&shares[n % 3])).collect();
        for (who, what, bytes) in steps {
            let bytes = bytes.min(leases[who].most());
            match what {
                0 => drop(std::mem::replace(&mut leases[who], lease(&shares[who % 3]))),
                1 => leases[who].shrink_to(bytes),
                2 => _ = leases[who].covers(bytes),
                _ => _ = leases[who].covers_soon(bytes),
            }
            let claims = shares.iter().map(|share| share.part.account.claim()).sum::<usize>();
            prop_assert!(claims <= budget.largest_lease());
            let taken = shares.iter().map(|share| share.part.account.taken()).sum::<usize>();
            prop_assert_eq!(taken, budget.taken());
            // Whoever needs no more than that has it, if nobody of its share is before it.
            for share in &shares {
                let account = &share.part.account;
                let left = account.reserve().saturating_sub(account.taken()) / STEP * STEP;
                if left > 0 && share.part.modest.load(Ordering::SeqCst) == 0 {
                    prop_assert!(lease(share).covers(budget.own() + left));
                }
            }
        }
        leases.clear();
        prop_assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
        prop_assert!(shares.iter().all(|share| share.part.modest.load(Ordering::SeqCst) == 0));
    }
}
