//! A server that lies: the connection is closed, requests go another way or fail, and nothing else happens.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use blockyard_blkmq::{Bio, Op, Sector, Status};
use blockyard_buf::Segment;
use blockyard_driver_nbd::{Backoff, NbdConfig};
use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, ErrorCode, HeaderStyle, Request, TransmissionFlags};
use common::{PATIENCE, Place, attach, unix};

/// What a server says to a request, of 4096 bytes at 4096.
type Answer = fn(HeaderStyle, &Request) -> Vec<u8>;

fn to(request: &Request) -> ReplyTo {
    ReplyTo { cookie: request.cookie, offset: request.offset }
}

fn truth(style: HeaderStyle, request: &Request) -> Vec<u8> {
    let encoder = ReplyEncoder::new(style);
    if request.command == Command::Read {
        let mut reply = encoder
            .data(to(request), request.offset, u32::try_from(request.length).unwrap(), true)
            .to_vec();
        reply.resize(reply.len() + usize::try_from(request.length).unwrap(), 7);
        return reply;
    }
    encoder.ok(to(request)).to_vec()
}

/// A listener whose connections are answered with a lie each, and honestly once `lies` are used up.
struct Liar {
    thread: Option<JoinHandle<()>>,
    socket: std::path::PathBuf,
    stop: Arc<AtomicUsize>,
}

impl Liar {
    fn start(socket: &Path, style: HeaderStyle, lies: Vec<Answer>) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicUsize::new(0));
        let stopped = Arc::clone(&stop);
        let mut lies = lies.into_iter();
        let thread = std::thread::spawn(move || {
            let mut serving = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) > 0 {
                    break;
                }
                let answer = lies.next().unwrap_or(truth);
                // Whoever leaves early is what this is about.
                serving
                    .push(std::thread::spawn(move || drop(serve(stream.unwrap(), style, answer))));
            }
            serving.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Self { thread: Some(thread), socket: socket.to_owned(), stop }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Release);
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(mut stream: UnixStream, style: HeaderStyle, answer: Answer) -> std::io::Result<()> {
    let info = ExportInfo {
        name: String::new(),
        description: String::new(),
        size: 1 << 20,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
        block_sizes: None,
    };
    let exports = [Export {
        id: 0,
        info,
        contexts: vec!["base:allocation".into()],
        tls_only: false,
        block_sizes_required: false,
    }];
    let mut shake = Handshake::new(Config { best_style: style, ..Config::default() });
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        output.clear();
        shake.poll_transmit(&mut output);
        stream.write_all(&output)?;
        if let Some(Event::Done(_)) = shake.poll_event() {
            break;
        }
        let taken = shake.receive(&exports[..], &input).map_err(std::io::Error::other)?;
        input.drain(..taken);
        if taken == 0 {
            receive(&mut stream, &mut input)?;
        }
    }
    loop {
        while let Some(request) = Request::parse(style, &input).map_err(std::io::Error::other)? {
            let len = style.request_len() + usize::try_from(request.payload_len(style)).unwrap();
            if input.len() < len {
                break;
            }
            input.drain(..len);
            if request.command == Command::Disc {
                return Ok(());
            }
            stream.write_all(&answer(style, &request))?;
        }
        receive(&mut stream, &mut input)?;
    }
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

const LIES: &[Answer] = &[
    // A cookie that nobody has.
    |style, rq| ReplyEncoder::new(style).ok(ReplyTo { cookie: rq.cookie ^ 1, ..to(rq) }).to_vec(),
    // An earlier use of the same slot.
    |style, rq| {
        ReplyEncoder::new(style).ok(ReplyTo { cookie: rq.cookie & 0xffff_ffff, ..to(rq) }).to_vec()
    },
    // No reply at all.
    |_, _| b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec(),
    |_, _| vec![0; 64],
    // The end of the reply, and more of it.
    |style, rq| [truth(style, rq), truth(style, rq)].concat(),
    // An error that is none: of a simple reply to a read the data is missing.
    |style, rq| ReplyEncoder::new(style).error(to(rq), ErrorCode(0)).to_vec(),
];

/// Lies that need chunks.
const LIES_IN_CHUNKS: &[Answer] = &[
    // More data than was asked for, elsewhere, twice, or none.
    |style, rq| ReplyEncoder::new(style).data(to(rq), rq.offset, 4097, true).to_vec(),
    |style, rq| ReplyEncoder::new(style).data(to(rq), rq.offset, 1 << 31, true).to_vec(),
    |style, rq| ReplyEncoder::new(style).data(to(rq), rq.offset - 1, 4096, true).to_vec(),
    |style, rq| ReplyEncoder::new(style).data(to(rq), u64::MAX - 4, 4096, true).to_vec(),
    |style, rq| ReplyEncoder::new(style).hole(to(rq), rq.offset, u32::MAX, true).to_vec(),
    |style, rq| {
        let encoder = ReplyEncoder::new(style);
        [
            &*encoder.hole(to(rq), rq.offset, 512, false),
            &encoder.hole(to(rq), rq.offset, 512, false),
        ]
        .concat()
    },
    |style, rq| ReplyEncoder::new(style).ok(to(rq)).to_vec(),
    // A simple reply to a read, though chunks were agreed on; extended ones where structured were.
    |_, rq| ReplyEncoder::new(HeaderStyle::Simple).data(to(rq), rq.offset, 4096, true).to_vec(),
    |style, rq| {
        let other = if style == HeaderStyle::Extended {
            HeaderStyle::Structured
        } else {
            HeaderStyle::Extended
        };
        ReplyEncoder::new(other).data(to(rq), rq.offset, 4096, true).to_vec()
    },
];

fn is_lied_to(style: HeaderStyle, lies: Vec<Answer>) {
    let place = Place::new();
    let socket = place.path("s");
    let count = lies.len();
    let _liar = Liar::start(&socket, style, lies);
    let config = NbdConfig {
        timeout: Duration::from_millis(300),
        dead_conn_timeout: PATIENCE,
        backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(5) },
        ..unix(&socket)
    };
    let disk = attach(config, 1);
    assert_eq!(disk.export.style, style);
    // Memory that lies between memory which must not be touched.
    for _ in 0..=count {
        let memory = Segment::from_vec(vec![1; 3 * 4096]);
        let part = [memory.slice(4096, 4096)].into_iter().collect();
        let bio = disk.run(Bio::with_data(Op::Read, Sector(8), part));
        let bytes = memory.to_vec();
        assert!(bytes[..4096].iter().chain(&bytes[8192..]).all(|byte| *byte == 1), "outside");
        // One that has lost five connections fails.
        if bio.status() != Status::Transport {
            assert_eq!(bio.status(), Status::Ok, "by the first honest connection");
            assert!(bytes[4096..8192].iter().all(|byte| *byte == 7), "inside");
        }
    }
    assert_eq!(disk.read(4096, 4096).unwrap(), [7; 4096]);
}

#[test]
fn lies_in_simple_replies() {
    is_lied_to(HeaderStyle::Simple, LIES.to_vec());
}

#[test]
fn lies_in_structured_replies() {
    is_lied_to(HeaderStyle::Structured, [LIES, LIES_IN_CHUNKS].concat());
}

#[test]
fn lies_in_extended_replies() {
    is_lied_to(HeaderStyle::Extended, [LIES, LIES_IN_CHUNKS].concat());
}

#[test]
fn what_is_no_nbd_server_is_refused_with_a_reason() {
    let place = Place::new();
    let socket = place.path("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let web = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request, and quite a long one\r\n\r\n").unwrap();
    });
    let err = common::try_attach(unix(&socket), 1).err().unwrap();
    web.join().unwrap();
    assert!(err.chain().contains("magic number"), "{}", err.chain());
    let silent = UnixListener::bind(place.path("t")).unwrap();
    let limit = Some(Duration::from_millis(50));
    let config = NbdConfig { connect_timeout: limit, ..unix(&place.path("t")) };
    let err = common::try_attach(config, 1).err().unwrap();
    assert!(err.chain().contains("does not answer within 50ms"), "{}", err.chain());
    drop(silent);
}

/// Whatever it is asked for besides, it answers.
#[test]
fn who_lies_in_every_block_map_is_given_up() {
    let lie: Answer = |style, rq| {
        if rq.command == Command::BlockStatus {
            // A reply to a read.
            return ReplyEncoder::new(style).data(to(rq), rq.offset, 4096, true).to_vec();
        }
        truth(style, rq)
    };
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let place = Place::new();
        let liar = Liar::start(&place.path("s"), style, vec![lie; 100]);
        let config = NbdConfig {
            timeout: PATIENCE,
            dead_conn_timeout: PATIENCE,
            backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(5) },
            ..unix(&place.path("s"))
        };
        let disk = attach(config, 1);
        let map = disk.run(Bio::new(Op::BlockStatus, Sector(0), 1 << 20));
        assert_eq!(map.status(), Status::Transport);
        assert_eq!(disk.read(4096, 4096).unwrap(), [7; 4096], "others go on");
        drop((disk, liar));
    }
}
