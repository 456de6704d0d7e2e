//! Asking daemons.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, Question, directory};
use crate::error::{Error, Result};

/// How long a daemon may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks every daemon of this user, and removes the sockets of those that are dead. Answers come in the order of
/// process ids.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn ask_all(question: &Question) -> Result<Vec<Answer>> {
    let directory = directory::runtime_dir()?;
    let failed = |err: io::Error| {
        Error::failed(format!("cannot look for daemons in {}", directory.display())).caused_by(err)
    };
    let mut sockets = match std::fs::read_dir(&directory) {
        Ok(entries) => entries.filter_map(|entry| socket(&entry.ok()?.path())).collect::<Vec<_>>(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(err) => return Err(failed(err)),
    };
    sockets.sort();
    let mut answers = Vec::new();
    for (pid, path) in sockets {
        match UnixStream::connect(&path) {
            Ok(stream) => match ask(stream, question, Some(PATIENCE)) {
                Ok(answer) => answers.push(answer),
                Err(err) => tracing::warn!(pid, error = %err, "a daemon does not answer"),
            },
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                // Another may have been faster.
                let _ = std::fs::remove_file(&path);
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(failed(err)),
        }
    }
    Ok(answers)
}

/// Asks one daemon; none if it is not there any more. It may take as long as it likes.
///
/// # Errors
/// It does not answer.
pub fn ask_one(pid: u32, question: &Question) -> Result<Option<Answer>> {
    let path = directory::runtime_dir()?.join(format!("{pid}.sock"));
    let failed =
        |err: io::Error| Error::failed(format!("the daemon {pid} does not answer")).caused_by(err);
    match UnixStream::connect(&path) {
        Ok(stream) => ask(stream, question, None).map(Some).map_err(failed),
        Err(err) if is_gone(&err) => Ok(None),
        Err(err) => Err(failed(err)),
    }
}

fn is_gone(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Whether a daemon lives.
///
/// # Errors
/// The runtime directory is not to be used.
pub fn is_alive(pid: u32) -> Result<bool> {
    let path = directory::runtime_dir()?.join(format!("{pid}.sock"));
    Ok(UnixStream::connect(path).is_ok())
}

/// The process id in the name of a control socket.
fn socket(path: &Path) -> Option<(u32, PathBuf)> {
    let pid = path.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok()?;
    Some((pid, path.to_owned()))
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
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
