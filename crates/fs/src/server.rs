//! A file system on the device: threads that each take a request, carry it out and answer it.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use blockyard_fuse::wire::InitFlags;
use blockyard_fuse::{Errno, MIN_READ_BUFFER, Operation, Protocol, Request};
use blockyard_sys::credentials::use_rights_to_files_only;
use blockyard_sys::fuse::Channel;
use blockyard_sys::net::IoVecs;

use crate::answer::Answers;
use crate::filesystem::FileSystem;
use crate::handshake::greet;

/// Which INITs are answered before the kernel is given up: one of a newer major version sends a second.
const ATTEMPTS: usize = 3;
/// `ENODEV`: it is not mounted any more. `ECONNABORTED`: somebody has ended it.
const UNMOUNTED: [i32; 2] = [19, 103];

/// A file system that is served, until it is unmounted.
pub struct Server {
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves `fs` to the kernel that has just mounted it on `channel`, by so many threads: as many requests are carried out at a
    /// time.
    ///
    /// # Errors
    /// The kernel does not begin as it has to; no room for the threads.
    pub fn start(channel: Channel, fs: &Arc<dyn FileSystem>, threads: usize) -> io::Result<Self> {
        let channel = channel.blocking()?;
        let protocol = begin(&channel, fs.flags())?;
        let mut channels = Vec::with_capacity(threads);
        for _ in 1..threads.max(1) {
            channels.push(channel.another()?.blocking()?);
        }
        channels.push(channel);
        let serve = |(number, channel)| {
            let fs = Arc::clone(fs);
            let thread = std::thread::Builder::new().name(format!("fs-{number}"));
            thread.spawn(move || serve(&channel, &*fs, protocol))
        };
        let threads = channels.into_iter().enumerate().map(serve).collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// Waits until it is not mounted any more, whoever has unmounted it.
    pub fn wait(self) {
        for thread in self.threads {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Answers the kernel's INIT.
fn begin(channel: &Channel, flags: InitFlags) -> io::Result<Protocol> {
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX);
    let mut request = vec![0; MIN_READ_BUFFER];
    let mut vecs = IoVecs::new();
    for _ in 0..ATTEMPTS {
        let bytes = read(channel, &mut vecs, &mut request)?;
        let parsed = Request::parse(bytes, 0, &Protocol::NONE).map_err(io::Error::other)?;
        let Operation::Init(client) = parsed.operation else {
            return Err(io::Error::other("the kernel asks for something else than INIT first"));
        };
        let mut bytes = Vec::new();
        let agreed = greet(flags, parsed.header.unique, &client, page, &mut bytes);
        write(channel, &mut vecs, &bytes)?;
        let protocol = agreed.map_err(io::Error::other)?;
        if let Some(protocol) = protocol {
            return Ok(protocol);
        }
    }
    Err(io::Error::other("the kernel does not settle on a version of the protocol"))
}

fn read<'b>(channel: &Channel, vecs: &mut IoVecs, into: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut places = vecs.scatter();
    places.push(into);
    let len = channel.read(places)?;
    Ok(into.get(..len).unwrap_or(&[]))
}

fn write(channel: &Channel, vecs: &mut IoVecs, bytes: &[u8]) -> io::Result<()> {
    let mut message = vecs.gather();
    message.push(bytes);
    channel.write(message)
}

/// Until the file system is not mounted any more.
fn serve(channel: &Channel, fs: &dyn FileSystem, protocol: Protocol) {
    if let Err(err) = use_rights_to_files_only() {
        tracing::warn!(%err, "what is served is not bound by quotas");
    }
    let mut answers = Answers::new(protocol);
    let mut room = vec![0; protocol.read_buffer_len().max(MIN_READ_BUFFER)];
    let mut vecs = IoVecs::new();
    loop {
        let message = match read(channel, &mut vecs, &mut room) {
            Ok(message) => message,
            Err(err) if goes_on(&err) => continue,
            Err(err) => return ended(&err),
        };
        let Some(answer) = answers.answer(fs, message) else { continue };
        match write(channel, &mut vecs, answer) {
            Ok(()) => {}
            // Nobody waits for it any more.
            Err(err) if err.raw_os_error() == Some(Errno::ENOENT.raw()) => {}
            Err(err) if err.raw_os_error() == Some(Errno::EINVAL.raw()) => {
                tracing::error!(error = %err, "kernel rejected a reply");
            }
            Err(err) => return ended(&err),
        }
    }
}

/// A request that is gone, or that was too long, is over: there may be another.
fn goes_on(err: &io::Error) -> bool {
    let errno = err.raw_os_error().unwrap_or(0);
    err.kind() == io::ErrorKind::Interrupted
        || [Errno::ENOENT, Errno::EIO, Errno::EAGAIN].iter().any(|goes| goes.raw() == errno)
}

fn ended(err: &io::Error) {
    if !err.raw_os_error().is_some_and(|errno| UNMOUNTED.contains(&errno)) {
        tracing::error!(error = %err, "cannot read requests of the kernel; the file system ends");
    }
}
