//! How a session begins.

use std::io;
use std::time::{Duration, Instant};

use blockyard_fuse::init::ServerConfig;
use blockyard_fuse::wire::InitFlags;
use blockyard_fuse::{MIN_READ_BUFFER, Operation, Protocol, Request};
use blockyard_sys::fuse::Channel;
use blockyard_sys::net::IoVecs;

/// How long the kernel may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// Which INITs are answered before the kernel is given up: one of a newer major version sends a second.
const ATTEMPTS: usize = 3;

/// Requests at a time that nobody waits for. The kernel counts those of all files together, so that with fewer the ones of a disk
/// that does not end its own would keep all others back; what is too much is told disk by disk, where they are read.
const BACKGROUND: u16 = u16::MAX;

/// Answers the kernel's INIT.
pub(crate) fn handshake(channel: &Channel) -> io::Result<Protocol> {
    let config = ServerConfig::of_files(InitFlags::DIRECT_IO_ALLOW_MMAP, BACKGROUND);
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX);
    let mut request = vec![0; MIN_READ_BUFFER];
    let mut vecs = IoVecs::new();
    let end = Instant::now() + PATIENCE;
    for _ in 0..ATTEMPTS {
        let len = receive(channel, &mut request, &mut vecs, end)?;
        let bytes = request.get(..len).unwrap_or(&[]);
        let parsed = Request::parse(bytes, 0, &Protocol::NONE).map_err(io::Error::other)?;
        let Operation::Init(client) = parsed.operation else {
            return Err(io::Error::other("the kernel asks for something else than INIT first"));
        };
        let mut bytes = Vec::new();
        let agreed = config.greet(parsed.header.unique, &client, page, &mut bytes);
        let mut message = vecs.gather();
        message.push(&bytes);
        channel.write(message)?;
        if let Some(protocol) = agreed.map_err(io::Error::other)? {
            return Ok(protocol);
        }
    }
    Err(io::Error::other("the kernel does not settle on a version of the protocol"))
}

fn receive(
    channel: &Channel,
    into: &mut [u8],
    vecs: &mut IoVecs,
    end: Instant,
) -> io::Result<usize> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || !channel.wait(left)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not begin"));
        }
        let mut places = vecs.scatter();
        places.push(into);
        match channel.read(places) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}
