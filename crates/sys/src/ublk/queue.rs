//! The commands of one hardware queue: one for each request that the kernel may have there.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use blockyard_buf::{Mapping, Segment};
use io_uring::{IoUring, opcode, types};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::abi::{self, Descriptor, IoCommand};
use super::control::Device;
use crate::event::Event;
use crate::ring::{self, Turn};

/// `UBLK_IO_RES_ABORT`: the device has been stopped.
const ABORTED: i32 = -libc::ENODEV;

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not sent yet.
    Idle,
    /// With the kernel: waits for a request.
    Kernel,
    /// Ours: a request has come, and is not answered yet.
    Ours,
    /// Ended for good.
    Gone,
}

/// How a queue's command came back without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The device has been stopped.
    Stopped,
    /// The driver refused it, with that errno.
    Refused(i32),
}

/// The commands of one hardware queue, and the memory of its requests.
pub struct Queue {
    ring: IoUring,
    device: Device,
    descriptors: Descriptors,
    memory: Arc<Mapping>,
    id: u16,
    max_io_bytes: usize,
    places: Vec<Place>,
    /// Commands that wait for room in the submission queue.
    pushed: Vec<(u32, IoCommand)>,
    /// Commands with the kernel.
    out: usize,
    /// Commands that have not ended for good.
    alive: usize,
    event: Arc<Event>,
}

impl Queue {
    /// The commands of queue `id` of a device whose queues have `depth` requests of at most `max_io_bytes`.
    ///
    /// # Errors
    /// Why there is no io_uring, or no memory.
    pub fn new(device: &Device, id: u16, depth: u16, max_io_bytes: u32) -> io::Result<Self> {
        let depth = depth.clamp(1, abi::MAX_QUEUE_DEPTH);
        let event = Arc::new(Event::new()?);
        let ring = ring::set_up(IoUring::builder(), depth.into())?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let max_io_bytes = max_io_bytes as usize;
        Ok(Self {
            ring,
            descriptors: Descriptors::map(device, id, depth)?,
            device: device.clone(),
            memory: Mapping::new(max_io_bytes * usize::from(depth))?,
            id,
            max_io_bytes,
            places: vec![Place::Idle; depth.into()],
            pushed: Vec::with_capacity(depth.into()),
            out: 0,
            alive: depth.into(),
            event,
        })
    }

    /// Becomes readable, edge by edge, when requests come later than the [`Queue::turn`] that answered: time for
    /// another turn.
    #[must_use]
    pub fn event(&self) -> Arc<Event> {
        Arc::clone(&self.event)
    }

    /// How many requests the queue has.
    #[must_use]
    pub fn depth(&self) -> u16 {
        u16::try_from(self.places.len()).unwrap_or(u16::MAX)
    }

    /// Whether all commands have ended for good: the device was stopped.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.alive == 0
    }

    /// The memory of the request `tag`: what was written is in there, what is read belongs there.
    ///
    /// # Panics
    /// If it is longer than a request, or there is no such tag.
    #[must_use]
    pub fn memory(&self, tag: u16, len: usize) -> Segment {
        assert!(len <= self.max_io_bytes, "a request of {len} bytes");
        self.memory.segment(usize::from(tag) * self.max_io_bytes, len)
    }

    /// Asks for requests, for the first time. From now on, and for all turns, on this thread.
    pub fn fetch(&mut self) {
        for tag in 0..self.depth() {
            self.push(abi::FETCH_REQ, tag, 0, Place::Idle);
        }
    }

    /// Answers the request `tag`, and asks for the next one: bytes that were read or written, or a negative
    /// errno. The next [`Queue::turn`] sends it.
    ///
    /// # Panics
    /// If no such request has come: it was answered already.
    pub fn commit(&mut self, tag: u16, result: i32) {
        self.push(abi::COMMIT_AND_FETCH_REQ, tag, result, Place::Ours);
    }

    fn push(&mut self, op: u32, tag: u16, result: i32, expected: Place) {
        let place = &mut self.places[usize::from(tag)];
        assert_eq!(*place, expected, "command {tag} of queue {} is out of turn", self.id);
        *place = Place::Kernel;
        self.out += 1;
        let memory = self.memory.segment(usize::from(tag) * self.max_io_bytes, 0);
        let addr = memory.as_ptr().expose_provenance() as u64;
        self.pushed.push((op, IoCommand { q_id: self.id, tag, result, addr }));
    }

    /// Sends what was pushed, and takes what has come: requests with their tags, and commands that have ended
    /// for good.
    ///
    /// # Errors
    /// The kernel could not take all of it now; it stays for the next turn.
    pub fn turn(
        &mut self,
        requests: &mut Vec<(u16, Descriptor)>,
        ended: &mut Vec<Ended>,
    ) -> io::Result<()> {
        self.take_turn(|queue| queue.drain(requests, ended))
    }

    fn drain(&mut self, requests: &mut Vec<(u16, Descriptor)>, ended: &mut Vec<Ended>) {
        for entry in self.ring.completion() {
            let tag = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            let Some(place) = self.places.get_mut(usize::from(tag)) else {
                unreachable!("the kernel completes what was submitted")
            };
            self.out -= 1;
            if entry.result() == 0 {
                *place = Place::Ours;
                requests.push((tag, self.descriptors.read(tag)));
                continue;
            }
            *place = Place::Gone;
            self.alive -= 1;
            ended.push(match entry.result() {
                ABORTED => Ended::Stopped,
                result => Ended::Refused(-result),
            });
        }
    }
}

impl Turn for Queue {
    fn ring(&mut self) -> &mut IoUring {
        &mut self.ring
    }

    fn has_pushed(&self) -> bool {
        !self.pushed.is_empty()
    }

    fn fill(&mut self) {
        let file = types::Fd(self.device.0.as_raw_fd());
        let mut queue = self.ring.submission();
        let mut taken = 0;
        for (op, command) in &self.pushed {
            let entry = opcode::UringCmd16::new(file, *op)
                .cmd(command.bytes())
                .build()
                .user_data(command.tag.into());
            // SAFETY: the driver copies to and from the memory of this tag, which is part of `memory`, for as
            // long as it has the command: until the completion has come. The mapping is not dropped before (see
            // `Drop`), and is only reached by raw copies (see `Segment`). So is the device's descriptor open.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            taken += 1;
        }
        drop(queue);
        self.pushed.drain(..taken);
    }
}

impl Drop for Queue {
    /// Commands that the kernel still has are cancelled by it, some time after the ring is closed: until then
    /// their memory is the kernel's.
    fn drop(&mut self) {
        if self.out > self.pushed.len() {
            mem::forget(Arc::clone(&self.memory));
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("id", &self.id)
            .field("out", &self.out)
            .field("alive", &self.alive)
            .finish_non_exhaustive()
    }
}

/// The driver's descriptions of the requests of a queue, by tag. Only the driver writes them.
struct Descriptors {
    base: NonNull<Descriptor>,
    bytes: usize,
    depth: u16,
    _device: Device,
}

// SAFETY: memory that belongs to no thread, and is only read, each descriptor by a volatile read.
unsafe impl Send for Descriptors {}

impl Descriptors {
    fn map(device: &Device, queue: u16, depth: u16) -> io::Result<Self> {
        // Whole pages of this kernel (`__ublk_queue_cmd_buf_size`).
        let page = rustix::param::page_size();
        let room =
            |depth: u16| (usize::from(depth) * size_of::<Descriptor>()).next_multiple_of(page);
        let bytes = room(depth);
        let offset = room(abi::MAX_QUEUE_DEPTH) as u64 * u64::from(queue) + abi::DESCRIPTORS_OFFSET;
        // SAFETY: a null hint with no MAP_FIXED cannot replace an existing mapping; nobody writes to it, and the
        // driver's own writes are expected by `read`.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                device.0.as_fd(),
                offset,
            )
        }?;
        let base = NonNull::new(base.cast::<Descriptor>())
            .ok_or_else(|| io::Error::other("mmap returned a null pointer"))?;
        Ok(Self { base, bytes, depth, _device: device.clone() })
    }

    fn read(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "descriptor {tag} of {}", self.depth);
        // SAFETY: within the mapping, which is aligned to a page; a Descriptor is integers, so that all bytes are
        // one. The driver wrote it before it completed the command, and writes it again only after the commit.
        unsafe { self.base.add(tag.into()).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: the range is what `mmap` returned, and nothing refers to it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
