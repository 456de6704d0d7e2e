//! Control sockets: each daemon has one, by which others on the machine ask what it does.
//!
//! The protocol is one JSON object a line, a question and its answer: `{"ask":"report"}`.

pub mod client;
mod directory;
mod server;

use serde::{Deserialize, Serialize};

use crate::error::{self, Error, ErrorKind, Result};
use crate::yard::report;

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
    Detach {
        /// The name of the kernel's disk, as `nbd0`.
        device: String,
        /// What tells it from a later one of that name.
        mark: u64,
    },
    /// Change one of its disks, while it is used.
    Set {
        /// The disk's name.
        disk: String,
        /// The option to change.
        setting: String,
        /// What it is to be, as a URI has it.
        value: String,
    },
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::disks::OpenDisk;

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

    /// A daemon, and how often its disk was taken away.
    struct Daemon {
        device: &'static str,
        mark: u64,
        detached: Arc<AtomicU32>,
    }

    impl Answers for Daemon {
        fn report(&self) -> report::Daemon {
            unreachable!("nobody asks for it")
        }

        fn diskstats(&self) -> String {
            String::new()
        }

        fn partitions(&self) -> String {
            String::new()
        }

        fn disk(&self, _: &str) -> Result<Arc<OpenDisk>> {
            unreachable!("nobody asks for it")
        }

        fn attached(&self) -> Option<(&str, u64)> {
            Some((self.device, self.mark))
        }

        async fn detach(&self) -> Answer {
            self.detached.fetch_add(1, Ordering::Relaxed);
            Answer::Done
        }
    }

    /// As two containers that share a runtime directory may have them.
    #[tokio::test]
    async fn of_daemons_with_the_same_number_the_one_that_is_meant_is_asked_to_detach() {
        let dir = tempfile::tempdir().unwrap();
        let start = |device, mark| {
            let detached = Arc::new(AtomicU32::new(0));
            let daemon = Daemon { device, mark, detached: Arc::clone(&detached) };
            let server = Server::bind_in(dir.path(), 7, Arc::new(daemon)).unwrap();
            tokio::spawn(server.serve());
            detached
        };
        let (first, second) = (start("nbd0", 1), start("nbd1", 2));
        assert!(dir.path().join("7.sock").exists() && dir.path().join("7-1.sock").exists());
        let detach = async |device: &str, mark| {
            let question = Question::Detach { device: device.into(), mark };
            let path = dir.path().to_owned();
            let ask = move || client::ask_one_in(&path, 7, &question);
            tokio::task::spawn_blocking(ask).await.unwrap().unwrap().unwrap()
        };
        let counts = || (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        assert!(matches!(detach("nbd1", 2).await, Answer::Done));
        assert_eq!(counts(), (0, 1));
        assert!(matches!(detach("nbd0", 1).await, Answer::Done));
        assert_eq!(counts(), (1, 1));
        // One of that name, or of that mark, is not enough.
        for (device, mark) in [("nbd1", 1), ("nbd2", 2)] {
            assert!(matches!(detach(device, mark).await, Answer::Error(_)), "{device}");
        }
        assert_eq!(counts(), (1, 1));
    }
}
