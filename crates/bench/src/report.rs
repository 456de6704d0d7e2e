//! What a benchmark shows, and what it keeps.

use super::measure::{Case, Measured, Metric, Summary};
use crate::cli::BenchOptions;
use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use xtask::paths;
use xtask::run::capture;

/// A table for a terminal: a row for each metric of each contender, then the targets.
pub(super) fn table(bench: &str, case: &Case, all: &[Measured]) -> String {
    let mut text = format!("\n{bench}: {}\n", case.name);
    let Some(us) = all.first() else { return text };
    for metric in us.metrics() {
        for measured in all {
            let Some(summary) = measured.summary(metric) else { continue };
            let ratio = ratio(us, measured, metric)
                .filter(|_| measured.name != us.name)
                .unwrap_or_default();
            let line =
                format!("  {:<22} {:<12} {}  {ratio}", metric.0, measured.name, shown(summary));
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    for target in &case.targets {
        let verdict = target.verdict(all);
        let actual = verdict.actual.map_or_else(|| "not measured".to_owned(), number);
        let word = if verdict.met { "met" } else { "MISSED" };
        let _ = writeln!(
            text,
            "  target: {} {}: {actual}: {word}",
            target.metric.0,
            target.goal.shown()
        );
    }
    text
}

/// How many times the peer's median ours is, and within what the ratio stayed from round to round.
fn ratio(us: &Measured, peer: &Measured, metric: Metric) -> Option<String> {
    let of_medians = us.summary(metric)?.median / peer.summary(metric)?.median;
    let rounds = us.ratios(peer, metric)?;
    of_medians
        .is_finite()
        .then(|| format!("we: {of_medians:.2}x ({:.2} .. {:.2})", rounds.min, rounds.max))
}

fn shown(summary: Summary) -> String {
    let spread = format!("({} .. {})", number(summary.min), number(summary.max));
    format!("{:>10}  {spread:<22}", number(summary.median))
}

/// With the digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.5}"),
    }
}

/// The same as a JSON object, with what is needed to understand it later.
pub(super) fn record(bench: &str, case: &Case, all: &[Measured], options: &BenchOptions) -> Value {
    let contenders: Map<_, _> =
        all.iter().map(|measured| (measured.name.to_owned(), metrics(measured))).collect();
    let targets = case.targets.iter().map(|target| {
        let verdict = target.verdict(all);
        json!({"metric": target.metric.0, "goal": target.goal.shown(), "actual": verdict.actual, "met": verdict.met})
    });
    let commit = capture(
        Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(paths::root()),
    );
    json!({
        "bench": bench,
        "case": case.name,
        "unix_time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "commit": commit.ok().map(|name| name.trim().to_owned()),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "contenders": contenders,
        "targets": targets.collect::<Vec<_>>(),
    })
}

fn metrics(measured: &Measured) -> Value {
    let entry = |summary: Summary| json!({"median": summary.median, "min": summary.min, "max": summary.max});
    let metrics = measured
        .metrics()
        .filter_map(|metric| Some((metric.0.to_owned(), entry(measured.summary(metric)?))));
    Value::Object(metrics.collect())
}

/// Appends one line to the results of the benchmark.
pub(super) fn append(bench: &str, record: &Value) -> Result<()> {
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{bench}.jsonl"));
    let opened = OpenOptions::new().create(true).append(true).open(&path);
    opened
        .and_then(|mut file| writeln!(file, "{record}"))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Goal, IOPS, Target, US};

    #[test]
    fn the_table_shows_ratios_and_targets() {
        let mut all = [Measured::of(US), Measured::of("peer")];
        all[0].add(&vec![(IOPS, 300.0)]);
        all[1].add(&vec![(IOPS, 200.0)]);
        let target = |times| Target { metric: IOPS, goal: Goal::MinTimes(times, "peer") };
        let case = Case {
            name: "4k".to_owned(),
            contenders: Vec::new(),
            targets: vec![target(1.4), target(2.0)],
        };
        let text = table("nbd", &case, &all);
        assert!(text.contains("we: 1.50x (1.50 .. 1.50)"), "{text}");
        assert!(text.contains("iops at least 1.4x peer: 1.50: met"), "{text}");
        assert!(text.contains("iops at least 2x peer: 1.50: MISSED"), "{text}");
    }

    #[test]
    fn numbers_keep_the_digits_that_mean_something() {
        let shown: Vec<_> = [0.0, 123_456.7, 45.67, 1.234, 0.00123].map(number).to_vec();
        assert_eq!(shown, ["0", "123457", "45.7", "1.23", "0.00123"]);
    }
}
