//! Watches and notifications between the processes that have a store open.
//!
//! A process that watches something listens at a socket in the abstract namespace: nothing of it is left when the process is
//! killed, however that happens. Anybody on the machine may take a name there, so it is one that nobody guesses, and is in the
//! file of the process' session, for those who may open the store; and both sides look whose process the other one is. Whoever
//! tells something asks every other process, each of which tells its own watchers and answers for them. A process in another
//! network namespace cannot be asked, nor one that was stopped: its watchers are not heard, and its lock keeps it from being
//! taken for dead.

use super::watch::Watches;
use crate::class::Caller;
use crate::error::{Error, Result};
use crate::store::{NotifyAnswers, Watcher};
use blockyard_rados::encoding::{EntityAddr, EntityName, EntityType, Reader, Writer};
use bytes::Bytes;
use parking_lot::Mutex;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Most bytes of a question or an answer.
const MAX_MESSAGE: usize = 1 << 20;
/// Most questions that are answered at a time.
const MAX_ASKING: usize = 64;
/// How long a process has to send a question, or to answer one that needs nobody else.
const PATIENCE: Duration = Duration::from_secs(5);
/// The version of the questions.
const VERSION: u8 = 1;

/// A question to another process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    /// Tell those who watch an object, and wait for their answers.
    Notify { key: Vec<u8>, notifier: u64, limit: Duration, payload: Bytes },
    /// Who watches it?
    Watchers { key: Vec<u8> },
}

/// Another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its number.
    pub(super) session: u32,
    /// What its socket is called.
    pub(super) name: String,
}

/// The processes that have a store open.
pub(super) struct Peers {
    /// What this one's socket is called.
    name: String,
    session: u32,
    /// Ends the thread that listens, by being dropped.
    listening: Mutex<Option<oneshot::Sender<()>>>,
}

impl Question {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.versioned(VERSION, VERSION, |w| match self {
            Self::Notify { key, notifier, limit, payload } => {
                w.u8(1);
                w.bytes(key);
                w.u64(*notifier);
                w.u64(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
                w.bytes(payload);
            }
            Self::Watchers { key } => {
                w.u8(2);
                w.bytes(key);
            }
        });
        w.into_bytes()
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut r =
            Reader::new("reading another process' question", bytes).versioned(VERSION)?.fields;
        Ok(match r.u8()? {
            1 => Self::Notify {
                key: r.bytes()?.to_vec(),
                notifier: r.u64()?,
                limit: Duration::from_millis(r.u64()?),
                payload: Bytes::copy_from_slice(r.bytes()?),
            },
            2 => Self::Watchers { key: r.bytes()?.to_vec() },
            _ => return Err(Error::damaged("another process asks what is not known here")),
        })
    }
}

/// An answer: those who answered and what, and those who did not.
fn encode(answers: &NotifyAnswers) -> Vec<u8> {
    let mut w = Writer::new();
    w.versioned(VERSION, VERSION, |w| {
        w.vec(&answers.answered, |w, ((_, cookie), answer)| {
            w.u64(*cookie);
            w.bytes(answer);
        });
        w.vec(&answers.silent, |w, (_, cookie)| w.u64(*cookie));
    });
    w.into_bytes()
}

fn parse(session: u32, bytes: &[u8]) -> Result<NotifyAnswers> {
    let mut r = Reader::new("reading another process' answer", bytes).versioned(VERSION)?.fields;
    let session = u64::from(session);
    let answered =
        r.vec(8 + 4, |r| Ok(((session, r.u64()?), Bytes::copy_from_slice(r.bytes()?))))?;
    let silent = r.vec(8, |r| Ok((session, r.u64()?)))?;
    Ok(NotifyAnswers { answered, silent })
}

async fn send(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(bytes).await
}

async fn receive(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::other("a message is too long"));
    }
    // As much as there is, and not as was said.
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

impl Peers {
    pub(super) fn new(name: String, session: u32) -> Arc<Self> {
        Arc::new(Self { name, session, listening: Mutex::default() })
    }

    /// Listens for others, from the first watch on.
    pub(super) fn listen(&self, watches: &Watches, caller: &Caller) -> Result<()> {
        let mut listening = self.listening.lock();
        if listening.is_some() {
            return Ok(());
        }
        let failed = || Error::io("listening for other processes");
        let listener = StdListener::bind_addr(&address(&self.name).map_err(failed())?);
        let listener = listener.map_err(failed())?;
        listener.set_nonblocking(true).map_err(failed())?;
        let (stop, stopped) = oneshot::channel();
        let (watches, caller) = (watches.clone(), caller.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed())?;
        let thread = std::thread::Builder::new().name("store".to_owned());
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, watches, caller) => {}
                    _ = stopped => {}
                }
            });
        };
        thread.spawn(run).map_err(failed())?;
        *listening = Some(stop);
        Ok(())
    }

    /// Asks another process; nothing if there is nobody who watches, or answers.
    async fn ask(peer: &Peer, question: &Question, limit: Duration) -> Option<NotifyAnswers> {
        let address = address(&peer.name).ok()?;
        let asked = async {
            // It waits where many do, and the other process was stopped.
            let connect = move || StdStream::connect_addr(&address);
            let stream = tokio::task::spawn_blocking(connect).await??;
            stream.set_nonblocking(true)?;
            let mut stream = UnixStream::from_std(stream)?;
            if !is_trusted(&stream)? {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            send(&mut stream, &question.encode()).await?;
            receive(&mut stream).await
        };
        let answer = timeout(limit, asked).await.ok()?.ok()?;
        parse(peer.session, &answer).ok()
    }

    async fn ask_all(others: Vec<Peer>, question: Question, limit: Duration) -> NotifyAnswers {
        let question = Arc::new(question);
        let mut asking = JoinSet::new();
        for peer in others {
            let question = Arc::clone(&question);
            asking.spawn(async move { Self::ask(&peer, &question, limit).await });
        }
        let mut all = NotifyAnswers::default();
        while let Some(answers) = asking.join_next().await {
            if let Ok(Some(answers)) = answers {
                all.answered.extend(answers.answered);
                all.silent.extend(answers.silent);
            }
        }
        all
    }

    /// Tells the watchers of other processes.
    pub(super) async fn notify(
        &self,
        others: Vec<Peer>,
        key: &[u8],
        payload: Bytes,
        limit: Duration,
    ) -> NotifyAnswers {
        let key = key.to_vec();
        let question = Question::Notify { key, notifier: self.session.into(), limit, payload };
        Self::ask_all(others, question, limit.saturating_add(PATIENCE)).await
    }

    /// The watchers of other processes.
    pub(super) async fn watchers(others: Vec<Peer>, key: &[u8]) -> Vec<Watcher> {
        let question = Question::Watchers { key: key.to_vec() };
        let answers = Self::ask_all(others, question, PATIENCE).await;
        let watcher = |(session, cookie): (u64, u64)| {
            let number = i64::try_from(session).unwrap_or_default();
            let nonce = u32::try_from(session).unwrap_or_default();
            let client = EntityName { kind: EntityType::CLIENT, number };
            let addr = EntityAddr { nonce, ..EntityAddr::default() };
            Watcher { client, cookie, timeout: Duration::ZERO, addr }
        };
        answers.silent.into_iter().map(watcher).collect()
    }
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("blockyard-object-store/{name}"))
}

/// Whether the other side is this user, or root: the socket has no permissions of its own.
fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?.uid();
    Ok(peer == 0 || peer == rustix::process::geteuid().as_raw())
}

/// Answers other processes.
async fn serve(listener: StdListener, watches: Watches, caller: Caller) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(MAX_ASKING));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // For want of descriptors, most likely: there are some again later.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (watches, caller) = (watches.clone(), caller.clone());
        tokio::spawn(async move {
            // Whoever asks notices that there is no answer.
            let _answered = answer(stream, &watches, &caller).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: UnixStream, watches: &Watches, caller: &Caller) -> Result<()> {
    let io = || Error::io("answering another process");
    if !is_trusted(&stream).map_err(io())? {
        return Ok(());
    }
    let question = timeout(PATIENCE, receive(&mut stream)).await;
    let question = question.map_err(|late| io()(late.into()))?.map_err(io())?;
    let answers = match Question::parse(&question)? {
        Question::Notify { key, notifier, limit, payload } => {
            watches.notify(&key, &payload, limit, caller, notifier).await
        }
        Question::Watchers { key } => {
            let of_client = |watcher: Watcher| (0, watcher.cookie);
            let silent = watches.of(&key, caller).into_iter().map(of_client).collect();
            NotifyAnswers { answered: Vec::new(), silent }
        }
    };
    timeout(PATIENCE, send(&mut stream, &encode(&answers)))
        .await
        .map_err(|late| io()(late.into()))?
        .map_err(io())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_as_they_were_written() {
        let payload = Bytes::from_static(b"news");
        for question in [
            Question::Notify {
                key: b"key".to_vec(),
                notifier: 7,
                limit: Duration::from_secs(5),
                payload: payload.clone(),
            },
            Question::Watchers { key: b"key".to_vec() },
        ] {
            let bytes = question.encode();
            assert_eq!(Question::parse(&bytes).unwrap(), question);
            for cut in 0..bytes.len() {
                assert!(Question::parse(&bytes[..cut]).is_err(), "{cut}");
            }
        }
        let answers = NotifyAnswers { answered: vec![((9, 1), payload)], silent: vec![(9, 2)] };
        let bytes = encode(&answers);
        assert_eq!(parse(9, &bytes).unwrap(), answers);
        assert!(parse(9, &bytes[..bytes.len() - 1]).is_err());
    }
}
