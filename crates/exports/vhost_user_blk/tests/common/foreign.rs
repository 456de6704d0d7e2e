//! A driver that is not ours: the crate blkio.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use blockyard_buf::{Segment, SharedMapping};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connected driver with its queues, and memory that the device can reach.
pub(crate) struct Foreign {
    pub(crate) blkio: Blkio,
    pub(crate) queues: Vec<Blkioq>,
    region: MemoryRegion,
    memory: Arc<SharedMapping>,
}

impl Foreign {
    pub(crate) fn connect(socket: &Path, queues: i32, memory: usize) -> Self {
        Self::try_connect(socket, queues, memory, false).unwrap()
    }

    pub(crate) fn try_connect(
        socket: &Path,
        queues: i32,
        memory: usize,
        read_only: bool,
    ) -> Result<Self, String> {
        let told = |err: blkio::Error| err.message().to_string();
        let mut blkio = Blkio::new("virtio-blk-vhost-user").map_err(told)?;
        blkio.set_str("path", socket.to_str().unwrap()).map_err(told)?;
        blkio.set_bool("read-only", read_only).map_err(told)?;
        blkio.connect().map_err(told)?;
        blkio.set_i32("num-queues", queues).map_err(told)?;
        let started = blkio.start().map_err(told)?;
        let region = blkio.alloc_mem_region(memory).map_err(told)?;
        blkio.map_mem_region(&region).map_err(told)?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", region.fd))
            .unwrap();
        let offset = u64::try_from(region.fd_offset).unwrap();
        let memory = SharedMapping::new(file.as_fd(), offset, memory as u64).unwrap();
        Ok(Self { blkio, queues: started.queues, region, memory })
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.blkio.get_u64("capacity").unwrap()
    }

    /// Memory for data, as the test sees it.
    pub(crate) fn segment(&self, at: usize, len: usize) -> Segment {
        self.memory.segment(at, len)
    }

    /// The same, as the driver sees it.
    pub(crate) fn address(&self, at: usize) -> *mut u8 {
        (self.region.addr + at) as *mut u8
    }

    /// Waits for so many requests of a queue: what each was given by the caller, and how it ended.
    pub(crate) fn wait(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)> {
        let mut places: Vec<MaybeUninit<Completion>> = Vec::new();
        places.resize_with(count, MaybeUninit::uninit);
        let mut patience = PATIENCE;
        let done = self.queues[queue].do_io(&mut places, count, Some(&mut patience), None);
        let done = done.map_err(|err| err.message().to_string()).unwrap();
        assert_eq!(done, count);
        let read = |place: MaybeUninit<Completion>| {
            // SAFETY: `do_io` fills as many completions as it says, and that is all of them.
            let completion = unsafe { place.assume_init() };
            (completion.user_data, completion.ret)
        };
        places.into_iter().map(read).collect()
    }

    pub(crate) fn read(&mut self, queue: usize, start: u64, len: usize) -> Result<Vec<u8>, i32> {
        let address = self.address(0);
        self.segment(0, len).fill_zero();
        self.queues[queue].read(start, address, len, 0, ReqFlags::empty());
        self.one(queue)?;
        Ok(self.segment(0, len).to_vec())
    }

    pub(crate) fn write(&mut self, queue: usize, start: u64, data: &[u8]) -> Result<(), i32> {
        self.segment(0, data.len()).copy_from(data);
        let address = self.address(0);
        self.queues[queue].write(start, address, data.len(), 0, ReqFlags::empty());
        self.one(queue)
    }

    pub(crate) fn flush(&mut self, queue: usize) -> Result<(), i32> {
        self.queues[queue].flush(0, ReqFlags::empty());
        self.one(queue)
    }

    pub(crate) fn discard(&mut self, queue: usize, start: u64, len: u64) -> Result<(), i32> {
        self.queues[queue].discard(start, len, 0, ReqFlags::empty());
        self.one(queue)
    }

    pub(crate) fn write_zeroes(
        &mut self,
        queue: usize,
        start: u64,
        len: u64,
        flags: ReqFlags,
    ) -> Result<(), i32> {
        self.queues[queue].write_zeroes(start, len, 0, flags);
        self.one(queue)
    }

    fn one(&mut self, queue: usize) -> Result<(), i32> {
        match self.wait(queue, 1)[0].1 {
            0 => Ok(()),
            err => Err(err),
        }
    }
}
