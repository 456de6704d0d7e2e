//! The part of a daemon of an attached disk that answers questions.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::control::{self, Answer};
use crate::disks::OpenDisk;
use crate::error::Result;
use crate::yard::Yard;
use crate::yard::report::{self, DeviceReport};

/// Who asks for the end is told how it came out.
pub(super) type Reply = oneshot::Sender<Result<()>>;

/// What is asked about.
pub(super) struct Answers {
    pub(super) yard: Arc<Yard>,
    pub(super) device: DeviceReport,
    /// What tells that from a later one of the same name.
    pub(super) mark: u64,
    pub(super) ask: mpsc::Sender<Reply>,
}

impl control::Answers for Answers {
    fn report(&self) -> report::Daemon {
        let mut report = self.yard.report();
        report.devices.push(self.device.clone());
        report
    }

    fn diskstats(&self) -> String {
        self.yard.layer().proc_diskstats()
    }

    fn partitions(&self) -> String {
        self.yard.layer().proc_partitions()
    }

    fn disk(&self, name: &str) -> Result<Arc<OpenDisk>> {
        self.yard.disk(name)
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
