//! Jobs: what a daemon is doing that somebody has asked for. Every change is one while it is made, so that what is stuck is
//! listed, and some can be cancelled. Who does not want to wait (`Prefer: respond-async`) is told of the job instead, which is
//! kept for a while when it has ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use super::{MAX_CONNECTIONS, Problem};
use crate::error::{Error, ErrorKind};
use crate::tools::interrupt::Interrupt;
use crate::tools::session::Amount;
use crate::yard::events::{Event, Events};

/// Jobs at a time.
const MAX_RUNNING: usize = 128;
/// Of those, the ones that somebody waits for: each has a connection, and others are for those who ask what is under way.
const MAX_WAITED_FOR: usize = MAX_CONNECTIONS / 4;
/// Those that read or write whole disks, each with buffers of many MiB for each queue thread.
const MAX_AMOUNTS: usize = 4;
/// Those that have ended and are still known.
const MAX_ENDED: usize = 128;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// Opens a disk.
    AddDisk,
    /// Changes a disk.
    SetDisk,
    /// Flushes and closes a disk.
    RemoveDisk,
    /// Begins to serve a disk.
    AddExport,
    /// Ends an export.
    RemoveExport,
    /// Reads all of a disk.
    Check,
    /// Copies a disk onto another.
    Copy,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// It is under way.
    Running,
    /// It is done.
    Done,
    /// It was not done, or not all of it.
    Failed,
    /// It was given up, as somebody wanted.
    Cancelled,
}

/// What is told of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// Its number, which no other of this daemon has.
    pub(super) id: u64,
    /// What it does.
    pub(super) kind: Kind,
    /// With what: the name of a disk or an export; of a copy, the target.
    pub(super) subject: String,
    /// The source of a copy.
    pub(super) source: Option<String>,
    /// How far it is.
    pub(super) state: State,
    /// Whether it can be given up.
    pub(super) cancellable: bool,
    /// When it was begun: seconds since 1970.
    pub(super) begun: f64,
    /// How long it took until now, or its end.
    pub(super) seconds: f64,
    /// Bytes that are done, where that is known.
    pub(super) done: Option<u64>,
    /// Bytes that there are to do.
    pub(super) total: Option<u64>,
    /// What came of it.
    pub(super) result: Option<Value>,
    /// Why it failed.
    pub(super) problem: Option<Problem>,
}

/// The wish that a job is given up.
#[derive(Default)]
pub(super) struct Cancel {
    pub(super) interrupt: Interrupt,
    wanted: Notify,
}

impl Cancel {
    fn raise(&self) {
        self.interrupt.raise();
        self.wanted.notify_waiters();
    }

    /// Waits for it.
    pub(super) async fn wanted(&self) {
        let wanted = self.wanted.notified();
        if !self.interrupt.is_wanted() {
            wanted.await;
        }
    }
}

/// How a job has ended.
enum Ended {
    Done(Option<Value>),
    Failed(Problem),
    Cancelled,
}

/// A job as it is known here.
struct Known {
    id: u64,
    wanted: Wanted,
    began: SystemTime,
    since: Instant,
    ended: Mutex<Option<(Duration, Ended)>>,
}

/// What is to be done.
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) subject: String,
    pub(super) source: Option<String>,
    /// How it is given up, if it can be.
    pub(super) cancel: Option<Arc<Cancel>>,
    /// Its progress, if it has one.
    pub(super) amount: Option<Arc<Amount>>,
    /// It is still told of when it has ended, as nobody waits for it.
    pub(super) is_kept: bool,
}

impl Wanted {
    /// A change that takes as long as it takes.
    pub(super) fn new(kind: Kind, subject: &str) -> Self {
        let subject = subject.to_owned();
        Self { kind, subject, source: None, cancel: None, amount: None, is_kept: false }
    }

    /// Whether both are copies, and one writes to what the other reads or writes.
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        let (Some(source), Some(others)) = (&self.source, &other.source) else { return false };
        self.subject == other.subject || *source == other.subject || self.subject == *others
    }
}

impl Known {
    fn told(&self) -> Job {
        let Wanted { kind, subject, source, cancel, amount, .. } = &self.wanted;
        let ended = self.ended.lock();
        let (state, after) = match &*ended {
            None => (State::Running, self.since.elapsed()),
            Some((after, Ended::Done(_))) => (State::Done, *after),
            Some((after, Ended::Failed(_))) => (State::Failed, *after),
            Some((after, Ended::Cancelled)) => (State::Cancelled, *after),
        };
        let (result, problem) = match &*ended {
            Some((_, Ended::Done(result))) => (result.clone(), None),
            Some((_, Ended::Failed(problem))) => (None, Some(problem.clone())),
            _ => (None, None),
        };
        let amount = amount.as_ref().map(|amount| amount.so_far());
        Job {
            id: self.id,
            kind: *kind,
            subject: subject.clone(),
            source: source.clone(),
            state,
            cancellable: state == State::Running && cancel.is_some(),
            begun: self.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            seconds: after.as_secs_f64(),
            // What is looked at every now and then was not looked at last.
            done: amount.map(|(done, total)| if state == State::Done { total } else { done }),
            total: amount.map(|(_, total)| total),
            result,
            problem,
        }
    }
}

/// All jobs of a daemon.
pub(super) struct Jobs {
    known: Mutex<Numbered>,
    events: Arc<Events>,
}

#[derive(Default)]
struct Numbered {
    /// In the order in which they were begun.
    jobs: VecDeque<Arc<Known>>,
    last: u64,
}

impl Numbered {
    /// Says why there is no room for another job.
    fn is_full_for(&self, wanted: &Wanted) -> Option<String> {
        let is_running = |job: &&Arc<Known>| job.ended.lock().is_none();
        let count = |counts: &dyn Fn(&Wanted) -> bool| {
            self.jobs.iter().filter(is_running).filter(|job| counts(&job.wanted)).count()
        };
        let whole_disk = |job: &Wanted| job.amount.is_some();
        let waited_for = |job: &Wanted| !job.is_kept;
        if whole_disk(wanted) && count(&whole_disk) >= MAX_AMOUNTS {
            return Some(format!("{MAX_AMOUNTS} copies and checks are running already"));
        }
        if waited_for(wanted) && count(&waited_for) >= MAX_WAITED_FOR {
            return Some(format!("{MAX_WAITED_FOR} clients are waiting for changes already"));
        }
        (count(&|_| true) >= MAX_RUNNING).then(|| format!("{MAX_RUNNING} jobs are running already"))
    }
}

/// A job that was begun. It fails if this is dropped.
pub(super) struct Running {
    jobs: Arc<Jobs>,
    job: Arc<Known>,
}

/// Why a job was not begun.
#[derive(Debug)]
pub(super) enum NotBegun {
    /// There are too many.
    Full(Error),
    /// Another one is in its way.
    InUse(Error),
}

/// What has come of the wish to be rid of a job.
pub(super) enum Gone {
    /// It will end soon.
    Ending(Job),
    /// It had ended, and is forgotten.
    Forgotten,
    /// It cannot be given up.
    Stays(Job),
}

impl Jobs {
    pub(super) fn new(events: &Arc<Events>) -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), events: Arc::clone(events) })
    }

    /// Begins one.
    ///
    /// # Errors
    /// There are too many. A copy that runs writes to a disk of this one, or reads what this one would write to.
    pub(super) fn begin(self: &Arc<Self>, wanted: Wanted) -> Result<Running, NotBegun> {
        let job = {
            let mut known = self.known.lock();
            if let Some(what) = known.is_full_for(&wanted) {
                let err = Error::new(ErrorKind::Busy, what).help("see GET /v1/jobs");
                return Err(NotBegun::Full(err));
            }
            let mut running = known.jobs.iter().filter(|job| job.ended.lock().is_none());
            if let Some(other) = running.find(|job| wanted.is_in_the_way_of(&job.wanted)) {
                let what = format!("a copy to {:?} is under way", other.wanted.subject);
                let help = format!("wait for it, or cancel it: DELETE /v1/jobs/{}", other.id);
                return Err(NotBegun::InUse(Error::new(ErrorKind::Busy, what).help(help)));
            }
            known.last += 1;
            let (began, since) = (SystemTime::now(), Instant::now());
            let job = Known { id: known.last, wanted, began, since, ended: Mutex::default() };
            let job = Arc::new(job);
            known.jobs.push_back(Arc::clone(&job));
            job
        };
        if job.wanted.is_kept {
            self.events.push(Event::JobBegun { job: job.id });
        }
        Ok(Running { jobs: Arc::clone(self), job })
    }

    /// All that are known, the first first.
    pub(super) fn list(&self) -> Vec<Job> {
        let jobs: Vec<_> = self.known.lock().jobs.iter().cloned().collect();
        jobs.iter().map(|job| job.told()).collect()
    }

    fn find(&self, id: u64) -> Option<Arc<Known>> {
        self.known.lock().jobs.iter().find(|job| job.id == id).cloned()
    }

    pub(super) fn get(&self, id: u64) -> Option<Job> {
        self.find(id).map(|job| job.told())
    }

    /// Gives one up, or forgets it; none if there is none of that number.
    pub(super) fn dismiss(&self, id: u64) -> Option<Gone> {
        let job = self.find(id)?;
        if job.ended.lock().is_some() {
            self.forget(&job);
            return Some(Gone::Forgotten);
        }
        let Some(cancel) = &job.wanted.cancel else { return Some(Gone::Stays(job.told())) };
        cancel.raise();
        Some(Gone::Ending(job.told()))
    }

    fn forget(&self, job: &Arc<Known>) {
        self.known.lock().jobs.retain(|other| !Arc::ptr_eq(other, job));
    }

    fn ended(&self, job: &Arc<Known>, how: Ended) {
        let was_wanted = job.wanted.cancel.as_ref().is_some_and(|it| it.interrupt.is_wanted());
        let how = match how {
            Ended::Failed(_) if was_wanted => Ended::Cancelled,
            how => how,
        };
        *job.ended.lock() = Some((job.since.elapsed(), how));
        if !job.wanted.is_kept {
            return self.forget(job);
        }
        {
            let mut known = self.known.lock();
            let is_over = |job: &Arc<Known>| job.ended.lock().is_some();
            let over = known.jobs.iter().filter(|job| is_over(job)).count();
            if over > MAX_ENDED
                && let Some(at) = known.jobs.iter().position(is_over)
            {
                known.jobs.remove(at);
            }
        }
        self.events.push(Event::JobEnded { job: job.id });
    }
}

impl Running {
    /// What is told of it.
    pub(super) fn told(&self) -> Job {
        self.job.told()
    }

    /// It is done.
    pub(super) fn done(self, result: Option<Value>) {
        self.jobs.ended(&self.job, Ended::Done(result));
    }

    /// Whoever has asked for it is told that it is not to be: nobody has to be told later.
    pub(super) fn refused(self, problem: Problem) {
        self.jobs.ended(&self.job, Ended::Failed(problem));
        self.jobs.forget(&self.job);
    }

    /// It is not done.
    pub(super) fn failed(self, problem: Problem) {
        self.jobs.ended(&self.job, Ended::Failed(problem));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.job.ended.lock().is_some() {
            return;
        }
        let err = Error::failed("internal error in the daemon").help("see its log");
        self.jobs.ended(&self.job, Ended::Failed(Problem::of(&err, "")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(kind: Kind) -> Wanted {
        Wanted { is_kept: true, ..Wanted::new(kind, "a") }
    }

    #[test]
    fn a_job_is_listed_while_it_runs_and_afterwards_if_nobody_waits_for_it() {
        let jobs = Jobs::new(&Arc::default());
        let waited_for = jobs.begin(Wanted::new(Kind::SetDisk, "a")).unwrap();
        let other = jobs.begin(kept(Kind::RemoveDisk)).unwrap();
        let states = || jobs.list().iter().map(|job| (job.id, job.state)).collect::<Vec<_>>();
        assert_eq!(states(), [(1, State::Running), (2, State::Running)]);
        waited_for.done(None);
        other.done(Some(7.into()));
        assert_eq!(states(), [(2, State::Done)]);
        assert_eq!(jobs.get(2).unwrap().result, Some(7.into()));
        let refused = jobs.begin(kept(Kind::Copy)).unwrap();
        refused.refused(Problem::of(&Error::failed("it is the same disk"), ""));
        assert_eq!(states(), [(2, State::Done)], "whoever has asked for it knows");
        drop(jobs.begin(kept(Kind::RemoveDisk)).unwrap());
        let lost = jobs.get(4).unwrap();
        assert_eq!(lost.state, State::Failed, "one that nobody has ended");
        assert!(lost.problem.unwrap().what.contains("internal error"));
        assert!(matches!(jobs.dismiss(4), Some(Gone::Forgotten)));
        assert!(jobs.get(4).is_none() && jobs.dismiss(4).is_none());
    }

    #[test]
    fn running_jobs_and_those_that_have_ended_are_bounded() {
        let jobs = Jobs::new(&Arc::default());
        let running: Vec<_> =
            (0..MAX_RUNNING).map(|_| jobs.begin(kept(Kind::AddDisk)).unwrap()).collect();
        let refused = jobs.begin(kept(Kind::AddDisk)).err().unwrap();
        assert!(matches!(refused, NotBegun::Full(err) if err.kind() == ErrorKind::Busy));
        running.into_iter().for_each(|job| job.done(None));
        jobs.begin(kept(Kind::AddDisk)).unwrap().done(None);
        let listed = jobs.list();
        assert_eq!((listed.len(), listed[0].id), (MAX_ENDED, 2), "the oldest is forgotten");
    }

    /// What whole disks go through is memory, and who waits has a connection.
    #[test]
    fn jobs_that_cost_much_are_bounded_by_what_they_cost() {
        let jobs = Jobs::new(&Arc::default());
        let is_full = |wanted| matches!(jobs.begin(wanted), Err(NotBegun::Full(err)) if err.remedy() == Some("see GET /v1/jobs"));
        let check = || Wanted { amount: Some(Arc::default()), ..kept(Kind::Check) };
        let mut checks: Vec<_> = (0..MAX_AMOUNTS).map(|_| jobs.begin(check()).unwrap()).collect();
        assert!(is_full(check()));
        let waited_for = || Wanted::new(Kind::AddDisk, "a");
        let waiting: Vec<_> =
            (0..MAX_WAITED_FOR).map(|_| jobs.begin(waited_for()).unwrap()).collect();
        assert!(is_full(waited_for()));
        jobs.begin(kept(Kind::AddDisk)).unwrap().done(None);
        checks.remove(0).done(None);
        jobs.begin(check()).unwrap().done(None);
        checks.into_iter().chain(waiting).for_each(|job| job.done(None));
        assert!(!is_full(waited_for()));
    }

    #[test]
    fn no_two_copies_write_to_a_disk_or_one_to_what_the_other_reads() {
        let jobs = Jobs::new(&Arc::default());
        let copy = |source: &str, target| {
            let source = Some(source.to_owned());
            jobs.begin(Wanted { source, ..Wanted::new(Kind::Copy, target) })
        };
        let first = copy("a", "b").unwrap();
        for (source, target) in [("a", "b"), ("c", "b"), ("b", "c"), ("c", "a"), ("b", "a")] {
            let refused = copy(source, target).err().unwrap();
            assert!(matches!(refused, NotBegun::InUse(err) if err.kind() == ErrorKind::Busy));
        }
        let beside = [copy("a", "c").unwrap(), copy("d", "e").unwrap()];
        let check = jobs.begin(Wanted::new(Kind::Check, "b")).unwrap();
        first.done(None);
        copy("f", "b").unwrap().done(None);
        beside.into_iter().chain([check]).for_each(|job| job.done(None));
    }

    #[tokio::test]
    async fn a_job_that_can_be_given_up_hears_of_it_and_is_no_failure() {
        let jobs = Jobs::new(&Arc::default());
        let plain = jobs.begin(kept(Kind::SetDisk)).unwrap();
        assert!(matches!(jobs.dismiss(1), Some(Gone::Stays(_))));
        let cancel = Arc::<Cancel>::default();
        let wanted = Wanted { cancel: Some(Arc::clone(&cancel)), ..kept(Kind::Copy) };
        let job = jobs.begin(wanted).unwrap();
        assert!(job.told().cancellable);
        let hears = async {
            cancel.wanted().await;
            job.failed(Problem::of(&Error::failed("interrupted"), ""));
        };
        let asks = async { assert!(matches!(jobs.dismiss(2), Some(Gone::Ending(_)))) };
        tokio::join!(hears, asks);
        cancel.wanted().await;
        let ended = jobs.get(2).unwrap();
        assert_eq!((ended.state, ended.cancellable), (State::Cancelled, false));
        plain.done(None);
    }
}
