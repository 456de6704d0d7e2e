//! What a run found out.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::text::{size, term};

/// The longest latency that is told from longer ones: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// What a queue counts.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    latency: Histogram<u64>,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
}

impl Tally {
    pub(super) fn new() -> Result<Self> {
        let latency = Histogram::new_with_max(LONGEST_NS, 3)
            .map_err(|err| Error::failed("cannot create a histogram").caused_by(err))?;
        Ok(Self { latency, errors: 0, first_error: None })
    }

    pub(super) fn record(&mut self, elapsed: Duration) {
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(ns.max(1));
    }

    pub(super) fn fail(&mut self, what: &dyn ToString) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| what.to_string());
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.latency.add(&other.latency);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
    }
}

/// What a run found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Requests that ended well.
    pub ops: u64,
    /// Requests that failed.
    pub errors: u64,
    /// How the first of them failed.
    pub first_error: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// How long requests took.
    pub lat_ns: Latency,
    /// What this process spent on each, in nanoseconds of CPU time: for a local disk all of it, for a server
    /// the client alone.
    pub client_cpu_ns_per_op: f64,
}

/// How long requests took, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half were faster.
    pub p50: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
    /// 999 of 1000 were faster.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
    /// The average.
    pub mean: f64,
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub(super) fn new(tally: &Tally, block: u32, wall: Duration, cpu: Duration) -> Self {
        let ops = tally.latency.len();
        let seconds = wall.as_secs_f64().max(1e-9);
        let quantile = |q| tally.latency.value_at_quantile(q);
        Self {
            ops,
            errors: tally.errors,
            first_error: tally.first_error.clone(),
            seconds,
            iops: ops as f64 / seconds,
            bytes_per_second: ops as f64 * f64::from(block) / seconds,
            lat_ns: Latency {
                p50: quantile(0.5),
                p99: quantile(0.99),
                p999: quantile(0.999),
                max: tally.latency.max(),
                mean: tally.latency.mean(),
            },
            client_cpu_ns_per_op: cpu.as_nanos() as f64 / ops.max(1) as f64,
        }
    }

    /// For people.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates that are positive and fit"
    )]
    pub fn render(&self) -> String {
        let latency = &self.lat_ns;
        let mut text = format!(
            "{:.0} IOPS, {}/s: {} requests in {:.2} s\n\
             latency: p50 {}, p99 {}, p99.9 {}, max {}, mean {}\n\
             CPU of this process: {} a request",
            self.iops,
            size::human(self.bytes_per_second as u64),
            self.ops,
            self.seconds,
            term::human_ns(latency.p50),
            term::human_ns(latency.p99),
            term::human_ns(latency.p999),
            term::human_ns(latency.max),
            term::human_ns(latency.mean as u64),
            term::human_ns(self.client_cpu_ns_per_op as u64),
        );
        if let Some(first) = &self.first_error {
            text.push_str(&format!("\nerrors: {}, the first: {first}", self.errors));
        }
        text
    }
}

/// The CPU time of this process so far.
pub(super) fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}
