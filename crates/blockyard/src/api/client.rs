//! Asking daemons.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockyard_sys::{SocketFile, connect_unix};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{MAX_ANSWER, Problem, directory, pid_of_socket};
use crate::error::{Error, Result};

/// How long a daemon may take to accept a connection, and to tell what it does.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question, or a wish.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    body: Option<Value>,
    only_new: bool,
}

/// A name as a part of a path.
#[must_use]
pub fn escaped(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

impl Ask {
    /// What is there.
    #[must_use]
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, only_new: false }
    }

    /// This is wanted there.
    #[must_use]
    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::PUT, path: path.into(), body: Some(body), only_new: false }
    }

    /// The same, unless there is something already.
    #[must_use]
    pub fn put_new(path: impl Into<String>, body: Value) -> Self {
        Self { only_new: true, ..Self::put(path, body) }
    }

    /// This is wanted otherwise.
    #[must_use]
    pub fn patch(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::PATCH, path: path.into(), body: Some(body), only_new: false }
    }

    /// This is to be done there.
    #[must_use]
    pub fn post(path: impl Into<String>, body: Option<Value>) -> Self {
        Self { method: Method::POST, path: path.into(), body, only_new: false }
    }

    /// It is not wanted any more.
    #[must_use]
    pub fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, path: path.into(), body: None, only_new: false }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    /// Whether there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Whether there was something already, and a new one was wanted.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.status == StatusCode::PRECONDITION_FAILED
    }

    /// Whether something was made that was not there before.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.status == StatusCode::CREATED
    }

    /// What it says, unless it says why not.
    ///
    /// # Errors
    /// What is in the way.
    pub fn accepted(self) -> Result<Bytes> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(problem) => Err(problem.into_error()),
            Err(_) => Err(Error::failed(format!("the daemon answered {}", self.status))),
        }
    }

    /// The same as a value; none where there is nothing to say.
    ///
    /// # Errors
    /// As those of [`Answer::value`].
    pub fn value_if_any<T: DeserializeOwned>(self) -> Result<Option<T>> {
        if self.status == StatusCode::NO_CONTENT { Ok(None) } else { self.value().map(Some) }
    }

    /// The same as a value.
    ///
    /// # Errors
    /// What is in the way; it is another value, as daemons of other versions have.
    pub fn value<T: DeserializeOwned>(self) -> Result<T> {
        let body = self.accepted()?;
        serde_json::from_slice(&body)
            .map_err(|err| Error::failed("invalid answer from the daemon").caused_by(err))
    }
}

/// Asks every daemon of this user, and removes the sockets of those that are dead. Answers come in the order of process ids,
/// each with its socket; who does not answer, or says no, is told of in the log.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn ask_all(path: &str) -> Result<Vec<(PathBuf, Answer)>> {
    let directory = directory::runtime_dir()?;
    let mut answers = Vec::new();
    for (pid, socket) in sockets(&directory)? {
        match connect_unix(&socket, PATIENCE) {
            Ok(stream) => match ask(stream, &Ask::get(path), Some(PATIENCE)) {
                Ok(answer) if answer.status.is_success() => answers.push((socket, answer)),
                Ok(answer) => {
                    tracing::warn!(pid, status = %answer.status, "no answer from a daemon");
                }
                Err(err) => tracing::warn!(pid, error = %err, "no answer from a daemon"),
            },
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                // It may stay: it is in nobody's way.
                let _ = SocketFile::remove_stale(&socket);
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => tracing::warn!(pid, error = %err, "cannot connect to a daemon"),
        }
    }
    Ok(answers)
}

/// As [`ask_all`], values.
///
/// # Errors
/// As those of [`ask_all`].
pub fn values_of_all<T: DeserializeOwned>(path: &str) -> Result<Vec<(PathBuf, T)>> {
    let understood = |(socket, answer): (PathBuf, Answer)| match answer.value() {
        Ok(value) => Some((socket, value)),
        Err(err) => {
            let socket = socket.display();
            tracing::warn!(%socket, error = %err, "invalid answer from a daemon");
            None
        }
    };
    Ok(ask_all(path)?.into_iter().filter_map(understood).collect())
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

/// Asks a process, or, where several have its number in PID namespaces of their own, each until one does not say that there is
/// no such thing; none if it is not there any more. It may take as long as it likes.
///
/// # Errors
/// It does not answer.
pub fn ask_one(pid: u32, question: &Ask) -> Result<Option<Answer>> {
    ask_one_in(&directory::runtime_dir()?, pid, question)
}

pub(super) fn ask_one_in(directory: &Path, pid: u32, question: &Ask) -> Result<Option<Answer>> {
    let mut last = Ok(None);
    for (_, socket) in sockets(directory)?.into_iter().filter(|(its, _)| *its == pid) {
        match ask_at(&socket, question) {
            Ok(None) => {}
            Ok(Some(answer)) if answer.is_not_found() => last = Ok(Some(answer)),
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
pub fn ask_at(socket: &Path, question: &Ask) -> Result<Option<Answer>> {
    let failed = |err: io::Error| {
        Error::failed(format!("the daemon at {} does not answer", socket.display())).caused_by(err)
    };
    match connect_unix(socket, PATIENCE) {
        Ok(stream) => ask(stream, question, None).map(Some).map_err(failed),
        Err(err) if is_gone(&err) => Ok(None),
        Err(err) => Err(failed(err)),
    }
}

fn is_gone(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn ask(stream: UnixStream, question: &Ask, patience: Option<Duration>) -> io::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let exchange = exchange(stream, question);
        match patience {
            None => exchange.await,
            Some(limit) => tokio::time::timeout(limit, exchange)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        }
    })
}

async fn exchange(stream: UnixStream, question: &Ask) -> io::Result<Answer> {
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    // It ends with the sender, or says why by its request.
    let connection = tokio::spawn(connection);
    let body = question.body.as_ref().map(Value::to_string).unwrap_or_default();
    let mut request = Request::builder()
        .method(&question.method)
        .uri(&question.path)
        .header(header::HOST, "blockyard")
        .header(header::CONTENT_TYPE, "application/json");
    if question.only_new {
        request = request.header(header::IF_NONE_MATCH, "*");
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(io::Error::other)?;
    let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(io::Error::other)?;
    connection.abort();
    Ok(Answer { status: head.status, body: body.to_bytes() })
}
