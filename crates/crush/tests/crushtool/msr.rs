//! Multi-step retry, which Debian 12's crushtool does not know.
//!
//! The files of `tests/data` were made by Ceph 20.2.4's: a map compiled from text, and what `--test
//! --show-mappings` says of it. A newer crushtool is asked about random rules as well.

use std::collections::BTreeMap;

use blockyard_crush::{CrushMap, Release, Scratch};

use crate::generate::Style;
use crate::{compare_random, tool};

const MAP: &[u8] = include_bytes!("../data/msr.crushmap");
/// The lines that crushtool printed for inputs 0 to 255, by the rule and the number wanted, for devices 3, 10, 11
/// and 20 at 0, 0, 0.5 and 0.25.
const MAPPINGS: &str = include_str!("../data/msr.mappings");

#[test]
fn pinned_msr_rules_map_as_in_ceph_20() {
    let map = CrushMap::decode(MAP).unwrap();
    let mut weights = vec![0x1_0000; map.data().max_devices as usize];
    for (device, weight) in [(3, 0), (10, 0), (11, 0x8000), (20, 0x4000)] {
        weights[device] = weight;
    }
    let (mut wanted, mut compared) = (0, BTreeMap::new());
    for line in MAPPINGS.lines() {
        if let Some(number) = line.strip_prefix("wanted ") {
            wanted = number.parse().unwrap();
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let (rule, x) = (words[2].parse().unwrap(), words[4].parse().unwrap());
        let mut result = vec![0; wanted];
        let args = map.choose_args(0);
        let len = map.do_rule(rule, x, &weights, args, &mut result, &mut Scratch::new());
        assert_eq!(result[..len], tool::mapping(line).unwrap(), "{line}: {:?}", map.rule(rule));
        *compared.entry((rule, wanted)).or_insert(0) += 1;
    }
    assert!(compared.len() >= 16 && compared.values().all(|&inputs| inputs == 256), "{compared:?}");
}

#[test]
fn a_map_with_msr_rules_is_written_as_it_was_read() {
    let map = CrushMap::decode(MAP).unwrap();
    assert_eq!(map.data().encode(Release::Squid), MAP);
    assert!(map.data().rules.iter().flatten().any(|rule| rule.kind.is_msr()));
}

/// Whether crushtool knows the steps of multi-step retry.
fn knows_msr() -> bool {
    let tree = "device 0 osd.0\ntype 0 osd\ntype 1 root\n\
        root root {\n id -1\n alg straw2\n hash 0\n item osd.0 weight 1.0\n}\n";
    let rule = "rule r {\n id 0\n type msr_indep\n step take root\n step choosemsr 0 type osd\n step emit\n}\n";
    tool::compile(&format!("{tree}{rule}")).is_ok()
}

#[test]
fn random_msr_rules_map_as_in_a_crushtool_that_knows_them() {
    if knows_msr() {
        compare_random(Style::Msr, Release::Squid, 100);
    } else {
        eprintln!("this crushtool is older than Ceph 19: only the pinned mappings are compared");
    }
}
