//! One hardware queue: the kernel's requests become bios, and their ends the answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bdev, Bio, Flags, Op, Outbox, SECTOR_SIZE, Sector, Status};
use blockyard_sys::EventWatch;
use blockyard_sys::ublk::{self, Descriptor, Ended};
use tokio::sync::oneshot;

/// Rounds of work after which others on the thread get their turn.
const ROUNDS: usize = 8;
/// How long a kernel that takes no answers is left alone.
const RETRY: Duration = Duration::from_millis(5);

/// A queue at work, on its thread.
pub(crate) struct Worker {
    queue: ublk::Queue,
    bdev: Arc<Bdev>,
    /// The number of the queue thread.
    cpu: usize,
    /// The bio of each request that is not out.
    idle: Vec<Option<Box<Bio>>>,
    /// Bytes of each request: what its answer says.
    lengths: Vec<u32>,
    max_io_bytes: u32,
    outbox: Arc<Outbox>,
    ended: Vec<Box<Bio>>,
    batch: Vec<Box<Bio>>,
    requests: Vec<(u16, Descriptor)>,
    gone: Vec<Ended>,
    refused: bool,
    /// The kernel takes no answers, which was said.
    is_stuck: bool,
}

impl Worker {
    pub(crate) fn new(queue: ublk::Queue, bdev: Arc<Bdev>, cpu: usize, max_io_bytes: u32) -> Self {
        let depth = usize::from(queue.depth());
        let outbox = Arc::new(Outbox::default());
        let bio = |tag| {
            let mut bio = Bio::flush().on_end(Arc::<Outbox>::clone(&outbox));
            bio.private = tag as u64;
            Some(bio)
        };
        Self {
            idle: (0..depth).map(bio).collect(),
            lengths: vec![0; depth],
            queue,
            bdev,
            cpu,
            max_io_bytes,
            outbox,
            ended: Vec::with_capacity(depth),
            batch: Vec::with_capacity(depth),
            requests: Vec::with_capacity(depth),
            gone: Vec::new(),
            refused: false,
            is_stuck: false,
        }
    }

    /// Serves the queue until the device is stopped. Says when it has fetched, or why it could not.
    pub(crate) async fn run(mut self, event: EventWatch, fetched: oneshot::Sender<io::Result<()>>) {
        self.queue.fetch();
        let progress = self.turn();
        let answer = match self.gone.iter().find_map(|ended| match ended {
            Ended::Refused(errno) => Some(*errno),
            Ended::Stopped => None,
        }) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => progress.map(drop),
        };
        let failed = answer.is_err();
        // Whoever waits for it may have given up.
        let _ = fetched.send(answer);
        if failed {
            return;
        }
        loop {
            self.work().await;
            if self.queue.is_over() {
                return;
            }
            let ringing = event.happened();
            tokio::select! {
                happened = ringing => if happened.is_err() { return },
                () = self.outbox.filled() => {}
            }
        }
    }

    /// Works as long as there is something to do.
    async fn work(&mut self) {
        let mut rounds = 0;
        loop {
            match self.turn() {
                Ok(more) => {
                    self.is_stuck = false;
                    if !more {
                        return;
                    }
                }
                Err(err) => {
                    // Memory for the kernel's own part is short. What was pushed stays.
                    if !std::mem::replace(&mut self.is_stuck, true) {
                        tracing::warn!(disk = self.bdev.name(), error = %err, "ublk commit failed, retrying");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
            rounds += 1;
            if rounds % ROUNDS == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Answers what has ended, and starts what has come. Says whether there was anything.
    fn turn(&mut self) -> io::Result<bool> {
        self.outbox.take(&mut self.ended);
        let answered = !self.ended.is_empty();
        let mut ended = std::mem::take(&mut self.ended);
        ended.drain(..).for_each(|bio| self.answer(bio));
        self.ended = ended;
        self.queue.turn(&mut self.requests, &mut self.gone)?;
        for ended in self.gone.drain(..) {
            if let Ended::Refused(errno) = ended
                && !std::mem::replace(&mut self.refused, true)
            {
                let err = io::Error::from_raw_os_error(errno);
                tracing::error!(disk = self.bdev.name(), error = %err, "ublk commit failed");
            }
        }
        let came = !self.requests.is_empty();
        let mut requests = std::mem::take(&mut self.requests);
        for (tag, descriptor) in requests.drain(..) {
            match self.start(tag, descriptor) {
                Ok(bio) => self.batch.push(bio),
                Err(status) => self.queue.commit(tag, -status.errno()),
            }
        }
        self.requests = requests;
        if !self.batch.is_empty() {
            self.bdev.submit_all(self.cpu, &mut self.batch);
        }
        Ok(answered || came)
    }

    /// The bio of a request.
    fn start(&mut self, tag: u16, asked: Descriptor) -> Result<Box<Bio>, Status> {
        let op = match asked.op().ok_or(Status::NotSupported)? {
            ublk::Op::Read => Op::Read,
            ublk::Op::Write => Op::Write,
            ublk::Op::Flush => Op::Flush,
            ublk::Op::Discard => Op::Discard,
            ublk::Op::WriteZeroes => Op::WriteZeroes,
        };
        let bytes = u64::from(asked.nr_sectors) * SECTOR_SIZE;
        let mut length = 0;
        if op.has_data() {
            let fits = u32::try_from(bytes).ok().filter(|bytes| *bytes <= self.max_io_bytes);
            length = fits.ok_or(Status::Invalid)?;
        }
        let slot = usize::from(tag);
        // It came back with the answer before, or has never been out.
        let mut bio = self.idle[slot].take().ok_or(Status::Resource)?;
        let sector = Sector(asked.start_sector);
        match op {
            Op::Flush => bio.reset(op, Sector::ZERO, 0),
            Op::Read => match self.queue.place(tag, length as usize) {
                Some(place) => {
                    bio.reset(op, sector, 0);
                    bio.add_segment(place);
                }
                None => bio.reset(op, sector, bytes),
            },
            Op::Write => {
                bio.reset(op, sector, 0);
                bio.add_segment(self.queue.written(tag, length as usize));
            }
            _ => bio.reset(op, sector, bytes),
        }
        bio.flags.set(Flags::FUA, asked.fua() && op != Op::Flush);
        bio.flags.set(Flags::META, asked.meta());
        bio.flags.set(Flags::NOUNMAP, asked.no_unmap() && op == Op::WriteZeroes);
        self.lengths[slot] = length;
        Ok(bio)
    }

    /// The answer to a request.
    fn answer(&mut self, mut bio: Box<Bio>) {
        #[expect(clippy::cast_possible_truncation, reason = "a tag, as it was made")]
        let tag = bio.private as u16;
        let slot = usize::from(tag);
        let (status, data) = (bio.status(), bio.take_data());
        let supplied = bio.op == Op::Read && bio.wants_supply();
        self.idle[slot] = Some(bio);
        match status {
            Status::Ok if supplied => self.queue.commit_data(tag, data),
            Status::Ok => {
                self.queue.commit(tag, i32::try_from(self.lengths[slot]).unwrap_or(i32::MAX));
            }
            status => self.queue.commit(tag, -status.errno()),
        }
    }
}
