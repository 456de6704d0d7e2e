//! A device: made or taken over, served, and removed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bdev, Features as DiskFeatures};
use blockyard_sys::EventWatch;
use blockyard_sys::ublk::{self, Control, DeviceInfo, Features, Queue, State};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::end::{self, Kept, failed};
use crate::error::{Error, ErrorKind};
use crate::found::open_control;
use crate::params;
use crate::queue::Worker;
use crate::resize::Follow;

/// Requests that the kernel may have in each queue, unless told otherwise.
pub const DEFAULT_DEPTH: u16 = 128;
/// Bytes of the longest request. Each request of each queue has so much memory of its own, which costs nothing
/// before it is used.
pub const MAX_IO_BYTES: u32 = 512 << 10;
/// How long a device whose server was killed may take to come to rest.
const REST: Duration = Duration::from_secs(30);
const REST_POLL: Duration = Duration::from_millis(20);

/// How a device is to be.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Its number; the kernel chooses without.
    pub id: Option<u32>,
    /// Requests that the kernel may have in each queue, 1 to [`ublk::MAX_QUEUE_DEPTH`].
    pub depth: u16,
    /// It outlives its server, and waits for another.
    pub recoverable: bool,
    /// A mark by which its maker knows it again.
    pub mark: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { id: None, depth: DEFAULT_DEPTH, recoverable: true, mark: 0 }
    }
}

/// A disk of the kernel that is served. Dropping it leaves the kernel's part as if its server had died.
pub struct Device {
    kept: Kept,
    features: Features,
    control: Control,
    workers: Vec<JoinHandle<()>>,
    /// Closed when the last of them has ended.
    serving: mpsc::Receiver<()>,
    /// Our disk's changes of size reach the kernel. None once it is deleted.
    follow: Option<Follow>,
}

impl Device {
    /// Makes a disk of the kernel that is `bdev`. Its queues are served on `queue_threads`, each the runtime of a
    /// thread of its own, whose place in the list is the number that [`Bdev::submit`] is given for it. Returns
    /// once the kernel has its disk; must not be called on one of them.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where there is no driver, [`ErrorKind::Busy`] if the number is taken, and what
    /// else keeps it from being made. Nothing of it is left then.
    pub fn add(config: Config, bdev: &Arc<Bdev>, queue_threads: &[Handle]) -> Result<Self, Error> {
        let (basic, discard) = params::params(bdev, MAX_IO_BYTES)?;
        let mut control = open_control()?;
        let features = features(&mut control, config.recoverable, bdev);
        let queues = u16::try_from(queue_threads.len().max(1)).unwrap_or(u16::MAX);
        let mut wanted = DeviceInfo::default().with_features(features);
        wanted.nr_hw_queues = queues;
        wanted.queue_depth = config.depth.clamp(1, ublk::MAX_QUEUE_DEPTH);
        wanted.max_io_buf_bytes = MAX_IO_BYTES;
        wanted.server_mark = config.mark;
        let info = control.add(config.id, &wanted).map_err(|err| {
            let name = config.id.map_or("a ublk device".into(), ublk::disk_path);
            Error::io(format!("cannot create {name}"), err)
        })?;
        let id = info.dev_id;
        let made = control
            .set_params(id, basic, discard)
            .map_err(|err| Error::io("the kernel refused the limits of the disk", err))
            .and_then(|()| serve(info, bdev, queue_threads))
            .and_then(|workers| {
                let started = control.start(id, std::process::id());
                started.map_err(|err| Error::io("the kernel did not start the disk", err))?;
                Ok(workers)
            });
        match made {
            Ok(workers) => Ok(Self::running(control, info, bdev, queue_threads, workers)),
            Err(err) => {
                // Nothing of it stays. If that fails too, the first error says more.
                let _ = end::stop_and_delete(&mut control, id, config.mark);
                Err(err)
            }
        }
    }

    /// Goes on with device `id` of that `mark`, whose server is gone: what that one had not answered is asked again. `bdev` must
    /// be the same disk.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such device, [`ErrorKind::Busy`] while its server lives.
    pub fn take_over(
        id: u32,
        mark: u64,
        bdev: &Arc<Bdev>,
        queue_threads: &[Handle],
    ) -> Result<Self, Error> {
        let mut control = open_control()?;
        let failed = |err| failed(id, "take over", err);
        end::check(&mut control, id, mark).map_err(failed)?;
        let info = control.info(id).map_err(failed)?;
        if !info.features().contains(Features::USER_RECOVERY) {
            let what = format!("{} was made without recovery", ublk::disk_path(id));
            return Err(Error::new(ErrorKind::Unsuitable, what));
        }
        start_recovery(&mut control, id).map_err(failed)?;
        let workers = serve(info, bdev, queue_threads)?;
        control.end_recovery(id, std::process::id()).map_err(failed)?;
        // It may have grown meanwhile.
        if info.features().contains(Features::UPDATE_SIZE)
            && let Err(err) = control.update_size(id, params::size(bdev))
        {
            tracing::warn!(id, error = %err, "cannot tell the kernel the new size");
        }
        Ok(Self::running(control, info, bdev, queue_threads, workers))
    }

    fn running(
        control: Control,
        info: DeviceInfo,
        bdev: &Arc<Bdev>,
        queue_threads: &[Handle],
        workers: Workers,
    ) -> Self {
        let id = info.dev_id;
        let follow = Follow::new(id, bdev, &queue_threads[0]);
        let Workers { tasks: workers, serving, file } = workers;
        let kept = Kept::new(id, info.server_mark, file);
        Self { kept, features: info.features(), control, workers, serving, follow: Some(follow) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.kept.id
    }

    /// Where the kernel has it.
    #[must_use]
    pub fn path(&self) -> String {
        ublk::disk_path(self.kept.id)
    }

    /// Whether another server could go on with it.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        self.features.contains(Features::USER_RECOVERY | Features::USER_RECOVERY_REISSUE)
    }

    /// Waits until the kernel wants nothing of any queue any more: somebody else has stopped the device.
    pub async fn gone(&mut self) {
        // Nothing is ever sent.
        while self.serving.recv().await.is_some() {}
    }

    /// Takes the disk away: what the kernel had asked is answered, what comes later fails. Whoever has written to
    /// it must have flushed before (`fsync(2)`). Waits as long as our disk takes; must not be called on a queue
    /// thread.
    ///
    /// # Errors
    /// What the driver says.
    pub fn stop(&mut self, runtime: &Handle) -> Result<(), Error> {
        let id = self.kept.id;
        self.kept.stop(&mut self.control).map_err(|err| failed(id, "stop", err))?;
        for worker in self.workers.drain(..) {
            // One that has panicked has said so.
            let _ = runtime.block_on(worker);
        }
        Ok(())
    }

    /// Removes what is left of it, after [`Device::stop`]. It is gone when nobody has it open any more. Both can be tried
    /// again where they fail.
    ///
    /// # Errors
    /// What the driver says.
    pub fn remove(&mut self) -> Result<(), Error> {
        let id = self.kept.id;
        self.kept.delete(&mut self.control).map_err(|err| failed(id, "remove", err))?;
        // Another may have its number from now on.
        self.follow = None;
        Ok(())
    }
}

/// Asks for what the driver has.
fn features(control: &mut Control, recoverable: bool, bdev: &Bdev) -> Features {
    // A driver that cannot be asked (before Linux 6.5) ignores what it does not know, but for these it may not.
    let there = control.features().unwrap_or(
        Features::USER_RECOVERY | Features::USER_RECOVERY_REISSUE | Features::CMD_IOCTL_ENCODE,
    );
    let mut wanted = Features::CMD_IOCTL_ENCODE | Features::UPDATE_SIZE;
    // Where data has to be moved to memory of ours in any case, the kernel may as well do that by itself.
    if bdev.limits().features.contains(DiskFeatures::OWN_MEMORY) {
        wanted |= Features::USER_COPY;
    }
    if recoverable {
        wanted |= Features::USER_RECOVERY | Features::USER_RECOVERY_REISSUE;
    }
    wanted & there
}

/// Begins to take over from a server that is gone, once the kernel has got back what was with it and its descriptor is closed:
/// before that it answers EBUSY (`ublk_ctrl_start_recovery`). Nobody opens the device to find out: to a newer kernel it is busy
/// for a while after that descriptor was closed, too (`ublk_ch_release_work_fn`).
fn start_recovery(control: &mut Control, id: u32) -> io::Result<()> {
    let end = Instant::now() + REST;
    loop {
        let busy = match control.start_recovery(id) {
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy => err,
            done => return done,
        };
        if Instant::now() > end {
            let what = match control.info(id)?.state() {
                State::Quiesced => "the descriptor of the last daemon is still open".into(),
                state => format!("the kernel has not released the last daemon: state {state:?}"),
            };
            return Err(io::Error::new(busy.kind(), what));
        }
        std::thread::sleep(REST_POLL);
    }
}

/// What serves the queues.
struct Workers {
    tasks: Vec<JoinHandle<()>>,
    /// Closed when the last of them has ended.
    serving: mpsc::Receiver<()>,
    file: ublk::Device,
}

/// Starts a worker for each queue, and waits until all have fetched.
fn serve(info: DeviceInfo, bdev: &Arc<Bdev>, queue_threads: &[Handle]) -> Result<Workers, Error> {
    let id = info.dev_id;
    let failed =
        |err| Error::io(format!("cannot set up the queues of {}", ublk::disk_path(id)), err);
    let device = ublk::Device::open(id).map_err(failed)?;
    let mut workers = Vec::new();
    let (alive, serving) = mpsc::channel(1);
    let mut fetched = Vec::new();
    for number in 0..info.nr_hw_queues {
        let cpu = usize::from(number) % queue_threads.len();
        let runtime = &queue_threads[cpu];
        let queue = Queue::new(&device, number, &info).map_err(failed)?;
        let event = EventWatch::new(queue.event(), runtime).map_err(failed)?;
        let worker = Worker::new(queue, Arc::clone(bdev), cpu, info.max_io_buf_bytes);
        let (tell, told) = oneshot::channel();
        let alive = alive.clone();
        workers.push(runtime.spawn(async move {
            worker.run(event, tell).await;
            drop(alive);
        }));
        fetched.push(told);
    }
    for told in fetched {
        let gone = |_| io::Error::other("a queue thread has exited");
        told.blocking_recv().map_err(gone).and_then(|fetched| fetched).map_err(failed)?;
    }
    Ok(Workers { tasks: workers, serving, file: device })
}
