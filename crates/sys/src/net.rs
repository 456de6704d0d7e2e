//! Sockets: waiting for them, sending from many places at once, and receiving into many: bytes that somebody
//! borrows, and [`Segment`]s, which nobody can.

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use blockyard_buf::{Access, Segment};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A file descriptor that the runtime watches. It can be looked at, but not exchanged for another.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Lets the runtime of the calling task watch `fd`, which does not block.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says: no memory, or too many watches.
    ///
    /// # Panics
    /// Outside of a runtime that does I/O.
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open until it is dropped and always the same; nothing but a shared reference
        // to the `AsyncFd` is given out, so that it stays in there until both are dropped, or `into_inner` has
        // taken it off the runtime.
        let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(Self(watched?))
    }

    /// Gives the descriptor back, which is not watched any more: another runtime may.
    #[must_use]
    pub fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }
}

impl Deref for Watch {
    type Target = AsyncFd<OwnedFd>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// The most parts that the kernel takes in one call (`UIO_MAXIOV` of `include/uapi/linux/uio.h`).
pub const IOV_MAX: usize = 1024;

/// Room for the list of parts of one call, to be used again for the next.
#[derive(Debug, Default)]
pub struct IoVecs {
    list: Vec<libc::iovec>,
    shared: Vec<NonNull<Segment>>,
}

// SAFETY: the pointers in it are used by a `Gather` or a `Scatter` only, which fill the lists anew; in between
// they are mere numbers.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// Room for none yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { list: Vec::new(), shared: Vec::new() }
    }

    /// Begins a message.
    #[must_use]
    pub fn gather(&mut self) -> Gather<'_> {
        self.list.clear();
        Gather {
            list: &mut self.list,
            len: 0,
            flags: SEND_FLAGS,
            shared: Shared::begin(&mut self.shared),
            parts: PhantomData,
        }
    }

    /// Begins a place to receive into.
    #[must_use]
    pub fn scatter(&mut self) -> Scatter<'_> {
        self.list.clear();
        Scatter {
            list: &mut self.list,
            shared: Shared::begin(&mut self.shared),
            parts: PhantomData,
        }
    }
}

/// Places to receive into: they are filled in the order in which they were added.
#[derive(Debug)]
pub struct Scatter<'a> {
    list: &'a mut Vec<libc::iovec>,
    shared: Shared<'a>,
    parts: PhantomData<&'a mut [u8]>,
}

impl<'a> Scatter<'a> {
    /// Whether no further part fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.list.len() >= IOV_MAX
    }

    /// Adds bytes.
    ///
    /// # Panics
    /// If it [is full](Self::is_full).
    pub fn push(&mut self, bytes: &'a mut [u8]) {
        self.push_raw(bytes.as_mut_ptr(), bytes.len());
    }

    /// Adds a segment.
    ///
    /// # Panics
    /// If it cannot be written, or the list [is full](Self::is_full).
    pub fn push_segment(&mut self, segment: &'a Segment) {
        assert!(segment.is_writable(), "receiving into a segment that is read-only");
        self.shared.note(segment);
        self.push_raw(segment.as_ptr(), segment.len());
    }

    fn push_raw(&mut self, ptr: *mut u8, len: usize) {
        assert!(!self.is_full(), "more than {IOV_MAX} parts to receive into");
        if len > 0 {
            self.list.push(libc::iovec { iov_base: ptr.cast(), iov_len: len });
        }
    }

    /// Reads from a file that is no socket, and says how many bytes that were.
    ///
    /// # Errors
    /// What `readv(2)` says.
    pub(crate) fn read(self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let count = libc::c_int::try_from(self.list.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: as of `receive`: the list lives until the call returns; the kernel writes to bytes that were borrowed
        // mutably for the lifetime of `self`, and to segments that were checked to be writable.
        let got = unsafe { libc::readv(file.as_raw_fd(), self.list.as_ptr(), count) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what there is without waiting, and says how many bytes that were: 0 at the end.
    ///
    /// # Errors
    /// What `recvmsg(2)` says: [`io::ErrorKind::WouldBlock`] if nothing is there now.
    pub fn receive(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all fields of `msghdr` may be zero: no address, no control data, no flags.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.list.as_mut_ptr();
        // An array length: `size_t` with glibc, `int` with musl.
        message.msg_iovlen = self.list.len() as _;
        let mut faults = Faults(0);
        loop {
            // SAFETY: `message` and its list live until the call returns. The kernel writes to bytes that were
            // borrowed mutably for the lifetime of `self`, and to segments that were checked to be writable,
            // whose memory their owner keeps mapped (see `Segment::from_raw`).
            let got =
                unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
            if let Ok(got) = usize::try_from(got) {
                return Ok(got);
            }
            let err = io::Error::last_os_error();
            if err.kind() != io::ErrorKind::Interrupted
                && !faults.is_mended(&err, self.shared.segments(), Access::Write)
            {
                return Err(err);
            }
        }
    }
}

/// Those parts of a message whose memory may be gone when the kernel wants it.
#[derive(Debug)]
struct Shared<'a> {
    list: &'a mut Vec<NonNull<Segment>>,
    segments: PhantomData<&'a Segment>,
}

impl<'a> Shared<'a> {
    fn begin(list: &'a mut Vec<NonNull<Segment>>) -> Self {
        list.clear();
        Self { list, segments: PhantomData }
    }

    #[inline]
    fn note(&mut self, segment: &'a Segment) {
        if segment.is_shared() {
            self.list.push(NonNull::from(segment));
        }
    }

    fn segments(&self) -> impl Iterator<Item = &'a Segment> + Clone {
        // SAFETY: all that is in the list since it was cleared was borrowed for `'a`.
        self.list.iter().map(|segment| unsafe { segment.as_ref() })
    }
}

/// How often a call is made again for memory that the kernel cannot use: at once, as all may be well again; and when all shared
/// memory of the call is given up.
const FAULTS: u32 = 2;

/// What is done about a call that has failed because the file of shared memory became shorter (`EFAULT`): what was there is
/// nobody's memory from now on (see [`blockyard_buf::losses`]), and the call can be made again. The socket is as good as it
/// was, and so is what others send by it.
#[derive(Default)]
pub(crate) struct Faults(u32);

impl Faults {
    /// Whether to make the call again.
    #[cold]
    pub(crate) fn is_mended<'a>(
        &mut self,
        err: &io::Error,
        shared: impl Iterator<Item = &'a Segment> + Clone,
        access: Access,
    ) -> bool {
        if err.raw_os_error() != Some(libc::EFAULT) || self.0 == FAULTS {
            return false;
        }
        if shared.clone().fold(false, |any, segment| segment.probe(access) | any) {
            // What was found will not be found again.
            return true;
        }
        self.0 += 1;
        self.0 < FAULTS || shared.fold(false, |any, segment| segment.lose() | any)
    }
}

/// No wait, and no signal.
const SEND_FLAGS: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// A message that is put together: parts go over the wire in the order in which they were added.
#[derive(Debug)]
pub struct Gather<'a> {
    list: &'a mut Vec<libc::iovec>,
    len: usize,
    flags: libc::c_int,
    shared: Shared<'a>,
    parts: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    /// Whether no further part fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.list.len() >= IOV_MAX
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds bytes.
    ///
    /// # Panics
    /// If it [is full](Self::is_full).
    pub fn push(&mut self, bytes: &'a [u8]) {
        self.push_raw(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// Adds a segment without its first `skip` bytes. It is not copied: what is sent is what it holds when the
    /// kernel takes it.
    ///
    /// # Panics
    /// If it has fewer bytes, or the message [is full](Self::is_full).
    pub fn push_segment(&mut self, segment: &'a Segment, skip: usize) {
        assert!(skip <= segment.len(), "{skip} bytes skipped of a segment of {}", segment.len());
        self.shared.note(segment);
        self.push_raw(segment.as_ptr().wrapping_add(skip), segment.len() - skip);
    }

    fn push_raw(&mut self, ptr: *mut u8, len: usize) {
        assert!(!self.is_full(), "a message of more than {IOV_MAX} parts");
        if len > 0 {
            self.list.push(libc::iovec { iov_base: ptr.cast(), iov_len: len });
            self.len += len;
        }
    }

    /// More is sent right behind it, by another call: TCP is to put both into the same packets.
    pub fn goes_on(&mut self) {
        self.flags |= libc::MSG_MORE;
    }

    /// Writes it to a file that is no socket, and says how many bytes that were.
    ///
    /// # Errors
    /// What `writev(2)` says.
    pub(crate) fn write(self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let count = libc::c_int::try_from(self.list.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: as of `send`: the list lives until the call returns, and the kernel only reads what it points to, each
        // part of which was borrowed for the lifetime of `self`.
        let written = unsafe { libc::writev(file.as_raw_fd(), self.list.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Sends it, as far as it goes without waiting, and says how many bytes that were. A peer that is gone is
    /// an error, not a signal.
    ///
    /// # Errors
    /// What `sendmsg(2)` says: [`io::ErrorKind::WouldBlock`] if nothing could be sent now.
    pub fn send(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: all fields of `msghdr` may be zero: no address, no control data, no flags.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.list.as_mut_ptr();
        // An array length: `size_t` with glibc, `int` with musl.
        message.msg_iovlen = self.list.len() as _;
        let flags = self.flags;
        let mut faults = Faults(0);
        loop {
            // SAFETY: `message` and its list live until the call returns, and the kernel only reads what they
            // point to. Each part was borrowed for the lifetime of `self`, so that it is mapped: a slice by its
            // borrow, a segment's memory by its owner (see `Segment::from_raw`), which may change but not go
            // away.
            let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
            if let Ok(sent) = usize::try_from(sent) {
                return Ok(sent);
            }
            let err = io::Error::last_os_error();
            if err.kind() != io::ErrorKind::Interrupted
                && !faults.is_mended(&err, self.shared.segments(), Access::Read)
            {
                return Err(err);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use blockyard_buf::SharedMapping;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn a_descriptor_that_was_watched_is_given_back() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        far.write_all(b"x").unwrap();
        let mut fd = OwnedFd::from(near);
        for _ in 0..2 {
            fd = runtime().block_on(async {
                let watch = Watch::new(fd, Interest::READABLE).unwrap();
                drop(watch.readable().await.unwrap());
                watch.into_inner()
            });
        }
        let mut byte = [0];
        UnixStream::from(fd).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn parts_arrive_in_order_and_whole() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let segment = Segment::from_vec(b"..world".to_vec());
        let zeroes = Segment::zero_run(3);
        let mut vecs = IoVecs::new();
        for _ in 0..2 {
            let mut message = vecs.gather();
            assert!(message.is_empty());
            message.push(b"hello ");
            message.push(b"");
            message.push_segment(&segment, 2);
            message.push_segment(&zeroes, 0);
            assert_eq!(message.len(), 14);
            assert_eq!(message.send(near.as_fd()).unwrap(), 14);
            let mut got = [1; 14];
            far.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"hello world\0\0\0");
        }
    }

    #[test]
    fn takes_what_the_socket_has_room_for_and_never_waits() {
        let (near, far) = UnixStream::pair().unwrap();
        let zeroes = Segment::zero_run(1 << 20);
        let mut vecs = IoVecs::new();
        let mut send = || {
            let mut message = vecs.gather();
            (0..8).for_each(|_| message.push_segment(&zeroes, 0));
            message.send(near.as_fd())
        };
        let sent = send().unwrap();
        assert!(sent > 0 && sent < 8 << 20);
        let full = std::iter::repeat_with(&mut send).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        drop(far);
        assert_eq!(send().unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    /// The kernel finds the hole first. To send again what stays gone would go on for ever.
    #[test]
    fn memory_that_is_gone_is_no_fault_of_the_socket() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let shared = || {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, 8192).unwrap();
            let mapping = SharedMapping::new(file.as_fd(), 0, 8192).unwrap();
            mapping.segment(0, 8192).copy_from(&[7; 8192]);
            ftruncate(&file, 4096).unwrap();
            mapping
        };
        let mut vecs = IoVecs::new();
        let gone = shared();
        let segment = gone.segment(0, 8192);
        let mut message = vecs.gather();
        message.push(b"head");
        message.push_segment(&segment, 0);
        let sent = message.send(near.as_fd()).unwrap();
        assert!(sent > 4);
        far.read_exact(&mut vec![0; sent]).unwrap();
        let gone = shared();
        let segment = gone.segment(4096, 4096);
        let mut message = vecs.gather();
        message.push_segment(&segment, 0);
        assert_eq!(message.send(near.as_fd()).unwrap(), 4096);
        assert!(gone.is_lost());
        far.read_exact(&mut [0; 4096]).unwrap();
        let gone = shared();
        let segment = gone.segment(4096, 4096);
        far.write_all(&[5; 4096]).unwrap();
        let mut places = vecs.scatter();
        places.push_segment(&segment);
        assert_eq!(places.receive(near.as_fd()).unwrap(), 4096);
        assert!(gone.is_lost());
    }

    /// What the kernel says of it is not to be found again: the peer gets zeroes, and the connection lives.
    #[test]
    fn memory_that_the_kernel_refuses_without_a_reason_is_given_up() {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 8192).unwrap();
        let mapping = SharedMapping::new(file.as_fd(), 0, 8192).unwrap();
        let part = mapping.segment(4096, 4096);
        let own = Segment::from_vec(vec![1; 8]);
        let list = [&own, &part];
        let refused = io::Error::from_raw_os_error(libc::EFAULT);
        let mut faults = Faults(0);
        assert!(faults.is_mended(&refused, list.into_iter(), Access::Read), "it is tried again");
        assert!(!mapping.is_lost());
        assert!(faults.is_mended(&refused, list.into_iter(), Access::Read), "and again without it");
        assert!(mapping.is_lost() && part.is_lost() && !mapping.segment(0, 4096).is_lost());
        assert!(!faults.is_mended(&refused, list.into_iter(), Access::Read), "and not for ever");
        let mut faults = Faults(0);
        assert!(faults.is_mended(&refused, std::iter::once(&own), Access::Read));
        assert!(
            !faults.is_mended(&refused, std::iter::once(&own), Access::Read),
            "there is nothing to give up"
        );
        let other = io::Error::from_raw_os_error(libc::EPIPE);
        assert!(!Faults(0).is_mended(&other, list.into_iter(), Access::Read));
    }

    /// A file system that is full: what can be read cannot be written, so that a look does not show it.
    #[test]
    fn memory_that_can_only_be_read_is_found() {
        let place = tempfile::tempdir().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let command = format!("mount -t tmpfs -o size=16k tmpfs {}", place.path().display());
        let mounted = std::process::Command::new("sh").args(["-ec", &command]).status().unwrap();
        assert!(mounted.success(), "as root?");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(place.path().join("guest"));
        let command = format!("umount -l {}", place.path().display());
        std::process::Command::new("sh").args(["-ec", &command]).status().unwrap();
        let file = file.unwrap();
        file.set_len(1 << 20).unwrap();
        let mapping = SharedMapping::new(file.as_fd(), 0, 1 << 20).unwrap();
        far.write_all(&[5; 65536]).unwrap();
        let segment = mapping.segment(0, 65536);
        let mut vecs = IoVecs::new();
        let mut places = vecs.scatter();
        places.push_segment(&segment);
        let first = places.receive(near.as_fd()).unwrap();
        let mut left = 65536 - first;
        while left > 0 {
            let part = segment.slice(65536 - left, left);
            let mut places = vecs.scatter();
            places.push_segment(&part);
            left -= places.receive(near.as_fd()).unwrap();
        }
        assert!(mapping.is_lost());
        assert_eq!(segment.slice(0, 512).to_vec(), [5; 512]);
    }

    #[test]
    fn a_message_has_an_end() {
        let mut vecs = IoVecs::new();
        let mut message = vecs.gather();
        (0..IOV_MAX).for_each(|_| message.push(b"x"));
        assert!(message.is_full());
    }

    #[test]
    #[should_panic(expected = "skipped of a segment")]
    fn skipping_more_than_there_is_is_a_bug() {
        IoVecs::new().gather().push_segment(&Segment::zero_run(4), 5);
    }

    #[test]
    fn what_comes_fills_the_places_in_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"headpayload and the next").unwrap();
        let payload = Segment::from_vec(vec![0; 10]);
        let (mut head, mut rest) = ([0; 4], [0; 64]);
        let mut vecs = IoVecs::new();
        let mut places = vecs.scatter();
        let part = payload.slice(1, 7);
        places.push(&mut head);
        places.push_segment(&part);
        places.push(&mut rest);
        assert_eq!(places.receive(near.as_fd()).unwrap(), 24);
        assert_eq!(&head, b"head");
        assert_eq!(payload.to_vec(), b"\0payload\0\0");
        assert_eq!(&rest[..13], b" and the next");
        let mut receive = || {
            let mut places = vecs.scatter();
            places.push(&mut head);
            places.receive(near.as_fd())
        };
        assert_eq!(receive().unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(far);
        assert_eq!(receive().unwrap(), 0);
    }

    #[test]
    #[should_panic(expected = "read-only")]
    fn receiving_over_zeroes_is_a_bug() {
        IoVecs::new().scatter().push_segment(&Segment::zero_run(4));
    }
}
