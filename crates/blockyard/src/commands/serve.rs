//! `blockyard serve`: disks from the command line, over NBD, to virtual machines, and as files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use blockyard_export_nbd::{Address, TlsFiles, TlsIdentity};
use blockyard_nbd::uri::{TlsParams, Transport, Uri};

use super::disk_uri;
use crate::cli::{ServeArgs, Tls};
use crate::daemon::runner::Runner;
use crate::daemon::{Daemon, Passed};
use crate::disks::Value;
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
    Runner::shell(command, args.nbd.is_empty() && !has_other(args))
}

/// Whether disks are served by something else than NBD.
fn has_other(args: &ServeArgs) -> bool {
    !args.vhost_user_blk.is_empty() || !args.fuse.is_empty()
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
    for export in &daemon.plan().exports {
        let set = &export.settings;
        if let Some(path) = set.socket().or_else(|| set.path("path")) {
            let disk = if export.kind.whole_yard { "all disks" } else { &export.disk };
            let kind = export.kind.name;
            term::tell(format_args!("serving {disk} at {kind}:{}", path.display()));
        }
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

fn plan(args: &ServeArgs, sockets_passed: bool, runner: Option<&Runner>) -> Result<YardPlan> {
    let mut disks = args.uris.iter().map(|uri| disk_uri(uri)).collect::<Result<Vec<_>>>()?;
    for disk in &mut disks {
        disk.options.read_only |= args.read_only;
    }
    let mut plan = YardPlan::new(disks)?;
    for (flag, given) in [
        ("--name", args.name.len()),
        ("--description", args.description.len()),
        ("--vhost-user-blk", args.vhost_user_blk.len()),
        ("--fuse", args.fuse.len()),
        ("--serial", args.serial.len()),
    ] {
        if given > plan.disks.len() {
            let what = format!(
                "{flag} is given {given} times, but the number of disks is {}",
                plan.disks.len()
            );
            return Err(Error::usage(what));
        }
    }
    let (serials, machines) = (args.serial.len(), args.vhost_user_blk.len());
    if serials > machines {
        let what =
            format!("--serial is given {serials} times, but --vhost-user-blk {machines} times");
        return Err(Error::usage(what).help("give one --serial per --vhost-user-blk"));
    }
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
    for (index, path) in args.vhost_user_blk.iter().enumerate() {
        let disk = plan.disk_name(index);
        let mut export = ExportPlan::new(&exports::vhost_user_blk::KIND, disk, disk)
            .with("socket", Value::Path(path.clone()))
            .with("read_only", Value::Flag(args.read_only));
        if let Some(mode) = plan.nbd.socket_mode {
            export = export.with("socket_mode", Value::Number(mode.into()));
        }
        if let Some(serial) = args.serial.get(index) {
            export = export.with("serial", Value::Text(serial.clone()));
        }
        plan.exports.push(export);
    }
    for (index, path) in args.fuse.iter().enumerate() {
        let disk = plan.disk_name(index);
        plan.exports.push(
            ExportPlan::new(&exports::fuse::KIND, disk, disk)
                .with("path", Value::Path(path.clone()))
                .with("read_only", Value::Flag(args.read_only)),
        );
    }
    plan.metrics.clone_from(&args.metrics);
    plan.threads = args.threads.map_or(plan.threads, usize::from);
    Ok(plan)
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
    if nbd.listen.is_empty() && !nbd.systemd && !has_other(args) {
        if !sockets_passed {
            return Err(Error::usage("no listen address")
                .help("add --nbd unix:/path/to.sock, --nbd tcp:127.0.0.1:10809, --vhost-user-blk /path/to.sock, or --fuse FILE"));
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
