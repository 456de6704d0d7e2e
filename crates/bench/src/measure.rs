//! Cases, samples, and targets.

use super::Context;
use anyhow::Result;

/// A quantity that is measured; its name says the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metric(pub &'static str);

/// Requests completed a second.
pub(super) const IOPS: Metric = Metric("iops");
/// CPU time of the server for one request.
pub(super) const SERVER_CPU: Metric = Metric("server_cpu_us_per_op");
/// CPU time of the client for one request.
pub(super) const CLIENT_CPU: Metric = Metric("client_cpu_us_per_op");
/// The time that half of the requests took at most.
pub(super) const P50: Metric = Metric("latency_p50_us");
/// The time that 99 of 100 requests took at most.
pub(super) const P99: Metric = Metric("latency_p99_us");
/// Resident memory of the server when the load ended.
pub(super) const RESIDENT: Metric = Metric("resident_mib");
/// The most resident memory that the server had.
pub(super) const PEAK: Metric = Metric("resident_peak_mib");
/// CPU time of what copies a disk, from its start to its end.
pub(super) const COPIER_CPU: Metric = Metric("copier_cpu_s");
/// Mebibytes of a disk that are through each second.
pub(super) const RATE: Metric = Metric("mib_per_s");

/// What one measurement found.
pub(super) type Sample = Vec<(Metric, f64)>;

/// Measures a contender once.
type Measure = dyn Fn(&Context) -> Result<Sample>;

/// One that is measured.
pub(super) struct Contender {
    /// `us`, or the name of a peer.
    pub name: &'static str,
    /// Measures it once: starts it, loads it, ends it.
    pub measure: Box<Measure>,
}

impl Contender {
    pub(super) fn new(
        name: &'static str,
        measure: impl Fn(&Context) -> Result<Sample> + 'static,
    ) -> Self {
        Self { name, measure: Box::new(measure) }
    }
}

/// The name of the contender whose figures the targets are for.
pub(super) const US: &str = "us";

/// One row of a benchmark: a load, those that bear it, and what we want of ourselves.
pub(super) struct Case {
    pub name: String,
    pub contenders: Vec<Contender>,
    pub targets: Vec<Target>,
}

/// What we want of the median of one of our metrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub metric: Metric,
    pub goal: Goal,
}

/// A bound, in the metric's unit or relative to the median of a peer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    Min(f64),
    Max(f64),
    MinTimes(f64, &'static str),
    MaxTimes(f64, &'static str),
}

/// How a target was met.
#[derive(Debug)]
pub(super) struct Verdict {
    /// Our median, or its ratio to the peer's; nothing if one was not measured.
    pub actual: Option<f64>,
    /// Whether that meets the goal.
    pub met: bool,
}

impl Target {
    pub(super) fn verdict(&self, all: &[Measured]) -> Verdict {
        let median = |name: &str| {
            let measured = all.iter().find(|measured| measured.name == name)?;
            Some(measured.summary(self.metric)?.median)
        };
        let ratio = |peer| Some(median(US)? / median(peer)?);
        let (actual, is_met): (_, fn(f64, f64) -> bool) = match self.goal {
            Goal::Min(_) => (median(US), |actual, bound| actual >= bound),
            Goal::Max(_) => (median(US), |actual, bound| actual <= bound),
            Goal::MinTimes(_, peer) => (ratio(peer), |actual, bound| actual >= bound),
            Goal::MaxTimes(_, peer) => (ratio(peer), |actual, bound| actual <= bound),
        };
        let met = actual.is_some_and(|actual| is_met(actual, self.goal.bound()));
        Verdict { actual, met }
    }
}

impl Goal {
    fn bound(&self) -> f64 {
        match *self {
            Self::Min(bound) | Self::Max(bound) => bound,
            Self::MinTimes(bound, _) | Self::MaxTimes(bound, _) => bound,
        }
    }

    /// In words.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Min(bound) => format!("at least {bound}"),
            Self::Max(bound) => format!("at most {bound}"),
            Self::MinTimes(times, peer) => format!("at least {times}x {peer}"),
            Self::MaxTimes(times, peer) => format!("at most {times}x {peer}"),
        }
    }
}

/// All samples of one contender.
#[derive(Debug)]
pub(super) struct Measured {
    pub name: &'static str,
    values: Vec<(Metric, Vec<f64>)>,
}

/// The middle and the spread of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Measured {
    pub(super) fn of(name: &'static str) -> Self {
        Self { name, values: Vec::new() }
    }

    pub(super) fn add(&mut self, sample: &Sample) {
        for (metric, value) in sample {
            match self.values.iter_mut().find(|(known, _)| known == metric) {
                Some((_, values)) => values.push(*value),
                None => self.values.push((*metric, vec![*value])),
            }
        }
    }

    /// The metrics, in the order in which they were first measured.
    pub(super) fn metrics(&self) -> impl Iterator<Item = Metric> {
        self.values.iter().map(|(metric, _)| *metric)
    }

    pub(super) fn summary(&self, metric: Metric) -> Option<Summary> {
        summarize(self.values(metric)?)
    }

    /// Our value to the peer's, round by round: how far these lie apart says how much a ratio means.
    pub(super) fn ratios(&self, peer: &Self, metric: Metric) -> Option<Summary> {
        let pairs = self.values(metric)?.iter().zip(peer.values(metric)?);
        summarize(&pairs.map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    }

    fn values(&self, metric: Metric) -> Option<&[f64]> {
        let (_, values) = self.values.iter().find(|(known, _)| *known == metric)?;
        Some(values)
    }
}

/// `None` for no values.
pub(super) fn summarize(values: &[f64]) -> Option<Summary> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    };
    Some(Summary { median, min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &'static str, values: &[f64]) -> Measured {
        let mut measured = Measured::of(name);
        values.iter().for_each(|value| measured.add(&vec![(IOPS, *value)]));
        measured
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(summarize(&[]), None);
        assert_eq!(summarize(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(
            summarize(&[4.0, 1.0, 2.0, 3.0]),
            Some(Summary { median: 2.5, min: 1.0, max: 4.0 })
        );
    }

    #[test]
    fn targets_compare_medians() {
        let all = [measured(US, &[100.0, 300.0, 150.0]), measured("peer", &[100.0, 90.0, 900.0])];
        let verdict = |goal| Target { metric: IOPS, goal }.verdict(&all);
        assert!(verdict(Goal::MinTimes(1.5, "peer")).met);
        assert!(!verdict(Goal::MinTimes(1.6, "peer")).met);
        assert!(verdict(Goal::MaxTimes(1.5, "peer")).met);
        assert!(verdict(Goal::Min(150.0)).met && verdict(Goal::Max(150.0)).met);
        assert!(!verdict(Goal::Max(149.0)).met);
        assert_eq!(verdict(Goal::MinTimes(1.0, "peer")).actual, Some(1.5));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let (us, peer) = (measured(US, &[100.0, 300.0]), measured("peer", &[200.0, 100.0]));
        assert_eq!(us.ratios(&peer, IOPS), Some(Summary { median: 1.75, min: 0.5, max: 3.0 }));
        assert_eq!(us.ratios(&peer, P99), None);
    }

    #[test]
    fn what_was_not_measured_meets_no_target() {
        let all = [measured(US, &[100.0])];
        let verdict = Target { metric: IOPS, goal: Goal::MinTimes(1.0, "peer") }.verdict(&all);
        assert!(verdict.actual.is_none() && !verdict.met);
        assert!(!Target { metric: P99, goal: Goal::Max(1e9) }.verdict(&all).met);
    }
}
