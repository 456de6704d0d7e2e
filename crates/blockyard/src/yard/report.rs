//! What a daemon tells of itself.

use std::collections::BTreeMap;

use blockyard_blkmq::stats::QueueStats;
use blockyard_blkmq::{Disk, SECTOR_SIZE, StatGroup};
use blockyard_export_nbd::{ClientInfo, HeaderStyle};
use serde::{Deserialize, Serialize};

use super::{Yard, YardDisk, YardExport};
use crate::disks::fault::FaultReport;
use crate::disks::{DiskPlan, throttle};
use crate::exports;

/// A daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Daemon {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// How long it serves.
    pub uptime_seconds: f64,
    /// The file that its log goes to, if it is one.
    #[serde(default)]
    pub log: Option<String>,
    /// Its queue threads.
    pub threads: usize,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// How it speaks NBD.
    pub nbd: Nbd,
    /// The disks of the kernel that it serves.
    #[serde(default)]
    pub devices: Vec<DeviceReport>,
    /// What is done with its disks.
    #[serde(default)]
    pub exports: Vec<ExportReport>,
}

/// A disk of the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Where the kernel has it.
    pub path: String,
    /// By which driver.
    pub via: String,
    /// Our disk, as the user wrote it.
    pub uri: String,
    /// Whether it outlives its daemon.
    pub recoverable: bool,
    /// What tells it from a later one of the same name, in hexadecimal digits: numbers in JSON end before it does.
    #[serde(default)]
    pub mark: String,
}

impl DeviceReport {
    /// A mark, as it is told.
    #[must_use]
    pub fn told_mark(mark: u64) -> String {
        format!("{mark:016x}")
    }
}

/// An export.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportReport {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The name of its disk; empty if it is of all.
    pub disk: String,
    /// Clients may not change it.
    pub read_only: bool,
    /// What it is doing.
    #[serde(flatten)]
    pub served: Served,
}

impl ExportReport {
    /// What it serves: a disk, all of them, or a directory, which is none.
    #[must_use]
    pub fn subject(&self) -> &str {
        if self.is_alone() {
            return &self.name;
        }
        if self.disk.is_empty() { "all disks" } else { &self.disk }
    }

    /// Whether its daemon serves nothing else.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        exports::ALONE.iter().any(|kind| kind.name == self.kind)
    }
}

/// What is left of an export that was removed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RemovedReport {
    /// Requests of its clients that the disk has not ended yet.
    pub in_flight: usize,
}

/// What an export is doing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Served {
    /// Where it is, if it has a place of its own.
    pub address: Option<String>,
    /// Who uses it.
    pub clients: u64,
    /// Queues that are served, if it has some of its own.
    pub queues: Option<u64>,
    /// Requests of those who use it.
    pub requests: u64,
}

/// A disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its name.
    pub name: String,
    /// As the user wrote it.
    pub uri: String,
    /// Its driver.
    pub driver: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Nobody may change it.
    pub read_only: bool,
    /// The names of its exports.
    pub exports: Vec<String>,
    /// The names of its partitions.
    pub partitions: Vec<String>,
    /// The limits that it keeps to, by their settings.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
    /// The faults that are injected into it.
    #[serde(default)]
    pub faults: Vec<FaultReport>,
    /// Requests with the driver.
    pub in_flight: usize,
    /// Requests of all kinds that have ended.
    pub ops: u64,
    /// The average of each second since the daemon was started.
    pub iops: f64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// How long reads took.
    pub read_latency_ns: Option<Latency>,
    /// How long writes took.
    pub write_latency_ns: Option<Latency>,
}

/// How long requests took, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Half were faster.
    pub p50: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
}

/// An NBD server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nbd {
    /// Where it listens.
    pub listen: Vec<String>,
    /// Who is connected.
    pub clients: Vec<Client>,
}

/// A client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Client {
    /// Its number.
    pub id: u64,
    /// Who it is.
    pub peer: String,
    /// What it has opened; none while it is in its handshake.
    pub export: Option<String>,
    /// The headers of its messages: `simple`, `structured` or `extended`.
    pub style: Option<String>,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Requests that are not answered yet.
    pub in_flight: usize,
    /// Requests so far.
    pub requests: u64,
    /// Bytes read so far.
    pub bytes_read: u64,
    /// Bytes written so far.
    pub bytes_written: u64,
}

impl Yard {
    /// What it tells of itself.
    #[must_use]
    pub fn report(&self) -> Daemon {
        let (disks, exports, addresses) = {
            let inside = self.inside.read();
            (inside.disks.clone(), inside.exports.clone(), inside.addresses.clone())
        };
        Daemon {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            log: log_file(),
            threads: self.handles.len(),
            disks: disks.iter().map(|disk| self.of_disk(disk, &exports)).collect(),
            exports: exports.iter().map(|export| of_export(export, &disks)).collect(),
            nbd: Nbd {
                listen: addresses.iter().map(ToString::to_string).collect(),
                clients: self.nbd.clients().into_iter().map(Client::from).collect(),
            },
            devices: Vec::new(),
        }
    }

    /// What it tells of a disk, if there is one of that name.
    #[must_use]
    pub fn disk_report(&self, name: &str) -> Option<DiskReport> {
        let (disk, exports) = {
            let inside = self.inside.read();
            (inside.disk(name).ok()?.clone(), inside.exports.clone())
        };
        Some(self.of_disk(&disk, &exports))
    }

    /// What it tells of an export, if there is one of that name.
    #[must_use]
    pub fn export_report(&self, kind: &str, name: &str) -> Option<ExportReport> {
        let (export, disks) = {
            let inside = self.inside.read();
            let is_it = |it: &&YardExport| it.plan.kind.name == kind && it.plan.name == name;
            let export = inside.exports.iter().find(is_it)?.clone();
            let disk = inside.disk(&export.plan.disk).ok().cloned();
            (export, Vec::from_iter(disk))
        };
        Some(of_export(&export, &disks))
    }

    fn of_disk(&self, disk: &YardDisk, exports: &[YardExport]) -> DiskReport {
        let labels = exports.iter().filter(|export| export.plan.disk == disk.name);
        let labels = labels.map(|export| export.plan.label()).collect();
        disk_report(&disk.plan, disk.open.disk(), labels, self.started.elapsed().as_secs_f64())
    }
}

fn of_export(
    YardExport { plan, export, only_reads }: &YardExport,
    disks: &[YardDisk],
) -> ExportReport {
    let is_read_only = |it: &YardDisk| it.name == plan.disk && it.open.disk().is_read_only();
    ExportReport {
        kind: plan.kind.name.into(),
        name: plan.name.clone(),
        disk: plan.disk.clone(),
        read_only: *only_reads || disks.iter().any(is_read_only),
        served: export.report(),
    }
}

/// Where standard error goes, if that is a file.
fn log_file() -> Option<String> {
    const STDERR: &str = "/proc/self/fd/2";
    let path = std::fs::read_link(STDERR).ok()?;
    std::fs::metadata(STDERR).ok()?.is_file().then(|| path.display().to_string())
}

fn disk_report(
    plan: &DiskPlan,
    disk: &Disk,
    exports: Vec<String>,
    uptime_seconds: f64,
) -> DiskReport {
    let (stats, _) = disk.stats();
    let ops = StatGroup::ALL.iter().map(|&group| stats.counters(group).ios).sum();
    let bytes = |group| stats.counters(group).sectors * SECTOR_SIZE;
    let partitions = disk.partitions();
    DiskReport {
        name: disk.name().into(),
        uri: plan.uri.clone(),
        driver: plan.kind.name.into(),
        size: disk.size_bytes(),
        block_size: disk.limits().logical_block_size.bytes(),
        read_only: disk.is_read_only(),
        exports,
        partitions: partitions.iter().map(|part| disk.partition_name(part.info().number)).collect(),
        limits: throttle::shown(&throttle::of(disk)),
        faults: disk.faults().into_iter().map(FaultReport::from).collect(),
        in_flight: disk.in_flight().len(),
        ops,
        iops: per_second(ops, uptime_seconds),
        bytes_read: bytes(StatGroup::Read),
        bytes_written: bytes(StatGroup::Write),
        read_latency_ns: latency(&stats, StatGroup::Read),
        write_latency_ns: latency(&stats, StatGroup::Write),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { (count as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
}

fn latency(stats: &QueueStats, group: StatGroup) -> Option<Latency> {
    let histogram = stats.latency(group);
    Some(Latency { p50: histogram.quantile(0.5)?, p99: histogram.quantile(0.99)? })
}

/// The word for a header style.
#[must_use]
pub const fn style_name(style: HeaderStyle) -> &'static str {
    match style {
        HeaderStyle::Simple => "simple",
        HeaderStyle::Structured => "structured",
        HeaderStyle::Extended => "extended",
    }
}

impl From<ClientInfo> for Client {
    fn from(client: ClientInfo) -> Self {
        let session = client.session;
        Self {
            id: client.id,
            peer: client.peer,
            style: session.as_ref().map(|session| style_name(session.style).into()),
            tls: session.as_ref().is_some_and(|session| session.tls),
            export: session.map(|session| session.export),
            in_flight: client.in_flight,
            requests: client.requests,
            bytes_read: client.bytes_read,
            bytes_written: client.bytes_written,
        }
    }
}
