//! The block layer on its own: its benchmark prints one JSON object, which is read here.

use super::Context;
use super::measure::{Case, Contender, Goal, Metric, Sample, Target, US};
use super::nbd_light::number;
use anyhow::Result;
use xtask::run::{capture, cargo};

const NS_PER_BIO: Metric = Metric("ns_per_bio_1q");
const BIOS_1Q: Metric = Metric("bios_per_s_1q");
const BIOS_2Q: Metric = Metric("bios_per_s_2q");
const IDLE_FAULT: Metric = Metric("idle_fault_to_none");
const SCALING: Metric = Metric("two_queues_to_one");

pub(super) fn cases(_: &Context) -> Vec<Case> {
    vec![Case {
        name: "a bio through the queue to null: and back".to_owned(),
        contenders: vec![Contender::new(US, measure)],
        targets: vec![
            Target { metric: NS_PER_BIO, goal: Goal::Max(250.0) },
            Target { metric: SCALING, goal: Goal::Min(1.8) },
        ],
    }]
}

fn measure(_: &Context) -> Result<Sample> {
    let said = capture(&mut cargo([
        "bench",
        "--quiet",
        "-p",
        "blockyard-blkmq",
        "--bench",
        "null_queue",
        "--",
        "--json",
    ]))?;
    let mut sample = Vec::new();
    for metric in [NS_PER_BIO, BIOS_1Q, BIOS_2Q, IDLE_FAULT] {
        sample.push((metric, number(&said, metric.0)?));
    }
    sample.push((SCALING, sample[2].1 / sample[1].1));
    Ok(sample)
}
