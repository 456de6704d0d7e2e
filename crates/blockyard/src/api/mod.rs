//! The control API: what others on the machine ask a daemon, and change in it. HTTP/1.1 and JSON below `/v1`, on a unix socket
//! that only its user may use. `docs/api-v1.json` describes it (OpenAPI 3.1).

pub mod client;
mod directory;
mod fault_routes;
mod job_routes;
mod jobs;
mod openapi;
mod problem;
mod request;
mod routes;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::error::Result;
use crate::yard::report::DeviceReport;

pub use directory::{make as make_runtime_dir, pass_runtime_dir, runtime_dir};
pub use openapi::document;
pub use problem::Problem;
pub(crate) use routes::metrics_router;
#[cfg(test)]
pub(crate) use server::Accept;
pub use server::Server;
pub(crate) use server::serve_connections;

/// The longest body of a request.
const MAX_REQUEST: usize = 64 << 10;
/// How long it may take to come: who names one and sends none has a connection meanwhile.
const BODY_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// The longest answer that a client takes.
const MAX_ANSWER: usize = 64 << 20;
/// Connections at a time.
pub(crate) const MAX_CONNECTIONS: usize = 128;
/// Of those, the ones that may listen to events: the others are for those who ask.
const MAX_LISTENERS: usize = 64;
/// Daemons of the same number, in PID namespaces of their own, that can share a runtime directory.
const MAX_SAME_PID: u32 = 64;

/// Who asks for the end of an attachment is told how it came out.
pub type Reply = oneshot::Sender<Result<()>>;

/// The disk of the kernel that a daemon serves, and nothing else.
#[derive(Clone)]
pub struct Attached {
    /// What is told of it.
    pub device: DeviceReport,
    /// Takes it from the kernel, and ends the daemon.
    pub detach: mpsc::Sender<Reply>,
}

/// The name of the control socket of a process; the first is `PID.sock`, others are for processes of other namespaces that
/// have the same number.
fn socket_name(pid: u32, index: u32) -> String {
    if index == 0 { format!("{pid}.sock") } else { format!("{pid}-{index}.sock") }
}

/// The process in the name of a control socket.
fn pid_of_socket(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(".sock")?;
    let pid = stem.split_once('-').map_or(stem, |(pid, _)| pid);
    pid.parse().ok()
}
