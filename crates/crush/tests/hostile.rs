//! Maps that are damaged, hostile or old: typed errors, and no panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use std::time::{Duration, Instant};

use blockyard_crush::{
    Algorithm, Bucket, ChooseArg, CrushMap, ErrorKind, MapData, NONE, Op, Release, Rule, RuleKind,
    Scratch, Step, Tunables,
};

const MAP: &[u8] = include_bytes!("data/msr.crushmap");
const ONE: u32 = 0x1_0000;

fn kind(bytes: &[u8]) -> Option<ErrorKind> {
    CrushMap::decode(bytes).err().map(|error| error.kind())
}

/// Bytes of a map with a word of it replaced.
fn with_word(offset: usize, word: u32) -> Vec<u8> {
    let mut bytes = MAP.to_vec();
    bytes[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    bytes
}

fn straw2(id: i32, items: &[i32]) -> Option<Bucket> {
    let algorithm = Algorithm::Straw2 { weights: vec![ONE; items.len()] };
    Some(Bucket { id, kind: 1, weight: ONE, items: items.to_vec(), algorithm })
}

fn rule(kind: RuleKind, steps: &[(Op, i32, i32)]) -> Option<Rule> {
    let steps = steps.iter().map(|&(op, arg1, arg2)| Step { op, arg1, arg2 }).collect();
    Some(Rule { ruleset: 0, kind, min_size: 1, max_size: 10, steps })
}

/// Runs every rule for some inputs.
fn map_something(map: &CrushMap, wanted: usize) -> Vec<Vec<i32>> {
    let weights = vec![ONE; 64];
    let (mut result, mut scratch) = (vec![0; wanted], Scratch::new());
    let mut all = Vec::new();
    for rule in 0..u32::try_from(map.data().rules.len()).unwrap() {
        for x in [0, 1, u32::MAX] {
            let args = map.choose_args(0);
            let len = map.do_rule(rule, x, &weights, args, &mut result, &mut scratch);
            all.push(result[..len].to_vec());
        }
    }
    all
}

#[test]
fn every_truncation_is_an_error_or_an_older_map() {
    let whole = MapData::decode(MAP).unwrap();
    let mut older = Vec::new();
    for len in 0..MAP.len() {
        match MapData::decode(&MAP[..len]) {
            Ok(map) => older.push((len, map.tunables)),
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::Truncated | ErrorKind::TooMany),
                    "{len}: {error}"
                );
                assert!(error.offset().is_some_and(|offset| offset <= len), "{error}");
            }
        }
    }
    // One for each thing that was appended to the format, of which classes and choose_args are two.
    assert_eq!(older.len(), 9);
    assert_eq!(older[0].1, Tunables::ARGONAUT);
    assert_eq!(
        older[8].1,
        Tunables { msr_descents: 100, msr_collision_tries: 100, ..whole.tunables }
    );
}

#[test]
fn maps_for_each_release_are_read_back() {
    let releases = [
        Release::Argonaut,
        Release::Tries,
        Release::Bobtail,
        Release::Firefly,
        Release::StrawCalc,
        Release::Hammer,
        Release::Jewel,
        Release::Luminous,
        Release::Squid,
    ];
    let map = MapData::decode(MAP).unwrap();
    let mut previous = 0;
    for release in releases {
        let bytes = map.encode(release);
        let read = MapData::decode(&bytes).unwrap();
        assert_eq!(read.encode(release), bytes);
        assert_eq!(
            (&read.buckets, &read.rules, &read.names),
            (&map.buckets, &map.rules, &map.names)
        );
        assert!(bytes.len() > previous, "{release:?}");
        previous = bytes.len();
    }
    assert_eq!(MapData::decode(&map.encode(Release::Squid)).unwrap(), map);
}

#[test]
fn faults_of_the_bytes_are_told_apart() {
    assert_eq!(kind(b"\x01\0\0\0"), Some(ErrorKind::NotACrushMap));
    assert_eq!(kind(b"\0\0"), Some(ErrorKind::Truncated));
    assert_eq!(kind(&with_word(4, u32::MAX)), Some(ErrorKind::TooMany));
    assert_eq!(kind(&with_word(8, 0x7fff_ffff)), Some(ErrorKind::TooMany));
    // The first bucket: algorithm, id, type and algorithm and hash, weight, size, items.
    assert_eq!(kind(&with_word(20, 7u32)), Some(ErrorKind::Inconsistent));
    assert_eq!(kind(&with_word(24, 0x0063_0003)), Some(ErrorKind::UnknownAlgorithm));
    assert_eq!(kind(&with_word(24, 0x0705_0003)), Some(ErrorKind::UnknownAlgorithm));
    assert_eq!(kind(&with_word(24, 0x0005_0000)), Some(ErrorKind::Inconsistent));
    assert_eq!(kind(&with_word(32, 0x1000_0000)), Some(ErrorKind::TooMany));
    assert_eq!(kind(&with_word(36, 0xffff_0000)), Some(ErrorKind::Inconsistent));
    let error = CrushMap::decode(&with_word(36, 0xffff_0000)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the CRUSH map contradicts itself: bucket -1 holds -65536, which is not there"
    );
}

#[test]
fn a_bucket_inside_of_itself_is_refused() {
    for buckets in [
        vec![straw2(-1, &[-1])],
        vec![straw2(-1, &[0, -2]), straw2(-2, &[-3]), straw2(-3, &[1, -2])],
    ] {
        let error = CrushMap::new(MapData { buckets, ..MapData::default() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
    }
}

#[test]
fn lists_that_do_not_match_their_bucket_are_refused() {
    let bad = [
        Algorithm::List { weights: vec![ONE; 2], sums: vec![ONE; 3] },
        Algorithm::Straw { weights: vec![ONE; 3], straws: vec![] },
        Algorithm::Straw2 { weights: vec![ONE; 2] },
        Algorithm::Tree { node_weights: vec![ONE; 4] },
        Algorithm::Tree { node_weights: vec![ONE; 9] },
        Algorithm::Tree { node_weights: vec![] },
    ];
    for algorithm in bad {
        let bucket = Bucket { algorithm, ..straw2(-1, &[0, 1, 2]).unwrap() };
        let map = MapData { buckets: vec![Some(bucket.clone())], ..MapData::default() };
        assert!(CrushMap::new(map).is_err(), "{bucket:?}");
    }
}

#[test]
fn overrides_that_do_not_match_are_fitted_or_refused() {
    let arg =
        |ids: &[i32], set: &[u32]| ChooseArg { ids: ids.to_vec(), weight_sets: vec![set.to_vec()] };
    let with = |index, arg| MapData {
        buckets: vec![straw2(-1, &[0, 1, 2]), None],
        choose_args: [(0, [(index, arg)].into())].into(),
        ..MapData::default()
    };
    assert!(CrushMap::new(with(0, arg(&[1, 2], &[ONE; 3]))).is_err());
    let fitted = CrushMap::new(with(0, arg(&[], &[ONE; 1]))).unwrap();
    assert_eq!(fitted.data().choose_args[&0][&0].weight_sets, [[ONE, 0, 0]]);
    for index in [1, 77] {
        let dropped = CrushMap::new(with(index, arg(&[], &[ONE; 3]))).unwrap();
        assert!(dropped.data().choose_args[&0].is_empty());
    }
}

#[test]
fn weight_sets_cannot_claim_memory_that_they_do_not_fill() {
    let items: Vec<i32> = (0..20_000).collect();
    let arg = ChooseArg { ids: vec![], weight_sets: vec![vec![]; 50_000] };
    let map = MapData {
        buckets: vec![straw2(-1, &items)],
        choose_args: [(0, [(0, arg)].into())].into(),
        ..MapData::default()
    };
    let error = CrushMap::new(map).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
}

#[test]
fn any_single_byte_may_be_anything() {
    for offset in 0..MAP.len() {
        for byte in [0, 0x7f, 0xff] {
            let mut bytes = MAP.to_vec();
            bytes[offset] = byte;
            let Ok(data) = MapData::decode(&bytes) else { continue };
            // High tries are another test's.
            let tunables = Tunables { msr_descents: 3, msr_collision_tries: 3, ..Tunables::JEWEL };
            let Ok(map) = CrushMap::new(MapData { tunables, ..data }) else { continue };
            map_something(&map, 4);
        }
    }
}

#[test]
fn rules_that_make_no_sense_map_to_nothing_or_to_gaps() {
    use Op::{ChooseFirstn, ChooseIndep, ChooseMsr, ChooseleafIndep, Emit, Take};
    let classic = [
        (vec![], vec![]),
        (vec![(Emit, 0, 0), (ChooseFirstn, 0, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, -9, 0), (ChooseFirstn, 0, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, i32::MIN, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, i32::MAX, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, -1, 0), (ChooseFirstn, i32::MIN, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, -1, 0), (ChooseFirstn, 0, 99), (Emit, 0, 0)], vec![]),
        (vec![(Take, -1, 0), (ChooseIndep, i32::MAX, -3), (Emit, 0, 0)], vec![NONE; 3]),
        (vec![(Take, 1, 0), (ChooseleafIndep, 0, 1), (Emit, 0, 0)], vec![]),
        (vec![(Take, -2, 0), (ChooseleafIndep, 0, 0), (Emit, 0, 0)], vec![NONE; 3]),
        (vec![(Take, -1, 0), (ChooseMsr, 2, 0), (Op::Other(77), 1, 2), (Emit, 0, 0)], vec![-1]),
    ];
    let msr = [
        (vec![(Take, -1, 0), (ChooseFirstn, 2, 0), (Emit, 0, 0)], vec![]),
        (vec![(Emit, 0, 0)], vec![]),
        (vec![(Take, -1, 0), (ChooseMsr, 2, 0)], vec![]),
        (vec![(Take, -1, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, -9, 0), (ChooseMsr, 2, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, 0, 0), (ChooseMsr, 1, 0), (Emit, 0, 0)], vec![]),
        (vec![(Take, -1, 0), (ChooseMsr, -1, 0), (Emit, 0, 0)], vec![]),
        (
            vec![(Take, -1, 0), (ChooseMsr, i32::MAX, 0), (ChooseMsr, i32::MAX, 0), (Emit, 0, 0)],
            vec![],
        ),
        (vec![(Take, -1, 0), (ChooseMsr, 0, 5), (Emit, 0, 0)], vec![NONE; 3]),
        (vec![(Take, -1, 0), (ChooseMsr, 0, 0), (ChooseMsr, 0, 0), (Emit, 0, 0)], vec![NONE; 3]),
        (vec![(Take, -2, 0), (ChooseMsr, 0, 0), (Emit, 0, 0)], vec![NONE; 3]),
        (vec![(Take, 2, 0), (Emit, 0, 0)], vec![2, NONE, NONE]),
    ];
    let kinds = [(RuleKind::Other(9), classic.to_vec()), (RuleKind::MsrIndep, msr.to_vec())];
    for (kind, cases) in kinds {
        for (steps, expected) in cases {
            let buckets = vec![straw2(-1, &[0, 1, 2]), straw2(-2, &[])];
            let rules = vec![rule(kind, &steps)];
            let map = CrushMap::new(MapData { buckets, rules, ..MapData::default() }).unwrap();
            for result in map_something(&map, 3) {
                assert_eq!(result, expected, "{kind:?} {steps:?}");
            }
        }
    }
}

#[test]
fn a_map_that_asks_to_try_for_ever_is_given_up() {
    use Op::{ChooseFirstn, ChooseIndep, ChooseMsr, ChooseleafFirstn, Emit, Take};
    let tunables = Tunables {
        choose_local_tries: u32::MAX,
        choose_local_fallback_tries: u32::MAX,
        choose_total_tries: u32::MAX - 1,
        chooseleaf_descend_once: 0,
        msr_descents: u32::MAX,
        msr_collision_tries: u32::MAX,
        ..Tunables::JEWEL
    };
    let buckets = vec![straw2(-1, &[-2, -3]), straw2(-2, &[100, 101]), straw2(-3, &[])];
    let rules = vec![
        rule(RuleKind::Replicated, &[(Take, -1, 0), (ChooseFirstn, i32::MAX, 0), (Emit, 0, 0)]),
        rule(RuleKind::Replicated, &[(Take, -1, 0), (ChooseleafFirstn, i32::MAX, 1), (Emit, 0, 0)]),
        rule(RuleKind::Erasure, &[(Take, -1, 0), (ChooseIndep, i32::MAX, 0), (Emit, 0, 0)]),
        rule(RuleKind::MsrFirstn, &[(Take, -1, 0), (ChooseMsr, 0, 0), (Emit, 0, 0)]),
    ];
    let map = CrushMap::new(MapData { buckets, rules, tunables, ..MapData::default() }).unwrap();
    for rule in 0..4 {
        let started = Instant::now();
        let (mut result, mut scratch) = ([0; 9], Scratch::new());
        let len = map.do_rule(rule, 1, &[ONE; 64], None, &mut result, &mut scratch);
        assert!(result[..len].iter().all(|&item| item == NONE || item < 0), "{result:?}");
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "rule {rule}: {:?}",
            started.elapsed()
        );
    }
}
