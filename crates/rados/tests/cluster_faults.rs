//! OSDs that are killed, stopped, marked out and in and restarted, groups that are split, a monitor that is restarted, all
//! under the load of several clients: no error, no write lost, none in another order.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

mod common;

use blockyard_lab::ceph::{Cluster as Lab, Options};
use blockyard_rados::net::{Cluster, Pool};
use bytes::Bytes;
use common::{POOL, config, run_within, start};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const CLIENTS: u64 = 3;
/// Objects of each client, each written by a task of its own.
const OBJECTS: u64 = 8;
/// Writes to an object that are in flight together.
const DEPTH: u64 = 4;
const BLOCK: usize = 512;
const BLOCKS: u64 = 16;
/// On a loaded machine, OSDs need their time to start and recover.
const LIMIT: Duration = Duration::from_secs(600);

/// What goes on while the cluster is shaken.
struct Load {
    stop: AtomicBool,
    writes: AtomicU64,
}

/// What is written as the `number`th: bytes that nothing else has.
fn block(client: u64, object: u64, number: u64) -> Bytes {
    let word = client << 56 | object << 48 | number;
    word.to_le_bytes().repeat(BLOCK / 8).into()
}

/// Writes one object again and again, several writes at a time, and looks that the last one of each place is there, and
/// that what was appended is there once, in order.
async fn write_and_check(pool: Pool, client: u64, object: u64, load: Arc<Load>, seed: u64) {
    let (name, journal) = (format!("{client}.{object}"), format!("journal {client}.{object}"));
    let mut random = StdRng::seed_from_u64(seed ^ client << 8 ^ object);
    let mut expected = vec![None; usize::try_from(BLOCKS).unwrap()];
    let mut number = 0;
    while !load.stop.load(Ordering::Relaxed) {
        let mut writes = Vec::new();
        for _ in 0..DEPTH {
            number += 1;
            // Two writes to one place may be in flight: the later one stays.
            let place = random.random_range(0..BLOCKS / 4) * 4 % BLOCKS;
            let data = block(client, object, number);
            expected[usize::try_from(place).unwrap()] = Some(data.clone());
            let (pool, name) = (pool.clone(), name.clone());
            let offset = place * BLOCK as u64;
            // Spawned tasks are polled first in the order in which they were spawned.
            writes.push(tokio::spawn(async move { pool.write(&name, offset, data).await }));
        }
        let (appender, entry) = (pool.clone(), journal.clone());
        let data = number.to_le_bytes().to_vec();
        writes.push(tokio::spawn(async move { appender.append(&entry, data).await }));
        for write in writes {
            write.await.unwrap().unwrap();
        }
        load.writes.fetch_add(DEPTH + 1, Ordering::Relaxed);
        let all = pool.read(&name, 0, 0).await.unwrap();
        for (place, data) in expected.iter().enumerate() {
            let Some(data) = data else { continue };
            let found = all.get(place * BLOCK..(place + 1) * BLOCK);
            assert!(found == Some(data), "{name}: place {place} after write {number}");
        }
    }
    let entries = pool.read(&journal, 0, 0).await.unwrap();
    let numbers: Vec<u64> =
        entries.chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap())).collect();
    let appended: Vec<u64> = (1..=number / DEPTH).map(|round| round * DEPTH).collect();
    assert!(numbers == appended, "{journal}: an append was lost, done twice, or out of order");
}

/// A client on a thread and a runtime of its own.
fn client(lab: &Lab, client: u64, load: &Arc<Load>, seed: u64) -> thread::JoinHandle<()> {
    let (config, load) = (config(lab, &[]), Arc::clone(load));
    thread::spawn(move || {
        run_within(LIMIT, async {
            let cluster = Cluster::connect(config).await.unwrap();
            let pool = cluster.pool(POOL).await.unwrap();
            let task = |object| {
                tokio::spawn(write_and_check(pool.clone(), client, object, Arc::clone(&load), seed))
            };
            let tasks: Vec<_> = (0..OBJECTS).map(task).collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    })
}

/// Waits until all clients have done some more.
fn progress(load: &Load) {
    let before = load.writes.load(Ordering::Relaxed);
    blockyard_lab::ceph::eventually("progress of the load", || {
        let enough = CLIENTS * OBJECTS * (DEPTH + 1) * 2;
        Ok((load.writes.load(Ordering::Relaxed) > before + enough).then_some(()))
    })
    .unwrap();
}

/// Everything that is to be survived, one after the other; the cluster is whole again before the next one.
fn shake(lab: &Lab, load: &Load) {
    let osd = |args: &[&str]| lab.ceph(&[&["osd"][..], args].concat()).unwrap();
    progress(load);

    lab.kill("osd.0").unwrap();
    lab.wait_osds_up(2).unwrap();
    progress(load);
    lab.start_daemon("osd.0").unwrap();
    lab.wait_osds_up(3).unwrap();
    lab.wait_clean().unwrap();

    lab.stop("osd.1").unwrap();
    progress(load);
    lab.start_daemon("osd.1").unwrap();
    lab.wait_osds_up(3).unwrap();
    lab.wait_clean().unwrap();

    osd(&["out", "2"]);
    progress(load);
    osd(&["in", "2"]);
    progress(load);

    lab.split_groups(POOL, 16).unwrap();
    progress(load);
    // Groups that are not clean need the monitor to become so.
    lab.wait_clean().unwrap();

    lab.kill("mon.a").unwrap();
    progress(load);
    lab.start_daemon("mon.a").unwrap();
    osd(&["down", "0"]);
    progress(load);
    lab.wait_osds_up(3).unwrap();
    lab.wait_clean().unwrap();
    progress(load);
}

#[test]
fn no_error_and_no_lost_or_reordered_write_whatever_happens_to_the_cluster() {
    let seed = std::env::var("BLOCKYARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("BLOCKYARD_SEED={seed}");
    let lab = start(&Options::default());
    let load = Arc::new(Load { stop: AtomicBool::new(false), writes: AtomicU64::new(0) });
    let clients: Vec<_> = (0..CLIENTS).map(|number| client(&lab, number, &load, seed)).collect();
    shake(&lab, &load);
    load.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    println!("{} writes", load.writes.load(Ordering::Relaxed));
}
