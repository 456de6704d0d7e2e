//! A server that closes a connection as soon as its client does, and goes on with what it has, as QEMU's does: nothing may
//! be read from an end that we have caused ourselves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use blockyard_blkmq::Status;
use blockyard_driver_nbd::{Backoff, NbdConfig};
use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, HeaderStyle, Request, TransmissionFlags};
use common::{PATIENCE, Place, attach, unix, write};

const MIB: u64 = 1 << 20;
const STYLE: HeaderStyle = HeaderStyle::Structured;

/// A connection of a server, after the handshake.
struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Connection {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let mut this = Self { stream, input: Vec::new() };
        let info = ExportInfo {
            name: String::new(),
            description: String::new(),
            size: 4 * MIB,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
            block_sizes: None,
        };
        let contexts = Vec::new();
        let export = Export { id: 0, info, contexts, tls_only: false, block_sizes_required: false };
        let mut shake = Handshake::new(Config { best_style: STYLE, ..Config::default() });
        loop {
            let mut output = Vec::new();
            shake.poll_transmit(&mut output);
            this.stream.write_all(&output).unwrap();
            if let Some(Event::Done(negotiated)) = shake.poll_event() {
                assert_eq!(negotiated.style, STYLE);
                return this;
            }
            let taken = shake.receive(std::slice::from_ref(&export), &this.input).unwrap();
            this.input.drain(..taken);
            if taken == 0 {
                assert!(this.receive().unwrap() > 0, "the client has left");
            }
        }
    }

    fn receive(&mut self) -> std::io::Result<usize> {
        let mut bytes = [0; 4096];
        let got = self.stream.read(&mut bytes)?;
        self.input.extend(&bytes[..got]);
        Ok(got)
    }

    /// The next request, with its payload; `None` if the client is gone.
    fn request(&mut self) -> Option<(Request, Vec<u8>)> {
        loop {
            if let Some(request) = Request::parse(STYLE, &self.input).unwrap() {
                let head = STYLE.request_len();
                let len = head + usize::try_from(request.payload_len(STYLE)).unwrap();
                if self.input.len() >= len {
                    let payload = self.input.drain(..len).skip(head).collect();
                    return Some((request, payload));
                }
            }
            if self.receive().ok()? == 0 {
                return None;
            }
        }
    }

    /// What is read is zeroes.
    fn answer(&mut self, request: &Request) {
        let to = ReplyTo { cookie: request.cookie, offset: request.offset };
        let encoder = ReplyEncoder::new(STYLE);
        let reply = if request.command == Command::Read {
            let len = u32::try_from(request.length).unwrap();
            let mut reply = encoder.data(to, request.offset, len, true).to_vec();
            reply.resize(reply.len() + usize::try_from(len).unwrap(), 0);
            reply
        } else {
            encoder.ok(to).to_vec()
        };
        self.stream.write_all(&reply).unwrap();
    }

    /// Whether the client has closed its half.
    fn has_ended(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let ended = loop {
            match self.receive() {
                Ok(0) => break true,
                Ok(_) => {}
                Err(err) => break err.kind() != ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).unwrap();
        ended
    }

    /// Carries out what comes, telling what was written where.
    fn serve(mut self, written: &mpsc::Sender<(u64, u8)>) {
        while let Some((request, payload)) = self.request() {
            if let Some(byte) = payload.first() {
                written.send((request.offset, *byte)).unwrap();
            }
            self.answer(&request);
        }
    }
}

/// What a test and its server tell each other.
struct Ends {
    came: mpsc::Receiver<()>,
    go_on: mpsc::Sender<()>,
    /// Whether the first connection had come to its end when it was told to go on.
    had_ended: mpsc::Receiver<bool>,
    written: mpsc::Receiver<(u64, u8)>,
}

/// The first connection keeps its first request until it is told to go on; the second does what it is asked.
fn serve(socket: &Path) -> Ends {
    let listener = UnixListener::bind(socket).unwrap();
    let (came, told_came) = mpsc::channel();
    let (go_on, told_go_on) = mpsc::channel();
    let (tell_end, had_ended) = mpsc::channel();
    let (tell, written) = mpsc::channel();
    std::thread::spawn(move || {
        let mut first = Connection::accept(&listener);
        let (request, payload) = first.request().unwrap();
        came.send(()).unwrap();
        let tells = tell.clone();
        let second = std::thread::spawn(move || Connection::accept(&listener).serve(&tells));
        told_go_on.recv().unwrap();
        let ended = first.has_ended();
        tell_end.send(ended).unwrap();
        if !ended {
            tell.send((request.offset, payload[0])).unwrap();
            first.answer(&request);
            first.serve(&tell);
        }
        second.join().unwrap();
    });
    Ends { came: told_came, go_on, had_ended, written }
}

#[test]
fn a_connection_that_is_given_up_is_not_half_closed_while_something_is_out_on_it() {
    let place = Place::new();
    let socket = place.path("s");
    let Ends { came, go_on, had_ended, written } = serve(&socket);
    let config = NbdConfig {
        connections: Some(1),
        timeout: Duration::from_millis(100),
        dead_conn_timeout: PATIENCE,
        fence_timeout: PATIENCE,
        backoff: Backoff { first: Duration::from_millis(5), most: Duration::from_millis(50) },
        ..unix(&socket)
    };
    let disk = attach(config, 1);
    let first = disk.submit(0, write(0, &[1; 512]));
    came.recv_timeout(PATIENCE).unwrap();
    // It is silent for too long: what comes later goes by another connection, unless it would overtake what is out.
    assert_eq!(disk.read(MIB, 512).unwrap(), [0; 512]);
    assert_eq!(disk.write(MIB, &[2; 512]), Status::Ok);
    let behind = disk.submit(0, write(0, &[3; 512]));
    assert_eq!(disk.write(2 * MIB, &[4; 512]), Status::Ok);
    assert!(first.try_recv().is_err() && behind.try_recv().is_err(), "nothing was settled");
    go_on.send(()).unwrap();
    assert!(!had_ended.recv_timeout(PATIENCE).unwrap(), "the client has closed its half");
    for end in [first, behind] {
        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    }
    let at_start: Vec<_> = written.try_iter().filter(|(at, _)| *at == 0).collect();
    assert_eq!(at_start, [(0, 1), (0, 3)], "each once, and the later one last");
}
