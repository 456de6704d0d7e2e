//! Disks of virtual machines: the vhost-user-blk back-ends of a daemon.

use std::sync::Arc;

use blockyard_blkmq::{Disk, OpenMode};
use blockyard_export_vhost_user_blk::{self as vhost_user, Export, Listener, Server};
use tokio::runtime::Handle;

use crate::disks::OpenDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::yard::plan::{VhostUserListen, VhostUserPlan, YardPlan};
use crate::yard::report;

/// A back-end, and the place of its disk in the list.
pub(super) struct BackEnd {
    disk: usize,
    pub(super) server: Server,
}

/// Listens at all sockets. Nobody is served before [`start`].
pub(super) fn listeners(plan: &YardPlan) -> Result<Vec<Listener>> {
    plan.vhost_user.iter().map(|plan| listener(plan).map_err(error)).collect()
}

fn listener(plan: &VhostUserPlan) -> std::result::Result<Listener, vhost_user::Error> {
    match &plan.listen {
        VhostUserListen::Path(path) => vhost_user::bind(path, plan.socket_mode),
        VhostUserListen::Passed(fd) => Listener::from_passed(*fd),
    }
}

/// Starts them, each at its listener.
pub(super) fn start(
    plan: &YardPlan,
    listeners: Vec<Listener>,
    disks: &[OpenDisk],
    threads: &[Handle],
) -> Result<Vec<BackEnd>> {
    let plans = plan.vhost_user.iter().zip(listeners);
    plans.map(|(plan, listener)| back_end(plan, listener, disks, threads)).collect()
}

fn back_end(
    plan: &VhostUserPlan,
    listener: Listener,
    disks: &[OpenDisk],
    threads: &[Handle],
) -> Result<BackEnd> {
    let open =
        disks.get(plan.disk).ok_or_else(|| Error::usage("a vhost-user-blk socket has no disk"))?;
    let disk = open.disk();
    let read_only = plan.read_only || disk.is_read_only();
    let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let bdev = disk
        .open(None, mode)
        .map_err(|err| Error::failed(format!("cannot export {}", disk.name())).caused_by(err))?;
    let mut export = Export::new(Arc::new(bdev));
    if let Some(serial) = &plan.serial {
        export.serial.clone_from(serial);
    }
    export.on_resume = open.holder();
    export.queues = plan.queues.unwrap_or(export.queues);
    let server = Server::start(export, listener, threads.to_vec()).map_err(error)?;
    Ok(BackEnd { disk: plan.disk, server })
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

impl BackEnd {
    /// What it tells of itself.
    pub(super) fn report(&self, disks: &[Arc<Disk>]) -> report::VhostUser {
        let status = self.server.status();
        report::VhostUser {
            disk: disks.get(self.disk).map(|disk| disk.name().to_owned()).unwrap_or_default(),
            socket: self.server.path().map(|path| path.display().to_string()),
            connected: status.connected,
            queues: status.queues,
            requests: status.requests,
        }
    }
}
