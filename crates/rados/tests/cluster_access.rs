//! Who may in, how connections are protected, and what cannot be done: pools that go, clusters that are paused or full.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

mod common;

use blockyard_lab::ceph::{Auth, Mode, Options, eventually};
use blockyard_rados::auth::CryptoKey;
use blockyard_rados::net::{Cluster, Pool};
use blockyard_rados::osd::OpFlags;
use blockyard_rados::{Blame, ErrorKind};
use bytes::Bytes;
use common::{ENOENT, POOL, config, connect, errno, pool, rados, run, shared, start};
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A key of the right form that nobody has.
const STRANGE_KEY: &str = "AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==";

#[test]
fn clusters_without_keys_with_checksums_and_with_encryption() {
    let kinds = [(Auth::None, Mode::Crc), (Auth::Cephx, Mode::Crc), (Auth::Cephx, Mode::Secure)];
    for (auth, mode) in kinds {
        let lab = start(&Options { osds: 2, auth, mode, ..Options::default() });
        run(async {
            let pool = pool(&lab).await;
            let data: Bytes = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
            pool.write_full("object", data.clone()).await.unwrap();
            assert!(pool.read("object", 0, 0).await.unwrap() == data, "{auth:?} {mode:?}");
        });
        assert!(rados(&lab, &["stat", "object"]).contains("size 1200000"));
    }
}

#[test]
fn a_wrong_key_is_named() {
    let lab = shared();
    run(async {
        let mut config = config(&lab, &[]);
        config.credentials.key = Ok(CryptoKey::from_base64(STRANGE_KEY).unwrap());
        let begin = Instant::now();
        let error = Cluster::connect(config).await.unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(60), "there is no need to wait");
        assert!(error.to_string().contains("client.admin"), "{error}");
        assert!(error.to_string().contains("key"), "{error}");
        assert_eq!(error.blame(), Blame::Policy, "{error}");
        assert!(!error.to_string().contains(STRANGE_KEY));
    });
}

#[test]
fn a_client_without_rights_is_refused_by_the_osd() {
    let lab = shared();
    let caps = ["mon", "allow r", "osd", "allow r"];
    let key =
        lab.ceph(&[&["auth", "get-or-create-key", "client.reader"][..], &caps].concat()).unwrap();
    run(async {
        pool(&lab).await.write_full("readable", b"x".as_slice()).await.unwrap();
        let config = config(&lab, &["--id", "reader", "--key", key.trim()]);
        let cluster = Cluster::connect(config).await.unwrap();
        let pool = cluster.pool(POOL).await.unwrap();
        assert_eq!(pool.read("readable", 0, 0).await.unwrap(), b"x"[..]);
        let error = pool.write_full("readable", b"y".as_slice()).await.unwrap_err();
        assert_eq!(errno(&error), 1, "EPERM: {error}");
    });
}

#[test]
fn monitors_that_are_not_there_end_with_the_deadline() {
    let lab = shared();
    run(async {
        let mut config = config(&lab, &[]);
        // One that refuses connections, and one that never answers.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        config.monitors = vec![gone, silent.local_addr().unwrap()];
        config.connect_timeout = Some(Duration::from_secs(4));
        let error = Cluster::connect(config).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("127.0.0.1:"), "{error}");
        assert_eq!(error.blame(), Blame::Network);
    });
}

#[test]
fn a_pool_that_is_not_there_or_goes_under_io() {
    let lab = shared();
    run(async {
        let cluster = connect(&lab).await;
        let error = cluster.pool("no such pool").await.unwrap_err();
        assert!(error.to_string().contains("no such pool"), "{error}");
        cluster.create_pool("going", 4).await.unwrap();
        let going = cluster.pool("going").await.unwrap();
        let writers: Vec<_> =
            (0..4).map(|i| tokio::spawn(write_until_error(going.clone(), i))).collect();
        let other = connect(&lab).await;
        other.delete_pool("going").await.unwrap();
        for writer in writers {
            let error = writer.await.unwrap();
            let gone = matches!(error.kind(), ErrorKind::NoPool)
                || matches!(error.kind(), ErrorKind::Osd { errno: ENOENT });
            assert!(gone, "{error}");
            assert!(error.to_string().contains("object"), "{error}");
        }
        let error = going.read("0", 0, 0).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoPool), "{error}");
    });
}

async fn write_until_error(pool: Pool, name: u32) -> blockyard_rados::Error {
    loop {
        if let Err(error) = pool.write_full(&name.to_string(), b"x".as_slice()).await {
            return error;
        }
    }
}

/// Sets a flag of the map, and waits until a client has seen it.
async fn flag(lab: &blockyard_lab::ceph::Cluster, cluster: &Cluster, verb: &str, flag: &str) {
    lab.ceph(&["osd", verb, flag]).unwrap();
    cluster.newest_map().await.unwrap();
}

#[test]
fn a_cluster_that_is_paused_or_full_makes_operations_wait() {
    // Its flags would stop other tests.
    let lab = start(&Options { osds: 1, replicas: 1, ..Options::default() });
    run(async {
        let cluster = connect(&lab).await;
        let pool = cluster.pool(POOL).await.unwrap();
        pool.write_full("object", b"1".as_slice()).await.unwrap();
        let short = pool.clone().with_timeout(Some(Duration::from_millis(300)));

        flag(&lab, &cluster, "set", "pause").await;
        let error = short.read("object", 0, 0).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TimedOut), "{error}");
        assert!(error.to_string().contains("paused"), "{error}");
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.read("object", 0, 0).await }
        });
        flag(&lab, &cluster, "unset", "pause").await;
        assert_eq!(waiting.await.unwrap().unwrap(), b"1"[..]);

        // Of a pool with more objects than it may have, the monitors say that it is full.
        lab.ceph(&["osd", "pool", "set-quota", POOL, "max_objects", "1"]).unwrap();
        pool.write_full("second", b"1".as_slice()).await.unwrap();
        eventually("a full pool", || {
            let detail = lab.ceph(&["osd", "pool", "ls", "detail"])?;
            Ok(detail.contains("full_quota").then_some(()))
        })
        .unwrap();
        cluster.newest_map().await.unwrap();
        let error = short.write_full("object", b"2".as_slice()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TimedOut), "{error}");
        assert_eq!(pool.read("object", 0, 0).await.unwrap(), b"1"[..], "reads go on");
        let trying = pool.clone().with_flags(OpFlags::FULL_TRY);
        let error = trying.write_full("third", b"2".as_slice()).await.unwrap_err();
        assert_eq!(errno(&error), 122, "EDQUOT: {error}");
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.write_full("object", b"3".as_slice()).await }
        });
        lab.ceph(&["osd", "pool", "set-quota", POOL, "max_objects", "0"]).unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(pool.read("object", 0, 0).await.unwrap(), b"3"[..]);
    });
}

#[test]
fn operations_wait_for_their_turn_and_keep_their_order() {
    let lab = shared();
    run(async {
        let mut config = config(&lab, &[]);
        (config.max_ops, config.max_bytes) = (3, 1 << 16);
        let pool = Cluster::connect(config).await.unwrap().pool(POOL).await.unwrap();
        let appends = (0..200_u32).map(|i| {
            let (pool, data) = (pool.clone(), vec![u8::try_from(i).unwrap(); 9000]);
            tokio::spawn(async move { pool.append("in order", data).await })
        });
        for append in appends.collect::<Vec<_>>() {
            append.await.unwrap().unwrap();
        }
        // One alone may be larger than all together.
        pool.write_full("large", vec![7; 1 << 20]).await.unwrap();
        let all = pool.read("in order", 0, 0).await.unwrap();
        let order: Vec<_> = all.chunks(9000).map(|chunk| u32::from(chunk[0])).collect();
        assert_eq!(order, (0..200).collect::<Vec<_>>());
        assert!(pool.cluster().osd_connections() <= 3);
    });
}
