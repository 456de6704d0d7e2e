//! Control sockets: each daemon has one, by which others on the machine ask what it does.
//!
//! The protocol is one JSON object a line, a question and its answer: `{"ask":"report"}`.

pub mod client;
mod directory;
pub mod report;
mod server;

use serde::{Deserialize, Serialize};

use crate::error::{self, Error, ErrorKind, Result};

pub use directory::{make as make_runtime_dir, pass_runtime_dir, runtime_dir};
pub use server::{Answers, Server};

/// The longest question.
const MAX_QUESTION: u64 = 4096;

/// The longest answer.
const MAX_ANSWER: u64 = 64 << 20;
/// Daemons of the same number, in PID namespaces of their own, that can share a runtime directory.
const MAX_SAME_PID: u32 = 64;

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

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Change one of its disks, while it is used.
    Set {
        /// The disk's name.
        disk: String,
        /// What to change.
        change: Change,
    },
}

/// What can be changed of a disk that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Its size, in bytes.
    Size(u64),
    /// Whether nobody may change it.
    ReadOnly(bool),
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

impl From<Result<()>> for Answer {
    fn from(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(err) => {
                let mut text = String::new();
                // Writing to a string does not fail.
                let _ = error::describe(&err, &mut text);
                Self::Refused { code: err.kind().exit_code(), text }
            }
        }
    }
}

impl Answer {
    /// The answer, unless it says why not.
    ///
    /// # Errors
    /// What is in the way.
    pub fn accepted(self) -> Result<Self> {
        match self {
            Self::Refused { code, text } => {
                Err(error::described(ErrorKind::of_exit_code(code), &text))
            }
            Self::Error(text) => Err(Error::failed(text)),
            answer => Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_for_its_process() {
        assert_eq!(socket_name(7, 0), "7.sock");
        for index in [0, 1, MAX_SAME_PID] {
            assert_eq!(pid_of_socket(&socket_name(7, index)), Some(7));
        }
        for other in ["7.sock.0a1b2c3d", "x.sock", "7", ".sock", "attached"] {
            assert_eq!(pid_of_socket(other), None, "{other}");
        }
    }
}
