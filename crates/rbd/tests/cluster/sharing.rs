//! An image that we and Ceph's clients have open: the lock goes to and fro, the owner does what others want, and the dead are
//! kept out.

use crate::tools::{check_map, export, json, rbd};
use crate::{DATA, POOL, client, lab, run, store};
use blockyard_lab::ceph::{Cluster as Lab, eventually};
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, Image, create};
use blockyard_rbd::live::{LiveImage, Options};
use blockyard_rbd::store::ObjectStore;
use blockyard_rbd::store::rados::{Client, RadosStore};
use rustix::io::Errno;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
/// Ours is the second half of an image, theirs the first.
const OURS: u64 = SIZE / 2;
/// So many bytes of it a client of Ceph writes.
const THEIRS: usize = 6 << 20;

async fn image(store: &RadosStore, name: &str) -> LiveImage<RadosStore> {
    let layout = Layout::new(20).unwrap();
    let options = CreateOptions { size: SIZE, layout, features: Features::DEFAULT };
    create(store, name, &options).await.unwrap();
    open(store, name).await
}

/// How long the other one has the lock at least.
const TURN: Duration = Duration::from_millis(200);

async fn open(store: &RadosStore, name: &str) -> LiveImage<RadosStore> {
    LiveImage::open(store, name, Options::default()).await.unwrap()
}

/// A program of Ceph's, which is ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _has_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A client of Ceph writes an image from its begin on, so many bytes.
fn bench(lab: &Lab, image: &str, total: &str) -> Running {
    let mut command: Command = lab.tool("rbd");
    command.args(["-p", POOL, "bench", image, "--io-type", "write", "--io-size", "4096"]);
    command.args(["--io-threads", "1", "--io-total", total, "--io-pattern", "seq"]);
    Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Runs something that waits elsewhere.
async fn elsewhere<T: Send + 'static>(
    lab: &Arc<Lab>,
    work: impl FnOnce(&Lab) -> T + Send + 'static,
) -> T {
    let lab = Arc::clone(lab);
    tokio::task::spawn_blocking(move || work(&lab)).await.unwrap()
}

#[test]
fn the_lock_goes_to_and_fro_under_load() {
    let lab = lab();
    run(async {
        let store = store(&lab).await;
        let live = image(&store, "shared").await;
        live.write(OURS, vec![1; 4096].into()).await.unwrap();
        // Where a request of theirs is lost, or a part of it, other bytes are seen.
        let before = (0..THEIRS).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>();
        live.write(0, before.into()).await.unwrap();
        let mut theirs = bench(&lab, "shared", &THEIRS.to_string());
        let mut byte = 1_u8;
        let has_ended = loop {
            // It has the lock now, or will have it: we have it again with the next write.
            let mut status = live.status();
            let gone = status.wait_for(|status| !status.is_owner);
            if tokio::time::timeout(Duration::from_millis(50), gone).await.is_ok() {
                // Nobody has us take it back in this time: without, they would need hundreds of turns.
                let back = status.wait_for(|status| status.is_owner);
                drop(tokio::time::timeout(TURN, back).await);
            }
            byte = byte % 250 + 1;
            live.write(OURS + 4096, vec![byte; 8192].into()).await.unwrap();
            if let Some(status) = theirs.0.try_wait().unwrap() {
                break status;
            }
        };
        // It has written all, which it does with the lock only.
        assert!(has_ended.success(), "{has_ended}");
        assert_eq!(live.read(OURS + 4096, 8192).await.unwrap(), [byte; 8192]);
        live.close().await.unwrap();
        let bytes = elsewhere(&lab, |lab| {
            check_map(lab, "shared");
            export(lab, "shared")
        })
        .await;
        let ours = usize::try_from(OURS).unwrap();
        assert_eq!(bytes[ours..ours + 4096], [1; 4096]);
        assert_eq!(bytes[ours + 4096..ours + 12288], [byte; 8192]);
        // It writes the same byte everywhere, by chance one of all.
        let kept = bytes[..THEIRS].iter().position(|byte| *byte != bytes[0]);
        assert_eq!(kept, None, "theirs is not there");
        assert!(bytes[THEIRS..ours].iter().all(|byte| *byte == 0), "nobody has written that");
    });
}

#[test]
fn rbd_has_the_owner_do_things_and_so_do_we() {
    let lab = lab();
    run(async {
        let store = store(&lab).await;
        let live = image(&store, "maintained").await;
        live.write(0, vec![1; 4096].into()).await.unwrap();
        let mut status = live.status();
        let (locks, watchers) = elsewhere(&lab, |lab| {
            (json(lab, &["lock", "ls", "maintained"]), json(lab, &["status", "maintained"]))
        })
        .await;
        let owner = live.owner().unwrap();
        assert_eq!(locks[0]["id"], owner.cookie, "{locks}");
        let number = format!("client.{}", owner.client.client.number);
        assert_eq!(locks[0]["locker"], number, "{locks}");
        assert_eq!(watchers["watchers"].as_array().map(Vec::len), Some(1), "{watchers}");

        // Done by us, for rbd.
        elsewhere(&lab, |lab| {
            rbd(lab, &["snap", "create", "--no-progress", "maintained@a"]);
            rbd(lab, &["resize", "--no-progress", "--size", "32M", "maintained"]);
        })
        .await;
        status.wait_for(|status| status.size == 32 * MIB).await.unwrap();
        live.write(0, vec![2; 4096].into()).await.unwrap();
        let then = Image::open_snapshot(&store, "maintained", "a").await.unwrap();
        assert_eq!(then.read(0, 4096).await.unwrap(), [1; 4096]);
        elsewhere(&lab, |lab| {
            rbd(lab, &["snap", "rm", "--no-progress", "maintained@a"]);
            rbd(lab, &["snap", "create", "--no-progress", "maintained@b"]);
            rbd(lab, &["snap", "rename", "maintained@b", "maintained@c"]);
            rbd(lab, &["snap", "protect", "maintained@c"]);
            rbd(lab, &["rename", "maintained", "renamed"]);
        })
        .await;
        assert_eq!(live.owner(), Some(owner), "the lock was not given away");
        let names = |image: &Image<RadosStore>| {
            image.snapshots().map(|(_, name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&live.image().await.unwrap()), ["c"]);
        // This is not done for others: rbd gets the lock.
        elsewhere(&lab, |lab| rbd(lab, &["object-map", "rebuild", "--no-progress", "renamed"]))
            .await;
        live.write(0, vec![3; 4096].into()).await.unwrap();
        live.close().await.unwrap();
        elsewhere(&lab, |lab| check_map(lab, "renamed")).await;
    });
}

#[test]
fn what_a_client_of_ceph_owns_it_does_for_us_and_when_it_is_killed_we_get_it() {
    let lab = lab();
    run(async {
        let store = store(&lab).await;
        let live = image(&store, "benched").await;
        let mut theirs = bench(&lab, "benched", "8G");
        let theirs = elsewhere(&lab, move |lab| {
            let has_lock = eventually("the lock of Ceph's client", || {
                assert!(theirs.0.try_wait()?.is_none(), "it has ended");
                let locks = json(lab, &["lock", "ls", "benched"]);
                Ok((locks.as_array().map(Vec::len) > Some(0)).then_some(()))
            });
            has_lock.unwrap();
            theirs
        })
        .await;
        live.create_snapshot("s").await.unwrap();
        live.resize(2 * SIZE, true).await.unwrap();
        assert_eq!(live.image().await.unwrap().size(), 2 * SIZE);
        drop(theirs);
        live.write(OURS, vec![9; 4096].into()).await.unwrap();
        live.remove_snapshot("s").await.unwrap();
        live.close().await.unwrap();
        elsewhere(&lab, |lab| check_map(lab, "benched")).await;
    });
}

/// Only its own pool knows of a clone of version 1: a parent without protection could be removed, and the clone with it.
#[test]
fn a_snapshot_stays_protected_that_has_an_old_clone_in_another_pool() {
    let lab = lab();
    run(async {
        let store = store(&lab).await;
        let live = image(&store, "protected").await;
        live.write(0, vec![1; 4096].into()).await.unwrap();
        live.create_snapshot("s").await.unwrap();
        live.protect_snapshot("s").await.unwrap();
        let clone = format!("{DATA}/elsewhere");
        let made = clone.clone();
        elsewhere(&lab, move |lab| {
            rbd(lab, &["clone", "--rbd-default-clone-format", "1", "protected@s", &made]);
        })
        .await;
        let children = {
            let image = live.image().await.unwrap();
            image.children(image.snapshot_record("s").unwrap().id).await.unwrap()
        };
        let pool = store.cluster().pool(DATA).await.unwrap().id();
        assert_eq!(children.iter().map(|child| child.pool).collect::<Vec<_>>(), [pool]);
        let refused = live.unprotect_snapshot("s").await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::BUSY), "{refused}");
        // Also for others, who ask the owner for it.
        let refused = elsewhere(&lab, |lab| {
            let mut unprotect = lab.tool("rbd");
            unprotect.args(["-p", POOL, "snap", "unprotect", "protected@s"]).output().unwrap()
        });
        assert_eq!(refused.await.status.code(), Some(Errno::BUSY.raw_os_error()));
        assert!(live.owner().is_some(), "the lock was not given away");
        elsewhere(&lab, move |lab| rbd(lab, &["rm", "--no-progress", &clone])).await;
        live.unprotect_snapshot("s").await.unwrap();
        live.close().await.unwrap();
    });
}

#[test]
fn a_dead_self_is_followed_at_once_and_can_write_no_more() {
    let lab = lab();
    run(async {
        let (before, after) = (client(&lab).await, client(&lab).await);
        let before = RadosStore::open(&before, POOL, "").await.unwrap();
        let after = RadosStore::open(&after, POOL, "").await.unwrap();
        let old = image(&before, "followed").await;
        old.write(0, vec![1; 4096].into()).await.unwrap();
        let dead_self = old.owner();
        let options = Options { dead_self, lock_limit: Duration::from_secs(20) };
        let new = LiveImage::open(&after, "followed", options).await.unwrap();
        new.write(0, vec![2; 4096].into()).await.unwrap();
        let error = old.write(0, vec![3; 4096].into()).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::SHUTDOWN), "{error}");
        old.status().wait_for(|status| status.is_fenced).await.unwrap();
        assert_eq!(new.read(0, 4096).await.unwrap(), [2; 4096]);
        new.close().await.unwrap();
    });
}

/// Writes until that fails.
async fn kept_out(live: &LiveImage<RadosStore>) -> blockyard_rbd::Error {
    let writes = async {
        loop {
            if let Err(error) = live.write(0, vec![2; 4096].into()).await {
                return error;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), writes).await.unwrap()
}

#[test]
fn who_was_kept_out_comes_back_as_somebody_new() {
    let lab = lab();
    run(async {
        let arguments = ["--conf".to_owned(), lab.conf().display().to_string()];
        let first = Client::shared(&arguments).await.unwrap();
        let again = Client::shared(&arguments).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        drop(again);
        let old = RadosStore::open(&first, POOL, "").await.unwrap();
        let live = image(&old, "fenced").await;
        live.write(0, vec![1; 4096].into()).await.unwrap();
        let other = store(&lab).await;
        other.fence(&old.caller()).await.unwrap();
        // Those who store it hear of that a little later.
        let error = kept_out(&live).await;
        assert_eq!(error.errno(), Some(Errno::SHUTDOWN), "{error}");
        // The one that is kept out is still there.
        let new = Client::shared(&arguments).await.unwrap();
        assert!(first.is_fenced() && !Arc::ptr_eq(&first, &new));
        let store = RadosStore::open(&new, POOL, "").await.unwrap();
        let live = open(&store, "fenced").await;
        live.write(0, vec![3; 4096].into()).await.unwrap();
        assert_eq!(live.read(0, 4096).await.unwrap(), [3; 4096]);
        live.close().await.unwrap();
    });
}
