//! A CRUSH map of any bytes is read or refused; what is read is written back the same, and maps any input to
//! devices that it has.
#![no_main]

use blockyard_crush::{CrushMap, MapData, NONE, Op, Release, Scratch, Tunables};
use libfuzzer_sys::fuzz_target;

/// The weights of the first devices: some take everything, some half, some nothing.
const WEIGHTS: [u32; 6] = [0x1_0000, 0x1_0000, 0x8000, 0, 0x1_0000, 0x2_0000];

fuzz_target!(|data: &[u8]| {
    let Ok(read) = MapData::decode(data) else { return };
    let Ok(map) = CrushMap::new(read) else { return };
    let written = map.data().encode(Release::Squid);
    let again = CrushMap::decode(&written).expect("what we wrote");
    assert_eq!(again.data(), map.data());

    // Few tries, so that an input takes no time.
    let mut quick = map.data().clone();
    quick.tunables = Tunables { msr_descents: 4, msr_collision_tries: 4, ..Tunables::JEWEL };
    for rule in quick.rules.iter_mut().flatten() {
        rule.steps.truncate(16);
        for step in &mut rule.steps {
            match step.op {
                Op::Take => {}
                Op::SetMsrDescents | Op::SetMsrCollisionTries => step.arg1 &= 3,
                _ => step.arg1 %= 20,
            }
        }
    }
    let map = CrushMap::new(quick).expect("tries and counts do not matter");
    let (mut result, mut scratch) = ([0; 5], Scratch::new());
    for rule in 0..u32::try_from(map.data().rules.len()).expect("a count of 32 bits").min(8) {
        for (x, pool) in [(0, 0), (u32::MAX, -1)] {
            let args = map.choose_args(pool);
            let len = map.do_rule(rule, x, &WEIGHTS, args, &mut result, &mut scratch);
            for &item in &result[..len] {
                assert!(item == NONE || item < map.data().max_devices, "{item}");
            }
        }
    }
    for &item in map.data().names.keys().take(8) {
        let _ = map.subtree(item);
        map.location(item).for_each(drop);
    }
});
