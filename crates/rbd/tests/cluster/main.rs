//! Images of a real cluster: ours with Ceph's tools, and theirs with us.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod full;
mod interchange;
mod sharing;
mod tools;

use blockyard_lab::ceph::{Cluster as Lab, Options};
use blockyard_rbd::store::rados::{Client, RadosStore};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Nothing in these tests takes longer: what does hangs.
const LIMIT: Duration = Duration::from_secs(240);
/// The pool of images, one of their bytes, and a namespace.
const POOL: &str = "images";
const DATA: &str = "bytes";
const NAMESPACE: &str = "space";

static SHARED: Mutex<Weak<Lab>> = Mutex::new(Weak::new());

/// The cluster that the tests share while one of them runs.
fn lab() -> Arc<Lab> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lab) = shared.upgrade() {
        return lab;
    }
    let lab = Arc::new(Lab::start(&Options::default()).unwrap());
    for pool in [POOL, DATA] {
        lab.create_pool(pool, 8).unwrap();
    }
    lab.run(lab.tool("rbd").args(["namespace", "create", &format!("{POOL}/{NAMESPACE}")])).unwrap();
    *shared = Arc::downgrade(&lab);
    lab
}

/// A client that nobody shares: what becomes of it concerns nobody else.
async fn client(lab: &Lab) -> Arc<Client> {
    let arguments = ["--conf", &lab.conf().display().to_string()].map(str::to_owned);
    let config = blockyard_rados::net::Config::from_arguments(&arguments).unwrap();
    Arc::new(Client::connect(config).await.unwrap())
}

async fn store(lab: &Lab) -> RadosStore {
    RadosStore::open(&client(lab).await, POOL, "").await.unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(LIMIT, test).await };
    runtime.block_on(bounded).unwrap_or_else(|_| panic!("no end after {LIMIT:?}"))
}
