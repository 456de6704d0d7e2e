//! Asking daemons.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockyard_sys::{SocketFile, connect_unix};

use super::{Answer, MAX_ANSWER, Question, directory, pid_of_socket};
use crate::error::{Error, Result};

/// How long a daemon may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks every daemon of this user, and removes the sockets of those that are dead. Answers come in the order of
/// process ids.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn ask_all(question: &Question) -> Result<Vec<Answer>> {
    Ok(ask_each(question)?.into_iter().map(|(_, answer)| answer).collect())
}

/// As [`ask_all`], with the socket of each that has answered.
///
/// # Errors
/// As those of [`ask_all`].
pub fn ask_each(question: &Question) -> Result<Vec<(PathBuf, Answer)>> {
    let directory = directory::runtime_dir()?;
    let mut answers = Vec::new();
    for (pid, path) in sockets(&directory)? {
        match connect_unix(&path) {
            Ok(stream) => match ask(stream, question, Some(PATIENCE)) {
                Ok(answer) => answers.push((path, answer)),
                Err(err) => tracing::warn!(pid, error = %err, "a daemon does not answer"),
            },
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                // It may stay: it is in nobody's way.
                let _ = SocketFile::remove_stale(&path);
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(failed(&directory, err)),
        }
    }
    Ok(answers)
}

fn failed(directory: &Path, err: io::Error) -> Error {
    Error::failed(format!("cannot look for daemons in {}", directory.display())).caused_by(err)
}

/// The control sockets in a directory, by the number of their processes.
fn sockets(directory: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(failed(directory, err)),
    };
    let named = |entry: std::fs::DirEntry| {
        Some((pid_of_socket(entry.file_name().to_str()?)?, entry.path()))
    };
    let mut sockets: Vec<_> = entries.flatten().filter_map(named).collect();
    sockets.sort();
    Ok(sockets)
}

/// Asks a process, or, where several have its number in PID namespaces of their own, each until one does not say that it is
/// not meant ([`Answer::Error`]); none if it is not there any more. It may take as long as it likes.
///
/// # Errors
/// It does not answer.
pub fn ask_one(pid: u32, question: &Question) -> Result<Option<Answer>> {
    ask_one_in(&directory::runtime_dir()?, pid, question)
}

pub(super) fn ask_one_in(
    directory: &Path,
    pid: u32,
    question: &Question,
) -> Result<Option<Answer>> {
    let mut last = Ok(None);
    for (_, path) in sockets(directory)?.into_iter().filter(|(its, _)| *its == pid) {
        match ask_at(&path, question) {
            Ok(None) => {}
            Ok(Some(Answer::Error(text))) => last = Ok(Some(Answer::Error(text))),
            Ok(answer) => return Ok(answer),
            // Another of that number may be the one that is meant.
            Err(err) => last = Err(err),
        }
    }
    last
}

/// Asks the daemon at a socket; none if it is not there any more. It may take as long as it likes.
///
/// # Errors
/// It does not answer.
pub fn ask_at(path: &Path, question: &Question) -> Result<Option<Answer>> {
    let failed = |err: io::Error| {
        Error::failed(format!("the daemon at {} does not answer", path.display())).caused_by(err)
    };
    match connect_unix(path) {
        Ok(stream) => ask(stream, question, None).map(Some).map_err(failed),
        Err(err) if is_gone(&err) => Ok(None),
        Err(err) => Err(failed(err)),
    }
}

fn is_gone(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn ask(
    mut stream: UnixStream,
    question: &Question,
    patience: Option<Duration>,
) -> io::Result<Answer> {
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(question)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).take(MAX_ANSWER).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
