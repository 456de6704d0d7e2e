//! `blockyard serve`: disks from the command line, over NBD, to virtual machines, and as files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use blockyard_export_nbd::{Address, TlsFiles, TlsIdentity};
use blockyard_nbd::uri::{TlsParams, Transport, Uri};

use super::add::utf8;
use super::disk_uri;
use crate::cli::{GivenFlag, ServeArgs, Tls};
use crate::daemon::runner::Runner;
use crate::daemon::{Daemon, Passed};
use crate::disks::{Value, ValueKind};
use crate::error::{Error, Result};
use crate::exports::{self, ExportKind, ExportPlan};
use crate::text::term;
use crate::yard::plan::{Listen, NbdPlan, TlsUse, YardPlan};

pub(super) fn run(args: &ServeArgs) -> Result<u8> {
    let passed = Passed::take();
    let runner = args.run.as_deref().map(|command| private_runner(command, args)).transpose()?;
    let plan = plan(args, !passed.is_empty(), runner.as_ref())?;
    let daemon = Daemon::start(plan, passed)?;
    match runner {
        None => daemon.run(ready).map(|()| 0),
        Some(runner) => {
            let uri = uri_for(&daemon, &daemon.addresses(), "");
            runner.run(daemon, &uri)
        }
    }
}

/// `--run` without an address listens where nobody else does.
fn private_runner(command: &OsStr, args: &ServeArgs) -> Result<Runner> {
    Runner::shell(command, args.nbd.is_empty() && args.exports.given().is_empty())
}

/// One line for each listener.
pub(super) fn ready(daemon: &Daemon) {
    for notice in daemon.notices() {
        term::tell(format_args!("note: {notice}"));
    }
    let of_kind = |kind: &'static ExportKind| {
        daemon.plan().exports.iter().filter(move |export| export.kind == kind)
    };
    let exports: Vec<_> =
        of_kind(&exports::nbd::KIND).map(|export| format!("{:?}", export.name)).collect();
    for address in daemon.addresses() {
        let uri = uri_for(daemon, std::slice::from_ref(&address), "");
        term::tell(format_args!("serving {} at {address} ({uri})", exports.join(", ")));
    }
    for address in daemon.metrics_addresses() {
        term::tell(format_args!("metrics at http://{address}/metrics"));
    }
    for (what, address) in daemon.places() {
        term::tell(format_args!("serving {what} at {address}"));
    }
}

/// The URI by which a client on this machine reaches an export at the first of the addresses.
pub(super) fn uri_for(daemon: &Daemon, addresses: &[Address], export: &str) -> String {
    let transport = match addresses.first() {
        Some(Address::Unix(path)) => Transport::Unix { socket: path.clone() },
        Some(Address::Tcp { host, port }) => {
            let any = ["", "0.0.0.0", "::"].contains(&host.as_str());
            Transport::Tcp {
                host: if any { "localhost".into() } else { host.clone() },
                port: *port,
            }
        }
        Some(Address::Vsock { cid, port }) => {
            let cid = if *cid == Address::VSOCK_ANY { 1 } else { *cid };
            Transport::Vsock { cid, port: *port }
        }
        None => return String::new(),
    };
    let mut uri = Uri {
        transport,
        tls: false,
        export: export.into(),
        user: None,
        tls_params: TlsParams::default(),
    };
    if let Some((TlsUse::Require, identity)) = &daemon.plan().nbd.tls {
        add_tls(&mut uri, identity);
    }
    uri.to_string()
}

/// How a client gets in that has the files of the server: with its authority, if that is beside its certificate, or as the
/// first of its users.
fn add_tls(uri: &mut Uri, identity: &TlsIdentity) {
    let text = |path: &Path| {
        std::path::absolute(path).ok().and_then(|path| path.into_os_string().into_string().ok())
    };
    uri.tls = true;
    match identity {
        TlsIdentity::Certificate(files) => {
            if matches!(uri.transport, Transport::Unix { .. }) {
                // A socket has no name that a certificate could be for.
                uri.tls_params.hostname = Some("localhost".into());
            }
            let folder = files.certificate.parent().unwrap_or(Path::new(""));
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            if folder.join("ca-cert.pem").exists() {
                uri.tls_params.certificates = text(folder);
            }
        }
        TlsIdentity::Psk(file) => {
            let keys = std::fs::read_to_string(file).unwrap_or_default();
            let first = keys.lines().find_map(|line| line.split_once(':'));
            uri.user = first.map(|(user, _)| user.to_owned());
            uri.tls_params.psk_file = text(file);
        }
    }
}

pub(crate) fn plan(
    args: &ServeArgs,
    sockets_passed: bool,
    runner: Option<&Runner>,
) -> Result<YardPlan> {
    let mut disks = args.uris.iter().map(|uri| disk_uri(uri)).collect::<Result<Vec<_>>>()?;
    for disk in &mut disks {
        disk.options.read_only |= args.read_only;
    }
    let mut plan = YardPlan::new(disks)?;
    check_counts(args, plan.disks.len())?;
    for index in 0..plan.disks.len() {
        let name = args.name.get(index).cloned().unwrap_or_else(|| plan.disk_name(index).into());
        let mut export = ExportPlan::new(&exports::nbd::KIND, plan.disk_name(index), name)
            .with("read_only", Value::Flag(args.read_only));
        if let Some(text) = args.description.get(index) {
            export = export.with("description", Value::Text(text.clone()));
        }
        plan.exports.push(export);
    }
    plan.nbd = nbd_plan(args, sockets_passed, runner)?;
    if plan.nbd.listen.is_empty() && !plan.nbd.systemd {
        refuse_options_of_nbd(args)?;
    }
    plan.nbd.default_export = plan.exports.first().map(|export| export.name.clone());
    for wanted in args.exports.exports() {
        let disk = plan.disk_name(wanted.disk);
        let mut export =
            ExportPlan::new(wanted.kind, disk, disk).with("read_only", Value::Flag(args.read_only));
        if let (Some(mode), Some(_)) = (plan.nbd.socket_mode, wanted.kind.option("socket_mode")) {
            export = export.with("socket_mode", Value::Number(mode.into()));
        }
        for (option, value) in wanted.said {
            export = export.with(option, said(wanted.kind, option, value)?);
        }
        plan.exports.push(export);
    }
    plan.metrics.clone_from(&args.metrics);
    plan.threads = args.threads.map_or(plan.threads, usize::from);
    Ok(plan)
}

/// Nothing is said of more than there is.
fn check_counts(args: &ServeArgs, disks: usize) -> Result<()> {
    let given = args.exports.given();
    let of_exports = given.iter().map(|flag| (flag.name, flag.values.len()));
    let of_nbd = [("name", args.name.len()), ("description", args.description.len())];
    if let Some((flag, times)) = of_nbd.into_iter().chain(of_exports).find(|(_, it)| *it > disks) {
        let what = format!("--{flag} is given {times} times, but the number of disks is {disks}");
        return Err(Error::usage(what));
    }
    for GivenFlag { kind, name, values, .. } in given {
        let (times, of) = (values.len(), kind.name);
        let exports = args.exports.exports().filter(|export| export.kind == *kind).count();
        if times > exports {
            let what = format!("--{name} is given {times} times, but --{of} {exports} times");
            return Err(Error::usage(what).help(format!("give one --{name} per --{of}")));
        }
    }
    Ok(())
}

/// What a flag says of an export.
fn said(kind: &ExportKind, option: &'static str, value: &OsStr) -> Result<Value> {
    match kind.option(option) {
        Some(spec) if spec.value != ValueKind::Path => {
            let text = utf8(value.as_ref())?;
            let value = spec.value.parse(option, spec.default, text);
            value.map_err(|problem| Error::usage(format!("--{option}: {problem}")))
        }
        _ => Ok(Value::Path(value.into())),
    }
}

/// What would have no effect where nothing is served over NBD.
fn refuse_options_of_nbd(args: &ServeArgs) -> Result<()> {
    let options = [
        ("--name", !args.name.is_empty()),
        ("--description", !args.description.is_empty()),
        ("--tls", args.tls != Tls::Off),
        ("--max-clients", args.max_clients.is_some()),
        ("--max-clients-per-host", args.max_clients_per_host.is_some()),
        ("--max-in-flight", args.max_in_flight.is_some()),
        ("--max-memory", args.max_memory.is_some()),
        ("--run", args.run.is_some()),
    ];
    match options.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => {
            let what = format!("{option} is for NBD, but nothing is served over NBD");
            Err(Error::usage(what).help(format!("add --nbd ADDR, or omit {option}")))
        }
    }
}

fn nbd_plan(args: &ServeArgs, sockets_passed: bool, runner: Option<&Runner>) -> Result<NbdPlan> {
    let mut nbd = NbdPlan::default();
    for address in &args.nbd {
        if address == "systemd" {
            nbd.systemd = true;
            continue;
        }
        let address: Address = address.parse().map_err(|err: blockyard_export_nbd::Error| {
            let error = Error::usage(format!("--nbd: {err}"));
            error.help(err.remedy().unwrap_or("use unix:PATH, tcp:HOST:PORT or vsock:CID:PORT"))
        })?;
        let another_each_time = matches!(address, Address::Tcp { port: 0, .. });
        let listen = Listen::from(address);
        if nbd.listen.contains(&listen) && !another_each_time {
            return Err(Error::usage(format!("--nbd {} is given twice", listen.address)));
        }
        nbd.listen.push(listen);
    }
    nbd.listen.extend(runner.and_then(Runner::listen));
    if nbd.listen.is_empty() && !nbd.systemd && args.exports.given().is_empty() {
        if !sockets_passed {
            let others = exports::KINDS.iter().filter_map(|kind| Some((kind, kind.flags.first()?)));
            let others = others.map(|(kind, flag)| format!("--{} {}", kind.name, flag.value_name));
            let others = others.collect::<Vec<_>>().join(" or ");
            return Err(Error::usage("no listen address").help(format!(
                "add --nbd unix:/path/to.sock, --nbd tcp:127.0.0.1:10809, {others}"
            )));
        }
        nbd.systemd = true;
    }
    nbd.tls = tls(args)?;
    nbd.socket_mode = args.socket_mode.as_deref().map(socket_mode).transpose()?;
    if let Some(clients) = args.max_clients {
        nbd.limits.max_clients = clients as usize;
    }
    if let Some(clients) = args.max_clients_per_host {
        nbd.limits.max_clients_per_host = Some(clients as usize);
    }
    if let Some(requests) = args.max_in_flight {
        nbd.limits.in_flight_per_client = requests as usize;
    }
    if let Some(memory) = &args.max_memory {
        nbd.limits.max_memory = max_memory(memory, nbd.limits.least_memory())?;
    }
    Ok(nbd)
}

fn max_memory(text: &str, least: usize) -> Result<usize> {
    let bytes = crate::text::size::parse(text)
        .map_err(|problem| Error::usage(format!("--max-memory: {problem}")))?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes < least {
        let least = crate::text::size::human(least as u64);
        let what = format!("--max-memory {text} is less than one request of a client may need");
        return Err(Error::usage(what).help(format!("use {least} or more")));
    }
    Ok(bytes)
}

fn socket_mode(text: &str) -> Result<u32> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| {
        Error::usage(format!("invalid --socket-mode {text:?}; use octal up to 777, e.g. 660"))
    })
}

fn tls(args: &ServeArgs) -> Result<Option<(TlsUse, TlsIdentity)>> {
    let files = [&args.tls_certificate, &args.tls_key, &args.tls_client_ca, &args.tls_psk];
    let usage = match args.tls {
        Tls::Off if files.iter().all(|file| file.is_none()) => return Ok(None),
        Tls::Off => {
            return Err(Error::usage("certificates or keys are given, but --tls is off")
                .help("add --tls require, or --tls allow"));
        }
        Tls::Allow => TlsUse::Allow,
        Tls::Require => TlsUse::Require,
    };
    if let Some(keys) = &args.tls_psk {
        return Ok(Some((usage, TlsIdentity::Psk(keys.clone()))));
    }
    let needed = |file: &Option<PathBuf>, flag: &str| {
        file.clone()
            .ok_or_else(|| Error::usage(format!("--tls needs {flag} FILE, or --tls-psk FILE")))
    };
    let files = TlsFiles {
        certificate: needed(&args.tls_certificate, "--tls-certificate")?,
        key: needed(&args.tls_key, "--tls-key")?,
        client_ca: args.tls_client_ca.clone(),
    };
    Ok(Some((usage, TlsIdentity::Certificate(files))))
}
