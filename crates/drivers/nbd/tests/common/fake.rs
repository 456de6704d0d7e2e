//! A server whose connections do what a test says, and which tells how each was left.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, HeaderStyle, Request, TransmissionFlags};

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

/// Connections are treated by `manner`, which is asked with their number, from 0.
pub struct Fake {
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    left: mpsc::Receiver<(usize, Left)>,
}

impl Fake {
    pub fn start(socket: &Path, manner: impl Fn(usize) -> Manner + Send + 'static) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (tell, left) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let (manner, tell) = (manner(number), tell.clone());
                std::thread::spawn(move || {
                    let left = serve(stream.unwrap(), manner).unwrap_or(Left::HungUp);
                    // The test may be over.
                    let _ = tell.send((number, left));
                });
            }
        });
        Self { thread: Some(thread), socket: socket.to_owned(), stop, left }
    }

    /// The next connection that was left.
    pub fn left(&self) -> (usize, Left) {
        self.left.recv_timeout(super::PATIENCE).expect("no connection was left")
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

fn serve(mut stream: UnixStream, manner: Manner) -> std::io::Result<Left> {
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
    loop {
        while let Some(request) = Request::parse(style, &input).map_err(std::io::Error::other)? {
            let len = style.request_len() + usize::try_from(request.payload_len(style)).unwrap();
            if input.len() < len {
                break;
            }
            input.drain(..len);
            match manner.then {
                _ if request.command == Command::Disc => return Ok(Left::Disconnected),
                Then::Answers => stream.write_all(&reply(style, &request))?,
                Then::HangsUp => return Ok(Left::ByUs),
                Then::IsSilent => {}
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
