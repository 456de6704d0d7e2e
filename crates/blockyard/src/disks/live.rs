//! Settings: options that change while the disk is used.

use blockyard_blkmq::{Disk, ErrorKind, Throttle};

use super::open::OpenDisk;
use super::options::{OptionSpec, Value};
use crate::error::{Error, Result};

/// How an option changes while its disk is used.
#[derive(Clone, Copy)]
pub struct Live {
    /// Whether it may be that now. Nothing is changed yet; a disk may become smaller only if `shrink` is said.
    pub check: fn(&OpenDisk, &Value, bool) -> Result<()>,
    /// Changes it.
    pub change: Change,
}

/// What changes with an option.
#[derive(Clone, Copy)]
pub enum Change {
    /// The disk.
    Disk(fn(&Disk, &Value) -> Result<()>),
    /// One of its limits: all that are said together change at the same moment.
    Limit(fn(&mut Throttle, &Value)),
}

pub(super) const SIZE: Live = Live { check: check_size, change: Change::Disk(resize) };
pub(super) const READ_ONLY: Live =
    Live { check: check_read_only, change: Change::Disk(set_read_only) };

/// Changes settings of a disk, all that can be told to be wrong before the first.
///
/// # Errors
/// One cannot be so.
pub fn set(open: &OpenDisk, settings: &[(&'static OptionSpec, Value)], shrink: bool) -> Result<()> {
    let mut settings: Vec<(&str, Live, &Value)> = settings
        .iter()
        .filter_map(|(option, value)| Some((option.name, option.live?, value)))
        .collect();
    settings.iter().try_for_each(|(_, live, value)| (live.check)(open, value, shrink))?;
    // What the driver may refuse comes before what cannot fail.
    settings.sort_by_key(|(name, ..)| *name != "size");
    let mut limits = Vec::new();
    for (_, live, value) in settings {
        match live.change {
            Change::Disk(change) => change(open.disk(), value)?,
            Change::Limit(change) => limits.push((change, value)),
        }
    }
    if !limits.is_empty() {
        open.disk().update_throttle(|throttle| {
            limits.into_iter().for_each(|(change, value)| change(throttle, value));
        });
    }
    Ok(())
}

fn check_size(open: &OpenDisk, size: &Value, shrink: bool) -> Result<()> {
    let Value::Number(bytes) = *size else { unreachable!("invalid size: {size:?}") };
    let disk = open.disk();
    let before = disk.size_bytes();
    let stalled = disk.stalled();
    if stalled > 0 {
        let name = disk.name();
        let what = format!("{stalled} requests of {name} are stalled by a fault");
        let err = Error::new(crate::error::ErrorKind::Busy, what);
        return Err(err.help(format!("release them: blockyard fault {name} release")));
    }
    if bytes < before && !shrink {
        let what = format!(
            "cannot shrink {} from {before} to {bytes} bytes without --shrink",
            disk.name()
        );
        let remedy = "add --shrink (?shrink=true) if nothing past the new end is needed";
        return Err(Error::usage(what).help(remedy));
    }
    Ok(())
}

fn check_read_only(open: &OpenDisk, read_only: &Value, _: bool) -> Result<()> {
    if *read_only == Value::Flag(false) && open.only_reads() {
        let what = format!("{} was opened read-only", open.disk().name());
        return Err(Error::usage(what).help("remove the disk, and add it without read_only"));
    }
    Ok(())
}

fn resize(disk: &Disk, size: &Value) -> Result<()> {
    let Value::Number(bytes) = *size else { unreachable!("invalid size: {size:?}") };
    let failed = |err| Error::failed("cannot change the disk").caused_by(err);
    disk.resize_bytes(bytes).map_err(|err| match err.kind() {
        ErrorKind::Invalid => not_whole(disk, bytes).unwrap_or_else(|| failed(err)),
        _ => failed(err),
    })
}

fn set_read_only(disk: &Disk, read_only: &Value) -> Result<()> {
    let Value::Flag(read_only) = *read_only else { unreachable!("invalid flag: {read_only:?}") };
    disk.set_read_only(read_only);
    Ok(())
}

/// What is wrong with a size that is no multiple of a disk's blocks, if the disk can have no other.
fn not_whole(disk: &Disk, bytes: u64) -> Option<Error> {
    let block = u64::from(disk.limits().logical_block_size.bytes());
    if bytes.is_multiple_of(block) {
        return None;
    }
    let what = format!("{bytes} is not a multiple of {block}, the block size of {}", disk.name());
    let next = bytes.checked_next_multiple_of(block).unwrap_or(bytes - bytes % block);
    Some(Error::usage(what).help(format!("write size={next}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use blockyard_blkmq::{Bio, BlockLayer, Clock, MonotonicClock, Op, OpenMode, Sector};

    use super::*;
    use crate::disks::{DiskMaker, throttle};
    use crate::yard::queue_threads::QueueThreads;

    /// Between the two there would be no limit at all, and whoever ticks the disk then would let in all that it keeps.
    #[test]
    fn limits_that_are_said_together_change_at_the_same_moment() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let open = maker.open(&"null:1M?write_bps=1".parse().unwrap()).unwrap();
        let disk = open.disk();
        let ticks = Arc::downgrade(disk);
        disk.set_alarm(Arc::new(move || _ = ticks.upgrade().map(|disk| disk.tick())));
        let ended = Arc::<AtomicUsize>::default();
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        for _ in 0..3 {
            let ended = Arc::clone(&ended);
            let end = move |_: Box<Bio>| _ = ended.fetch_add(1, Ordering::SeqCst);
            bdev.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 4096).on_end(Arc::new(end)));
        }
        let rate = |bps| throttle::parse_rate(bps, true).unwrap();
        let none = (&throttle::WRITE_BPS, Value::Rate(rate("none")));
        let other = (&throttle::BPS, Value::Rate(rate("2")));
        set(&open, &[none, other], false).unwrap();
        assert!(disk.oldest().is_some(), "{}", disk.show());
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        let now = throttle::of(disk);
        assert_eq!((now.write_bps, now.bps), (None, rate("2")));
        drop(bdev);
        layer.del_disk(disk);
        threads.shutdown();
    }
}
