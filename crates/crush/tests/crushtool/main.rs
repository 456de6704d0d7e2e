//! Our mappings are those of Ceph's crushtool, on random maps and on maps that crushtool makes.
//!
//! - `BLOCKYARD_SEED`: the seed of the first random map; each further map takes the next.
//! - `BLOCKYARD_CRUSH_MAPS`: how many random maps.
//! - `BLOCKYARD_CRUSH_INPUTS`: how many inputs for each; else few for most, and 10,000 for some.
//! - `BLOCKYARD_CRUSHTOOL`: another crushtool than the one on the path. One of Ceph 19 or newer is asked about
//!   random rules
//!   of multi-step retry, too.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "random numbers of small ranges")]

mod generate;
mod made;
mod msr;
mod random;
mod tool;

use blockyard_crush::{CrushMap, MapData, Release, Scratch, hash32_2};
use generate::Style;
use random::Random;
use tool::Run;

const SEED: u64 = 20_260_101;
const MAPS: u64 = 220;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

/// What crushtool gives devices: 1.0, or nothing if no bucket holds them.
fn weights(map: &CrushMap, run: &Run) -> Vec<u32> {
    let mut weights: Vec<u32> = (0..map.data().max_devices)
        .map(|device| if map.parents(device).next().is_some() { 0x1_0000 } else { 0 })
        .collect();
    for &(device, weight) in &run.reweights {
        weights[device as usize] = weight;
    }
    weights
}

/// Compares all mappings of a run. Returns how many there were.
fn compare(bytes: &[u8], run: &Run, what: &str) -> usize {
    let map = CrushMap::decode(bytes).unwrap();
    let weights = weights(&map, run);
    // crushtool takes the overrides of pool 0, whichever pool it hashes with.
    let args = map.choose_args(0);
    let mut expected = tool::mappings(bytes, run).into_iter();
    let mut scratch = Scratch::new();
    let mut compared = 0;
    for rule in 0..run.rules {
        let mut result = vec![0; run.wanted];
        for x in 0..=run.max_x {
            let input = run.pool.map_or(x, |pool| hash32_2(x, pool));
            let len = map.do_rule(rule, input, &weights, args, &mut result, &mut scratch);
            let theirs = expected.next();
            assert_eq!(
                theirs.as_deref(),
                Some(&result[..len]),
                "{what}: {run:?}, input {x}, {:?} (theirs, ours)",
                map.rule(rule)
            );
            compared += 1;
        }
    }
    assert_eq!(expected.next(), None, "{what}");
    compared
}

fn random_run(random: &mut Random, map: &MapData, inputs: u32) -> Run {
    let devices: Vec<i32> = map.names.range(0..).map(|(&device, _)| device).collect();
    let mut reweights = Vec::new();
    for &device in &devices {
        if random.once_in(6) {
            let weight = random.pick(&[0, 0, 0x8000, 0xffff, 1, 0x1234]);
            reweights.push((device, weight));
        }
    }
    if random.once_in(3) || reweights.len() == devices.len() {
        reweights.clear();
    }
    let wanted = random.of(1..8) as usize;
    let rules = u32::try_from(map.rules.len()).unwrap();
    let pool = random.once_in(4).then(|| random.pick(&[0, 7]));
    Run { rules, wanted, max_x: inputs - 1, reweights, pool }
}

/// Compares random maps, as many as `BLOCKYARD_CRUSH_MAPS` or else as given.
fn compare_random(style: Style, release: Release, maps: u64) {
    let first = number("BLOCKYARD_SEED").unwrap_or(SEED);
    let maps = number("BLOCKYARD_CRUSH_MAPS").unwrap_or(maps);
    eprintln!("BLOCKYARD_SEED={first} BLOCKYARD_CRUSH_MAPS={maps}");
    let (mut compared, mut made) = (0, 0);
    for seed in first..first + maps {
        let random = &mut Random::new(seed);
        let map = generate::map(random, style);
        // crushtool says nothing at all about a map without devices.
        if map.names.range(0..).next().is_none() {
            continue;
        }
        let inputs = if (seed - first).is_multiple_of(20) { 10_000 } else { 200 };
        let inputs = number("BLOCKYARD_CRUSH_INPUTS").map_or(inputs, |inputs| inputs as u32);
        let run = random_run(random, &map, inputs);
        let what = format!("BLOCKYARD_SEED={seed} BLOCKYARD_CRUSH_MAPS=1");
        compared += compare(&map.encode(release), &run, &what);
        made += 1;
    }
    eprintln!("{compared} mappings of {made} maps are equal");
}

#[test]
fn random_maps_map_as_in_ceph() {
    compare_random(Style::Classic, Release::Luminous, MAPS);
}
