//! The connections under a network and a server that fail at every point, with a seed that replays it.
//!
//! Time, bytes and chance are all the world's own; the code under test is what runs on real sockets, from
//! `queue` down. After a stretch of faults the world is left in peace, and then: every request has ended
//! exactly once, every read has returned what it may (see `history`), and nothing is left behind: no request,
//! no fence, no old connection.

mod dice;
mod history;
mod server;
mod world;

use std::time::Duration;

use dice::Dice;
use world::{Outcome, Setup, World};

/// Seeds that a run tries.
const RUNS: u64 = 150;

/// The seed to start from: `BLOCKYARD_SEED`, or one of the clock's.
fn seed() -> u64 {
    let given = std::env::var("BLOCKYARD_SEED").ok();
    let chance =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = given.map_or_else(
        || u64::from(chance().subsec_nanos()),
        |text| text.parse().unwrap_or_else(|_| panic!("BLOCKYARD_SEED is a number, not {text:?}")),
    );
    println!("BLOCKYARD_SEED={seed}");
    seed
}

fn setup(dice: &mut Dice) -> Setup {
    Setup {
        queues: 1 + dice.below(3),
        fence_timeout: Duration::from_secs(8),
        volatile: dice.one_in(2),
    }
}

#[test]
fn acknowledged_writes_are_read_back_and_every_request_ends_once() {
    let first = seed();
    let mut total = Outcome::default();
    for seed in first..first + RUNS {
        let mut dice = Dice::new(seed);
        let setup = setup(&mut dice);
        match World::new(setup, dice).run() {
            Ok(outcome) => total.add(&outcome),
            Err(problem) => panic!("BLOCKYARD_SEED={seed}: {problem}"),
        }
    }
    println!("{total:?}");
    // What a simulation does not do it cannot test.
    assert!(total.done > 3 * total.failed, "{total:?}");
    assert!(
        total.lost > RUNS && total.replayed > RUNS && total.late > 0 && total.failed > 0,
        "{total:?}"
    );
}

#[test]
fn without_the_fence_a_late_write_undoes_a_newer_one() {
    let found = (1..2000).any(|seed| {
        let mut dice = Dice::new(seed);
        let setup = Setup { fence_timeout: Duration::ZERO, volatile: false, ..setup(&mut dice) };
        World::new(setup, dice).run().is_err_and(|problem| problem.contains("stale"))
    });
    assert!(found, "the simulation cannot see what the fence is for");
}
