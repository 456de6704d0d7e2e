//! Maps that crushtool makes: compiled from text, built in layers, changed; and its reading of maps that we write.

use std::fmt::Write;

use blockyard_crush::{Algorithm, CrushMap, MapData, Release, RuleKind, Tunables};

use crate::generate::{self, Style};
use crate::random::Random;
use crate::tool::{self, Run};
use crate::{SEED, compare};

const ALGORITHMS: [&str; 5] = ["uniform", "list", "tree", "straw", "straw2"];

/// A map in crushtool's language: devices of two classes, hosts and racks of an algorithm, overrides, and rules.
fn text(algorithm: &str, tunables: &Tunables) -> String {
    let mut text = String::new();
    let mut line = |line: &str| writeln!(text, "{line}").unwrap();
    for (name, value) in [
        ("choose_local_tries", tunables.choose_local_tries),
        ("choose_local_fallback_tries", tunables.choose_local_fallback_tries),
        ("choose_total_tries", tunables.choose_total_tries),
        ("chooseleaf_descend_once", tunables.chooseleaf_descend_once),
        ("chooseleaf_vary_r", u32::from(tunables.chooseleaf_vary_r)),
        ("chooseleaf_stable", u32::from(tunables.chooseleaf_stable)),
        ("straw_calc_version", u32::from(tunables.straw_calc_version)),
        ("allowed_bucket_algs", 62),
    ] {
        line(&format!("tunable {name} {value}"));
    }
    // crushtool cannot make the shadow of a uniform bucket that weighs something, and leaves some weights of a
    // shadow that is a tree to chance.
    let classes = !matches!(algorithm, "uniform" | "tree");
    for device in 0..24 {
        let class = if device % 3 == 0 { "ssd" } else { "hdd" };
        let class = if classes { format!(" class {class}") } else { String::new() };
        line(&format!("device {device} osd.{device}{class}"));
    }
    for (number, name) in ["osd", "host", "rack", "root"].iter().enumerate() {
        line(&format!("type {number} {name}"));
    }
    let mut bucket = |kind: &str, name: &str, id: u32, algorithm: &str, items: &[(String, f64)]| {
        line(&format!("{kind} {name} {{\n id -{id}"));
        if classes {
            line(&format!(" id -{} class ssd\n id -{} class hdd", id + 20, id + 40));
        }
        line(&format!(" alg {algorithm}\n hash 0"));
        items.iter().for_each(|(item, weight)| line(&format!(" item {item} weight {weight:.3}")));
        line("}");
    };
    for host in 0..6 {
        let same = algorithm == "uniform";
        let weight = |device: u32| if same { 1.0 } else { f64::from(device * 7 % 5) * 0.75 };
        let devices: Vec<u32> = (host * 4..host * 4 + 4).collect();
        let items: Vec<_> = devices.iter().map(|&id| (format!("osd.{id}"), weight(id))).collect();
        bucket("host", &format!("host{host}"), 2 + host, algorithm, &items);
    }
    for rack in 0..2 {
        let items: Vec<_> = (0..3).map(|host| (format!("host{}", rack * 3 + host), 4.0)).collect();
        bucket("rack", &format!("rack{rack}"), 8 + rack, algorithm, &items);
    }
    let items = [("rack0".to_owned(), 12.0), ("rack1".to_owned(), 9.0)];
    bucket("root", "default", 1, "straw2", &items);
    text + &rules(classes) + OVERRIDES
}

fn rules(classes: bool) -> String {
    let class = if classes { " class hdd" } else { "" };
    let steps = [
        ("replicated", format!("take default{class}\nstep chooseleaf firstn 0 type host")),
        (
            "replicated",
            "take default\nstep choose firstn 2 type rack\nstep chooseleaf firstn 2 type host"
                .into(),
        ),
        (
            "erasure",
            format!(
                "set_chooseleaf_tries 5\nstep take default{class}\nstep chooseleaf indep 0 type osd"
            ),
        ),
        (
            "erasure",
            "take default\nstep choose indep 2 type rack\nstep choose indep 2 type osd".into(),
        ),
    ];
    let rule = |(id, (kind, steps)): (usize, &(&str, String))| {
        let head = format!("id {id}\ntype {kind}\nmin_size 1\nmax_size 10\n");
        format!("rule rule{id} {{\n{head}step {steps}\nstep emit\n}}\n")
    };
    steps.iter().enumerate().map(rule).collect()
}

const OVERRIDES: &str = "choose_args 0 {
  {
    bucket_id -1
    weight_set [
      [ 1.0 2.0 ]
      [ 3.0 1.0 ]
    ]
    ids [ -77 -78 ]
  }
}
";

fn all(rules: u32, wanted: usize) -> Run {
    let reweights = vec![(1, 0), (5, 0x8000), (9, 0x1000)];
    Run { rules, wanted, max_x: 511, reweights, pool: None }
}

#[test]
fn compiled_maps_are_read_mapped_and_written_back() {
    for algorithm in ALGORITHMS {
        for tunables in [Tunables::ARGONAUT, Tunables::FIREFLY, Tunables::JEWEL] {
            let bytes = tool::compile(&text(algorithm, &tunables)).unwrap();
            let map = CrushMap::decode(&bytes).unwrap();
            assert_eq!(
                map.data().encode(Release::Luminous),
                bytes[..encoded_len(&bytes)],
                "{algorithm}"
            );
            for wanted in [1, 3, 6] {
                compare(&bytes, &all(4, wanted), algorithm);
            }
        }
    }
}

/// How much of a map there is without the tunables of multi-step retry, which Ceph 19 and newer append.
fn encoded_len(bytes: &[u8]) -> usize {
    let tail = [100_u32.to_le_bytes(), 100_u32.to_le_bytes()].concat();
    bytes.strip_suffix(&tail[..]).map_or(bytes.len(), <[u8]>::len)
}

#[test]
fn maps_built_in_layers_map_as_in_ceph() {
    for algorithm in ALGORITHMS {
        let layers = [("host", algorithm, 4), ("rack", algorithm, 5), ("root", algorithm, 0)];
        let bytes = tool::build(60, &layers);
        let map = CrushMap::decode(&bytes).unwrap();
        assert_eq!(map.data().max_devices, 60);
        assert_eq!(map.devices(map.item("root").unwrap()).len(), 60);
        for wanted in [2, 5] {
            compare(&bytes, &all(1, wanted), algorithm);
        }
    }
}

#[test]
fn crushtool_reads_what_we_write_as_we_meant_it() {
    for seed in SEED..SEED + 12 {
        let data = generate::map(&mut Random::new(seed), Style::Classic);
        let map = CrushMap::new(data).unwrap();
        let bytes = map.data().encode(Release::Luminous);
        let theirs = tool::rewrite(&bytes, &["--set-choose-total-tries", "33"]);
        let mut expected = map.data().clone();
        expected.tunables.choose_total_tries = 33;
        let read = MapData::decode(&theirs).unwrap();
        assert_eq!(read, expected, "BLOCKYARD_SEED={seed}");
    }
}

#[test]
fn locations_and_names_are_cephs() {
    let bytes = tool::compile(&text("straw2", &Tunables::JEWEL)).unwrap();
    let map = CrushMap::decode(&bytes).unwrap();
    for device in [0, 7, 23] {
        // A line for each bucket around: the type, a tab, the name; in the order of types' names.
        let mut ours: Vec<_> =
            map.location(device).map(|(kind, name)| format!("{kind}\t{name}")).collect();
        ours.sort();
        assert_eq!(tool::location(&bytes, device), ours);
    }
    let (host, root) = (map.item("host1").unwrap(), map.item("default").unwrap());
    assert_eq!((map.name(host), map.kind(host)), (Some("host1"), Some(1)));
    assert_eq!((map.kind_named("rack"), map.kind_name(2)), (Some(2), Some("rack")));
    assert_eq!((map.parent(5), map.ancestor(5, 3)), (Some(host), Some(root)));
    assert_eq!(map.devices(host), [4, 5, 6, 7]);
    assert!(map.contains(root, 23) && !map.contains(host, 23));
    assert_eq!(map.roots().collect::<Vec<_>>(), [root]);
    assert_eq!(map.item("nobody"), None);
    let ssd = map.class_named("ssd").unwrap();
    assert_eq!((map.class_name(ssd), map.class_of(6)), (Some("ssd"), Some(ssd)));
    assert_eq!(map.devices_of_class(ssd).collect::<Vec<_>>(), [0, 3, 6, 9, 12, 15, 18, 21]);
    let shadow = map.shadow(host, ssd).unwrap();
    assert_eq!((map.name(shadow), map.shadow_of(shadow)), (Some("host1~ssd"), Some((host, ssd))));
    assert_eq!((map.devices(shadow), map.parents(6).count()), (vec![6], 2));
    assert_eq!((map.rule_named("rule2"), map.rule_name(2)), (Some(2), Some("rule2")));
    assert_eq!(map.first_rule(RuleKind::Erasure), Some(2));
    assert_eq!(
        (map.find_rule(1, RuleKind::Replicated, 3), map.find_rule(1, RuleKind::Replicated, 11)),
        (Some(1), None)
    );
    assert_eq!(map.taken_by(1).collect::<Vec<_>>(), [root]);
    let bucket = map.data().bucket(host).unwrap();
    assert!(matches!(bucket.algorithm, Algorithm::Straw2 { .. }));
    assert_eq!((bucket.item_weight(0), bucket.item_weight(4)), (Some(0x2_4000), None));
}
