//! Time: who is waited for, and for how long.

use std::time::Duration;

use blockyard_nbd::server::{Expired, HalfWay, PRESSED_TIMEOUT};
use blockyard_nbd::wire::{Command, HeaderStyle};

use super::pair::{Answer, Budget, MIB, Pair, STALL, budget, head};

const SECOND: Duration = Duration::from_secs(1);

/// Has its reply to a READ ready.
fn with_a_reply(budget: &Budget, len: u64) -> Pair {
    let mut pair = Pair::new(budget);
    pair.send(&head(Command::Read, 0, len));
    let token = pair.asked().unwrap().token;
    pair.end(Answer { token, data: vec![vec![7; len as usize]], ..Answer::default() });
    pair
}

/// Fills a budget with requests that stay at the disk.
pub(super) fn hogs(budget: &Budget) -> Vec<Pair> {
    let mut hogs: Vec<_> = (0..8).map(|_| Pair::new(budget)).collect();
    for hog in &mut hogs {
        hog.send(&head(Command::Read, 0, 32 << 20));
        hog.send(&head(Command::Read, 0, 32 << 20));
    }
    assert!(budget.is_pressed());
    hogs
}

#[test]
fn what_moves_one_way_says_nothing_of_the_other() {
    let write = [head(Command::Write, 0, 4096), vec![1; 4096]].concat();
    // It takes nothing of its reply, and sends a byte now and then.
    let mut pair = with_a_reply(&budget(), 512);
    let mut steps = write.iter().map(|&byte| {
        assert_eq!(pair.send(&[byte]), 1);
        pair.pass(STALL - SECOND)
    });
    let expired = Some(Expired::Stalled(HalfWay::Replies, STALL));
    assert_eq!(steps.by_ref().take(2).find_map(|expired| expired), expired);
    // It stops in the middle of a request, and takes a byte of its reply now and then.
    let mut pair = with_a_reply(&budget(), 512);
    pair.send(&write[..2000]);
    let mut steps = (0..10).map(|_| {
        pair.connection.sent(1);
        pair.pass(STALL - SECOND)
    });
    let expired = Some(Expired::Stalled(HalfWay::Payload(28 + 4096 - 2000), STALL));
    assert_eq!(steps.by_ref().take(2).find_map(|expired| expired), expired);
}

#[test]
fn who_waits_for_the_server_is_not_idle() {
    let budget = budget();
    let hogs = hogs(&budget);
    let idle = 2 * STALL;
    let mut pair = Pair::limited(&budget, HeaderStyle::Simple, 512, |limits| {
        limits.idle_timeout = Some(idle);
    });
    pair.send(&head(Command::Read, 0, 32 << 20));
    assert!(pair.asked().is_none(), "there is no memory");
    assert_eq!(pair.pass(10 * idle), None);
    drop(hogs);
    pair.send(&[]);
    let token = pair.asked().unwrap().token;
    assert_eq!(pair.pass(10 * idle), None, "its disk takes its time");
    pair.end(Answer { token, data: vec![vec![7; 32 << 20]], ..Answer::default() });
    assert_eq!(pair.replies().len(), 16 + (32 << 20));
    assert_eq!(pair.pass(idle - SECOND), None);
    assert_eq!(pair.pass(SECOND), Some(Expired::Idle(idle)));
}

#[test]
fn who_has_got_its_memory_has_to_go_on() {
    let budget = budget();
    let _hogs = hogs(&budget);
    let mut pair = Pair::new(&budget);
    let write = [head(Command::Write, 0, MIB as u64), vec![1; MIB]].concat();
    let taken = pair.send(&write);
    assert!(taken < write.len() / 2, "there is little memory");
    let missing = HalfWay::Payload((write.len() - taken) as u64);
    let token = pair.asked().unwrap().token;
    assert_eq!(pair.pass(10 * STALL), None, "the disk has the memory");
    pair.end(Answer { token, ..Answer::default() });
    assert!(pair.connection.may_receive());
    assert_eq!(pair.pass(STALL - SECOND), None, "its time has just begun");
    assert_eq!(pair.pass(SECOND), Some(Expired::Stalled(missing, STALL)));
}

#[test]
fn half_a_payload_is_not_kept_while_others_wait_for_its_memory() {
    let budget = budget();
    let mut half = Pair::new(&budget);
    let write = [head(Command::Write, 0, 32 << 20), vec![1; 24 << 20]].concat();
    assert_eq!(half.send(&write), write.len());
    assert_eq!(half.pass(STALL - SECOND), None, "nobody wants it");
    half.send(&[1]);
    let _hogs = hogs(&budget);
    assert_eq!(half.pass(PRESSED_TIMEOUT - SECOND), None);
    half.send(&[1]);
    assert_eq!(half.pass(PRESSED_TIMEOUT - SECOND), None, "it moves");
    let missing = HalfWay::Payload((8 << 20) - 2);
    assert_eq!(half.pass(2 * PRESSED_TIMEOUT), Some(Expired::Pressed(missing, PRESSED_TIMEOUT)));
}

#[test]
fn a_buffer_whose_release_nobody_tells_is_looked_at_again() {
    let budget = Budget::new(4 * MIB, 16);
    let mut pair =
        Pair::limited(&budget, HeaderStyle::Simple, 512, |limits| limits.memory = 2 * MIB);
    // A write has ended, and its driver has not let go of the payload yet.
    pair.connection.set_pinned(MIB);
    pair.send(&head(Command::Read, 0, 2 << 20));
    assert!(pair.asked().is_none() && !pair.connection.may_receive());
    let waits = pair.connection.waits_for().unwrap();
    assert!(waits.pins && !waits.input && !waits.disk && !waits.room);
    let deadline = pair.connection.deadline(pair.now).unwrap();
    assert!(deadline - pair.now < SECOND);
    assert_eq!(pair.connection.expired(deadline), None);
    pair.connection.set_pinned(0);
    assert_eq!(pair.connection.waits_for(), None, "its request can begin");
    assert_eq!((pair.send(&[]), pair.asked().unwrap().length), (0, 2 << 20));
}
