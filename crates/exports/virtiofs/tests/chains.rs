//! Requests in chains that are cut anywhere, and chains of any content.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use blockyard_buf::{GuestMemory, GuestView, RegionSpec, SharedMapping};
use blockyard_export_virtiofs::{Connection, Exchange, Guest};
use blockyard_fs::{Options, Passthrough};
use blockyard_fuse::init::InitIn;
use blockyard_fuse::wire::*;
use blockyard_fuse::{Caller, Name, Operation, Payload, Protocol, ROOT_ID, Reply};
use blockyard_vhost_user::queue::{Buffer, Chain};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Bytes of a guest's memory, in regions of this size that lie together.
const LEN: u64 = 1 << 20;
const REGION: u64 = LEN / 4;
/// Where requests and answers are in it: across borders.
const REQUEST: u64 = REGION - 60;
const ANSWER: u64 = 2 * REGION - 30;

struct Memory {
    view: GuestView,
    bytes: Arc<SharedMapping>,
}

impl Memory {
    fn new() -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, LEN).unwrap();
        let mut memory = GuestMemory::default();
        for at in [0, 1, 2, 3].map(|index| index * REGION) {
            let spec = RegionSpec { guest_addr: at, size: REGION, user_addr: at, mmap_offset: at };
            memory.add(spec, file.as_fd()).unwrap();
        }
        let bytes = SharedMapping::new(file.as_fd(), 0, LEN).unwrap();
        Self { view: GuestView::new(Arc::new(memory)), bytes }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.bytes.segment(at as usize, bytes.len()).copy_from(bytes);
    }

    fn at(&self, at: u64, len: usize) -> Vec<u8> {
        self.bytes.segment(at as usize, len).to_vec()
    }
}

/// A range in pieces, which end at `cuts` that are in it; there are empty ones among them.
fn cut(start: u64, len: usize, cuts: &[usize]) -> Vec<Buffer> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (len + 1)).chain([len]).collect();
    ends.sort_unstable();
    let mut at = 0;
    let mut piece = |end: usize| {
        let buffer = Buffer { addr: start + at as u64, len: (end - at) as u32 };
        at = end;
        buffer
    };
    ends.into_iter().map(&mut piece).collect()
}

struct Place {
    dir: tempfile::TempDir,
    connection: Connection,
    guest: Guest,
    exchange: Exchange,
    memory: Memory,
    unique: u64,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "the content of the file").unwrap();
        let connection = Connection::new(Arc::new(passed(dir.path())));
        let (guest, exchange) = (Guest::default(), Exchange::default());
        let mut place = Self { dir, connection, guest, exchange, memory: Memory::new(), unique: 0 };
        let init = Operation::Init(InitIn::new(1 << 20, InitFlags::MAX_PAGES));
        place.ask(0, &init, &[], 64, &[], &[]);
        place
    }

    /// The file, looked up and opened: its node and its number.
    fn open(&mut self) -> (u64, u64) {
        let name = Operation::Lookup(Name::new(b"file").unwrap());
        let entry = self.ask(ROOT_ID, &name, &[], EntryOut::LEN, &[], &[]);
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let open = Operation::Open(OpenIn { flags: 2, ..OpenIn::default() });
        let opened = self.ask(node, &open, &[], OpenOut::LEN, &[], &[]);
        (node, u64::from_le_bytes(opened[..8].try_into().unwrap()))
    }

    fn ask(
        &mut self,
        node: u64,
        operation: &Operation<'_>,
        data: &[u8],
        room: usize,
        cuts: &[usize],
        room_cuts: &[usize],
    ) -> Vec<u8> {
        self.unique += 2;
        let caller = Caller { unique: self.unique, nodeid: node, ..Caller::default() };
        let mut bytes = Vec::new();
        let protocol = Protocol { minor: 45, ..Protocol::NONE };
        operation.encode(&caller, &[], &protocol, &mut bytes);
        bytes.extend_from_slice(data);
        self.memory.put(REQUEST, &bytes);
        let room = OutHeader::LEN + room;
        self.memory.put(ANSWER, &vec![0xaa; room + 8]);
        let chain = chain(cut(REQUEST, bytes.len(), cuts), cut(ANSWER, room, room_cuts));
        self.exchange.read(&chain, &self.memory.view).unwrap();
        let written = self.guest.answer(&self.connection, &self.exchange);
        assert!(written <= room);
        assert_eq!(self.memory.at(ANSWER + room as u64, 8), [0xaa; 8], "no byte past its room");
        let answer = self.memory.at(ANSWER, written);
        assert_eq!(Reply::header(&answer, 0).unwrap().unique, self.unique);
        answer[OutHeader::LEN..].to_vec()
    }
}

fn passed(dir: &Path) -> Passthrough {
    Passthrough::new(dir, Options::default()).unwrap()
}

fn chain(readable: Vec<Buffer>, writable: Vec<Buffer>) -> Chain {
    let mut chain = Chain::default();
    (chain.readable, chain.writable) = (readable, writable);
    chain
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// "Any layout" (virtio 1.3, section 2.7.4): it makes no difference.
    #[test]
    fn a_request_may_be_cut_anywhere(request in cuts(), answer in cuts(), text in "[a-z]{1,40}") {
        let mut place = Place::new();
        let name = Operation::Lookup(Name::new(b"file").unwrap());
        let entry = place.ask(ROOT_ID, &name, &[], EntryOut::LEN, &request, &answer);
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let open = Operation::Open(OpenIn { flags: 2, ..OpenIn::default() });
        let opened = place.ask(node, &open, &[], OpenOut::LEN, &request, &answer);
        let fh = u64::from_le_bytes(opened[..8].try_into().unwrap());
        let read = Operation::Read(ReadIn { fh, size: 11, offset: 4, ..ReadIn::default() });
        let found = place.ask(node, &read, &[], 11, &request, &answer);
        prop_assert_eq!(found.as_slice(), b"content of ");
        let (size, elsewhere) = (text.len() as u32, text.len());
        let args = WriteIn { fh, size, offset: 3, ..WriteIn::default() };
        let write = Operation::Write(args, Payload { here: &[], elsewhere });
        let written = place.ask(node, &write, text.as_bytes(), 8, &request, &answer);
        prop_assert_eq!(&written[..4], size.to_le_bytes());
        let now = fs::read_to_string(place.dir.path().join("file")).unwrap();
        prop_assert_eq!(&now[3..3 + elsewhere], text);
    }
}

/// A number of a node or an open file: one that is there, or any.
#[derive(Clone, Copy, Debug)]
enum Number {
    Given,
    Of(u64),
}

fn numbers() -> impl Strategy<Value = Number> {
    let few =
        prop_oneof![Just(Number::Of(1)), Just(Number::Of(2)), any::<u64>().prop_map(Number::Of)];
    prop_oneof![Just(Number::Given), few]
}

impl Number {
    fn of(self, given: u64) -> u64 {
        match self {
            Self::Given => given,
            Self::Of(number) => number,
        }
    }
}

/// Buffers, most of which are in memory.
fn buffers() -> impl Strategy<Value = Vec<Buffer>> {
    let buffer = (0..LEN + LEN / 16, 0_u32..300).prop_map(|(addr, len)| Buffer { addr, len });
    prop::collection::vec(buffer, 0..6)
}

/// Any operation but those that would keep the whole machine waiting.
fn opcodes() -> impl Strategy<Value = u32> {
    (0_u32..55).prop_filter("it waits for all disks", |opcode| *opcode != Opcode::Syncfs as u32)
}

fn ranges(buffers: &[Buffer]) -> Vec<std::ops::Range<usize>> {
    let range = |buffer: &Buffer| buffer.addr as usize..buffer.addr as usize + buffer.len as usize;
    buffers.iter().map(range).filter(|range| !range.is_empty()).collect()
}

proptest! {
    /// Buffers anywhere, with any content: answered within their room wherever there is some, or refused.
    #[test]
    fn any_chain_is_answered_or_refused(
        mut content in prop::collection::vec(any::<u8>(), InHeader::LEN..240),
        opcode in opcodes(),
        (node, file) in (numbers(), numbers()),
        mut readable in buffers(),
        writable in buffers(),
    ) {
        let mut place = Place::new();
        let (found, fh) = place.open();
        let fields = [
            (4, opcode.into(), 4),
            (8, 2, 8),
            (16, node.of(found), 8),
            // Where most operations that are about one have it.
            (40, file.of(fh), 8),
        ];
        for (at, value, len) in fields {
            if let Some(field) = content.get_mut(at..at + len) {
                field.copy_from_slice(&value.to_le_bytes()[..len]);
            }
        }
        readable.insert(0, Buffer { addr: REQUEST, len: content.len() as u32 });
        let total: u32 = readable.iter().map(|buffer| buffer.len).sum();
        if let Some(field) = content.get_mut(..4) {
            field.copy_from_slice(&total.to_le_bytes());
        }
        place.memory.put(0, &vec![0xaa; LEN as usize]);
        place.memory.put(REQUEST, &content);
        let mut expected = place.memory.at(0, LEN as usize);
        let room: usize = writable.iter().map(|buffer| buffer.len as usize).sum();
        let places = ranges(&writable);
        if place.exchange.read(&chain(readable, writable), &place.memory.view).is_err() {
            return Ok(());
        }
        let written = place.guest.answer(&place.connection, &place.exchange);
        prop_assert!(written <= room, "{written} of {room} bytes");
        let now = place.memory.at(0, LEN as usize);
        for place in &places {
            expected[place.clone()].copy_from_slice(&now[place.clone()]);
        }
        prop_assert!(now == expected, "a byte that is none of its room");
        let is_due = Opcode::new(opcode).is_none_or(Opcode::waits);
        prop_assert_eq!(written >= OutHeader::LEN, is_due && room >= OutHeader::LEN);
        let apart = |(index, one): (usize, &std::ops::Range<usize>)| {
            places[..index].iter().all(|other| one.end <= other.start || other.end <= one.start)
        };
        if written >= OutHeader::LEN && places.iter().enumerate().all(apart) {
            let mut answer = places.iter().flat_map(|place| &now[place.clone()]).copied();
            let answer: Vec<_> = answer.by_ref().take(written).collect();
            let header = Reply::header(&answer, 0).unwrap();
            prop_assert_eq!((header.unique, header.len as usize), (2, written));
        }
    }
}
