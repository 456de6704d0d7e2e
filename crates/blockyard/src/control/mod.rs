//! Control sockets: each daemon has one, by which others on the machine ask what it does.
//!
//! The protocol is one JSON object a line, a question and its answer: `{"ask":"report"}`.

pub mod client;
mod directory;
pub mod report;
mod server;

use serde::{Deserialize, Serialize};

pub use directory::{make as make_runtime_dir, runtime_dir};
pub use server::{Answers, Server};

/// The longest question.
const MAX_QUESTION: u64 = 4096;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// What the daemon does: [`report::Daemon`].
    Report,
    /// The text of /proc/diskstats for its disks.
    Diskstats,
    /// The text of /proc/partitions for its disks.
    Partitions,
    /// Take the disk that it has attached from the kernel, and end.
    Detach,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What the daemon does.
    Report(Box<report::Daemon>),
    /// A text for people and programs that read /proc.
    Text(String),
    /// Done.
    Done,
    /// It cannot be done: exit code, and what is in the way.
    Refused {
        /// The exit code.
        code: u8,
        /// What is in the way, and what to do.
        text: String,
    },
    /// The question was not understood.
    Error(String),
}
