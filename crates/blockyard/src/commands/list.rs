//! `blockyard list`: what runs on this machine, or what an NBD server has on offer.

use std::path::Path;

use blockyard_driver_nbd::TlsFiles;

use super::{disk_uri, one_with_tls};
use crate::api::client::{ask_all, values_of_all};
use crate::api::runtime_dir;
use crate::attach::{Fate, LeftBehind, Survey, UnreadableRecord, survey};
use crate::cli::ListArgs;
use crate::disks::describe::Offers;
use crate::error::{Error, Result, quoted};
use crate::exports;
use crate::text::{size, term};
use crate::yard::report::{Daemon, DeviceReport, ExportReport, Latency};

pub(super) fn run(args: ListArgs) -> Result<()> {
    if let Some(uri) = &args.uri {
        return match one_with_tls(disk_uri(uri)?, args.tls)?.source.offers() {
            Some(offers) => show_offers(&offers?, args.json),
            None => Err(Error::usage(format!("{uri} is a disk, not a server")).help(format!(
                "write nbd://host or nbd+unix:///?socket=/path, or: blockyard info {}",
                quoted(uri)
            ))),
        };
    }
    if TlsFiles::from(args.tls) != TlsFiles::default() {
        let what = "TLS files are given, but no NBD-URI";
        return Err(Error::usage(what).help("write nbds://host"));
    }
    for (wanted, path) in [(args.diskstats, "/v1/diskstats"), (args.partitions, "/v1/partitions")] {
        if wanted {
            return list_text(path);
        }
    }
    let daemons = values_of_all("/v1/daemon")?;
    let daemons: Vec<Daemon> = daemons.into_iter().map(|(_, daemon)| daemon).collect();
    let survey = survey()?;
    let mut mounts = Vec::new();
    for kind in exports::KINDS {
        mounts.extend((kind.leftovers)()?);
    }
    if !args.json {
        show(&daemons, &survey, mounts.is_empty())?;
        return mounts.iter().try_for_each(|mount| term::say(&mount.told));
    }
    let mut all = serde_json::to_value(&daemons)
        .map_err(|err| Error::failed("cannot write JSON").caused_by(err))?;
    if let Some(all) = all.as_array_mut() {
        let Survey { left, unreadable, elsewhere } = &survey;
        all.extend(left.iter().map(|left| serde_json::json!({ "left_behind": left })));
        all.extend(unreadable.iter().map(|it| serde_json::json!({ "not_understood": it })));
        all.extend(mounts.iter().map(
            |mount| serde_json::json!({ "left_mounted": { "path": mount.path, "pid": mount.pid } }),
        ));
        all.extend(elsewhere.iter().map(|path| serde_json::json!({ "elsewhere": path })));
    }
    term::say_json(&all)
}

fn list_text(path: &str) -> Result<()> {
    for (_, answer) in ask_all(path)? {
        let text = answer.accepted()?;
        let lines = String::from_utf8_lossy(&text);
        // Who shares a directory has no disk.
        lines.lines().try_for_each(term::say)?;
    }
    Ok(())
}

fn show(daemons: &[Daemon], survey: &Survey, nothing_mounted: bool) -> Result<()> {
    let Survey { left, unreadable, elsewhere } = survey;
    if !daemons.is_empty() {
        show_daemons(daemons)?;
    } else if nothing_mounted && left.is_empty() && unreadable.is_empty() && elsewhere.is_empty() {
        term::tell(nothing_runs(&runtime_dir()?, rustix::process::geteuid().is_root()));
    }
    left.iter().try_for_each(|left| term::say(left_behind(left)))?;
    for UnreadableRecord { device, path, why } in unreadable {
        let path = path.display();
        term::say(format_args!("{device} is in use, but its record {path} is unreadable: {why}"))?;
    }
    for path in elsewhere {
        term::say(format_args!(
            "{path} is attached without a record here: with another runtime directory, or in a container"
        ))?;
    }
    Ok(())
}

/// Daemons of other users are not to be seen, as only they may use their runtime directories.
fn nothing_runs(directory: &Path, root: bool) -> String {
    let others = if root {
        "for those of other users: sudo -u USER blockyard list"
    } else {
        "for those of root: sudo blockyard list"
    };
    format!(
        "no daemons of this user in {}; {others}\n\
         start one: blockyard serve ram:1G --nbd unix:/tmp/nbd.sock",
        directory.display()
    )
}

fn left_behind(left: &LeftBehind) -> String {
    let LeftBehind { path, via, uri, fate, log, why, .. } = left;
    let (via, uri) = (via.name(), uri.as_deref().unwrap_or("never ready"));
    let log = log.as_ref().map(|log| format!("; log: {}", log.display())).unwrap_or_default();
    let remedy = match fate {
        Fate::Recoverable => format!("run: blockyard recover {path}"),
        Fate::Lost => format!(
            "contents lost with the memory of the daemon; run: blockyard detach --force {path}"
        ),
        Fate::Unused => format!("not in use; run: blockyard detach {path}"),
        Fate::Unknown => {
            let why = why.as_deref().unwrap_or_default();
            return format!("{path} ({via}, {uri}) has no daemon, state unknown: {why}{log}");
        }
    };
    format!("{path} ({via}, {uri}) was left behind by a daemon that died; {remedy}{log}")
}

fn show_daemons(daemons: &[Daemon]) -> Result<()> {
    let header = [
        "PID",
        "DISK",
        "DRIVER",
        "SIZE",
        "EXPORTS",
        "CLIENTS",
        "IN FLIGHT",
        "OPS",
        "AVG OPS/S",
        "READ",
        "WRITTEN",
        "READ P50/P99",
        "WRITE P50/P99",
    ];
    let mut table = term::table(&header);
    for daemon in daemons {
        for disk in &daemon.disks {
            let clients: u64 = daemon
                .exports
                .iter()
                .filter(|export| export.disk == disk.name)
                .map(|export| export.served.clients)
                .sum();
            table.add_row([
                daemon.pid.to_string(),
                format!(
                    "{}{}{}",
                    disk.name,
                    if disk.read_only { " (ro)" } else { "" },
                    if disk.faults.is_empty() { "" } else { " (faults)" }
                ),
                disk.driver.clone(),
                size::human(disk.size),
                disk.exports.join(","),
                clients.to_string(),
                disk.in_flight.to_string(),
                disk.ops.to_string(),
                disk.iops.to_string(),
                size::human(disk.bytes_read),
                size::human(disk.bytes_written),
                latency(disk.read_latency_ns),
                latency(disk.write_latency_ns),
            ]);
        }
    }
    // Who shares a directory has no disk.
    if table.row_count() > 0 {
        term::say(table.trim_fmt())?;
    }
    for daemon in daemons {
        if let Some(log) = &daemon.log {
            term::say(format_args!("{} logs to {log}", daemon.pid))?;
        }
        show_limits_and_faults(daemon)?;
        for address in &daemon.nbd.listen {
            term::say(format_args!("{} listens at {address}", daemon.pid))?;
        }
        for device in &daemon.devices {
            let DeviceReport { path, via, uri, .. } = device;
            term::say(format_args!("{} serves {path} ({via}, {uri})", daemon.pid))?;
        }
        for export in &daemon.exports {
            let Some(address) = &export.served.address else { continue };
            let (pid, what, used) = (daemon.pid, export.subject(), used(export));
            term::say(format_args!("{pid} serves {what} at {address} ({used})"))?;
        }
    }
    Ok(())
}

fn show_limits_and_faults(daemon: &Daemon) -> Result<()> {
    for disk in daemon.disks.iter().filter(|disk| !disk.limits.is_empty()) {
        let limits = disk.limits.iter().map(|(name, value)| format!("{name}={value}"));
        let limits: Vec<_> = limits.collect();
        term::say(format_args!("{} limits {}: {}", daemon.pid, disk.name, limits.join(" ")))?;
    }
    for disk in &daemon.disks {
        for fault in &disk.faults {
            let (pid, name, rule) = (daemon.pid, &disk.name, &fault.rule);
            let (id, injected, held) = (fault.id, fault.injected, fault.held);
            term::say(format_args!(
                "{pid} injects fault {id} into {name}: {rule} ({injected} injected, {held} held)"
            ))?;
        }
    }
    Ok(())
}

/// What becomes of an export.
fn used(ExportReport { kind, served, .. }: &ExportReport) -> String {
    let is_mounted = exports::known(kind).is_some_and(|kind| kind.local_kernel);
    let (nobody, there) =
        if is_mounted { ("unmounted", "mounted") } else { ("not connected", "connected") };
    let queues = served.queues.map(|queues| format!(", {queues} queues")).unwrap_or_default();
    // Who has no queues of its own counts none.
    let requests = served.queues.map(|_| format!(", {} requests", served.requests));
    let done = queues + &requests.unwrap_or_default();
    match served.clients {
        0 => nobody.into(),
        1 => format!("{there}{done}"),
        clients => format!("{clients} {there}{done}"),
    }
}

fn latency(latency: Option<Latency>) -> String {
    latency.map_or_else(
        || "-".into(),
        |latency| format!("{} / {}", term::human_ns(latency.p50), term::human_ns(latency.p99)),
    )
}

fn show_offers(offers: &Offers, json: bool) -> Result<()> {
    if json {
        return term::say_json(offers);
    }
    let mut table = term::table(&["EXPORT", "SIZE", "", "DESCRIPTION", "URI"]);
    for export in &offers.exports {
        table.add_row([
            format!("{:?}", export.name),
            export.size.map_or_else(|| "?".into(), size::human),
            if export.read_only == Some(true) { "ro".into() } else { String::new() },
            term::plain(&export.description).into_owned(),
            export.uri.clone(),
        ]);
    }
    term::say(table.trim_fmt())
}
