//! Lanes: tasks on the queue threads that take pieces from a planner and work on them.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc as sync};
use std::time::{Duration, Instant};

use blockyard_blkmq::Disk;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::DEPTH;
use super::interrupt::Interrupt;
use crate::error::{Error, Result};
use crate::tools::session::Session;

/// Pieces that a planner is ahead of the lanes.
const AHEAD: usize = 64;
/// How often whoever waits has a look.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How long what has begun may take once an end is wanted. A server that is lost would take minutes.
pub(super) const GRACE: Duration = Duration::from_millis(400);

/// What is done with a piece, in a lane.
pub(super) type Work<P> =
    dyn Fn(Lane, P) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync;

/// How it ended, if nothing failed.
#[derive(Debug)]
pub(super) enum Ended {
    /// All pieces are done.
    Whole,
    /// Some are not: an end was wanted. What had failed before anything was given up for that is told, too.
    Early(Option<Error>),
}

/// Where a piece is worked on.
pub(super) struct Lane {
    /// The number of the queue thread.
    pub(super) cpu: usize,
    state: Arc<State>,
}

impl Lane {
    /// Whether nothing is to be begun any more. Who is told so leaves the rest of the piece undone.
    pub(super) fn stops(&self) -> bool {
        let stopped = self.state.stopped();
        if stopped {
            self.state.short.store(true, Ordering::Release);
        }
        stopped
    }
}

/// What the planner, the lanes and whoever waits share.
#[derive(Default)]
struct State {
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Pieces that were handed out, and those that are done. A lane that panics leaves a difference.
    handed: AtomicU64,
    done: AtomicU64,
    /// A piece was not taken any more, or not done to its end.
    short: AtomicBool,
    /// What is out is given up: that it fails says nothing.
    given_up: AtomicBool,
}

impl State {
    fn fail(&self, err: Error) {
        if !self.given_up.load(Ordering::Acquire) {
            self.failure.lock().get_or_insert(err);
        }
        self.stop.store(true, Ordering::Release);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn is_whole(&self) -> bool {
        let count = |of: &AtomicU64| of.load(Ordering::Acquire);
        !self.short.load(Ordering::Acquire) && count(&self.handed) == count(&self.done)
    }
}

/// Where a planner puts its pieces.
pub(super) struct Pieces<P> {
    sender: mpsc::Sender<P>,
    state: Arc<State>,
}

impl<P> Pieces<P> {
    /// Waits for a lane that takes the piece. False: nobody does any more.
    pub(super) fn put(&self, piece: P) -> bool {
        let taken = !self.state.stopped() && self.sender.blocking_send(piece).is_ok();
        if taken {
            self.state.handed.fetch_add(1, Ordering::AcqRel);
        } else {
            self.state.short.store(true, Ordering::Release);
        }
        taken
    }
}

/// Runs a planner and lanes on disks until all pieces are done, something fails, or an end is wanted. `look` is called every
/// now and then, and must not wait. What has begun is finished, but within [`GRACE`] if an end is wanted: then the disks of
/// the session give up, and limits let in what they keep of it.
pub(super) fn run<P: Send + 'static>(
    (session, disks): (&Session, &[&Arc<Disk>]),
    interrupt: &Interrupt,
    work: &Arc<Work<P>>,
    plan: impl FnOnce(&Pieces<P>) -> Result<()> + Send,
    mut look: impl FnMut() -> Result<()>,
) -> Result<Ended> {
    let state = Arc::<State>::default();
    let (sender, receiver) = mpsc::channel(AHEAD);
    let receiver = Arc::new(AsyncMutex::new(receiver));
    let (alive, ended) = sync::channel::<()>();
    for (cpu, thread) in session.threads().iter().enumerate() {
        for _ in 0..DEPTH {
            let (receiver, work, alive) = (Arc::clone(&receiver), Arc::clone(work), alive.clone());
            let state = Arc::clone(&state);
            thread.spawn(async move {
                while !state.stopped() {
                    let piece = receiver.lock().await.recv().await;
                    let Some(piece) = piece else { break };
                    match work(Lane { cpu, state: Arc::clone(&state) }, piece).await {
                        Ok(()) => _ = state.done.fetch_add(1, Ordering::AcqRel),
                        Err(err) => state.fail(err),
                    }
                }
                drop(alive);
            });
        }
    }
    drop(receiver);
    let pieces = Pieces { sender, state: Arc::clone(&state) };
    let planned = std::thread::scope(|scope| {
        let planner = scope.spawn(move || {
            // With them goes the sender, so that the lanes end.
            let (pieces, _alive) = (pieces, alive);
            plan(&pieces)
        });
        let mut wanted: Option<Instant> = None;
        let mut admit_after = GRACE;
        while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if let Err(err) = look() {
                state.fail(err);
            }
            if interrupt.is_wanted() {
                state.stop.store(true, Ordering::Release);
                let waited = wanted.get_or_insert_with(Instant::now).elapsed();
                if waited >= GRACE {
                    state.given_up.store(true, Ordering::Release);
                    session.abandon();
                }
                // A piece may take a few requests, one after the other. A server may never answer one of them, and what others
                // ask meanwhile is let in with these: so not all the time.
                if waited >= admit_after {
                    admit_after *= 2;
                    disks.iter().for_each(|disk| disk.admit_kept());
                }
            }
        }
        planner.join().unwrap_or_else(|_| Err(Error::failed("the planner panicked")))
    });
    if let Err(err) = planned {
        // The rest of the disk was not looked at.
        state.short.store(true, Ordering::Release);
        state.fail(err);
    }
    let failure = state.failure.lock().take();
    match failure {
        failure if interrupt.is_wanted() && !state.is_whole() => Ok(Ended::Early(failure)),
        Some(err) => Err(err),
        None if state.is_whole() => Ok(Ended::Whole),
        None => Err(Error::failed("a part was skipped, because a task panicked")),
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{Bio, DiskFlags, Op, OpenMode, Sector};

    use super::*;

    fn run_with(work: &Arc<Work<u64>>, interrupt: &Interrupt, count: u64) -> Result<Ended> {
        let session = Session::start(2).unwrap();
        let plan = |pieces: &Pieces<u64>| {
            let _ = (0..count).all(|piece| pieces.put(piece));
            Ok(())
        };
        run((&session, &[]), interrupt, work, plan, || Ok(()))
    }

    #[test]
    fn a_piece_that_is_lost_with_its_lane_is_missed() {
        let ends: Arc<Work<u64>> = Arc::new(|_, _| Box::pin(async { Ok(()) }));
        assert!(matches!(run_with(&ends, &Interrupt::default(), 1000).unwrap(), Ended::Whole));
        for last in [0, 999] {
            let panics: Arc<Work<u64>> = Arc::new(move |_, piece| {
                Box::pin(async move {
                    assert!(piece != last, "a lane that is meant to panic");
                    Ok(())
                })
            });
            let missed = run_with(&panics, &Interrupt::default(), 1000).unwrap_err();
            assert!(missed.to_string().contains("skipped"), "{missed}");
        }
        let all_panic: Arc<Work<u64>> = Arc::new(|_, _| panic!("lanes that are meant to panic"));
        assert!(run_with(&all_panic, &Interrupt::default(), 1000).is_err());
    }

    #[test]
    fn an_end_that_is_wanted_is_no_failure() {
        let interrupt = Arc::new(Interrupt::default());
        let raise = Arc::clone(&interrupt);
        let work: Arc<Work<u64>> = Arc::new(move |_, _| {
            raise.raise();
            Box::pin(async { Ok(()) })
        });
        // It would never be through.
        assert!(matches!(run_with(&work, &interrupt, u64::MAX).unwrap(), Ended::Early(None)));
    }

    #[test]
    fn an_end_that_is_wanted_does_not_wait_for_the_limits_of_a_disk() {
        let mut session = Session::start(2).unwrap();
        let plan = "null:1M?write_bps=1".parse().unwrap();
        let disk = session.open(&plan, DiskFlags::NO_PART_SCAN).unwrap();
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let interrupt = Arc::new(Interrupt::default());
        let raise = Arc::clone(&interrupt);
        let work: Arc<Work<u64>> = Arc::new(move |lane, _| {
            let zeroes = Bio::new(Op::WriteZeroes, Sector(0), 4096);
            let written = bdev.submit_async(lane.cpu, zeroes);
            raise.raise();
            Box::pin(async move {
                assert!(written.await.status().is_ok());
                Ok(())
            })
        });
        let plan = |pieces: &Pieces<u64>| {
            let _ = (0..1000).all(|piece| pieces.put(piece));
            Ok(())
        };
        // All of it would take a month.
        let ended = run((&session, &[&disk]), &interrupt, &work, plan, || Ok(()));
        assert!(matches!(ended.unwrap(), Ended::Early(None)));
        assert!(disk.oldest().is_none());
    }

    /// As the source of a copy whose target does not answer, which others use.
    #[test]
    fn limits_are_there_for_others_while_an_end_waits_for_another_disk() {
        let mut session = Session::start(1).unwrap();
        let plan = "null:1M?write_bps=1".parse().unwrap();
        let disk = session.open(&plan, DiskFlags::NO_PART_SCAN).unwrap();
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        let interrupt = Arc::new(Interrupt::default());
        let raise = Arc::clone(&interrupt);
        let answer = Arc::new(tokio::sync::Notify::new());
        let answered = Arc::clone(&answer);
        let work: Arc<Work<u64>> = Arc::new(move |_, _| {
            raise.raise();
            let answered = Arc::clone(&answered);
            Box::pin(async move {
                answered.notified().await;
                Ok(())
            })
        });
        // Somebody else's, one after the other, for two seconds at least.
        let (mut looks, mut writes) = (0, 0);
        let look = || {
            looks += 1;
            if looks == 40 {
                answer.notify_one();
            } else if disk.oldest().is_none() {
                let zeroes = Bio::new(Op::WriteZeroes, Sector(0), 4096);
                bdev.submit(0, zeroes.on_end(Arc::new(drop::<Box<Bio>>)));
                writes += 1;
            }
            Ok(())
        };
        let plan = |pieces: &Pieces<u64>| {
            pieces.put(0);
            Ok(())
        };
        drop(run((&session, &[&disk]), &interrupt, &work, plan, look));
        assert!(looks >= 40, "nothing was waited for");
        assert!(writes < 15, "{writes} writes");
    }

    #[test]
    fn what_fails_before_an_end_is_wanted_is_told_with_it() {
        let interrupt = Arc::new(Interrupt::default());
        let raise = Arc::clone(&interrupt);
        let work: Arc<Work<u64>> = Arc::new(move |_, _| {
            raise.raise();
            Box::pin(async { Err(Error::failed("no space left")) })
        });
        let Ended::Early(Some(cause)) = run_with(&work, &interrupt, u64::MAX).unwrap() else {
            panic!("the cause is lost");
        };
        assert_eq!(cause.to_string(), "no space left");
    }

    #[test]
    fn a_piece_that_is_left_in_its_middle_is_not_done() {
        let interrupt = Arc::new(Interrupt::default());
        let raise = Arc::clone(&interrupt);
        let work: Arc<Work<u64>> = Arc::new(move |lane, _| {
            raise.raise();
            Box::pin(async move {
                while !lane.stops() {
                    tokio::task::yield_now().await;
                }
                Ok(())
            })
        });
        assert!(matches!(run_with(&work, &interrupt, 1).unwrap(), Ended::Early(None)));
    }
}
