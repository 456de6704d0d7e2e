//! A disk of ours that is to be the kernel's: opened anew, or to go on with a device whose daemon has died.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Disk, DiskFlags};

use super::Wish;
use super::record::Record;
use super::store::{Held, Store};
use crate::disks::identity::DiskIdentity;
use crate::disks::{DiskPlan, OpenDisk, Value, throttle};
use crate::error::{Error, ErrorKind, Result};
use crate::exports::{self, ExportPlan};
use crate::yard::Yard;
use crate::yard::plan::YardPlan;

/// How long what a killed daemon has of its disk may take to be given up by the system.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// How long the kernel may leave a message half-way: it hangs up by itself, and what it has asked may not be given up before
/// that, or it asks again on another connection while the first is still with the disk.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The name that the disk goes by.
pub(super) const EXPORT: &str = "attached";

/// What a daemon is to do.
pub enum Order {
    /// Attach a disk anew.
    Attach(Wish),
    /// Go on where another has died.
    Recover(Box<Record>),
}

impl Order {
    fn wish(&self) -> &Wish {
        match self {
            Self::Attach(wish) => wish,
            Self::Recover(record) => &record.wish,
        }
    }
}

/// A disk of ours, and what serves it.
pub(super) struct Server {
    pub(super) yard: Arc<Yard>,
    pub(super) open: Arc<OpenDisk>,
    pub(super) identity: DiskIdentity,
    pub(super) grace: Duration,
    pub(super) fence: Option<Duration>,
    /// The record of a device that is recovered: nobody else does.
    pub(super) held: Option<Held>,
}

impl Server {
    pub(super) fn open(order: &Order) -> Result<Self> {
        let wish = order.wish();
        let (mut disk, held) = match order {
            Order::Attach(_) => (crate::commands::disk_uri(&wish.uri)?, None),
            Order::Recover(record) => {
                let held = Store::open()?.claim(record)?;
                (to_recover(record)?, Some(held))
            }
        };
        disk.options.read_only |= wish.read_only;
        let mut plan = YardPlan::new(vec![disk])?;
        plan.threads = wish.threads.map_or(plan.threads, usize::from);
        plan.nbd.limits.stall_timeout = NEVER;
        // The kernel flushes when it wants to; what it has written outlives the daemon's disk.
        plan.nbd.limits.flush_grace = Duration::ZERO;
        let yard = Yard::start(plan.threads, &plan.nbd)?;
        // The kernel looks for partitions itself.
        let make = || yard.open_disk(&plan.disks[0], DiskFlags::NO_PART_SCAN);
        let open = match order {
            Order::Attach(_) => make()?,
            Order::Recover(_) => patiently(make)?,
        };
        // It is there now: a file may have been made, or have come in the place of the one that was looked at before.
        let identity = DiskIdentity::of(&plan.disks[0])?;
        if let Order::Recover(record) = order {
            check_identity(record, &identity)?;
            hold_writes(&open, &Store::open()?, record);
        }
        // The kernel knows blocks only.
        let export = ExportPlan::new(&exports::nbd::KIND, plan.disk_name(0), EXPORT)
            .with("read_only", Value::Flag(wish.read_only))
            .with("whole_blocks", Value::Flag(true));
        let bound = (export.kind.bind)(&export)?;
        yard.open_export(export, bound)?.start()?;
        let (grace, fence) = (plan.grace, plan.disks[0].fence());
        Ok(Self { yard, open, identity, grace, fence, held })
    }

    pub(super) fn disk(&self) -> &Arc<Disk> {
        self.open.disk()
    }
}

/// What the daemon before has sent may still be carried out, unless it has left the device with nothing to be.
pub(super) fn hold_writes(open: &OpenDisk, store: &Store, record: &Record) {
    if !store.take_handed_over(record) {
        open.hold_writes();
    }
}

/// The other side of that. The disk is frozen by now.
pub(super) fn note_handed_over(open: &OpenDisk, store: &Store, record: &Record) {
    if !open.may_change_late()
        && let Err(err) = store.note_handed_over(record)
    {
        tracing::warn!(error = %err, "cannot record the hand-over; the next daemon holds writes back");
    }
}

/// What is opened to go on with a device. It is never made anew, and has to be the disk that it was.
fn to_recover(record: &Record) -> Result<DiskPlan> {
    let (path, uri) = (record.path(), &record.wish.uri);
    if record.identity.is_volatile() {
        let what = format!(
            "the contents of {uri} are lost: they were in the memory of the daemon, which has died"
        );
        return Err(Error::failed(format!("cannot recover {path}"))
            .caused_by(Error::failed(what).help(format!("run: blockyard detach --force {path}"))));
    }
    // Paths that are not absolute start where they did. If that is no more, absolute ones are found all the same.
    if let Err(err) = std::env::set_current_dir(&record.directory) {
        tracing::warn!(directory = %record.directory.display(), error = %err, "cannot change to the directory");
    }
    let mut plan = crate::commands::disk_uri(uri)?;
    plan.never_make();
    let is_file = plan.source.file().is_some();
    // What was set while it ran holds, and not what it was attached with. A server says by itself how large an export is.
    if plan.options.size.is_some() || (is_file && record.resized) {
        plan.options.size = Some(record.size);
    }
    if let Some(limits) = &record.limits {
        *plan.options.throttle = throttle::of_shown(limits)?;
    }
    check_identity(record, &DiskIdentity::of(&plan)?)?;
    Ok(plan)
}

/// Whether what is found in the place of a disk is still that one.
///
/// # Errors
/// What is there instead.
pub fn check_identity(record: &Record, found: &DiskIdentity) -> Result<()> {
    if record.identity.same_disk(found) {
        return Ok(());
    }
    let (path, uri) = (record.path(), &record.wish.uri);
    let what = if found.is_absent() {
        format!("{uri} is missing")
    } else {
        format!("{uri} is another disk: {found}, but {} was attached", record.identity)
    };
    Err(Error::failed(format!("cannot recover {path}")).caused_by(
        Error::failed(what)
            .help("restore the disk (is its file system mounted?), and recover again"),
    ))
}

/// A disk that was attached has not become smaller; both are bytes, whatever its last block is padded with.
pub(super) fn check_size(record: &Record, size: u64) -> Result<()> {
    if size >= record.size {
        return Ok(());
    }
    let what = format!(
        "{} has {size} bytes; {} has {}: not the disk that was attached",
        record.wish.uri,
        record.path(),
        record.size
    );
    Err(Error::failed(what))
}

/// Tries again while somebody else has it.
fn patiently<T>(mut make: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match make() {
            Err(err) if err.kind() == ErrorKind::Busy && Instant::now() < end => {
                std::thread::sleep(POLL);
            }
            made => return made,
        }
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{BlockLayer, Clock, MonotonicClock, Throttle};

    use super::super::record::tests::record;
    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::follow::{Follow, State};
    use crate::yard::queue_threads::QueueThreads;

    #[test]
    fn what_is_recovered_has_the_size_that_was_set_while_it_ran() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 << 20).unwrap();
        let path = file.path().display();
        let throttle = Throttle::default();
        let state = |size| State { read_only: false, size, throttle };
        let recovered = |record: &Record| to_recover(record).unwrap().options.size;

        let mut part = record(0, 7, &format!("file:{path}?size=1M"));
        part.size = 1 << 20;
        assert_eq!(recovered(&part), Some(1 << 20));
        part.note(state(1 << 20), state(2 << 20));
        assert_eq!(recovered(&part), Some(2 << 20));

        let mut whole = record(0, 7, &path.to_string());
        whole.size = 4 << 20;
        assert_eq!(recovered(&whole), None, "it may have grown meanwhile");
        whole.note(state(4 << 20), State { read_only: true, ..state(3 << 20) });
        assert_eq!(recovered(&whole), Some(3 << 20));
        assert!(whole.read_only);
    }

    #[test]
    fn what_is_recovered_has_the_limits_that_were_set_while_it_ran() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let uri = format!("file:{}?iops=500&bps=1M", file.path().display());
        let said = *uri.parse::<DiskPlan>().unwrap().options.throttle;
        let state = |throttle| State { read_only: false, size: 0, throttle };
        let recovered = |record: &Record| *to_recover(record).unwrap().options.throttle;
        let mut record = record(0, 7, &uri);
        assert_eq!(recovered(&record), said);
        let iops = throttle::parse_rate("20k:30k/10s", false).unwrap();
        let set = Throttle { iops, bps: None, ..said };
        record.note(state(said), state(set));
        let text = serde_json::to_string(&record).unwrap();
        let read = Record::parse("nbd0", text.as_bytes()).unwrap();
        assert_eq!(recovered(&read), set);
        record.note(state(set), state(Throttle::default()));
        assert_eq!(recovered(&record), Throttle::default(), "none is a limit, too");
        // Those before this one say nothing of limits.
        let old = text.replace(",\"limits\":", ",\"not_limits\":");
        assert_ne!(old, text);
        assert_eq!(recovered(&Record::parse("nbd0", old.as_bytes()).unwrap()), said);
    }

    /// Its last block is padded, and there is nothing behind it in the file.
    #[tokio::test]
    async fn a_disk_that_is_no_whole_block_is_recovered_with_its_very_size() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1_000_001).unwrap();
        let path = file.path().display();
        for uri in [format!("{path}"), format!("file:{path}?size=1000001")] {
            let mut record = record(0, 7, &uri);
            let mut sizes = [1_000_001, 2_000_003, 1_000_001].into_iter();
            record.size = sizes.next().unwrap();
            let mut plan: DiskPlan = uri.parse().unwrap();
            for to in sizes {
                let open = maker.open(&plan).unwrap();
                let mut follow = Follow::of(open.disk());
                let before = follow.now();
                check_size(&record, before.size).unwrap();
                assert_eq!(before.size, record.size);
                open.disk().resize_bytes(to).unwrap();
                record.note(before, follow.changed().await);
                assert_eq!(record.size, to);
                layer.del_disk(open.disk());
                plan = to_recover(&record).unwrap();
                assert_eq!(plan.options.size, Some(to));
            }
            let open = maker.open(&plan).unwrap();
            check_size(&record, State::of(open.disk()).size).unwrap();
            layer.del_disk(open.disk());
            let err = check_size(&record, 1_000_000).unwrap_err();
            assert!(err.to_string().contains("1000001"), "{err}");
        }
        threads.shutdown();
    }
}
