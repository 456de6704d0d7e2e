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
use world::{Outcome, Setup, run, run_with_poison};

/// Seeds that a run tries; `BLOCKYARD_RUNS` says otherwise.
const RUNS: u64 = 25;

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

fn setup(dice: &mut Dice) -> Setup {
    Setup {
        queues: 1 + dice.below(3),
        fence_timeout: Duration::from_secs(8),
        volatile: dice.one_in(2),
        trusting: dice.one_in(2),
    }
}

#[test]
fn acknowledged_writes_are_read_back_and_every_request_ends_once() {
    let (first, runs) = (seed(), number("BLOCKYARD_RUNS").unwrap_or(RUNS));
    let mut total = Outcome::default();
    for seed in first..first + runs {
        let mut dice = Dice::new(seed);
        let setup = setup(&mut dice);
        match run(setup, dice) {
            Ok(outcome) => total.add(&outcome),
            Err(problem) => panic!("BLOCKYARD_SEED={seed}: {problem}"),
        }
    }
    println!("{total:?}");
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
fn a_request_that_ends_every_connection_fails_and_takes_no_other_along() {
    let first = seed();
    for seed in first..first + 10 {
        let mut dice = Dice::new(seed);
        let setup = Setup { trusting: true, volatile: false, ..setup(&mut dice) };
        let (poison, failed) = run_with_poison(setup, dice)
            .unwrap_or_else(|problem| panic!("BLOCKYARD_SEED={seed}: {problem}"));
        assert_eq!(failed, [poison], "BLOCKYARD_SEED={seed}");
    }
}
