//! The daemon's end of a control socket.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::Disk;
use blockyard_sys::SocketFile;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{Answer, MAX_QUESTION, MAX_SAME_PID, Question, directory, socket_name};
use crate::disks::{self, OpenDisk};
use crate::error::{Error, Result};
use crate::yard::report;

/// How long a connection may ask nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long nothing is accepted when the system is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who can answer questions about a daemon.
pub trait Answers: Send + Sync + 'static {
    /// What it does.
    fn report(&self) -> report::Daemon;
    /// The text of /proc/diskstats for its disks.
    fn diskstats(&self) -> String;
    /// The text of /proc/partitions for its disks.
    fn partitions(&self) -> String;
    /// The disk of that name.
    ///
    /// # Errors
    /// There is none.
    fn disk(&self, name: &str) -> Result<Arc<OpenDisk>>;
    /// The kernel's disk that it serves, and its mark.
    fn attached(&self) -> Option<(&str, u64)> {
        None
    }
    /// Takes that from the kernel. Asked only by who names it.
    fn detach(&self) -> impl Future<Output = Answer> + Send {
        std::future::ready(Answer::Error("nothing is attached to the kernel here".into()))
    }
}

/// A control socket. It is removed in the end.
pub struct Server<A> {
    listener: UnixListener,
    _file: SocketFile,
    answers: Arc<A>,
}

impl<A: Answers> Server<A> {
    /// Makes the socket of this process in the runtime directory.
    ///
    /// # Errors
    /// The directory cannot be made or written to.
    pub fn bind(answers: Arc<A>) -> Result<Self> {
        Self::bind_in(&directory::runtime_dir()?, std::process::id(), answers)
    }

    pub(super) fn bind_in(directory: &Path, pid: u32, answers: Arc<A>) -> Result<Self> {
        let made = directory::make(directory).and_then(|()| listen(directory, pid));
        let (listener, file) = made.map_err(|err| {
            Error::failed(format!("cannot make a control socket in {}", directory.display()))
                .caused_by(err)
                .help("set BLOCKYARD_RUNTIME_DIR to a directory that this user may write to")
        })?;
        Ok(Self { listener, _file: file, answers })
    }

    /// Answers for ever.
    pub async fn serve(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(answer_all(stream, Arc::clone(&self.answers)));
                }
                Err(err) => {
                    tracing::warn!(error = %err, "a control connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A process of another PID namespace that uses the same directory may have our number: then our socket has another name.
fn listen(directory: &Path, pid: u32) -> io::Result<(UnixListener, SocketFile)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for index in 0..MAX_SAME_PID {
        let path = directory.join(socket_name(pid, index));
        match SocketFile::bind(&path, Some(0o600), BACKLOG) {
            Ok((socket, file)) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                return Ok((UnixListener::from_std(listener)?, file));
            }
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => last = err,
            Err(err) => return Err(err),
        }
    }
    Err(last)
}

async fn answer_all<A: Answers>(stream: UnixStream, answers: Arc<A>) {
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input);
    loop {
        let mut line = String::new();
        let mut limited = (&mut input).take(MAX_QUESTION);
        match tokio::time::timeout(PATIENCE, limited.read_line(&mut line)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => return,
        }
        let answer = answer(&line, &*answers).await;
        let Ok(mut text) = serde_json::to_string(&answer) else { return };
        text.push('\n');
        if output.write_all(text.as_bytes()).await.is_err() || !line.ends_with('\n') {
            return;
        }
    }
}

async fn answer(line: &str, answers: &impl Answers) -> Answer {
    match serde_json::from_str(line) {
        Ok(Question::Report) => Answer::Report(Box::new(answers.report())),
        Ok(Question::Diskstats) => Answer::Text(answers.diskstats()),
        Ok(Question::Partitions) => Answer::Text(answers.partitions()),
        // A process of another PID namespace may have the number of the one that is meant.
        Ok(Question::Detach { device, mark }) => {
            if answers.attached() == Some((&device, mark)) {
                answers.detach().await
            } else {
                Answer::Error(format!("{device} is not served here"))
            }
        }
        Ok(Question::Set { disk, setting, value }) => match answers.disk(&disk) {
            Ok(open) => set(Arc::clone(open.disk()), setting, value).await,
            Err(err) => Answer::Error(err.to_string()),
        },
        Err(err) => Answer::Error(format!("not understood: {err}")),
    }
}

/// Changes a disk. It may take a while, as files are made longer for certain.
async fn set(disk: Arc<Disk>, setting: String, value: String) -> Answer {
    let change = move || {
        let (option, value) = disks::setting(&setting, &value)?;
        match option.live {
            Some(change) => change(&disk, &value),
            None => unreachable!("{setting} is no setting"),
        }
    };
    match tokio::task::spawn_blocking(change).await {
        Ok(changed) => changed.into(),
        Err(_) => Answer::Error("the daemon failed at it; its log says why".into()),
    }
}
