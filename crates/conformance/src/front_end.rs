//! A front-end of vhost-user and a driver of virtio that may break every rule: raw messages, and rings written by hand.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use blockyard_buf::{RegionSpec, Segment, SharedMapping, SharedWords};
use blockyard_vhost_user::queue::F_VERSION_1;
use blockyard_vhost_user::wire::{
    ConfigSpan, F_PROTOCOL_FEATURES, HEADER_LEN, Header, Inflight, Message, ProtocolFeatures,
    Reply, VringAddr, VringFd, VringState,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the guest's memory.
pub const MEMORY: u64 = 4 << 20;
/// Descriptors of a ring.
pub const SIZE: u16 = 16;
/// Where the guest's memory is for the guest, and for us.
pub const GUEST: u64 = 0x10_0000;
/// And where it is for us.
pub const USER: u64 = 0x7f00_0000_0000;
/// Where the parts of the ring are in it; queue `i` is `i` pages further on.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// Where data may be.
pub const DATA: u64 = 0x1_0000;

/// Another descriptor follows.
pub const NEXT: u16 = 1;
/// The device writes it.
pub const WRITE: u16 = 2;
/// It stands for a table.
pub const INDIRECT: u16 = 4;

/// See the module.
pub struct FrontEnd {
    /// Its connection.
    pub socket: UnixStream,
    /// The file of the guest's memory.
    pub file: OwnedFd,
    /// The guest's memory.
    pub memory: Arc<SharedMapping>,
    /// What each queue that was started is told by.
    pub kicks: Vec<OwnedFd>,
    /// What it tells the driver by.
    pub calls: Vec<OwnedFd>,
    /// What it tells the front-end by.
    pub errs: Vec<OwnedFd>,
}

impl FrontEnd {
    /// Its memory becomes shorter.
    pub fn shrink(&self, len: u64) {
        ftruncate(&self.file, len).unwrap();
    }

    /// Connected; nothing is agreed upon.
    pub fn raw(socket: &Path) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY).unwrap();
        Self::with_memory(socket, file)
    }

    /// As a guest that goes on: the same memory, another connection.
    pub fn with_memory(socket: &Path, file: OwnedFd) -> Self {
        let memory = SharedMapping::new(file.as_fd(), 0, MEMORY).unwrap();
        let socket = UnixStream::connect(socket).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, file, memory, kicks: Vec::new(), calls: Vec::new(), errs: Vec::new() }
    }

    /// A new one, as QEMU is when it starts: features and memory are agreed upon, and it has read the configuration space, which
    /// one that comes back does not.
    pub fn negotiated(socket: &Path, features: u64) -> Self {
        let mut this = Self::raw(socket);
        this.negotiate(features);
        this.ask(&Message::GetConfig(ConfigSpan { offset: 0, flags: 0, bytes: vec![0; 60] }));
        this
    }

    /// Agrees on features, and shares the memory.
    pub fn negotiate(&mut self, features: u64) {
        self.tell(&Message::SetOwner, &[]);
        let Reply::Number(offered) = self.ask(&Message::GetFeatures) else { panic!("no number") };
        let wanted = F_PROTOCOL_FEATURES | F_VERSION_1 | features;
        assert_eq!(wanted & !offered, 0, "{wanted:#x} of {offered:#x}");
        let Reply::Number(protocol) = self.ask(&Message::GetProtocolFeatures) else {
            panic!("no number")
        };
        assert!(
            ProtocolFeatures::from_bits(protocol).unwrap().contains(ProtocolFeatures::REPLY_ACK)
        );
        self.tell(&Message::SetProtocolFeatures(protocol), &[]);
        self.done(&Message::SetFeatures(wanted), &[]);
        let file = self.file.try_clone().unwrap();
        self.done(&Message::SetMemTable(vec![region()]), &[file.as_fd()]);
    }

    /// A queue is served.
    pub fn started(socket: &Path, features: u64) -> Self {
        let mut this = Self::negotiated(socket, features);
        this.start_queue(0, 0);
        this
    }

    /// Has a queue served.
    pub fn start_queue(&mut self, index: u32, base: u32) {
        self.done(&Message::SetVringNum(VringState { index, num: SIZE.into() }), &[]);
        self.done(&Message::SetVringBase(VringState { index, num: base }), &[]);
        self.done(&Message::SetVringAddr(place(index)), &[]);
        let [kick, call, err] = [(), (), ()].map(|()| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let ring = VringFd { index, has_fd: true };
        self.done(&Message::SetVringErr(ring), &[err.as_fd()]);
        self.done(&Message::SetVringCall(ring), &[call.as_fd()]);
        self.done(&Message::SetVringKick(ring), &[kick.as_fd()]);
        self.done(&Message::SetVringEnable(VringState { index, num: 1 }), &[]);
        self.kicks.push(kick);
        self.calls.push(call);
        self.errs.push(err);
    }

    /// Sends bytes, and descriptors with them.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        // One that was hung up on notices when it reads.
        let _ = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    /// Sends a message.
    pub fn tell(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        self.send(&message.encode(false), fds);
    }

    /// The reply to a message.
    pub fn reply(&self, message: &Message) -> Reply {
        let mut header = [0; HEADER_LEN];
        (&self.socket).read_exact(&mut header).unwrap();
        let header = Header::parse(&header).unwrap();
        assert!(header.reply && header.request == message.request(), "{header:?}");
        let mut payload = vec![0; header.size as usize];
        (&self.socket).read_exact(&mut payload).unwrap();
        Reply::parse(message, &payload).unwrap()
    }

    /// Sends a message, and waits for its reply.
    pub fn ask(&self, message: &Message) -> Reply {
        self.tell(message, &[]);
        self.reply(message)
    }

    /// What a message that may fail is answered with: 0 for done.
    pub fn result(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> u64 {
        self.send(&message.encode(true), fds);
        let bytes = message.encode(true);
        let header = Header::parse(bytes.first_chunk().unwrap()).unwrap();
        assert!(header.need_reply);
        match self.reply(message) {
            Reply::Number(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// A message that must not fail.
    pub fn done(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.result(message, fds), 0, "{message:?}");
    }

    /// The back-end hangs up.
    pub fn is_hung_up_on(&self) -> bool {
        let mut byte = [0];
        loop {
            match (&self.socket).read(&mut byte) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(err) => return err.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Bytes of the guest's memory, by their place in it.
    pub fn bytes(&self, guest: u64, len: usize) -> Segment {
        self.memory.segment(usize::try_from(guest).unwrap(), len)
    }

    fn words(&self, queue: u32, part: u64) -> SharedWords {
        SharedWords::new(self.bytes(u64::from(queue) * 0x1000 + part, 0x400)).unwrap()
    }

    /// Writes a descriptor; `addr` counts from the start of the guest's memory.
    pub fn descriptor(&self, queue: u32, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let guest = if addr < MEMORY { GUEST + addr } else { addr };
        self.bytes(u64::from(queue) * 0x1000 + DESCRIPTORS + 16 * u64::from(index), 16)
            .copy_from(&descriptor(guest, len, flags, next));
    }

    /// Makes a chain available, without a word to the device.
    pub fn offer(&self, queue: u32, head: u16) {
        let available = self.words(queue, AVAILABLE);
        let index = available.load_u16(2, Ordering::Relaxed);
        available.store_u16(4 + 2 * usize::from(index % SIZE), head, Ordering::Relaxed);
        available.store_u16(2, index.wrapping_add(1), Ordering::Release);
    }

    /// Makes several available at the same moment.
    pub fn offer_together(&self, queue: u32, heads: &[u16]) {
        let available = self.words(queue, AVAILABLE);
        let mut index = available.load_u16(2, Ordering::Relaxed);
        for head in heads {
            available.store_u16(4 + 2 * usize::from(index % SIZE), *head, Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        available.store_u16(2, index, Ordering::Release);
    }

    /// Writes the index of the used ring.
    pub fn set_used(&self, queue: u32, index: u16) {
        self.words(queue, USED).store_u16(2, index, Ordering::Release);
    }

    /// The reply that brings an in-flight region.
    pub fn receive_fd(&self, message: &Message) -> (OwnedFd, Inflight) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; HEADER_LEN + 24];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::WAITALL).unwrap();
        assert_eq!(got.bytes, bytes.len());
        let fds = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let Ok(Reply::Inflight(shape)) = Reply::parse(message, &bytes[HEADER_LEN..]) else {
            panic!("no in-flight region: {bytes:?}")
        };
        (fds.unwrap(), shape)
    }

    /// Writes the index of the available ring.
    pub fn set_available(&self, queue: u32, index: u16) {
        self.words(queue, AVAILABLE).store_u16(2, index, Ordering::Release);
    }

    /// Tells a queue that there is something.
    pub fn kick(&self, queue: usize) {
        rustix::io::write(&self.kicks[queue], &1u64.to_ne_bytes()).unwrap();
    }

    /// Offers a chain, and waits until it is given back.
    pub fn finish(&self, queue: u32, head: u16) {
        let before = self.used_index(queue);
        self.offer(queue, head);
        self.kick(queue as usize);
        self.wait_used(queue, before.wrapping_add(1));
    }

    /// The index of the used ring.
    pub fn used_index(&self, queue: u32) -> u16 {
        self.words(queue, USED).load_u16(2, Ordering::Acquire)
    }

    /// The entry of the used ring before the index: head and length.
    pub fn last_used(&self, queue: u32) -> (u32, u32) {
        let at = 4 + 8 * usize::from(self.used_index(queue).wrapping_sub(1) % SIZE);
        let used = self.words(queue, USED);
        (used.load_u32(at, Ordering::Relaxed), used.load_u32(at + 4, Ordering::Relaxed))
    }

    /// Waits until the used index is that.
    pub fn wait_used(&self, queue: u32, index: u16) {
        let end = Instant::now() + PATIENCE;
        while self.used_index(queue) != index {
            assert!(Instant::now() < end, "used {} of {index}", self.used_index(queue));
            crate::pause();
        }
    }

    /// The device has said that the queue is broken.
    pub fn is_broken(&self, queue: usize) -> bool {
        happened(&self.errs[queue])
    }
}

/// Waits for an event.
pub fn happened(event: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    poll(&mut fds, Some(&patience)).unwrap() == 1
}

/// All of the guest's memory.
pub fn region() -> RegionSpec {
    RegionSpec { guest_addr: GUEST, size: MEMORY, user_addr: USER, mmap_offset: 0 }
}

/// Where the rings of a queue are.
pub fn place(index: u32) -> VringAddr {
    let at = USER + u64::from(index) * 0x1000;
    VringAddr {
        index,
        flags: 0,
        descriptor: at + DESCRIPTORS,
        used: at + USED,
        available: at + AVAILABLE,
        log: 0,
    }
}

/// The bytes of a descriptor.
pub fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
