//! The daemon's end of a control socket.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Disk, SECTOR_SIZE, Sector};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{Answer, Change, MAX_QUESTION, Question, directory, report};
use crate::error::{Error, Result};

/// How long a connection may ask nothing.
const PATIENCE: Duration = Duration::from_secs(10);
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
    /// Its disks.
    fn disks(&self) -> &[Arc<Disk>];
    /// Takes its disk from the kernel.
    fn detach(&self) -> impl Future<Output = Answer> + Send {
        std::future::ready(Answer::Error("nothing is attached to the kernel here".into()))
    }
}

/// A control socket. It is removed in the end.
pub struct Server<A> {
    listener: UnixListener,
    path: PathBuf,
    answers: Arc<A>,
}

impl<A: Answers> Server<A> {
    /// Makes the socket of this process in the runtime directory.
    ///
    /// # Errors
    /// The directory cannot be made or written to.
    pub fn bind(answers: Arc<A>) -> Result<Self> {
        let directory = directory::runtime_dir()?;
        let path = directory.join(format!("{}.sock", std::process::id()));
        let made = directory::make(&directory).and_then(|()| Self::listen(&path));
        let listener = made.map_err(|err| {
            Error::failed(format!("cannot make the control socket {}", path.display()))
                .caused_by(err)
                .help("set BLOCKYARD_RUNTIME_DIR to a directory that this user may write to")
        })?;
        Ok(Self { listener, path, answers })
    }

    fn listen(path: &Path) -> io::Result<UnixListener> {
        // Nobody else has our process id: what is there was left by the dead.
        match std::fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
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

impl<A> Drop for Server<A> {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
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
        Ok(Question::Detach) => answers.detach().await,
        Ok(Question::Set { disk, change }) => {
            match answers.disks().iter().find(|it| it.name() == disk) {
                Some(disk) => set(Arc::clone(disk), change).await,
                None => Answer::Error(format!("there is no disk {disk:?} here")),
            }
        }
        Err(err) => Answer::Error(format!("not understood: {err}")),
    }
}

/// Changes a disk. It may take a while, as files are made longer for certain.
async fn set(disk: Arc<Disk>, change: Change) -> Answer {
    let change = move || match change {
        Change::Size(bytes) if !bytes.is_multiple_of(SECTOR_SIZE) => {
            let what = format!("{bytes} is no multiple of {SECTOR_SIZE}");
            Err(blockyard_blkmq::Error::new(blockyard_blkmq::ErrorKind::Invalid, what))
        }
        Change::Size(bytes) => disk.resize(Sector(bytes / SECTOR_SIZE)),
        Change::ReadOnly(read_only) => {
            disk.set_read_only(read_only);
            Ok(())
        }
    };
    match tokio::task::spawn_blocking(change).await {
        Ok(changed) => {
            changed.map_err(|err| Error::failed("cannot change the disk").caused_by(err)).into()
        }
        Err(_) => Answer::Error("the daemon failed at it; its log says why".into()),
    }
}
