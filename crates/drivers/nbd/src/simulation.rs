//! The driver on a disk of the block layer, under a network and servers that fail at every point, with a seed that
//! replays it.
//!
//! Time, bytes and chance are the world's own; the code under test is all that runs on real sockets: queues, tasks,
//! timers, handshakes. The clock is the runtime's, and stands still while anybody works; sockets are pairs, at
//! whose far ends the world plays wires and servers. After a stretch of faults it is left in peace, and then: every
//! request has ended exactly once, every read has returned what it may (see `history`), memory that was given back
//! was not touched again, and nothing is left behind: no request, no fence, no old connection.

mod dice;
mod history;
mod net;
mod server;
mod world;

use std::time::Duration;

use dice::Dice;
use world::{Outcome, Setup, Trouble, run, run_with_poison};

/// Seeds that a run tries; `BLOCKYARD_RUNS` says otherwise.
const RUNS: u64 = 25;
/// The same of shorter ones, where only servers make trouble.
const RUNS_OF_SERVERS: u64 = 150;
/// The same where nothing is wrong.
const RUNS_IN_ORDER: u64 = 60;
/// The same of a request that ends every connection.
const RUNS_WITH_POISON: u64 = 10;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// The seed to start from: `BLOCKYARD_SEED`, or one of the clock's.
fn seed() -> u64 {
    let chance =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = number("BLOCKYARD_SEED").unwrap_or_else(|| u64::from(chance().subsec_nanos()));
    println!("BLOCKYARD_SEED={seed}");
    seed
}

fn setup(dice: &mut Dice, trouble: Trouble) -> Setup {
    // Where only servers make trouble, none is so late that it is given up.
    let fence_timeout = Duration::from_secs(if trouble == Trouble::Any { 8 } else { 60 });
    Setup {
        queues: 1 + dice.below(3),
        fence_timeout,
        volatile: trouble != Trouble::Any || dice.one_in(2),
        trusting: dice.one_in(2) && trouble != Trouble::Order,
        flush_after: (trouble == Trouble::Order || dice.one_in(2))
            .then_some(Duration::from_millis(300)),
        trouble,
        one_writes: trouble == Trouble::Servers && dice.one_in(2),
    }
}

/// Runs so many worlds, and says what happened in them.
fn run_all(runs: u64, trouble: Trouble) -> (u64, Outcome) {
    let (first, runs) = (seed(), number("BLOCKYARD_RUNS").unwrap_or(runs));
    let mut total = Outcome::default();
    for seed in first..first + runs {
        let mut dice = Dice::new(seed);
        let setup = setup(&mut dice, trouble);
        match run(setup, dice) {
            Ok(outcome) => total.add(&outcome),
            Err(problem) => panic!("BLOCKYARD_SEED={seed}, {setup:?}: {problem}"),
        }
    }
    println!("{total:?}");
    (runs, total)
}

#[test]
fn acknowledged_writes_are_read_back_and_every_request_ends_once() {
    let (runs, total) = run_all(RUNS, Trouble::Any);
    // What a simulation does not do it cannot test.
    assert!(total.done > total.failed, "{total:?}");
    assert!(
        total.connections > 4 * runs
            && total.late > 0
            && total.failed > 0
            && total.moves > 0
            && total.pauses > 0,
        "{total:?}"
    );
}

#[test]
fn what_was_flushed_outlives_every_server() {
    let (runs, total) = run_all(RUNS_OF_SERVERS, Trouble::Servers);
    assert!(total.flushed > runs && total.moves > runs && total.lost > 0, "{total:?}");
}

#[test]
fn servers_that_end_in_order_and_moves_between_caches_cost_nothing() {
    let (runs, total) = run_all(RUNS_IN_ORDER, Trouble::Order);
    assert!(total.ends > runs && total.moves > runs && total.flushed > runs, "{total:?}");
    // Whoever is slow to leave is cut off, which is rare, and hears of its loss.
    assert!(total.failed == 0 || total.cut_short > 0, "{total:?}");
}

#[test]
fn a_request_that_ends_every_connection_fails_and_takes_no_other_along() {
    let (first, runs) = (seed(), number("BLOCKYARD_RUNS").unwrap_or(RUNS_WITH_POISON));
    for seed in first..first + runs {
        let mut dice = Dice::new(seed);
        let usual = setup(&mut dice, Trouble::Any);
        let setup = Setup { trusting: true, volatile: false, ..usual };
        let (poison, failed) = run_with_poison(setup, dice)
            .unwrap_or_else(|problem| panic!("BLOCKYARD_SEED={seed}: {problem}"));
        assert_eq!(failed, [poison], "BLOCKYARD_SEED={seed}");
    }
}
