//! Disks of virtual machines: vhost-user-blk back-ends, a socket each.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_export_vhost_user_blk::{self as vhost_user, Listener, MAX_QUEUES, Prepared, Server};
use parking_lot::Mutex;

use super::{Bound, Doing, Export, ExportKind, ExportPlan, Flag, Front};
use crate::disks::{OptionSpec, Settings, ValueKind};
use crate::error::{Error, ErrorKind, Result};
use crate::yard::follow::State;
use crate::yard::report;

/// The kind of disks of virtual machines.
pub static KIND: ExportKind = ExportKind {
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
    flags: &[
        Flag {
            option: "socket",
            value_name: "SOCKET",
            help: "Serve vhost-user-blk on this Unix socket, without live migration of the guest",
        },
        Flag {
            option: "serial",
            value_name: "TEXT",
            help: "Serial number shown to the guest [default: name of the disk]",
        },
    ],
    check,
    ..ExportKind::new(
        "vhost-user-blk",
        "[[vhost_user_blk]]",
        "a disk of a virtual machine, on a Unix socket",
        bind,
    )
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
        let prepared =
            vhost_user::prepare(export(front)?, listener, front.threads.to_vec()).map_err(error)?;
        Ok(Arc::new(BackEnd::new(&KIND, prepared)))
    }))
}

fn export(front: &Front<'_>) -> Result<vhost_user::Export> {
    let set = &front.plan.settings;
    let mut export = vhost_user::Export::new(front.bdev()?);
    if let Some(serial) = set.text("serial") {
        serial.clone_into(&mut export.serial);
    }
    let queues = set.number("queues").and_then(|queues| u16::try_from(queues).ok());
    export.queues = queues.unwrap_or(export.queues);
    export.on_resume = front.disk()?.open.holder();
    Ok(export)
}

/// A back-end of any device. Of several all start, or none: what can fail has been done when it is prepared.
pub(super) struct BackEnd {
    kind: &'static ExportKind,
    prepared: Mutex<Option<Prepared>>,
    server: OnceLock<Server>,
}

impl BackEnd {
    pub(super) fn new(kind: &'static ExportKind, prepared: Prepared) -> Self {
        Self { kind, prepared: Mutex::new(Some(prepared)), server: OnceLock::new() }
    }
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

    fn end(&self, _clients: Duration, grace: Duration) -> Doing<'_, Result<()>> {
        drop(self.prepared.lock().take());
        Box::pin(async move {
            if let Some(server) = self.server.get() {
                server.shutdown(grace).await;
            }
            Ok(())
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
        let place = server.path().map(|path| path.display().to_string());
        let place = place.unwrap_or_else(|| "inherited socket".into());
        report::Served {
            address: Some(format!("{}:{place}", self.kind.name)),
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

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{Bio, DiskFlags, Op, OpenMode, Sector, Status};
    use blockyard_export_nbd::Address;

    use super::*;
    use crate::exports::{FrontDisk, nbd};
    use crate::yard::Yard;
    use crate::yard::plan::NbdPlan;

    /// What another back-end has sent to a server before it died may still be carried out: a guest that resumes writes nothing
    /// before that is over (`docs/nbd-fencing.md`).
    #[tokio::test]
    async fn a_guest_that_resumes_has_its_writes_held_where_there_is_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let far = Yard::start(1, &NbdPlan::default()).unwrap();
        far.open_disk(&"ram:1M?name=far".parse().unwrap(), DiskFlags::empty()).unwrap();
        let listener = blockyard_export_nbd::bind(&Address::Unix(socket.clone()), None).unwrap();
        far.serve(vec![listener]).unwrap();
        far.add_export(ExportPlan::new(&nbd::KIND, "far", "far"), None).await.unwrap();
        let near = Yard::start(1, &NbdPlan::default()).unwrap();
        let uri =
            format!("nbd+unix:///far?socket={}&fence_timeout=10m&name=near", socket.display());
        for (uri, is_remote) in [(&*uri, true), ("ram:1M?name=here", false)] {
            let disk: crate::disks::DiskPlan = uri.parse().unwrap();
            near.add_disk(disk.clone(), false, None).await.unwrap();
            let name = disk.options.name.clone().unwrap();
            let open = near.disk(&name).unwrap();
            let plan = ExportPlan::new(&KIND, &name, &name);
            let disks = [FrontDisk { name, plan: Arc::new(disk), open: Arc::clone(&open) }];
            let front =
                Front { plan: &plan, disks: &disks, threads: near.threads(), nbd: near.nbd() };
            let on_resume = export(&front).unwrap().on_resume;
            assert_eq!(on_resume.is_some(), is_remote, "{uri}");
            let Some(resume) = on_resume else { continue };
            resume();
            let bdev = Arc::new(open.disk().open(None, OpenMode::ReadWrite).unwrap());
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            for op in [Op::WriteZeroes, Op::Read] {
                let tell = tell.clone();
                let ended = move |bio: Box<Bio>| tell.send((op, bio.status())).unwrap();
                bdev.submit(0, Bio::new(op, Sector(0), 4096).on_end(Arc::new(ended)));
            }
            let first = told.recv().await;
            // The write is not waited for, whatever is wrong.
            open.abandon();
            let second = told.recv().await;
            assert_eq!(first, Some((Op::Read, Status::Ok)), "the write was sent before it");
            assert_eq!(second, Some((Op::WriteZeroes, Status::Io)));
        }
        for yard in [near, far] {
            // Of what has failed, something is lost.
            let _ = yard.end(Duration::ZERO).await;
        }
    }
}
