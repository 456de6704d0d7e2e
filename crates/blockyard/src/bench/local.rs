//! Load on a disk of this process: bios from the queue threads, each used again when it comes back.
#![allow(clippy::vec_box, reason = "a bio stays in its box from one use to the next")]

use std::sync::Arc;
use std::time::Instant;

use blockyard_blkmq::{Bdev, Bio, DiskFlags, Op, OpenMode, Outbox, Sector};
use blockyard_buf::{Pool, Segment};
use tokio::runtime::Handle;

use super::Load;
use super::pattern::Pattern;
use super::report::{Report, Tally, cpu_time};
use crate::disks::DiskPlan;
use crate::error::{Error, Result};
use crate::tools::session::Session;

/// Requests between two turns of the thread's other work.
const TURN: u64 = 4096;

/// Puts the load on a disk.
///
/// # Errors
/// The disk cannot be opened, does not fit the load, or cannot be flushed in the end. Requests that fail are counted instead.
pub fn run(plan: &DiskPlan, load: &Load) -> Result<Report> {
    let mut plan = plan.clone();
    plan.options.read_only |= !load.mix.writes();
    let mut session = Session::start(load.queues)?;
    let disk = session.open(&plan, DiskFlags::NO_PART_SCAN)?;
    let mode = if load.mix.writes() { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
    let bdev = disk
        .open(None, mode)
        .map_err(|err| Error::failed("cannot open the disk").caused_by(err))?;
    let report = load_disk(session.threads(), &Arc::new(bdev), load)?;
    // How fast it was to write what is lost is no result.
    session.close()?;
    Ok(report)
}

fn load_disk(threads: &[Handle], bdev: &Arc<Bdev>, load: &Load) -> Result<Report> {
    load.check_alignment(bdev.limits().logical_block_size.bytes())?;
    let range = load.range(bdev.capacity().bytes())?;
    let (cpu, start) = (cpu_time(), Instant::now());
    let (tell, told) = std::sync::mpsc::channel();
    for (queue, handle) in threads.iter().enumerate() {
        let (count, until) = load.quota(queue, start);
        let mut pattern = Pattern::new(load, queue, range);
        let lane = Lane {
            bdev: Arc::clone(bdev),
            queue,
            data: load.mix.writes().then(|| data(&mut pattern, load.block as usize)),
            pattern,
            block: load.block,
            left: count,
            until,
            done: Arc::default(),
            starts: vec![start; load.depth],
            tally: Tally::new()?,
        };
        let (tell, depth) = (tell.clone(), load.depth);
        handle.spawn(async move {
            // Whoever waits has all the senders' answers, or is gone.
            let _ = tell.send(lane.run(depth).await);
        });
    }
    drop(tell);
    let mut all = Tally::new()?;
    told.iter().for_each(|tally| all.add(&tally));
    Ok(Report::new(&all, load.block, start.elapsed(), cpu_time().saturating_sub(cpu)))
}

fn data(pattern: &mut Pattern, block: usize) -> Segment {
    let mut bytes = vec![0; block];
    pattern.fill(&mut bytes);
    let segment = Pool::default().get(block).into_segment_mut(block);
    segment.copy_from(&bytes);
    segment
}

/// A closed loop on one queue.
struct Lane {
    bdev: Arc<Bdev>,
    queue: usize,
    pattern: Pattern,
    data: Option<Segment>,
    block: u32,
    /// Requests to begin.
    left: u64,
    until: Option<Instant>,
    done: Arc<Outbox>,
    /// When each was submitted, by its private mark.
    starts: Vec<Instant>,
    tally: Tally,
}

impl Lane {
    async fn run(mut self, depth: usize) -> Tally {
        let mut batch = Vec::with_capacity(depth);
        let mut back = Vec::with_capacity(depth);
        let mut flying = 0;
        for mark in (0..depth as u64).take(usize::try_from(self.left).unwrap_or(usize::MAX)) {
            let mut bio = Bio::new(Op::Read, Sector::ZERO, 0);
            bio.set_end(Arc::<Outbox>::clone(&self.done));
            bio.private = mark;
            self.prepare(&mut bio, Instant::now());
            batch.push(bio);
            flying += 1;
        }
        let mut turn = 0;
        while flying > 0 {
            self.bdev.submit_all(self.queue, &mut batch);
            self.take_back(&mut back).await;
            let now = Instant::now();
            if self.until.is_some_and(|until| now >= until) {
                self.left = 0;
            }
            turn += back.len() as u64;
            for mut bio in back.drain(..) {
                self.ended(&bio, now);
                if self.left == 0 {
                    flying -= 1;
                    continue;
                }
                self.prepare(&mut bio, now);
                batch.push(bio);
            }
            if turn >= TURN {
                turn = 0;
                tokio::task::yield_now().await;
            }
        }
        self.tally
    }

    /// Makes a bio the next request.
    fn prepare(&mut self, bio: &mut Bio, now: Instant) {
        self.left -= 1;
        let step = self.pattern.step();
        let sector = Sector::from_bytes_floor(step.offset);
        match self.data.as_ref().filter(|_| step.write) {
            Some(data) => {
                bio.reset(Op::Write, sector, 0);
                bio.add_segment(data.clone());
            }
            None => bio.reset(Op::Read, sector, self.block.into()),
        }
        if let Some(start) =
            usize::try_from(bio.private).ok().and_then(|mark| self.starts.get_mut(mark))
        {
            *start = now;
        }
    }

    fn ended(&mut self, bio: &Bio, now: Instant) {
        let start = usize::try_from(bio.private).ok().and_then(|mark| self.starts.get(mark));
        if bio.status().is_ok() {
            self.tally.record(now - *start.unwrap_or(&now));
        } else {
            self.tally.fail(&bio.status());
        }
    }

    /// Waits until a bio has come back, and takes all that have.
    async fn take_back(&self, back: &mut Vec<Box<Bio>>) {
        self.done.filled().await;
        self.done.take(back);
    }
}
