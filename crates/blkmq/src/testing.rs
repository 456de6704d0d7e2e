//! What the model tests share.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// The variable that a seed is taken from.
const SEED: &str = "BLOCKYARD_SEED";

/// A generator whose seed is printed, so that a failure can be run again with `BLOCKYARD_SEED=<seed>`.
pub(crate) fn rng(test: &str) -> StdRng {
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().expect("BLOCKYARD_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("{test}: {SEED}={seed}");
    StdRng::seed_from_u64(seed)
}
