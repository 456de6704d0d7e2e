//! A real cluster, and this client in it.
#![allow(dead_code, reason = "not every test needs all of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_lab::ceph::{Cluster as Lab, Options};
use blockyard_rados::conf::{Arguments, ConfFile, Settings, Surroundings};
use blockyard_rados::net::{Cluster, Config, Pool};
use blockyard_rados::{Error, ErrorKind};
use std::fs;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Nothing in these tests takes longer: what does hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(150);
pub(crate) const POOL: &str = "tests";

static SHARED: Mutex<Weak<Lab>> = Mutex::new(Weak::new());

/// The cluster that the tests of a binary share while one of them runs: cephx, and Ceph's default modes.
pub(crate) fn shared() -> Arc<Lab> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lab) = shared.upgrade() {
        return lab;
    }
    let lab = Arc::new(start(&Options::default()));
    *shared = Arc::downgrade(&lab);
    lab
}

/// A cluster of one's own, with the pool.
pub(crate) fn start(options: &Options) -> Lab {
    let lab = Lab::start(options).unwrap();
    lab.create_pool(POOL, 8).unwrap();
    lab
}

/// What a client of the cluster is told, with further arguments as Ceph's programs take them.
pub(crate) fn config(lab: &Lab, arguments: &[&str]) -> Config {
    let arguments = Arguments::parse(arguments.iter().copied()).unwrap();
    let file = ConfFile::parse(&fs::read_to_string(lab.conf()).unwrap()).unwrap();
    let settings = Settings::new(&arguments, Surroundings::default()).with_file(file);
    Config::from_settings(&settings).unwrap()
}

pub(crate) async fn connect(lab: &Lab) -> Cluster {
    Cluster::connect(config(lab, &[])).await.unwrap()
}

pub(crate) async fn pool(lab: &Lab) -> Pool {
    connect(lab).await.pool(POOL).await.unwrap()
}

/// Runs a test on a runtime of one thread, within [`LIMIT`].
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    run_within(LIMIT, test)
}

/// Runs a test on a runtime of one thread, within a time.
pub(crate) fn run_within<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(limit, test).await };
    runtime.block_on(bounded).unwrap_or_else(|_| panic!("no end after {limit:?}"))
}

/// The error number that an OSD answered with.
pub(crate) fn errno(error: &Error) -> i32 {
    match error.kind() {
        ErrorKind::Osd { errno } => *errno,
        _ => panic!("no answer of an OSD: {error}"),
    }
}

/// Runs `rados` in the pool: what it prints.
pub(crate) fn rados(lab: &Lab, arguments: &[&str]) -> String {
    lab.run(lab.tool("rados").args(["-p", POOL]).args(arguments)).unwrap()
}

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ERANGE: i32 = 34;
pub(crate) const ENODATA: i32 = 61;
pub(crate) const EOVERFLOW: i32 = 75;
pub(crate) const EOPNOTSUPP: i32 = 95;
pub(crate) const ECANCELED: i32 = 125;
