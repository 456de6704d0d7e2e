//! A server whose connections do what a test says, and which tells how each was left.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, ErrorCode, HeaderStyle, Request, TransmissionFlags};

/// What the client of a connection is told, and what becomes of its requests.
#[derive(Clone, Copy)]
pub struct Manner {
    pub size: u64,
    pub flags: TransmissionFlags,
    pub style: HeaderStyle,
    pub then: Then,
}

/// What a server does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Answers,
    /// Closes the connection.
    HangsUp,
    /// Says nothing until the test ends, or the client leaves.
    IsSilent,
    /// Answers when the test says so: [`Fake::release`].
    Holds,
    /// Refuses.
    Fails(ErrorCode),
    /// Refuses as soon as it knows what is asked, and takes nothing more until the test says so: [`Fake::take_on`].
    FailsEarly(ErrorCode),
}

pub const USUAL: Manner = Manner {
    size: 1 << 20,
    flags: TransmissionFlags::HAS_FLAGS
        .union(TransmissionFlags::SEND_FLUSH)
        .union(TransmissionFlags::CAN_MULTI_CONN),
    style: HeaderStyle::Structured,
    then: Then::Answers,
};

/// How a connection was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Aborted,
    Disconnected,
    /// Without a word.
    HungUp,
    /// By the server.
    ByUs,
}

/// What has come to a server.
#[derive(Default)]
struct Seen {
    connections: usize,
    requests: Vec<(usize, Command)>,
    takes_on: bool,
    held: Vec<(usize, Request)>,
    streams: HashMap<usize, (UnixStream, HeaderStyle)>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// Connections are treated by `manner`, which is asked with their number, from 0.
pub struct Fake {
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    left: mpsc::Receiver<(usize, Left)>,
}

impl Fake {
    pub fn start(socket: &Path, manner: impl Fn(usize) -> Manner + Send + 'static) -> Self {
        Self::scripted(socket, manner, |manner, _, _| manner.then)
    }

    /// What becomes of each request is up to `script`, which is asked with the number of the connection.
    pub fn scripted(
        socket: &Path,
        manner: impl Fn(usize) -> Manner + Send + 'static,
        script: impl Fn(&Manner, usize, &Request) -> Then + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (tell, left) = mpsc::channel();
        let (shared, script) = (Arc::new(Shared::default()), Arc::new(script));
        let seen = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let (manner, tell) = (manner(number), tell.clone());
                let (shared, script) = (Arc::clone(&seen), Arc::clone(&script));
                shared.seen.lock().connections += 1;
                std::thread::spawn(move || {
                    let then = |request: &Request| script(&manner, number, request);
                    let left = serve(stream.unwrap(), number, manner, &shared, &then);
                    shared.seen.lock().streams.remove(&number);
                    // The test may be over.
                    let _ = tell.send((number, left.unwrap_or(Left::HungUp)));
                });
            }
        });
        Self { thread: Some(thread), socket: socket.to_owned(), stop, shared, left }
    }

    /// The next connection that was left.
    pub fn left(&self) -> (usize, Left) {
        self.left.recv_timeout(super::PATIENCE).expect("no connection was left")
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.seen.lock().connections
    }

    /// What was asked on a connection, in order.
    pub fn asked(&self, number: usize) -> Vec<Command> {
        let seen = self.shared.seen.lock();
        let of = seen.requests.iter().filter(|(of, _)| *of == number);
        of.map(|(_, command)| *command).collect()
    }

    /// Waits until something was asked so many times, on any connection.
    pub fn until_asked(&self, command: Command, times: usize) {
        let mut seen = self.shared.seen.lock();
        let count = |seen: &Seen| seen.requests.iter().filter(|(_, it)| *it == command).count();
        while count(&seen) < times {
            let timed_out = self.shared.changed.wait_for(&mut seen, super::PATIENCE).timed_out();
            assert!(!timed_out, "{command:?} was asked {} times", count(&seen));
        }
    }

    /// Answers what is held on a connection.
    pub fn release(&self, number: usize) {
        let mut seen = self.shared.seen.lock();
        let Seen { held, streams, .. } = &mut *seen;
        let Some((stream, style)) = streams.get_mut(&number) else { return };
        for (_, request) in held.extract_if(.., |(of, _)| *of == number) {
            // Whoever has one answer may not wait for another.
            let _ = stream.write_all(&reply(*style, &request));
        }
    }

    /// Answers what is held on any connection.
    pub fn release_all(&self) {
        let numbers: Vec<_> = self.shared.seen.lock().streams.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.release(number));
    }

    /// From now on all that comes is taken.
    pub fn take_on(&self) {
        self.shared.seen.lock().takes_on = true;
        self.shared.changed.notify_all();
    }

    /// Closes a connection, unless it is closed.
    pub fn hang_up(&self, number: usize) {
        if let Some((stream, _)) = self.shared.seen.lock().streams.get(&number) {
            // The client may have been quicker.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(
    mut stream: UnixStream,
    number: usize,
    manner: Manner,
    shared: &Shared,
    then: &dyn Fn(&Request) -> Then,
) -> std::io::Result<Left> {
    let info = ExportInfo {
        name: String::new(),
        description: String::new(),
        size: manner.size,
        flags: manner.flags,
        block_sizes: None,
    };
    let exports =
        [Export { id: 0, info, contexts: vec![], tls_only: false, block_sizes_required: false }];
    let config = Config { best_style: manner.style, ..Config::default() };
    let mut shake = Handshake::new(config);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let style = loop {
        output.clear();
        shake.poll_transmit(&mut output);
        stream.write_all(&output)?;
        match shake.poll_event() {
            Some(Event::Done(negotiated)) => break negotiated.style,
            Some(Event::Aborted) => return Ok(Left::Aborted),
            _ => {}
        }
        let taken = shake.receive(&exports[..], &input).map_err(std::io::Error::other)?;
        input.drain(..taken);
        if taken == 0 {
            receive(&mut stream, &mut input)?;
        }
    };
    shared.seen.lock().streams.insert(number, (stream.try_clone()?, style));
    // What becomes of a request whose payload is still to come.
    let mut begun = None;
    loop {
        while let Some(request) = Request::parse(style, &input).map_err(std::io::Error::other)? {
            let to = ReplyTo { cookie: request.cookie, offset: request.offset };
            let fate = match begun {
                Some(fate) => fate,
                None => then(&request),
            };
            if let (None, Then::FailsEarly(error)) = (begun.replace(fate), fate) {
                stream.write_all(&ReplyEncoder::new(style).error(to, error))?;
                let mut seen = shared.seen.lock();
                let waits = |seen: &mut Seen| !seen.takes_on;
                shared.changed.wait_while_for(&mut seen, waits, super::PATIENCE);
            }
            let len = style.request_len() + usize::try_from(request.payload_len(style)).unwrap();
            if input.len() < len {
                break;
            }
            begun = None;
            input.drain(..len);
            let mut seen = shared.seen.lock();
            seen.requests.push((number, request.command));
            shared.changed.notify_all();
            match fate {
                _ if request.command == Command::Disc => return Ok(Left::Disconnected),
                Then::Answers => stream.write_all(&reply(style, &request))?,
                Then::HangsUp => return Ok(Left::ByUs),
                Then::IsSilent | Then::FailsEarly(_) => {}
                Then::Holds => seen.held.push((number, request)),
                Then::Fails(error) => {
                    stream.write_all(&ReplyEncoder::new(style).error(to, error))?;
                }
            }
        }
        receive(&mut stream, &mut input)?;
    }
}

/// What was asked for has been done; what is read is sevens.
fn reply(style: HeaderStyle, request: &Request) -> Vec<u8> {
    let (encoder, to) =
        (ReplyEncoder::new(style), ReplyTo { cookie: request.cookie, offset: request.offset });
    if request.command != Command::Read {
        return encoder.ok(to).to_vec();
    }
    let len = u32::try_from(request.length).unwrap();
    let mut reply = encoder.data(to, request.offset, len, true).to_vec();
    reply.resize(reply.len() + usize::try_from(len).unwrap(), 7);
    reply
}

fn receive(stream: &mut UnixStream, input: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buf = [0; 8192];
    match stream.read(&mut buf)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        len => {
            input.extend_from_slice(&buf[..len]);
            Ok(())
        }
    }
}
