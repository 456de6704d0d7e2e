//! What a yard.toml means: its tables, key by key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockyard_export_nbd::{Address, ServerLimits, TlsFiles, TlsIdentity};
use toml::Spanned;
use toml::de::DeTable;

use super::Needs;
use super::mistakes::Mistake;
use super::table::{At, Taker};
use crate::disks::uri::kind_of_uri;
use crate::disks::{
    DiskPlan, PlanBuilder, Settings, absolute, canonical_key, parse_duration, throttle,
};
use crate::exports::{self, ExportKind, ExportPlan};
use crate::text::suggest;
use crate::yard::plan::{MAX_THREADS, NbdPlan, TlsUse, YardPlan, name_disks};

/// Checks all of it. `None` only if there are mistakes.
pub(super) fn check(
    root: &Spanned<DeTable<'_>>,
    base: &Path,
    needs: Needs,
    found: &mut Vec<Mistake>,
) -> Option<YardPlan> {
    let mut top = Taker::new("the file", root.get_ref(), 0..0);
    let disks = disks(&mut top, base, found);
    let mut taken = Taken::default();
    let nbd = top.table("nbd", "[nbd]", found).map(|table| nbd(table, base, &mut taken, found));
    let exports = exports(&mut top, &disks, base, &mut taken, found);
    let metrics = top.table("metrics", "[metrics]", found).map(|table| metrics(table, found));
    let threads = top.table("threads", "[threads]", found);
    let (threads, grace) = threads.map_or((None, None), |table| threads_table(table, found));
    top.finish(found);
    if disks.is_empty() && found.is_empty() {
        let remedy = "add one:\n[[disk]]\nname = \"ram0\"\nuri = \"ram:1G\"";
        found.push(Mistake::new(0..0, "no disks configured", remedy));
    }
    let (mut nbd, default_export, flush_grace) = nbd.unwrap_or_default();
    let grace = grace.unwrap_or(YardPlan::GRACE);
    if let Some(at) = flush_grace.filter(|_| nbd.limits.flush_grace > longest_flush_grace(grace)) {
        found.push(too_long_for(grace, at));
    }
    if nbd.tls.is_none() {
        no_tls(&exports, found);
    }
    let has_own = needs == Needs::Disks
        || exports.iter().any(|export| export.value.kind != &exports::nbd::KIND);
    if nbd.listen.is_empty() && !nbd.systemd && !has_own && found.is_empty() {
        let remedy = "add:\n[nbd]\nlisten = [\"unix:yard.sock\", \"tcp:127.0.0.1:10809\"]";
        found.push(Mistake::new(0..0, "no listen address", remedy));
    }
    if !found.is_empty() {
        return None;
    }
    let plans = disks.into_iter().filter_map(|disk| disk.plan).collect();
    let mut plan = match YardPlan::new(plans) {
        Ok(plan) => plan,
        Err(err) => {
            found.push(Mistake::new(0..0, err.to_string(), err.remedy().unwrap_or_default()));
            return None;
        }
    };
    let mut exports: Vec<ExportPlan> = exports.into_iter().map(|export| export.value).collect();
    let of_nbd = |export: &ExportPlan| export.kind == &exports::nbd::KIND;
    if !exports.iter().any(of_nbd) {
        let names = (0..plan.disks.len()).map(|index| plan.disk_name(index));
        exports.extend(names.map(|name| ExportPlan::new(&exports::nbd::KIND, name, name)));
    }
    if let Some(wanted) = default_export {
        let names: Vec<&str> =
            exports.iter().filter(|it| of_nbd(it)).map(|export| export.name.as_str()).collect();
        if !wanted.value.is_empty() && !names.contains(&wanted.value.as_str()) {
            let what = format!("no export named {:?}", wanted.value);
            found.push(Mistake::new(wanted.at, what, suggest::hint(&wanted.value, &names)));
            return None;
        }
        nbd.default_export = Some(wanted.value);
    }
    nbd.default_export = nbd
        .default_export
        .or_else(|| exports.iter().find(|it| of_nbd(it)).map(|export| export.name.clone()));
    plan.exports = exports;
    plan.nbd = nbd;
    plan.metrics = metrics.unwrap_or_default();
    plan.threads = threads.unwrap_or(plan.threads);
    plan.grace = grace;
    Some(plan)
}

/// Clients get half of the grace at most, so that the disks have the rest, and have to hear of the end within that.
fn longest_flush_grace(grace: Duration) -> Duration {
    blockyard_export_nbd::longest_flush_grace(grace / 2)
}

fn too_long_for(grace: Duration, flush_grace: Range<usize>) -> Mistake {
    let most = longest_flush_grace(grace);
    let what = format!(
        "flush_grace is longer than {most:?}, which a shutdown_grace of {grace:?} leaves for it"
    );
    let remedy = "shorten it, or write a longer shutdown_grace in [threads]: twice as long and 5s are enough";
    Mistake::new(flush_grace, what, remedy)
}

/// A disk, and where it is in the file.
struct Disk {
    /// None for one with mistakes, which others may name all the same.
    plan: Option<DiskPlan>,
    name: String,
}

fn disks(top: &mut Taker<'_, '_>, base: &Path, found: &mut Vec<Mistake>) -> Vec<Disk> {
    let mut plans: Vec<DiskPlan> = Vec::new();
    let mut places = Vec::new();
    let mut wrong: Vec<Disk> = Vec::new();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for mut table in top.tables("disk", "[[disk]]", found) {
        let uri = table.text("uri", found);
        let name = table.text("name", found);
        if let Some(name) = &name
            && names.insert(name.value.clone(), name.at.start).is_some()
        {
            let what = format!("a disk named {:?} already exists", name.value);
            found.push(Mistake::new(name.at.clone(), what, "choose another name"));
        }
        let Some(uri) = uri else {
            if table.any("uri").is_none() {
                let remedy = "add uri = \"ram:1G\", or uri = \"file:disk.img\"";
                found.push(Mistake::new(first_line(&table.at()), "the disk has no uri", remedy));
            }
            wrong.extend(name.map(|name| Disk { plan: None, name: name.value }));
            continue;
        };
        match disk(&table, &uri, name.as_ref(), base, found) {
            Some(plan) => {
                plans.push(plan);
                places.push(first_line(&table.at()));
            }
            None => wrong.extend(name.map(|name| Disk { plan: None, name: name.value })),
        }
    }
    // Names that are made up are different from all that were given.
    if let Err(err) = name_disks(&mut plans)
        && found.is_empty()
    {
        found.push(Mistake::new(0..0, err.to_string(), err.remedy().unwrap_or_default()));
    }
    if let Some((index, what)) = throttle::conflict(&plans) {
        let place = places.get(index).cloned().unwrap_or_default();
        found.push(Mistake::new(place, what, throttle::CONFLICT_REMEDY));
    }
    let named = plans
        .into_iter()
        .map(|plan| Disk { name: plan.options.name.clone().unwrap_or_default(), plan: Some(plan) });
    named.chain(wrong).collect()
}

/// A span that covers more than a line is shown by its start.
fn first_line(at: &Range<usize>) -> Range<usize> {
    at.start..at.start + 1
}

fn disk(
    table: &Taker<'_, '_>,
    uri: &At<String>,
    name: Option<&At<String>>,
    base: &Path,
    found: &mut Vec<Mistake>,
) -> Option<DiskPlan> {
    let mut builder = match PlanBuilder::of_uri(&uri.value) {
        Ok(builder) => builder,
        Err(err) => {
            // Inside of the quotes, where the bytes are those of the URI.
            let raw = uri.at.len() == uri.value.len() + 2;
            let start = uri.at.start + 1 + err.at().start;
            let at = if raw { start..start + err.at().len() } else { uri.at.clone() };
            found.push(Mistake::new(at, "invalid disk URI", err.problem()));
            // The other keys are looked at all the same, if it is known what they are to be for.
            PlanBuilder::new(kind_of_uri(&uri.value)?)
        }
    };
    let uri_is_right = found.iter().all(|mistake| !uri.at.contains(&mistake.at.start));
    let given = name.map(|name| ("name".to_owned(), name.at.clone(), Some(name.clone())));
    let rest = table.rest().into_iter().map(|(key, value)| (key.value, key.at, value));
    for (key, at, value) in given.into_iter().chain(rest) {
        set_option(&mut builder, &key, at, value, found);
    }
    if !uri_is_right {
        return None;
    }
    match builder.finish(&uri.value, base) {
        Ok(plan) => Some(plan),
        Err(problem) => {
            found.push(Mistake::new(uri.at.clone(), "invalid disk", problem));
            None
        }
    }
}

/// A key of a disk, which is an option of its URI as well.
fn set_option(
    builder: &mut PlanBuilder,
    key: &str,
    at: Range<usize>,
    value: Option<At<String>>,
    found: &mut Vec<Mistake>,
) {
    let known = builder.names();
    let Some(value) = value else {
        let what = format!("{key} must be a string, an integer or a boolean");
        found.push(Mistake::new(at, what, format!("supported: uri, {}", suggest::list(&known))));
        return;
    };
    let (place, what) = if known.contains(&canonical_key(key).as_ref()) {
        (value.at, format!("{key} cannot be {:?}", value.value))
    } else {
        (at, format!("[[disk]] has no key {key:?}"))
    };
    if let Err(problem) = builder.set(key, &value.value) {
        found.push(Mistake::new(place, what, problem));
    }
}

/// Whether there is a disk that is named.
fn has_disk_named(disks: &[Disk], name: &At<String>, found: &mut Vec<Mistake>) -> bool {
    let is_there = disks.iter().any(|known| known.name == name.value);
    if !is_there {
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        let what = format!("no disk named {:?}", name.value);
        found.push(Mistake::new(name.at.clone(), what, suggest::hint(&name.value, &names)));
    }
    is_there
}

/// The permissions of a socket file.
fn socket_mode(table: &mut Taker<'_, '_>, found: &mut Vec<Mistake>) -> Option<u32> {
    let mode = table.text("socket_mode", found)?;
    let parsed = u32::from_str_radix(&mode.value, 8).ok().filter(|mode| *mode <= 0o777);
    if parsed.is_none() {
        let remedy = "write e.g. socket_mode = \"660\"";
        found.push(Mistake::new(mode.at, "invalid octal mode", remedy));
    }
    parsed
}

/// An export that only clients with TLS may use needs a server that speaks it.
fn no_tls(exports: &[At<ExportPlan>], found: &mut Vec<Mistake>) {
    for export in exports.iter().filter(|it| it.value.settings.flag("tls_only") == Some(true)) {
        let what = format!("export {:?} is tls_only, but TLS is off", export.value.name);
        let remedy = "add [nbd.tls] with certificate and key, or omit tls_only";
        found.push(Mistake::new(export.at.clone(), what, remedy));
    }
}

/// The exports of all kinds, each with the place of its `tls_only`, or of its table.
fn exports(
    top: &mut Taker<'_, '_>,
    disks: &[Disk],
    base: &Path,
    taken: &mut Taken,
    found: &mut Vec<Mistake>,
) -> Vec<At<ExportPlan>> {
    let mut plans: Vec<At<ExportPlan>> = Vec::new();
    for kind in exports::KINDS {
        let key = kind.table.trim_matches(['[', ']']);
        for table in top.tables(key, kind.table, found) {
            let Some(export) = export(kind, table, disks, base, found) else { continue };
            let Export { plan, name_at, tls_at, socket_at } = export;
            let same = |other: &&At<ExportPlan>| {
                other.value.kind == plan.kind && other.value.name == plan.name
            };
            if plans.iter().find(same).is_some() {
                let what = format!("an export named {:?} already exists", plan.name);
                found.push(Mistake::new(name_at, what, "choose another name: name = \"...\""));
            }
            if let (Some(path), Some(at)) = (plan.settings.socket(), socket_at) {
                taken.take(&Address::Unix(path.to_owned()), at, found);
            }
            plans.push(At { value: plan, at: tls_at });
        }
    }
    plans
}

/// An export, and where its parts are in the file.
struct Export {
    plan: ExportPlan,
    name_at: Range<usize>,
    tls_at: Range<usize>,
    socket_at: Option<Range<usize>>,
}

fn export(
    kind: &'static ExportKind,
    mut table: Taker<'_, '_>,
    disks: &[Disk],
    base: &Path,
    found: &mut Vec<Mistake>,
) -> Option<Export> {
    let disk = if kind.whole_yard { None } else { table.text("disk", found) };
    let name = table.text("name", found);
    let at = first_line(&table.at());
    let has_disk = !kind.whole_yard && table.any("disk").is_some();
    let (mut tls_at, mut socket_at) = (at.clone(), None);
    let before = found.len();
    let mut settings = Settings::default();
    for option in kind.said_options() {
        let Some(value) = table.option(option, found) else { continue };
        match option.name {
            "tls_only" => tls_at = value.at.clone(),
            "socket" => socket_at = Some(value.at.clone()),
            _ => {}
        }
        // What goes without saying makes no other export.
        if !option.is_default(&value.value) {
            settings.set(option.name, value.value);
        }
    }
    if let Err(problem) = settings.make_paths_absolute(base) {
        found.push(Mistake::new(at.clone(), "invalid path", problem));
    }
    table.finish(found);
    let disk = if kind.whole_yard {
        At { value: String::new(), at: at.clone() }
    } else if let Some(disk) = disk {
        disk
    } else {
        if !has_disk {
            let remedy = "add disk = \"...\"";
            let what = format!("the {} export has no disk", kind.name);
            found.push(Mistake::new(at, what, remedy));
        }
        return None;
    };
    if !kind.whole_yard && !has_disk_named(disks, &disk, found) {
        return None;
    }
    // What is wrong by itself is said already.
    if found.len() == before
        && let Err(problem) = (kind.check)(&settings)
    {
        found.push(Mistake::new(at, "invalid export", problem));
    }
    let name_at = name.as_ref().map_or(disk.at, |name| name.at.clone());
    let unnamed = if kind.whole_yard { exports::WHOLE_YARD } else { &disk.value };
    let name = name.map_or_else(|| unnamed.to_owned(), |name| name.value);
    let plan = ExportPlan { settings, ..ExportPlan::new(kind, disk.value, name) };
    Some(Export { plan, name_at, tls_at, socket_at })
}

fn nbd(
    mut table: Taker<'_, '_>,
    base: &Path,
    taken: &mut Taken,
    found: &mut Vec<Mistake>,
) -> (NbdPlan, Option<At<String>>, Option<Range<usize>>) {
    let mut plan = NbdPlan::default();
    for address in table.texts("listen", found) {
        if address.value == "systemd" {
            plan.systemd = true;
            continue;
        }
        let parsed = match address.value.parse() {
            Ok(Address::Unix(path)) => match absolute(base, &path) {
                Ok(path) => Address::Unix(path),
                Err(problem) => {
                    found.push(Mistake::new(address.at, "invalid path", problem));
                    continue;
                }
            },
            Ok(parsed) => parsed,
            Err(err) => {
                let err: blockyard_export_nbd::Error = err;
                let usual = "write unix:PATH, tcp:HOST:PORT, vsock:CID:PORT or systemd";
                let remedy = err.remedy().unwrap_or(usual).to_owned();
                found.push(Mistake::new(address.at, err.to_string(), remedy));
                continue;
            }
        };
        taken.take(&parsed, address.at, found);
        plan.listen.push(parsed.into());
    }
    plan.socket_mode = socket_mode(&mut table, found);
    let default_export = table.text("default_export", found);
    plan.tls = table.table("tls", "[nbd.tls]", found).and_then(|table| tls(table, base, found));
    plan.limits = limits(&mut table, found);
    let flush_grace = duration(&mut table, "flush_grace", found);
    if let Some(time) = &flush_grace {
        plan.limits.flush_grace = time.value;
    }
    table.finish(found);
    (plan, default_export, flush_grace.map(|time| time.at))
}

/// Addresses that something listens at already.
#[derive(Default)]
struct Taken(Vec<Address>);

impl Taken {
    fn take(&mut self, address: &Address, at: Range<usize>, found: &mut Vec<Mistake>) {
        // Port 0 is another one each time.
        let chosen_later = matches!(address, Address::Tcp { port: 0, .. });
        if self.0.contains(address) && !chosen_later {
            let what = format!("duplicate listen address {address}");
            found.push(Mistake::new(at, what, "remove one of them"));
        }
        self.0.push(address.clone());
    }
}

/// Memory for requests, of which the longest needs `least` bytes.
fn memory(
    table: &mut Taker<'_, '_>,
    key: &'static str,
    least: usize,
    found: &mut Vec<Mistake>,
) -> Option<usize> {
    let memory = table.text(key, found)?;
    match crate::text::size::parse(&memory.value) {
        Ok(bytes) if bytes >= least as u64 => {
            return Some(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        Ok(_) => found.push(Mistake::new(
            memory.at,
            "less than one request of a client may need",
            format!("write \"{}M\" or more", least.div_ceil(1 << 20)),
        )),
        Err(problem) => found.push(Mistake::new(memory.at, "invalid size", problem)),
    }
    None
}

/// What clients may cost.
fn limits(table: &mut Taker<'_, '_>, found: &mut Vec<Mistake>) -> ServerLimits {
    let mut limits = ServerLimits::default();
    let most = u64::from(u32::MAX);
    let count = |at: At<u64>| usize::try_from(at.value).unwrap_or(usize::MAX);
    if let Some(clients) = table.number("max_clients", (1, most), found) {
        limits.max_clients = count(clients);
    }
    limits.max_clients_per_host = table.number("max_clients_per_host", (1, most), found).map(count);
    if let Some(requests) = table.number("max_in_flight", (1, most), found) {
        limits.in_flight_per_client = count(requests);
    }
    let least = (limits.max_payload as usize, limits.least_memory());
    for (key, limit, least) in [
        ("memory_per_client", &mut limits.memory_per_client, least.0),
        ("max_memory", &mut limits.max_memory, least.1),
    ] {
        if let Some(bytes) = memory(table, key, least, found) {
            *limit = bytes;
        }
    }
    for (key, limit) in [
        ("handshake_timeout", &mut limits.handshake_timeout),
        ("stall_timeout", &mut limits.stall_timeout),
    ] {
        if let Some(time) = duration(table, key, found) {
            *limit = time.value;
        }
    }
    limits.idle_timeout = duration(table, "idle_timeout", found).map(|time| time.value);
    limits
}

fn duration(
    table: &mut Taker<'_, '_>,
    key: &'static str,
    found: &mut Vec<Mistake>,
) -> Option<At<Duration>> {
    let text = table.text(key, found)?;
    match parse_duration(&text.value) {
        Ok(time) if !time.is_zero() => Some(At { value: time, at: text.at }),
        Ok(_) => {
            found.push(Mistake::new(
                text.at,
                format!("{key} must be greater than 0"),
                "write e.g. \"10s\"",
            ));
            None
        }
        Err(problem) => {
            found.push(Mistake::new(text.at, format!("{key} is not a valid duration"), problem));
            None
        }
    }
}

fn tls(
    mut table: Taker<'_, '_>,
    base: &Path,
    found: &mut Vec<Mistake>,
) -> Option<(TlsUse, TlsIdentity)> {
    let mode = table.text("mode", found);
    let certificate = table.text("certificate", found);
    let key = table.text("key", found);
    let client_ca = table.text("client_ca", found);
    let psk = table.text("psk", found);
    let at = first_line(&table.at());
    table.finish(found);
    let mode = match mode.as_ref().map(|mode| mode.value.as_str()) {
        Some("off") => return None,
        Some("allow") => TlsUse::Allow,
        None | Some("require") => TlsUse::Require,
        Some(other) => {
            let place = mode.as_ref().map_or(at, |mode| mode.at.clone());
            let remedy = suggest::hint(other, &["off", "allow", "require"]);
            found.push(Mistake::new(place, format!("unknown TLS mode {other:?}"), remedy));
            return None;
        }
    };
    // The daemon may go elsewhere before it reads them.
    let path = |text: At<String>| {
        absolute(base, Path::new(&text.value)).unwrap_or_else(|_| base.join(text.value))
    };
    if let Some(psk) = psk {
        if certificate.is_some() || key.is_some() || client_ca.is_some() {
            let remedy = "keep either psk, or certificate, key and client_ca";
            found.push(Mistake::new(
                psk.at,
                "certificates and pre-shared keys cannot be combined",
                remedy,
            ));
            return None;
        }
        return Some((mode, TlsIdentity::Psk(path(psk))));
    }
    let mut needed = |file: Option<At<String>>, key: &str| -> Option<PathBuf> {
        if file.is_none() {
            let remedy = format!("add a PEM file: {key} = \"server-{key}.pem\"");
            found.push(Mistake::new(at.clone(), format!("TLS needs a {key}"), remedy));
        }
        file.map(path)
    };
    let (certificate, key) = (needed(certificate, "certificate"), needed(key, "key"));
    let files = TlsFiles { certificate: certificate?, key: key?, client_ca: client_ca.map(path) };
    Some((mode, TlsIdentity::Certificate(files)))
}

fn metrics(mut table: Taker<'_, '_>, found: &mut Vec<Mistake>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for address in table.texts("listen", found) {
        match address.value.parse() {
            Ok(parsed) => addresses.push(parsed),
            Err(_) => {
                let what = format!("{:?} is not an IP address and port", address.value);
                found.push(Mistake::new(
                    address.at,
                    what,
                    "write e.g. 127.0.0.1:9660 or [::1]:9660",
                ));
            }
        }
    }
    table.finish(found);
    addresses
}

fn threads_table(
    mut table: Taker<'_, '_>,
    found: &mut Vec<Mistake>,
) -> (Option<usize>, Option<Duration>) {
    let count = table.number("count", (1, MAX_THREADS as u64), found);
    let grace = duration(&mut table, "shutdown_grace", found);
    table.finish(found);
    let count = count.and_then(|count| usize::try_from(count.value).ok());
    (count, grace.map(|grace| grace.value))
}
