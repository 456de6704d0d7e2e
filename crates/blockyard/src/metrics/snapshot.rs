//! The numbers of one moment, and their names.

use std::fmt;

use blockyard_blkmq::stats::{Counters, QueueStats};
use blockyard_blkmq::{FaultCounts, FaultKind, SECTOR_SIZE, StatGroup};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::yard::Yard;
use crate::yard::report::Daemon;

/// Upper bounds of the times of requests, in microseconds.
const BOUNDS_US: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];
const NS_PER_SECOND: f64 = 1e9;
const MS_PER_SECOND: f64 = 1e3;

/// A disk at that moment.
#[derive(Debug)]
struct DiskNow {
    name: String,
    stats: QueueStats,
    busy_ms: u64,
    faults: usize,
    stalled: usize,
    injected: FaultCounts,
}

/// A yard at that moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    daemon: Daemon,
    disks: Vec<DiskNow>,
    clients: bool,
}

/// A number of a disk.
struct OfDisk {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    /// Whether it only grows.
    counts: bool,
    value: fn(&DiskNow) -> f64,
}

const READ: StatGroup = StatGroup::Read;
const WRITE: StatGroup = StatGroup::Write;
const DISCARD: StatGroup = StatGroup::Discard;
const FLUSH: StatGroup = StatGroup::Flush;

/// Those that node_exporter has of a kernel's disk (`/proc/diskstats`), in its order.
static OF_DISKS: &[OfDisk] = &[
    count("reads_completed", "Completed reads.", |disk| number(disk.of(READ).ios)),
    count("reads_merged", "Reads merged into another request.", |disk| {
        number(disk.of(READ).merges)
    }),
    bytes("read", "Bytes read.", |disk| number(disk.of(READ).sectors * SECTOR_SIZE)),
    time("read_time", "Total time of all reads.", |disk| seconds(disk.of(READ))),
    count("writes_completed", "Completed writes, write-zeroes included.", |disk| {
        number(disk.of(WRITE).ios)
    }),
    count("writes_merged", "Writes merged into another request.", |disk| {
        number(disk.of(WRITE).merges)
    }),
    bytes("written", "Bytes written.", |disk| number(disk.of(WRITE).sectors * SECTOR_SIZE)),
    time("write_time", "Total time of all writes.", |disk| seconds(disk.of(WRITE))),
    OfDisk {
        name: "io_now",
        help: "Requests in flight.",
        unit: None,
        counts: false,
        value: |disk| number(disk.stats.in_flight().iter().sum()),
    },
    time("io_time", "Time with at least one request in flight.", |disk| {
        number(disk.busy_ms) / MS_PER_SECOND
    }),
    time("io_time_weighted", "Total time of all requests.", |disk| {
        number(disk.stats.time_in_queue_ns()) / NS_PER_SECOND
    }),
    count("discards_completed", "Completed discards.", |disk| number(disk.of(DISCARD).ios)),
    count("discards_merged", "Discards merged into another request.", |disk| {
        number(disk.of(DISCARD).merges)
    }),
    bytes("discarded", "Bytes discarded.", |disk| number(disk.of(DISCARD).sectors * SECTOR_SIZE)),
    time("discard_time", "Total time of all discards.", |disk| seconds(disk.of(DISCARD))),
    count("flush_requests", "Completed flushes.", |disk| number(disk.of(FLUSH).ios)),
    OfDisk {
        name: "faults",
        help: "Faults that are injected into the disk on purpose.",
        unit: None,
        counts: false,
        value: |disk| number(disk.faults as u64),
    },
    OfDisk {
        name: "stalled_requests",
        help: "Requests that a fault stalls.",
        unit: None,
        counts: false,
        value: |disk| number(disk.stalled as u64),
    },
    time("flush_requests_time", "Total time of all flushes.", |disk| seconds(disk.of(FLUSH))),
];

const fn count(name: &'static str, help: &'static str, value: fn(&DiskNow) -> f64) -> OfDisk {
    OfDisk { name, help, unit: None, counts: true, value }
}

const fn bytes(name: &'static str, help: &'static str, value: fn(&DiskNow) -> f64) -> OfDisk {
    OfDisk { name, help, unit: Some(Unit::Bytes), counts: true, value }
}

const fn time(name: &'static str, help: &'static str, value: fn(&DiskNow) -> f64) -> OfDisk {
    OfDisk { name, help, unit: Some(Unit::Seconds), counts: true, value }
}

fn seconds(counters: &Counters) -> f64 {
    number(counters.nsecs) / NS_PER_SECOND
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
const fn number(count: u64) -> f64 {
    count as f64
}

impl DiskNow {
    const fn of(&self, group: StatGroup) -> &Counters {
        self.stats.counters(group)
    }
}

impl Snapshot {
    pub(super) fn of(yard: &Yard, clients: bool) -> Self {
        let disks = yard.open_disks().into_iter().map(|(name, open)| {
            let (stats, busy_ms) = open.disk().stats();
            let disk = open.disk();
            let (faults, stalled) = (disk.faults().len(), disk.stalled());
            DiskNow { name, stats, busy_ms, faults, stalled, injected: disk.fault_counts() }
        });
        Self { disks: disks.collect(), daemon: yard.report(), clients }
    }

    /// A family of numbers, each with its labels.
    fn family<'a, L: AsRef<[(&'static str, &'a str)]>>(
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit, counts): (&str, &str, Option<&Unit>, bool),
        values: impl Iterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let kind = if counts { MetricType::Counter } else { MetricType::Gauge };
        let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in values {
            let labels = labels.as_ref();
            let mut metric = family.encode_family(&labels)?;
            if counts {
                metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
            } else {
                metric.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn encode_daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Daemon { version, uptime_seconds, threads, nbd, .. } = &self.daemon;
        let build = ("blockyard_build_info", "Version of the daemon.", None, false);
        Self::family(encoder, build, std::iter::once(([("version", version.as_str())], 1.0)))?;
        for (name, help, unit, value) in [
            (
                "blockyard_uptime",
                "Time since the daemon started.",
                Some(&Unit::Seconds),
                *uptime_seconds,
            ),
            ("blockyard_queue_threads", "Queue threads.", None, number(*threads as u64)),
            (
                "blockyard_nbd_clients",
                "Connected NBD clients.",
                None,
                number(nbd.clients.len() as u64),
            ),
        ] {
            Self::family(encoder, (name, help, unit, false), std::iter::once(([], value)))?;
        }
        Ok(())
    }

    fn encode_disks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let disks = || self.daemon.disks.iter();
        let info = ("blockyard_disk_info", "A disk and its driver.", None, false);
        let labels = disks()
            .map(|disk| ([("disk", disk.name.as_str()), ("driver", disk.driver.as_str())], 1.0));
        Self::family(encoder, info, labels)?;
        let size = ("blockyard_disk_size", "Size of the disk.", Some(&Unit::Bytes), false);
        Self::family(
            encoder,
            size,
            disks().map(|it| ([("disk", it.name.as_str())], number(it.size))),
        )?;
        let read_only = ("blockyard_disk_read_only", "1 if the disk is read-only.", None, false);
        let flags =
            disks().map(|it| ([("disk", it.name.as_str())], f64::from(u8::from(it.read_only))));
        Self::family(encoder, read_only, flags)?;
        for OfDisk { name, help, unit, counts, value } in OF_DISKS {
            let name = format!("blockyard_disk_{name}");
            let values =
                self.disks.iter().map(|disk| ([("disk", disk.name.as_str())], value(disk)));
            Self::family(encoder, (&name, help, unit.as_ref(), *counts), values)?;
        }
        self.encode_faults(encoder)?;
        self.encode_latency(encoder)
    }

    /// So that nobody takes them for what the disk does.
    fn encode_faults(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let name = "blockyard_disk_faults_injected";
        let injected = (name, "Requests that a fault was injected into on purpose.", None, true);
        let of_disk = |disk: &DiskNow| FaultKind::NAMES.into_iter().zip(disk.injected);
        // Those of disks that never had any are nothing to look at.
        let disks = self.disks.iter().filter(|disk| disk.injected.iter().any(|&count| count > 0));
        let values = disks.flat_map(|disk| {
            of_disk(disk).map(|(fault, count)| {
                ([("disk", disk.name.as_str()), ("fault", fault)], number(count))
            })
        });
        Self::family(encoder, injected, values)
    }

    fn encode_latency(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("blockyard_disk_request_duration", "Request latency.");
        let mut family =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for disk in &self.disks {
            for (group, operation) in
                [(READ, "read"), (WRITE, "write"), (DISCARD, "discard"), (FLUSH, "flush")]
            {
                let latency = disk.stats.latency(group);
                let mut below = 0;
                let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(BOUNDS_US.len() + 1);
                for bound in BOUNDS_US {
                    let up_to = latency.count_up_to(bound * 1_000);
                    buckets.push((number(bound) / 1e6, up_to.saturating_sub(below)));
                    below = up_to;
                }
                buckets.push((f64::INFINITY, latency.count().saturating_sub(below)));
                let labels = [("disk", disk.name.as_str()), ("operation", operation)];
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    seconds(disk.of(group)),
                    latency.count(),
                    &buckets,
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn encode_exports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let exports = || {
            self.daemon.exports.iter().map(|export| {
                let labels = [
                    ("kind", export.kind.as_str()),
                    ("export", export.name.as_str()),
                    ("disk", export.disk.as_str()),
                ];
                (labels, export)
            })
        };
        let clients = ("blockyard_export_clients", "Clients of the export.", None, false);
        let values = exports().map(|(labels, export)| (labels, number(export.served.clients)));
        Self::family(encoder, clients, values)?;
        let requests =
            ("blockyard_export_requests", "Requests of the export's clients.", None, true);
        let values = exports().map(|(labels, export)| (labels, number(export.served.requests)));
        Self::family(encoder, requests, values)
    }

    fn encode_clients(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ids: Vec<String> = self.daemon.nbd.clients.iter().map(|it| it.id.to_string()).collect();
        let clients = || {
            self.daemon.nbd.clients.iter().zip(&ids).map(|(client, id)| {
                let export = client.export.as_deref().unwrap_or("");
                let labels =
                    [("client", id.as_str()), ("peer", client.peer.as_str()), ("export", export)];
                (labels, client)
            })
        };
        let requests = ("blockyard_client_requests", "Requests of an NBD client.", None, true);
        Self::family(
            encoder,
            requests,
            clients().map(|(labels, it)| (labels, number(it.requests))),
        )?;
        let read =
            ("blockyard_client_read", "Bytes read by an NBD client.", Some(&Unit::Bytes), true);
        Self::family(encoder, read, clients().map(|(labels, it)| (labels, number(it.bytes_read))))?;
        let written = (
            "blockyard_client_written",
            "Bytes written by an NBD client.",
            Some(&Unit::Bytes),
            true,
        );
        Self::family(
            encoder,
            written,
            clients().map(|(labels, it)| (labels, number(it.bytes_written))),
        )
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_daemon(&mut encoder)?;
        self.encode_disks(&mut encoder)?;
        self.encode_exports(&mut encoder)?;
        if self.clients { self.encode_clients(&mut encoder) } else { Ok(()) }
    }
}
