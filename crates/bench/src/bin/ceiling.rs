//! How fast a unix socket alone can be: `ceiling BLOCK_BYTES DEPTH SECONDS SPAN_MIB` prints
//! `{"exchanges_per_s": N}`.
//!
//! Two threads exchange messages of the sizes that NBD reads have, and do nothing else: no protocol, no disk.
//! The client keeps DEPTH requests of 28 bytes in flight and writes those of a batch at once; the server reads
//! what has come into a large buffer and answers all of it, 16 bytes and a block each, with one vectored write.
//! A server on the same socket cannot do better without sleeping less.
//!
//! With a SPAN_MIB of 0 every reply carries the same block, which stays in the cache: what the socket costs.
//! Otherwise the blocks come from random places of so much memory, as those of a disk do: what the socket and
//! the memory cost together.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the figure is what this program is for")]

use anyhow::{Context, Result, bail};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use std::io::{IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a request.
const REQUEST: usize = 28;
/// Bytes of a reply before its block.
const REPLY_HEADER: usize = 16;
/// Bytes that the server takes with one read.
const SERVER_READ: usize = 64 << 10;
/// Slices that the kernel takes with one write.
const IOV_MAX: usize = 1024;
/// What both sides ask the kernel for, for each direction; it gives what the system allows.
const SOCKET_BUFFER: usize = 1 << 20;

/// The load.
#[derive(Clone, Copy)]
struct Load {
    block_bytes: usize,
    depth: usize,
    time: Duration,
    /// Bytes of the memory that the blocks come from; at least a block.
    span_bytes: usize,
}

fn main() -> Result<()> {
    let numbers: Result<Vec<u32>, _> = std::env::args().skip(1).map(|word| word.parse()).collect();
    let [block_bytes, depth, seconds, span_mib] =
        numbers.ok().and_then(|numbers| numbers.try_into().ok()).context(
            "usage: ceiling BLOCK_BYTES DEPTH SECONDS SPAN_MIB, for instance: ceiling 4096 32 3 0",
        )?;
    if block_bytes == 0 || depth == 0 || seconds == 0 {
        bail!("the size of a block, the depth and the time must be more than 0");
    }
    let load = Load {
        block_bytes: block_bytes as usize,
        depth: depth as usize,
        time: Duration::from_secs(seconds.into()),
        span_bytes: ((span_mib as usize) << 20).max(block_bytes as usize),
    };
    println!("{{\"exchanges_per_s\": {:.0}}}", exchanges_per_second(load)?);
    Ok(())
}

fn exchanges_per_second(load: Load) -> Result<f64> {
    let (client, server) = UnixStream::pair()?;
    for socket in [&client, &server] {
        set_socket_send_buffer_size(socket, SOCKET_BUFFER)?;
        set_socket_recv_buffer_size(socket, SOCKET_BUFFER)?;
    }
    let serving = thread::spawn(move || serve(server, load));
    let rate = drive(client, load)?;
    match serving.join() {
        Ok(outcome) => outcome.map(|()| rate),
        Err(_) => bail!("the server's thread panicked"),
    }
}

/// Keeps `depth` requests in flight for the given time, then hangs up.
fn drive(mut socket: UnixStream, load: Load) -> Result<f64> {
    let requests = vec![0; load.depth * REQUEST];
    let reply_bytes = REPLY_HEADER + load.block_bytes;
    let mut replies = vec![0; load.depth * reply_bytes];
    let start = Instant::now();
    socket.write_all(&requests)?;
    let (mut received, mut done) = (0, 0);
    while start.elapsed() < load.time {
        received += read_some(&mut socket, &mut replies)?;
        let fresh = received / reply_bytes - done;
        done += fresh;
        socket.write_all(&requests[..fresh * REQUEST])?;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

fn read_some(socket: &mut UnixStream, buffer: &mut [u8]) -> Result<usize> {
    match socket.read(buffer)? {
        0 => bail!("the server closed the connection"),
        count => Ok(count),
    }
}

/// Answers requests until the client hangs up.
fn serve(mut socket: UnixStream, load: Load) -> Result<()> {
    let (header, memory) = ([0x5a; REPLY_HEADER], vec![0xa5; load.span_bytes]);
    let mut places = Places(1);
    let mut requests = vec![0; SERVER_READ];
    let mut pending = 0;
    loop {
        // A client that hangs up with replies unread resets the connection.
        let Ok(count @ 1..) = socket.read(&mut requests[pending..]) else { return Ok(()) };
        pending += count;
        let mut slices = Vec::with_capacity(2 * (pending / REQUEST));
        for _ in 0..pending / REQUEST {
            let start = places.next(load.span_bytes / load.block_bytes) * load.block_bytes;
            slices.extend([
                IoSlice::new(&header),
                IoSlice::new(&memory[start..start + load.block_bytes]),
            ]);
        }
        pending %= REQUEST;
        if write_all(&mut socket, &mut slices).is_err() {
            return Ok(());
        }
    }
}

/// Random places, the same in every run (Knuth's linear congruential generator, of which the high bits are
/// random enough).
struct Places(u64);

impl Places {
    /// The next place below `count`.
    fn next(&mut self, count: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % count
    }
}

fn write_all(socket: &mut UnixStream, mut slices: &mut [IoSlice<'_>]) -> std::io::Result<()> {
    while !slices.is_empty() {
        let count = slices.len().min(IOV_MAX);
        let written = socket.write_vectored(&slices[..count])?;
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_any_size_are_exchanged() {
        for (block_bytes, depth, span_bytes) in
            [(1, 1, 1), (4096, 32, 1 << 20), (256 << 10, 8, 300_000), (512, 4000, 512)]
        {
            let time = Duration::from_millis(20);
            let load = Load { block_bytes, depth, time, span_bytes };
            assert!(exchanges_per_second(load).unwrap() > 0.0, "{block_bytes} {depth}");
        }
    }
}
