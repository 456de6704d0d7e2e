//! Placement against Ceph's `crushtool`: the benchmark of the crate prints a JSON object per case, which is read here.

use super::Context;
use super::measure::{Case, Contender, Goal, Metric, Sample, Target, US};
use super::nbd_light::number;
use anyhow::Result;
use xtask::run::{capture, cargo};

/// Our mappings per second to those of crushtool.
const RATIO: Metric = Metric("ratio");
/// The placement of all groups of a pool of 65,536.
const TABLE: Metric = Metric("table_ms");

/// The benchmark's own cases, by name, of which those of many devices have a target for the table, too.
const CASES: &[(&str, bool)] = &[
    ("1,000 devices, straw2", false),
    ("10,000 devices, straw2", true),
    ("10,000 devices, 500 hosts under the root", true),
    ("10,000 devices, straw2, erasure 8+3", true),
    ("1,000 devices, straw", false),
    ("1,000 devices, list", false),
    ("1,000 devices, tree", false),
    ("1,000 devices, uniform", false),
];

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let case = |&(name, is_large): &(&'static str, bool)| {
        let mut targets = vec![Target { metric: RATIO, goal: Goal::Min(2.0) }];
        if is_large {
            targets.push(Target { metric: TABLE, goal: Goal::Max(500.0) });
        }
        let contenders = vec![Contender::new(US, move |_| measure(name))];
        Case { name: name.to_owned(), contenders, targets }
    };
    CASES.iter().map(case).collect()
}

fn measure(case: &str) -> Result<Sample> {
    let arguments = ["bench", "--quiet", "-p", "blockyard-crush", "--bench", "mappings"];
    let said = capture(&mut cargo([&arguments[..], &["--", "--json", case]].concat()))?;
    Ok(vec![(RATIO, number(&said, RATIO.0)?), (TABLE, number(&said, TABLE.0)?)])
}
