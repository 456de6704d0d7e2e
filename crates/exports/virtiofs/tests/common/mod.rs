//! A served directory, and a guest's driver for it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockyard_conformance::front_end::{DATA, FrontEnd, NEXT, WRITE};
use blockyard_export_virtiofs::{Export, Server, bind, prepare};
use blockyard_fs::{FileSystem, Options, Passthrough};
use blockyard_fuse::init::{self, InitIn};
use blockyard_fuse::wire::*;
use blockyard_fuse::{Caller, Expected, Name, Operation, Payload, Protocol, ROOT_ID, Reply};
use blockyard_vhost_user::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use blockyard_vhost_user::wire::F_PROTOCOL_FEATURES;
use tempfile::TempDir;

pub(crate) const ALL: u64 = F_EVENT_IDX | F_INDIRECT_DESC;
/// The queue of high priority, and the first for requests.
pub(crate) const HIPRIO: u32 = 0;
pub(crate) const REQUESTS: u32 = 1;
/// Where answers go, in the guest's memory.
pub(crate) const ROOM: u64 = DATA + (1 << 20);
/// Bytes of an answer's header.
pub(crate) const OUT: usize = OutHeader::LEN;
pub(crate) const EPERM: i32 = 1;
pub(crate) const EIO: i32 = 5;
pub(crate) const EBADF: i32 = 9;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENOSYS: i32 = 38;
pub(crate) const ESTALE: i32 = 116;

/// A directory that is served at a socket of its own.
pub(crate) struct Served {
    place: TempDir,
    server: Option<Server>,
}

impl Served {
    pub(crate) fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("dir")).unwrap();
        let fs = Passthrough::new(&place.path().join("dir"), Options::default()).unwrap();
        Self::with(place, Arc::new(fs), None)
    }

    pub(crate) fn of(fs: Arc<dyn FileSystem>) -> Self {
        Self::with(tempfile::tempdir().unwrap(), fs, None)
    }

    /// It does not wait long for what hangs.
    pub(crate) fn impatient(fs: Arc<dyn FileSystem>) -> Self {
        Self::with(tempfile::tempdir().unwrap(), fs, Some(Duration::from_millis(50)))
    }

    fn with(place: TempDir, fs: Arc<dyn FileSystem>, stop_patience: Option<Duration>) -> Self {
        let listener = bind(&place.path().join("s"), None).unwrap();
        let tag = Some("tree".into());
        let export = Export { fs, tag, queues: 2, threads: 3, stop_patience };
        let server = prepare(export, listener).unwrap().start();
        Self { place, server: Some(server) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.place.path().join("s")
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.place.path().join("dir")
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(server.shutdown(Duration::from_secs(60)));
    }
}

/// The driver of a guest, as Linux is one: buffers of header, arguments and data, and of header and data of the answer.
pub(crate) struct Driver {
    pub(crate) front: FrontEnd,
    pub(crate) protocol: Protocol,
    unique: u64,
}

impl Driver {
    /// Three queues are served; nothing is mounted.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut front = FrontEnd::negotiated(socket, ALL);
        (0..3).for_each(|queue| front.start_queue(queue, 0));
        Self { front, protocol: Protocol::NONE, unique: 0 }
    }

    pub(crate) fn mounted(socket: &Path) -> Self {
        let mut driver = Self::connect(socket);
        driver.init();
        driver
    }

    /// What was agreed upon.
    pub(crate) fn features(&self) -> u64 {
        F_PROTOCOL_FEATURES | F_VERSION_1 | ALL
    }

    /// Has the queues served again that were stopped, where they were, or by new rings.
    pub(crate) fn restart(&mut self, anew: bool) {
        self.front.kicks.clear();
        self.front.calls.clear();
        self.front.errs.clear();
        for queue in 0..3 {
            if anew {
                self.front.set_available(queue, 0);
                self.front.set_used(queue, 0);
            }
            self.front.start_queue(queue, self.front.used_index(queue).into());
        }
    }

    pub(crate) fn init(&mut self) {
        let offered = InitFlags::MAX_PAGES | InitFlags::DO_READDIRPLUS | InitFlags::INIT_EXT;
        let client = InitIn::new(1 << 20, offered);
        self.protocol = Protocol::NONE;
        let operation = Operation::Init(client);
        let answer = self.ask(REQUESTS, 0, &operation, &[], 64);
        let expected = Expected::of(&operation).unwrap();
        let Reply::Init(server) = Reply::parse(expected, &answer, 0).unwrap() else { panic!() };
        assert!(!server.flags.contains(InitFlags::MAP_ALIGNMENT));
        self.protocol = init::accept(&client, &server, 4096).unwrap();
        assert_eq!(self.protocol.limits.max_write, 1 << 20);
    }

    /// The bytes of a request.
    pub(crate) fn encode(&mut self, node: u64, operation: &Operation<'_>) -> Vec<u8> {
        self.unique += 2;
        let caller = Caller { unique: self.unique, nodeid: node, ..Caller::default() };
        let mut bytes = Vec::new();
        operation.encode(&caller, &[], &self.protocol, &mut bytes);
        bytes
    }

    /// Asks on a queue, with so many bytes of room behind the header of the answer. The answer, whole.
    pub(crate) fn ask(
        &mut self,
        queue: u32,
        node: u64,
        operation: &Operation<'_>,
        data: &[u8],
        room: u32,
    ) -> Vec<u8> {
        let bytes = self.encode(node, operation);
        self.put(queue, &bytes, data, room);
        self.front.finish(queue, 0);
        self.answer(queue)
    }

    /// Lays a request out as chain 0 of a queue.
    pub(crate) fn put(&self, queue: u32, bytes: &[u8], data: &[u8], room: u32) {
        let (at, to) = places(queue);
        let all = [bytes, data].concat();
        self.front.bytes(at, all.len()).copy_from(&all);
        let (len, data_len) = (bytes.len() as u32, data.len() as u32);
        let mut parts = vec![(at, len.min(40), 0)];
        parts.extend((len > 40).then_some((at + 40, len.saturating_sub(40), 0)));
        parts.extend((data_len > 0).then_some((at + u64::from(len), data_len, 0)));
        parts.push((to, OUT as u32, WRITE));
        parts.extend((room > 0).then_some((to + OUT as u64, room, WRITE)));
        self.chain(queue, &parts);
    }

    /// Descriptors, one after the other.
    pub(crate) fn chain(&self, queue: u32, parts: &[(u64, u32, u16)]) {
        for (index, (addr, len, flags)) in (0..).zip(parts) {
            let is_last = usize::from(index) + 1 == parts.len();
            let next = if is_last { 0 } else { NEXT };
            self.front.descriptor(queue, index, *addr, *len, flags | next, index + 1);
        }
    }

    /// What was written to the chain that was given back last.
    pub(crate) fn answer(&self, queue: u32) -> Vec<u8> {
        let (_, len) = self.front.last_used(queue);
        self.front.bytes(places(queue).1, len as usize).to_vec()
    }

    /// What an operation without data is answered.
    pub(crate) fn call<'o>(&mut self, node: u64, operation: &Operation<'o>) -> Result<Answer, i32> {
        let answer = self.ask(REQUESTS, node, operation, &[], 0x1_0000);
        parse(operation, &answer)
    }

    pub(crate) fn look_up(&mut self, name: &str) -> Result<EntryOut, i32> {
        let name = Name::new(name.as_bytes()).unwrap();
        match self.call(ROOT_ID, &Operation::Lookup(name))? {
            Answer::Entry(entry) => Ok(entry),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        match self.call(node, &Operation::Open(OpenIn { flags, ..OpenIn::default() }))? {
            Answer::Open(open) => Ok(open.fh),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read(
        &mut self,
        queue: u32,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, i32> {
        let operation = Operation::Read(ReadIn { fh, offset, size, ..ReadIn::default() });
        let answer = self.ask(queue, 2, &operation, &[], size);
        match parse(&operation, &answer)? {
            Answer::Data(data) => Ok(data),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn write(
        &mut self,
        queue: u32,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<u32, i32> {
        let size = data.len() as u32;
        let args = WriteIn { fh, offset, size, ..WriteIn::default() };
        let operation = Operation::Write(args, Payload { here: &[], elsewhere: data.len() });
        let answer = self.ask(queue, 2, &operation, data, WriteOut::LEN as u32);
        match parse(&operation, &answer)? {
            Answer::Written(written) => Ok(written),
            other => panic!("{other:?}"),
        }
    }
}

/// Where requests and answers of a queue are.
pub(crate) fn places(queue: u32) -> (u64, u64) {
    let apart = u64::from(queue) * 0x4_0000;
    (DATA + apart, ROOM + apart)
}

/// An answer, of one's own.
#[derive(Debug)]
pub(crate) enum Answer {
    Entry(EntryOut),
    Open(OpenOut),
    Data(Vec<u8>),
    Written(u32),
    Other(String),
}

pub(crate) fn parse(operation: &Operation<'_>, answer: &[u8]) -> Result<Answer, i32> {
    let expected = Expected::of(operation).unwrap();
    Ok(match Reply::parse(expected, answer, 0).unwrap() {
        Reply::Error(errno) => return Err(errno.raw()),
        Reply::Entry(entry) => Answer::Entry(entry),
        Reply::Open(open) => Answer::Open(open),
        Reply::Data(data) => Answer::Data(data.here.to_vec()),
        Reply::Written(written) => Answer::Written(written),
        other => Answer::Other(format!("{other:?}")),
    })
}
