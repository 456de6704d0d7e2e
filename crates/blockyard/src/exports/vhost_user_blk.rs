//! Disks of virtual machines: vhost-user-blk back-ends, a socket each.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_export_vhost_user_blk::{self as vhost_user, Listener, MAX_QUEUES, Prepared, Server};
use parking_lot::Mutex;

use super::{Bound, Doing, Export, ExportKind, ExportPlan};
use crate::disks::{OptionSpec, Settings, ValueKind};
use crate::error::{Error, ErrorKind, Result};
use crate::yard::follow::State;
use crate::yard::report;

/// The kind of disks of virtual machines.
pub static KIND: ExportKind = ExportKind {
    name: "vhost-user-blk",
    table: "[[vhost_user_blk]]",
    summary: "a disk of a virtual machine, on a Unix socket",
    options: &[
        OptionSpec::new("socket", ValueKind::Path, "none", "path of the socket"),
        OptionSpec::new("socket_mode", ValueKind::Mode, "by umask", "mode of the socket, in octal"),
        OptionSpec::new(
            "serial",
            ValueKind::Text,
            "name of the disk",
            "serial number shown to the guest; at most 20 bytes",
        ),
        OptionSpec::new(
            "queues",
            ValueKind::Number { least: 1, most: MAX_QUEUES as u64 },
            "one per queue thread",
            "maximum number of queues",
        ),
        // Later such a number is one of the daemon's own files.
        OptionSpec {
            only_at_start: true,
            ..OptionSpec::new(
                FD,
                ValueKind::Number { least: 0, most: i32::MAX as u64 },
                "none",
                "number of an inherited socket, instead of a path",
            )
        },
    ],
    whole_yard: false,
    local_kernel: false,
    check,
    bind,
};

/// The option for a socket that was passed to this process.
pub const FD: &str = "fd";

fn check(set: &Settings) -> Result<(), String> {
    match (set.socket(), set.number(FD)) {
        (Some(_), None) | (None, Some(_)) => Ok(()),
        (None, None) => Err("no socket given; add socket = \"vm.sock\"".into()),
        (Some(_), Some(_)) => Err("socket and fd cannot be combined; remove one".into()),
    }
}

fn bind(plan: &ExportPlan) -> Result<Bound> {
    let set = &plan.settings;
    check(set).map_err(Error::usage)?;
    let mode = set.number("socket_mode").and_then(|mode| u32::try_from(mode).ok());
    let fd = set.number(FD).and_then(|fd| i32::try_from(fd).ok()).unwrap_or(i32::MAX);
    let listener = match set.socket() {
        Some(path) => vhost_user::bind(path, mode),
        None => Listener::from_passed(fd),
    };
    let listener = listener.map_err(error)?;
    Ok(Box::new(|front| {
        let set = &front.plan.settings;
        let mut export = vhost_user::Export::new(front.bdev()?);
        if let Some(serial) = set.text("serial") {
            serial.clone_into(&mut export.serial);
        }
        let queues = set.number("queues").and_then(|queues| u16::try_from(queues).ok());
        export.queues = queues.unwrap_or(export.queues);
        export.on_resume = front.disk()?.open.holder();
        let prepared =
            vhost_user::prepare(export, listener, front.threads.to_vec()).map_err(error)?;
        Ok(Arc::new(BackEnd { prepared: Mutex::new(Some(prepared)), server: OnceLock::new() }))
    }))
}

/// A back-end. Of several all start, or none: what can fail has been done when it is prepared.
struct BackEnd {
    prepared: Mutex<Option<Prepared>>,
    server: OnceLock<Server>,
}

impl Export for BackEnd {
    fn start(&self) -> Result<()> {
        let Some(prepared) = self.prepared.lock().take() else { return Ok(()) };
        // It was there, and is taken once.
        let _ = self.server.set(prepared.start());
        Ok(())
    }

    fn stop(&self) {
        if let Some(server) = self.server.get() {
            server.stop();
        }
    }

    fn end(&self, grace: Duration) -> Doing<'_> {
        drop(self.prepared.lock().take());
        Box::pin(async move {
            if let Some(server) = self.server.get() {
                server.shutdown(grace).await;
            }
        })
    }

    fn follow(&self, _now: State) {
        // Whoever connects later asks for it.
        if let Some(server) = self.server.get() {
            server.follow();
        }
    }

    fn deserted(&self) -> Option<Doing<'_>> {
        let server = self.server.get().filter(|server| server.path().is_none())?;
        Some(Box::pin(server.ended()))
    }

    fn socket(&self) -> Option<&Path> {
        self.server.get()?.path()
    }

    fn report(&self) -> report::Served {
        let Some(server) = self.server.get() else { return report::Served::default() };
        let status = server.status();
        report::Served {
            address: server.path().map(|path| format!("{}:{}", KIND.name, path.display())),
            clients: status.connected.into(),
            queues: Some(status.queues),
            requests: status.requests,
        }
    }
}

fn error(err: vhost_user::Error) -> Error {
    use vhost_user::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::InUse => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::Config => ErrorKind::Usage,
        Kind::Io => ErrorKind::Failed,
    };
    Error::new(kind, "cannot serve vhost-user-blk").caused_by(err)
}
