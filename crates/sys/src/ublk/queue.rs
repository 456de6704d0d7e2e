//! The commands of one hardware queue: one for each request that the kernel may have there.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use blockyard_buf::{Mapping, Segment, Segments, copy_segments, total_len};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::abi::{self, Descriptor, DeviceInfo, Features, IoCommand, Op};
use super::control::Device;
use super::copy::Copies;
use crate::event::Event;
use crate::operation::Operation;
use crate::ring::{self, Turn};

/// `UBLK_IO_RES_ABORT`: the device has been stopped.
const ABORTED: i32 = -libc::ENODEV;
/// What is linked to an operation that failed.
const CANCELED: i32 = -libc::ECANCELED;
/// Of `nr_sectors` in a descriptor.
const SECTOR_SHIFT: u32 = 9;
/// Tells the completion of a copy from that of the command of the same tag.
const COPY: u64 = 1 << 16;

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not sent yet.
    Idle,
    /// With the kernel: waits for a request.
    Kernel,
    /// A write has come, and its data is being copied.
    Taking,
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

/// What waits for room in the submission queue.
#[derive(Clone, Copy)]
enum Pushed {
    Command {
        op: u32,
        tag: u16,
        result: i32,
    },
    /// Takes the data of a write.
    Take {
        tag: u16,
    },
    /// Gives a read its data, and then commits it.
    Give {
        tag: u16,
        result: i32,
    },
}

/// The commands of one hardware queue, and the memory of its requests.
pub struct Queue {
    ring: IoUring,
    device: Device,
    descriptors: Descriptors,
    memory: Arc<Mapping>,
    /// We copy the data of requests; without, the kernel does.
    copies: Option<Copies>,
    id: u16,
    max_io_bytes: usize,
    places: Vec<Place>,
    pushed: VecDeque<Pushed>,
    /// Commands with the kernel, and copies.
    out: usize,
    /// Commands that have not ended for good.
    alive: usize,
    event: Arc<Event>,
}

impl Queue {
    /// The commands of queue `id` of a device that is `info`.
    ///
    /// # Errors
    /// Why there is no io_uring, or no memory.
    pub fn new(device: &Device, id: u16, info: &DeviceInfo) -> io::Result<Self> {
        let depth = info.queue_depth.clamp(1, abi::MAX_QUEUE_DEPTH);
        let event = Arc::new(Event::new()?);
        let ring = ring::set_up(IoUring::builder(), entries(depth))?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let max_io_bytes = info.max_io_buf_bytes as usize;
        let user_copy = info.features().contains(Features::USER_COPY);
        Ok(Self {
            ring,
            descriptors: Descriptors::map(device, id, depth)?,
            device: device.clone(),
            memory: Mapping::new(max_io_bytes * usize::from(depth))?,
            copies: user_copy.then(|| Copies::new(device, id, depth)),
            id,
            max_io_bytes,
            places: vec![Place::Idle; depth.into()],
            pushed: VecDeque::with_capacity(depth.into()),
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

    /// What the request `tag` writes.
    ///
    /// # Panics
    /// If it is longer than a request, or there is no such tag.
    #[must_use]
    pub fn written(&self, tag: u16, len: usize) -> Segment {
        assert!(len <= self.max_io_bytes, "a request of {len} bytes");
        self.memory.segment(usize::from(tag) * self.max_io_bytes, len)
    }

    /// Where the data belongs that the request `tag` reads. None if that may be anywhere: the request is answered by
    /// [`Queue::commit_data`].
    ///
    /// # Panics
    /// If it is longer than a request, or there is no such tag.
    #[must_use]
    pub fn place(&self, tag: u16, len: usize) -> Option<Segment> {
        self.copies.is_none().then(|| self.written(tag, len))
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

    /// As [`Queue::commit`], for a read without a [place](Queue::place): with the data, which is copied from where it
    /// is, and let go soon.
    ///
    /// # Panics
    /// If no such request has come, or it is longer than a request.
    pub fn commit_data(&mut self, tag: u16, data: Segments) {
        let len = total_len(&data);
        // A vector cannot have more elements.
        let data = if data.len() <= Operation::MAX_SEGMENTS {
            data
        } else {
            let gathered = self.written(tag, len);
            copy_segments(std::slice::from_ref(&gathered), &data);
            std::iter::once(gathered).collect()
        };
        let Some(copies) = self.copies.as_mut().filter(|_| len > 0) else {
            return self.commit(tag, 0);
        };
        copies.start(tag, data);
        self.out += 1;
        self.send(tag, Place::Ours);
        self.pushed.push_back(Pushed::Give { tag, result: i32::try_from(len).unwrap_or(i32::MAX) });
    }

    fn push(&mut self, op: u32, tag: u16, result: i32, expected: Place) {
        self.send(tag, expected);
        self.pushed.push_back(Pushed::Command { op, tag, result });
    }

    /// A command goes to the kernel.
    fn send(&mut self, tag: u16, expected: Place) {
        let place = &mut self.places[usize::from(tag)];
        assert_eq!(*place, expected, "command {tag} of queue {} is out of turn", self.id);
        *place = Place::Kernel;
        self.out += 1;
    }

    fn command(&self, op: u32, tag: u16, result: i32) -> squeue::Entry {
        let memory = self.place(tag, 0);
        // It must be zero where the kernel does not copy.
        let addr = memory.map_or(0, |memory| memory.as_ptr().expose_provenance() as u64);
        let command = IoCommand { q_id: self.id, tag, result, addr };
        opcode::UringCmd16::new(types::Fd(self.device.0.as_raw_fd()), op)
            .cmd(command.bytes())
            .build()
            .user_data(tag.into())
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
        // The data of writes that have come is copied before anybody hears of them.
        loop {
            self.take_turn(|queue| queue.drain(requests, ended))?;
            if self.pushed.is_empty() {
                return Ok(());
            }
        }
    }

    fn drain(&mut self, requests: &mut Vec<(u16, Descriptor)>, ended: &mut Vec<Ended>) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            let (data, result) = (entry.user_data(), entry.result());
            let tag = u16::try_from(data & !COPY).unwrap_or(u16::MAX);
            self.out -= 1;
            if data & COPY == 0 {
                self.commanded(tag, result, requests, ended);
            } else {
                self.copied(tag, result, requests, ended);
            }
        }
    }

    /// The command of a tag has completed.
    fn commanded(
        &mut self,
        tag: u16,
        result: i32,
        requests: &mut Vec<(u16, Descriptor)>,
        ended: &mut Vec<Ended>,
    ) {
        let Some(place) = self.places.get_mut(usize::from(tag)) else {
            unreachable!("the kernel completes what was submitted")
        };
        if result == 0 {
            *place = Place::Ours;
            let descriptor = self.descriptors.read(tag);
            if !self.take(tag, descriptor) {
                requests.push((tag, descriptor));
            }
            return;
        }
        // It was linked to a copy that failed: the request is still ours.
        if result == CANCELED && self.copies.is_some() {
            *place = Place::Ours;
            return self.commit(tag, -libc::EIO);
        }
        *place = Place::Gone;
        self.alive -= 1;
        ended.push(match result {
            ABORTED => Ended::Stopped,
            result => Ended::Refused(-result),
        });
    }

    /// Begins to copy the data of a request. Says whether there is any to copy.
    fn take(&mut self, tag: u16, descriptor: Descriptor) -> bool {
        let bytes = u64::from(descriptor.nr_sectors) << SECTOR_SHIFT;
        let len = usize::try_from(bytes).ok().filter(|len| *len <= self.max_io_bytes);
        let (Some(len), Some(Op::Write)) = (len, descriptor.op()) else { return false };
        let memory = self.written(tag, len);
        let Some(copies) = &mut self.copies else { return false };
        copies.start(tag, std::iter::once(memory).collect());
        self.places[usize::from(tag)] = Place::Taking;
        self.out += 1;
        self.pushed.push_back(Pushed::Take { tag });
        true
    }

    /// The data of a request was copied.
    fn copied(
        &mut self,
        tag: u16,
        result: i32,
        requests: &mut Vec<(u16, Descriptor)>,
        ended: &mut Vec<Ended>,
    ) {
        let Some(copies) = &mut self.copies else {
            unreachable!("the kernel completes what was submitted")
        };
        let moved = copies.end(tag, result);
        if let Err(errno) = moved {
            ended.push(Ended::Refused(errno));
        }
        let place = &mut self.places[usize::from(tag)];
        if *place != Place::Taking {
            return;
        }
        *place = Place::Ours;
        match moved {
            Ok(()) => requests.push((tag, self.descriptors.read(tag))),
            Err(_) => self.commit(tag, -libc::EIO),
        }
    }

    /// What is submitted for it, together.
    fn entries(&self, pushed: Pushed) -> (squeue::Entry, Option<squeue::Entry>) {
        let copies = || {
            let Some(copies) = &self.copies else { unreachable!("only copies are pushed as such") };
            copies
        };
        match pushed {
            Pushed::Command { op, tag, result } => (self.command(op, tag, result), None),
            Pushed::Take { tag } => (copies().take(tag).user_data(COPY | u64::from(tag)), None),
            Pushed::Give { tag, result } => {
                let give = copies().give(tag).user_data(COPY | u64::from(tag));
                let commit = self.command(abi::COMMIT_AND_FETCH_REQ, tag, result);
                (give.flags(squeue::Flags::IO_LINK), Some(commit))
            }
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
        while let Some(&pushed) = self.pushed.front() {
            let (first, second) = self.entries(pushed);
            let both;
            let entries = match second {
                Some(second) => {
                    both = [first, second];
                    &both[..]
                }
                None => std::slice::from_ref(&first),
            };
            // SAFETY: the driver copies to and from the memory of this tag for as long as it has the command, which is
            // until its completion has come; or a copy does, between that or segments that `copies` keeps until its
            // completion has come, and by a vector that it leaves in place as long. Neither is dropped before (see
            // `Drop`), and memory is only reached by raw copies (see `Segment`). Data is taken into `memory`, which is
            // writable. So is the device's descriptor open.
            if unsafe { self.ring.submission().push_multiple(entries) }.is_err() {
                return;
            }
            self.pushed.pop_front();
        }
    }
}

impl Drop for Queue {
    /// Commands that the kernel still has are cancelled by it, some time after the ring is closed: until then
    /// their memory is the kernel's.
    fn drop(&mut self) {
        if self.out > 0 {
            mem::forget((Arc::clone(&self.memory), self.copies.take()));
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

/// Entries that are submitted together: a copy, and the commit that is linked to it.
const LINKED: u32 = 2;

/// Entries of the ring of a queue with so many requests: what is linked has to fit, or it would wait for room for ever.
fn entries(depth: u16) -> u32 {
    u32::from(depth).max(LINKED)
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A bound for what would never come to its end.
    const LIMIT: Duration = Duration::from_secs(60);

    /// A sparse file stands for the device: it takes the data of requests, and refuses commands.
    #[test]
    fn a_queue_of_one_request_gives_it_its_data_and_commits_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let device = Device(Arc::new(file.into()));
        let mut info = DeviceInfo::default().with_features(Features::USER_COPY);
        (info.queue_depth, info.max_io_buf_bytes) = (1, 4096);
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut queue = Queue::new(&device, 0, &info).unwrap();
            // As if a read had come.
            queue.places[0] = Place::Ours;
            queue.commit_data(0, std::iter::once(Segment::from_vec(b"data".to_vec())).collect());
            let (mut requests, mut ended) = (Vec::new(), Vec::new());
            queue.turn(&mut requests, &mut ended).unwrap();
            while !queue.is_over() {
                queue.turn(&mut requests, &mut ended).unwrap();
            }
            tell.send((requests.len(), ended)).unwrap();
        });
        let (requests, ended) = told.recv_timeout(LIMIT).expect("the copy and the commit fit");
        assert_eq!(requests, 0);
        assert!(matches!(ended[..], [Ended::Refused(_)]), "a file takes no commands: {ended:?}");
    }
}
