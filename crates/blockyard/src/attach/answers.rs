//! The part of a daemon of an attached disk that answers questions.

use std::sync::Arc;
use std::time::Instant;

use blockyard_blkmq::{BlockLayer, Disk};
use blockyard_export_nbd as nbd;
use tokio::sync::{mpsc, oneshot};

use crate::control::{self, Answer};
use crate::error::Result;
use crate::yard::plan::YardPlan;
use crate::yard::report::{self, DeviceReport};

/// Who asks for the end is told how it came out.
pub(super) type Reply = oneshot::Sender<Result<()>>;

/// What is asked about.
pub(super) struct Yard {
    pub(super) plan: YardPlan,
    pub(super) layer: Arc<BlockLayer>,
    pub(super) disks: Vec<Arc<Disk>>,
    pub(super) nbd: Arc<nbd::Server>,
    pub(super) device: DeviceReport,
    /// What tells that from a later one of the same name.
    pub(super) mark: u64,
    pub(super) started: Instant,
    pub(super) ask: mpsc::Sender<Reply>,
}

impl control::Answers for Yard {
    fn report(&self) -> report::Daemon {
        let mut report = report::Daemon::of(&self.plan, &self.disks, &self.nbd, &[], self.started);
        report.devices.push(self.device.clone());
        report
    }

    fn diskstats(&self) -> String {
        self.layer.proc_diskstats()
    }

    fn partitions(&self) -> String {
        self.layer.proc_partitions()
    }

    fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    fn attached(&self) -> Option<(&str, u64)> {
        Some((super::device_name(&self.device.path), self.mark))
    }

    async fn detach(&self) -> Answer {
        let (tell, told) = oneshot::channel();
        if self.ask.send(tell).await.is_err() {
            return Answer::Done;
        }
        match told.await {
            Ok(result) => result.into(),
            Err(_) => Answer::Error("the daemon is ending".into()),
        }
    }
}
