//! A disk that answers with pages of a file: they are sent as they are, or not asked for.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use blockyard_blkmq::{
    Busy, Disk, Driver, HctxHandle, Limits, Op, Request, Result, StatGroup, Status,
};
use blockyard_buf::{PagePool, Segment};
use blockyard_export_nbd::{HeaderStyle, TlsFiles, TlsMode};
use blockyard_nbd::wire::{Command, CommandFlags};
use common::tls::tls_client;
use common::{Client, MIB, STYLES, Yard, disk_of, pattern, request};
use rcgen::{CertificateParams, KeyPair};

const LEN: u64 = 256 << 10;
const PART: u64 = 64 << 10;
/// Reads that can have pages at a time.
const PIPES: usize = 64;

/// Answers each read that takes pages with them, whatever its length.
struct Paged {
    file: File,
    pool: PagePool,
    /// Reads that took pages, and others.
    paged: AtomicU64,
    copied: AtomicU64,
}

impl Driver for Paged {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> Result<()> {
        Ok(())
    }

    fn queue_rq(
        &self,
        _hctx: &mut (),
        mut rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        let offset = rq.offset();
        if rq.op() != Op::Read {
            for segment in rq.segments() {
                self.file.write_all_at(&segment.to_vec(), offset).unwrap();
            }
            rq.end(Status::Ok);
            return Ok(());
        }
        let take = |at, len| self.pool.take(self.file.as_fd(), at, usize::try_from(len).unwrap());
        if rq.deliver_pages(take) {
            self.paged.fetch_add(1, Ordering::SeqCst);
        } else {
            self.copied.fetch_add(1, Ordering::SeqCst);
            let mut bytes = vec![0; rq.len() as usize];
            self.file.read_exact_at(&mut bytes, offset).unwrap();
            rq.deliver(Segment::from_vec(bytes));
        }
        rq.end(Status::Ok);
        Ok(())
    }
}

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(11, (4 * MIB) as usize));

fn paged() -> (Arc<Paged>, Arc<Disk>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&CONTENT).unwrap();
    let counts = (AtomicU64::new(0), AtomicU64::new(0));
    let driver =
        Arc::new(Paged { file, pool: PagePool::new(PIPES), paged: counts.0, copied: counts.1 });
    let limits = Limits { max_hw_sectors: 2048, ..Limits::default() };
    let disk = disk_of(Arc::clone(&driver), (), 4 * MIB, limits);
    (driver, disk)
}

#[test]
fn pages_arrive_in_every_style_between_other_replies() {
    let (driver, disk) = paged();
    let yard = Yard::with(disk, |_, _| {});
    for style in STYLES {
        let mut client = yard.client_of(style);
        let reads =
            [(0, LEN), (4096, 512), (1 << 20, 1 << 20), (512, 4096), (100, LEN), (0, 2 * MIB)];
        let flags = [CommandFlags::empty(), CommandFlags::DF];
        let mut batch = Vec::new();
        let mut asked = std::collections::HashMap::new();
        for (number, (offset, length)) in reads.into_iter().cycle().take(24).enumerate() {
            let flags = if style.has_chunks() { flags[number % 2] } else { flags[0] };
            let (cookie, bytes) = client.encode(request(Command::Read, flags, offset, length), &[]);
            asked.insert(cookie, (offset as usize, length as usize));
            batch.extend(bytes);
        }
        client.stream.write_all(&batch).unwrap();
        while !asked.is_empty() {
            let (cookie, outcome) = client.next_reply().unwrap();
            let (offset, length) = asked.remove(&cookie).unwrap();
            assert!(outcome.ok().data == CONTENT[offset..offset + length]);
        }
        client.disconnect();
    }
    assert!(driver.paged.load(Ordering::SeqCst) >= 24, "most were");
    let read = yard.disk.stats().0.counters(StatGroup::Read).sectors;
    assert!(read * 512 >= 3 * 4 * (3 * MIB + 2 * LEN), "{read} sectors are counted");
}

#[test]
fn a_client_that_takes_a_byte_at_a_time_gets_them_all() {
    let (_, disk) = paged();
    let yard = Yard::with(disk, |_, _| {});
    let mut client = yard.client_of(HeaderStyle::Simple);
    let cookies: Vec<_> = (0..8)
        .map(|at| client.send(request(Command::Read, CommandFlags::empty(), at * LEN, LEN), &[]))
        .collect();
    let mut got = vec![0; 8 * (16 + LEN as usize)];
    let (first, rest) = got.split_at_mut(5000);
    first.iter_mut().for_each(|byte| client.stream.read_exact(std::slice::from_mut(byte)).unwrap());
    rest.chunks_mut(70_001).for_each(|part| client.stream.read_exact(part).unwrap());
    for (at, reply) in got.chunks(16 + LEN as usize).enumerate() {
        assert_eq!(reply[8..16], cookies[at].to_be_bytes());
        assert!(reply[16..] == CONTENT[at * LEN as usize..][..LEN as usize]);
    }
}

#[test]
fn a_client_that_leaves_with_pages_due_leaves_nothing_for_the_next() {
    let (driver, disk) = paged();
    let yard = Yard::with(disk, |_, _| {});
    for _ in 0..20 {
        let mut client = yard.client_of(HeaderStyle::Simple);
        for at in 0..16 {
            client.send(request(Command::Read, CommandFlags::empty(), at % 4 * LEN, LEN), &[]);
        }
        client.stream.read_exact(&mut [0; 1000]).unwrap();
        drop(client);
    }
    let mut client = yard.client();
    for at in 1..9 {
        let before = driver.paged.load(Ordering::SeqCst);
        assert!(client.read(at * PART, PART) == CONTENT[(at * PART) as usize..][..PART as usize]);
        assert_eq!(driver.paged.load(Ordering::SeqCst), before + 1, "what they had is free again");
    }
}

/// What pages occupy is few, and all clients'.
#[test]
fn a_client_that_takes_no_replies_leaves_pages_for_others() {
    let (driver, disk) = paged();
    let yard = Yard::with(disk, |_, _| {});
    let mut deaf = yard.client();
    let read = request(Command::Read, CommandFlags::empty(), 0, LEN);
    let reads: Vec<u8> = (0..2 * PIPES).flat_map(|_| deaf.encode(read, &[]).1).collect();
    deaf.stream.write_all(&reads).unwrap();
    let paged = || driver.paged.load(Ordering::SeqCst);
    let copied = || driver.copied.load(Ordering::SeqCst);
    common::eventually("all of it", || paged() + copied() == 2 * PIPES as u64);
    assert!(paged() > 0);
    let mut other = yard.client();
    for at in 1..9 {
        let before = paged();
        assert!(other.read(at * PART, PART) == CONTENT[(at * PART) as usize..][..PART as usize]);
        assert_eq!(paged(), before + 1);
    }
    // What is copied, and what is not, is the same to the client.
    for _ in 0..2 * PIPES {
        assert!(deaf.next_reply().unwrap().1.ok().data == CONTENT[..LEN as usize]);
    }
}

/// What the client has received nothing changes; each page that it has not is what it was, or what was written meanwhile.
#[test]
fn a_reply_that_was_received_never_shows_a_later_write() {
    const PAGE: usize = 4096;
    const LATE: usize = 4 * PAGE;
    let (driver, disk) = paged();
    let yard = Yard::with(disk, |_, _| {});
    let (mut client, mut other) = (yard.client_of(HeaderStyle::Simple), yard.client());
    let len = LEN as usize;
    let mut expected = CONTENT[..len].to_vec();
    for round in 1..=16 {
        client.send(request(Command::Read, CommandFlags::empty(), 0, LEN), &[]);
        let mut early = vec![0; 16 + len - LATE];
        client.stream.read_exact(&mut early).unwrap();
        let written = vec![round; len];
        other.write(0, &written);
        let mut late = vec![0; LATE];
        client.stream.read_exact(&mut late).unwrap();
        assert!(early[16..] == expected[..len - LATE], "round {round}");
        for (page, old) in late.chunks(PAGE).zip(expected[len - LATE..].chunks(PAGE)) {
            assert!(page == old || page == &written[..PAGE], "round {round}");
        }
        assert!(other.read(0, LEN) == written, "round {round}");
        expected = written;
    }
    assert!(driver.paged.load(Ordering::SeqCst) >= 32, "all were pages");
}

/// What is encrypted is looked at.
#[test]
fn under_tls_nobody_asks_for_pages() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    for (name, text) in [("ca.pem", &certificate), ("server.pem", &certificate)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    std::fs::write(dir.path().join("server.key"), key.serialize_pem()).unwrap();
    let files = TlsFiles {
        certificate: dir.path().join("server.pem"),
        key: dir.path().join("server.key"),
        client_ca: None,
    };
    let (driver, disk) = paged();
    let yard = Yard::with(disk, |config, _| {
        config.tls = TlsMode::Allow(files.load().unwrap());
    });
    let mut client = tls_client(&yard, &common::tls::client_config(dir.path(), None), "").unwrap();
    assert!(client.read(0, LEN) == CONTENT[..LEN as usize]);
    assert_eq!(driver.paged.load(Ordering::SeqCst), 0);
    assert_eq!(driver.copied.load(Ordering::SeqCst), 1);
    let clear: &mut Client = &mut yard.client();
    assert!(clear.read(0, LEN) == CONTENT[..LEN as usize]);
    assert_eq!(driver.paged.load(Ordering::SeqCst), 1);
}
