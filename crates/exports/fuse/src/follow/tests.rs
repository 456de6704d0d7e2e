//! What the kernel is told, and when: a pair of sockets stands for the device.

use std::os::fd::OwnedFd;
use std::time::Instant;

use blockyard_conformance::QueueThread;
use blockyard_fuse::wire::ReadIn;
use blockyard_fuse::{Caller, Operation, Reply};
use blockyard_sys::EventWatch;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socketpair};

use super::*;
use crate::mount::Cache;
use crate::queue::tests::{OWNER, PROTOCOL, Stuck};
use crate::queue::{Session, Worker};
use crate::watchers::Watchers;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests with the disk: fewer than there are.
const DEPTH: usize = 4;
const BLOCK: u32 = 4096;

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// The kernel's end, in virtual time.
struct Kernel(OwnedFd);

impl Kernel {
    fn read(&self, number: u64) {
        // Far enough from each other to be no request together.
        let offset = 2 * number * u64::from(BLOCK);
        let args = ReadIn { offset, size: BLOCK, ..ReadIn::default() };
        let caller = Caller { unique: 2 + 2 * number, nodeid: ROOT_ID, ..Caller::default() };
        let mut bytes = Vec::new();
        Operation::Read(args).encode(&caller, &[], &PROTOCOL, &mut bytes);
        assert_eq!(send(&self.0, &bytes, SendFlags::NOSIGNAL).unwrap(), bytes.len());
    }

    /// A message, if there is one.
    fn try_hear(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 2 * BLOCK as usize];
        let (len, _) = recv(&self.0, &mut bytes[..], RecvFlags::DONTWAIT).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    async fn hear(&self) -> Vec<u8> {
        let mut message = self.try_hear();
        until("no message", || {
            message = message.take().or_else(|| self.try_hear());
            message.is_some()
        })
        .await;
        message.unwrap()
    }

    /// The offset from which on data are to be forgotten.
    async fn invalidated(&self) -> i64 {
        let message = self.hear().await;
        match Notification::parse(&message, 0).unwrap() {
            Notification::InvalInode(NotifyInvalInode { ino: ROOT_ID, off, len: 0 }) => off,
            other => panic!("{other:?}"),
        }
    }

    async fn answered(&self) -> u64 {
        Reply::header(&self.hear().await, 0).unwrap().unique
    }
}

/// Lets a disk end that a test which has failed leaves stuck.
struct GoesOn(Arc<Stuck>);

impl Drop for GoesOn {
    fn drop(&mut self) {
        self.0.go_on();
    }
}

/// Waits for what others do on this thread, or on any.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The kernel has locked the pages of all that it has asked for. A disk has one request at a time here, so that most of them
/// wait for a tag, or are put by.
#[tokio::test(start_paused = true)]
async fn data_are_forgotten_when_all_is_answered_that_came_before_wherever_it_waits() {
    const BEFORE: u64 = 6;
    let (driver, bdev) = Stuck::disk(1);
    let _goes_on = GoesOn(Arc::clone(&driver));
    let tree = Arc::new(Tree::single(Arc::clone(&bdev), OWNER, 1));
    let (kernel, far) = pair();
    let kernel = Kernel(kernel);
    let channel = Arc::new(Channel::of(far).unwrap());
    let runtime = Handle::current();
    let event = EventWatch::new(Arc::clone(&channel), &runtime).unwrap();
    let (cache, watchers) = (Cache::Used, Watchers::new(1));
    let session = Session { tree: Arc::clone(&tree), protocol: PROTOCOL, cache, watchers };
    let worker = Worker::new(Arc::new(session), Arc::clone(&channel), 0, DEPTH).unwrap();
    let requests = worker.requests();
    let worker = runtime.spawn(worker.run(event));
    let follow = Follow::new(&channel, &tree, &runtime);
    (0..BEFORE).for_each(|number| kernel.read(number));
    until("not all come", || requests.until_now() == BEFORE && driver.held() == 1).await;
    bdev.disk().set_read_only(true);
    assert_eq!(kernel.invalidated().await, ATTRIBUTES);
    // Another change while the first waits, and a request that comes after both.
    bdev.disk().set_read_only(false);
    assert_eq!(kernel.invalidated().await, ATTRIBUTES);
    tokio::time::sleep(LOOK_AGAIN).await;
    kernel.read(BEFORE);
    until("it does not come", || requests.until_now() == BEFORE + 1).await;
    for number in 0..BEFORE {
        tokio::time::sleep(10 * LOOK_AGAIN).await;
        assert!(kernel.try_hear().is_none(), "{} are not answered", BEFORE - number);
        driver.release_first();
        assert_eq!(kernel.answered().await, 2 + 2 * number);
    }
    assert_eq!(kernel.invalidated().await, 0);
    tokio::time::sleep(10 * LOOK_AGAIN).await;
    assert!(kernel.try_hear().is_none(), "the last one came after the first change");
    driver.go_on();
    assert_eq!(kernel.answered().await, 2 + 2 * BEFORE);
    assert_eq!(kernel.invalidated().await, 0);
    drop((follow, channel, kernel));
    worker.await.unwrap();
}

/// It waits for a file of which it gives up pages, and a queue may have to answer what those wait for.
#[test]
fn a_kernel_that_takes_no_notification_keeps_no_queue_thread() {
    let (_driver, bdev) = Stuck::disk(1);
    let tree = Arc::new(Tree::single(Arc::clone(&bdev), OWNER, 1));
    let (kernel, far) = pair();
    while send(&far, &[0; 64], SendFlags::NOSIGNAL).is_ok() {}
    let blocking = far.try_clone().unwrap();
    let channel = Arc::new(Channel::of(far).unwrap());
    // As the device does for whoever writes to it.
    rustix::io::ioctl_fionbio(&blocking, false).unwrap();
    let (threads, handles) = QueueThread::start_many(1);
    let follow = Follow::new(&channel, &tree, &handles[0]);
    // Closed before the thread is waited for: whoever writes then is through.
    let kernel = kernel;
    bdev.disk().set_read_only(true);
    let (tell, told) = std::sync::mpsc::channel();
    handles[0].spawn(async move {
        // Behind the task that tells the kernel.
        tokio::task::yield_now().await;
        tell.send(()).unwrap();
    });
    told.recv_timeout(PATIENCE).expect("the queue thread waits for the kernel");
    drop((follow, kernel, threads));
}
