//! The end of a daemon that is told to end by a signal: as soon as nobody uses its device, or by leaving that to another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bio, Disk, OpenMode, Status};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{helper, usage};
use crate::daemon::MoreTime;
use crate::disks::OpenDisk;
use crate::error::Error;
use crate::text::term;

/// How often a daemon that is to end looks whether its device is still in use, at first and in the end.
const LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(60);
/// When a device that could not be handed over is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(30);
/// How often a disk is flushed while it is used, before it is frozen for a last time.
const MOST_FLUSHES: usize = 8;

/// Has the device detached, as a user would: now, or as soon as nobody uses it. What keeps it is told each time, and `refused`
/// hears of it.
pub(super) fn leave(path: String, more_time: MoreTime, refused: mpsc::Sender<()>) {
    let own = std::process::id();
    let runtime = Handle::current();
    std::thread::spawn(move || {
        let mut pause = LOOK;
        loop {
            match while_extending(&runtime, more_time, || helper::detach(&path)) {
                Ok(status) if status.success() => return,
                // It has said why not.
                Ok(_) => {}
                Err(err) => tracing::error!(error = %err, "cannot start `blockyard detach`"),
            }
            if refused.blocking_send(()).is_err() {
                return;
            }
            std::thread::sleep(pause);
            while usage::check_unused(&path, own).is_err() {
                std::thread::sleep(LOOK);
            }
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    });
}

/// The way of a disk that is in use to the next daemon. First it is flushed while it is used, which takes as long as it takes;
/// only then is nothing answered any more, for a short while.
#[derive(Default)]
pub(super) struct HandingOver {
    flushing: Option<JoinHandle<()>>,
}

impl HandingOver {
    /// Begins with the flush, after a while, unless it has begun. More time is asked for until it is over.
    pub(super) fn begin(
        &mut self,
        disk: &Arc<Disk>,
        more_time: MoreTime,
        limit: Duration,
        after: Duration,
    ) {
        let disk = Arc::clone(disk);
        let flushing = async move {
            tokio::time::sleep(after).await;
            term::tell("flushing the disk, which is served meanwhile, before it is handed over");
            flush_while_used(&disk, limit).await;
        };
        self.flushing.get_or_insert_with(|| tokio::spawn(more_time.during(flushing)));
    }

    /// Waits until so little is left to be flushed that the disk may be frozen for that.
    pub(super) async fn is_due(&mut self) {
        match &mut self.flushing {
            // One that has panicked has said so.
            Some(flushing) => _ = flushing.await,
            None => std::future::pending().await,
        }
        self.flushing = None;
    }
}

/// Faults end with their daemon: what they hold goes on, and what they kept from the driver is written.
async fn end_faults(disk: &Arc<Disk>, limit: Duration) -> Result<(), String> {
    if disk.faults().is_empty() {
        return Ok(());
    }
    let (tell, told) = oneshot::channel();
    let cleared = Arc::clone(disk);
    // A thread that nobody waits for, as the disk may not answer.
    std::thread::spawn(move || tell.send(cleared.clear_faults()));
    match tokio::time::timeout(limit, told).await {
        Ok(Ok(Ok(_))) => Ok(()),
        Ok(Ok(Err(err))) => Err(format!("cannot end the faults of the disk: {}", err.chain())),
        Ok(Err(_)) => Err("cannot end the faults of the disk".into()),
        Err(_) => Err(format!("the faults of the disk have not ended within {limit:?}")),
    }
}

/// Flushes it until that takes no more than half of `limit`, within which the last one has to be answered.
async fn flush_while_used(disk: &Arc<Disk>, limit: Duration) {
    if let Err(why) = end_faults(disk, limit).await {
        term::tell(why);
    }
    for _ in 0..MOST_FLUSHES {
        let begun = Instant::now();
        // One that fails is told of by the last one.
        if !flush(disk).await.is_ok() || begun.elapsed() <= limit / 2 {
            return;
        }
    }
}

async fn flush(disk: &Arc<Disk>) -> Status {
    let Ok(bdev) = disk.open(None, OpenMode::ReadOnly) else { return Status::Offline };
    let (tell, mut told) = mpsc::channel(1);
    let ended = move |bio: Box<Bio>| {
        // There is room for the only one.
        let _ = tell.try_send(bio.status());
    };
    bdev.submit(0, Bio::flush().on_end(Arc::new(ended)));
    // A bio always ends.
    told.recv().await.unwrap_or(Status::Io)
}

/// Another daemon goes on with a disk: what this one has answered is durable, and nothing is answered after that. Says no if the
/// disk does not answer within `limit`, or its server is away, and the next daemon would have to fail flushes for that: then this
/// one serves on. Any other disk is left as it is.
pub(super) async fn hand_over(open: &OpenDisk, path: &str, limit: Duration) -> bool {
    let disk = open.disk();
    if let Err(why) = end_faults(disk, limit).await {
        term::tell(format_args!("{why}; serving it, and trying again in {RETRY:?}"));
        return false;
    }
    let (tell, told) = oneshot::channel();
    disk.start_freeze();
    let frozen = Arc::clone(disk);
    // A thread that nobody waits for: it ends with the process.
    std::thread::spawn(move || tell.send(frozen.flush_frozen()));
    match tokio::time::timeout(limit, told).await {
        Ok(Ok(Status::Ok)) => {}
        Ok(Ok(Status::Transport)) if open.tracks_unflushed() => {
            disk.unfreeze();
            term::tell(not_yet(
                "the server of the disk is away, and the disk is not flushed",
                path,
            ));
            return false;
        }
        Ok(Ok(status)) => term::tell(format_args!("cannot flush the disk: {status}")),
        Ok(Err(_)) => term::tell("cannot flush the disk"),
        Err(_) if open.tracks_unflushed() => {
            disk.unfreeze();
            term::tell(not_yet(&format!("the disk has not answered a flush for {limit:?}"), path));
            return false;
        }
        Err(_) => term::tell(format_args!(
            "the disk has not answered for {limit:?}; leaving it unflushed"
        )),
    }
    true
}

/// Why it is not handed over yet, and what to do: also where the service manager kills the daemon before its server is back.
fn not_yet(why: &str, path: &str) -> String {
    format!(
        "{why}; serving it, and trying again in {RETRY:?}. Start its server, and raise TimeoutStopSec= of the unit if that takes \
         longer. If the daemon is killed before, I/O waits until you run: blockyard recover {path}"
    )
}

/// What the kernel has cached for the device is written before it can go: the service manager is asked for more time while that
/// goes on. It is not told that we stop (`STOPPING=1`): a device that is in use stays, and systemd kills who has said so.
fn while_extending<T>(runtime: &Handle, more_time: MoreTime, job: impl FnOnce() -> T) -> T {
    let (_done, is_done) = oneshot::channel::<()>();
    runtime.spawn(more_time.during(is_done));
    job()
}

pub(super) fn tell_that_it_stays(err: &Error) {
    term::tell(format_args!("{err}; serving it until it is unused"));
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};

    use blockyard_blkmq::DiskFlags;

    use super::*;
    use crate::yard::Yard;
    use crate::yard::plan::NbdPlan;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn more_time_is_asked_for_while_what_is_to_go_is_flushed() {
        assert_more_time("more_time_is_asked_for_while_what_is_to_go_is_flushed", async {
            let runtime = Handle::current();
            let more_time = MoreTime::from_now();
            let job = move || while_extending(&runtime, more_time, heard);
            let flushed = tokio::task::spawn_blocking(job);
            flushed.await.unwrap();
        });
    }

    #[test]
    fn more_time_is_asked_for_until_a_hand_over_is_tried_again() {
        assert_more_time("more_time_is_asked_for_until_a_hand_over_is_tried_again", async {
            let yard = Yard::start(1, &NbdPlan::default()).unwrap();
            let open = yard.open_disk(&"ram:1M".parse().unwrap(), DiskFlags::empty()).unwrap();
            let mut handing_over = HandingOver::default();
            handing_over.begin(open.disk(), MoreTime::from_now(), PATIENCE, Duration::MAX);
            tokio::select! {
                () = handing_over.is_due() => panic!("it does not wait"),
                done = tokio::task::spawn_blocking(heard) => done.unwrap(),
            }
            yard.end(PATIENCE).await.into_result().unwrap();
        });
    }

    #[test]
    fn who_hears_that_a_device_stays_hears_what_to_do() {
        let told = not_yet("the server of the disk is away", "/dev/nbd0");
        for part in ["is away; serving it", "trying again in 30s", "Start its server"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(told.ends_with("run: blockyard recover /dev/nbd0"), "{told}");
    }

    /// Until the manager has heard enough.
    fn heard() {
        io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
    }

    /// Runs the test of that name once more by itself, as a service does that ends so.
    fn assert_more_time(name: &str, end: impl Future<Output = ()>) {
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            let service = crate::daemon::block_on(async {
                end.await;
                Ok(())
            });
            return service.unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut service = Command::new(std::env::current_exe().unwrap());
        service.args([&format!("attach::leaving::tests::{name}"), "--exact"]);
        service.env("NOTIFY_SOCKET", &path).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut service = service.spawn().unwrap();
        let mut message = [0; 64];
        let heard = manager.recv(&mut message);
        drop(service.stdin.take());
        assert!(service.wait().unwrap().success());
        let said = std::str::from_utf8(&message[..heard.unwrap()]).unwrap();
        assert_eq!(said.trim(), "EXTEND_TIMEOUT_USEC=30000000");
    }
}
