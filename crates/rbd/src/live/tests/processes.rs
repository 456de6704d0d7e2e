//! An image in a directory that several processes have open.

use crate::dir::DirStore;
use crate::format::{Features, Layout, names};
use crate::image::{CreateOptions, create};
use crate::live::{LiveImage, Options, watchers};
use crate::store::ObjectStore;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Set for a process that is to have the image until it is killed.
const VICTIM: &str = "BLOCKYARD_TEST_STORE_OF_OWNER";
const LIMIT: Duration = Duration::from_secs(120);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await }).unwrap()
}

async fn image(path: &Path) -> DirStore {
    let store = DirStore::open(path, true).unwrap();
    let layout = Layout::new(12).unwrap();
    let options = CreateOptions { size: 1 << 16, layout, features: Features::DEFAULT };
    create(&store, "a", &options).await.unwrap();
    store
}

async fn open(store: &DirStore) -> LiveImage<DirStore> {
    LiveImage::open(store, "a", Options::default()).await.unwrap()
}

#[test]
fn processes_hand_an_image_over_and_hear_of_each_other() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let here = image(directory.path()).await;
        // Another session: to the store it is another process.
        let there = DirStore::open(directory.path(), false).unwrap();
        assert_ne!(here.caller(), there.caller());
        let (one, two) = (open(&here).await, open(&there).await);
        for byte in 1..4 {
            one.write(0, vec![byte; 4096].into()).await.unwrap();
            two.write(0, vec![byte + 100; 4096].into()).await.unwrap();
            assert!(!one.status().borrow().is_owner);
            assert_eq!(one.read(0, 1).await.unwrap(), [byte + 100]);
        }
        let header = names::header(one.image().await.unwrap().id());
        let watching = watchers(&here, &header).await.unwrap();
        let clients: Vec<_> = watching.iter().map(|watcher| watcher.client).collect();
        assert_eq!(clients, [here.caller().client, there.caller().client]);
        // The one that has it does what the other one wants.
        let owner = two.owner();
        one.resize(1 << 15, true).await.unwrap();
        assert_eq!(two.owner(), owner);
        two.status().wait_for(|status| status.size == 1 << 15).await.unwrap();
        two.close().await.unwrap();
        one.write(0, vec![1; 10].into()).await.unwrap();
        one.close().await.unwrap();
    });
}

/// Runs as the process that is killed; does nothing in a usual run.
#[test]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    run(async {
        let store = DirStore::open(path.as_ref(), false).unwrap();
        let live = open(&store).await;
        live.write(0, vec![1; 4096].into()).await.unwrap();
        println!("owns it");
        std::future::pending::<()>().await;
    });
}

/// A process that is killed, whatever happens.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _has_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn one_that_is_killed_leaves_no_lock() {
    let directory = tempfile::tempdir().unwrap();
    run(async {
        let store = image(directory.path()).await;
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "live::tests::processes::victim";
        command.args(["--exact", name, "--nocapture", "--test-threads", "1"]);
        let child = command.env(VICTIM, directory.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut victim = Victim(child);
        let stdout = victim.0.stdout.take().unwrap();
        let owns = tokio::task::spawn_blocking(move || {
            BufReader::new(stdout).lines().any(|line| line.unwrap().contains("owns it"))
        });
        assert!(owns.await.unwrap());
        let live = open(&store).await;
        let header = names::header(live.image().await.unwrap().id());
        assert_eq!(watchers(&store, &header).await.unwrap().len(), 2);
        drop(victim);
        live.write(4096, vec![2; 4096].into()).await.unwrap();
        assert_eq!(live.read(0, 4096).await.unwrap(), [1; 4096]);
        assert_eq!(watchers(&store, &header).await.unwrap().len(), 1);
        live.close().await.unwrap();
    });
}
