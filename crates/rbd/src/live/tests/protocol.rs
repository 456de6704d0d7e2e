//! Several clients of an image: one writes at a time, nothing that was acknowledged is lost, and nobody waits for ever.

use super::cluster::{Client, Cluster};
use crate::format::{Features, Layout};
use crate::image::{CreateOptions, Image, create};
use crate::live::{LiveImage, Options, lock};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(super) const OBJECT: u64 = 4096;
const BLOCK: u64 = 1024;
const BLOCK_BYTES: usize = 1024;
pub(super) const SIZE: u64 = 8 * OBJECT;
const SEEDS: u64 = 24;
const STEPS: u64 = 12;
/// Of the runtime's own time: what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(3600);

pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.expect("it hangs") })
}

pub(super) async fn image(cluster: &Arc<Cluster>) -> Client {
    let client = Client::new(cluster, 100);
    create_with(&client, Features::DEFAULT).await;
    client
}

pub(super) async fn create_with(client: &Client, features: Features) {
    let options = CreateOptions { size: SIZE, layout: Layout::new(12).unwrap(), features };
    create(client, "a", &options).await.unwrap();
}

pub(super) async fn open(client: &Client) -> LiveImage<Client> {
    LiveImage::open(client, "a", Options::default()).await.unwrap()
}

/// What was acknowledged, by blocks; what was under way when a client died may be there, too.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<u64, (u8, Vec<u8>)>,
}

impl Model {
    fn begin(&mut self, block: u64, byte: u8) {
        self.blocks.entry(block).or_default().1.push(byte);
    }

    fn end(&mut self, block: u64, byte: u8) {
        // Each block has one writer: what was written before it is gone.
        self.blocks.insert(block, (byte, Vec::new()));
    }

    fn check(&self, bytes: &[u8], when: &str) {
        for (block, found) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let (acknowledged, maybe) =
                self.blocks.get(&(block as u64)).cloned().unwrap_or_default();
            assert!(found.iter().all(|byte| *byte == found[0]), "{when}: block {block} is torn");
            assert!(
                found[0] == acknowledged || maybe.contains(&found[0]),
                "{when}: block {block} is {}, acknowledged {acknowledged}, under way {maybe:?}",
                found[0]
            );
        }
    }
}

/// Writes to every third block, which nobody else writes; objects are shared.
async fn write_all(
    cluster: Arc<Cluster>,
    client: Client,
    image: LiveImage<Client>,
    model: Arc<Mutex<Model>>,
    index: u64,
) {
    for step in 0..STEPS {
        let block = cluster.random(0..SIZE / BLOCK / 3) * 3 + index;
        let is_zero = cluster.random(0..4) == 0;
        let byte = if is_zero { 0 } else { u8::try_from(1 + step * 3 + index).unwrap() };
        model.lock().begin(block, byte);
        let done = match is_zero {
            true => image.zero(block * BLOCK, BLOCK).await,
            false => image.write(block * BLOCK, vec![byte; BLOCK_BYTES].into()).await,
        };
        match done {
            Ok(()) => model.lock().end(block, byte),
            // It is dead, or loses its watches again and again: what it was not told is done may be done.
            Err(error) if error.errno() == Some(Errno::SHUTDOWN) => {
                assert!(cluster.is_dead(&client) || cluster.faults > 0, "{error}");
                assert!(cluster.is_fenced(&client), "{error}");
                return;
            }
            Err(error) => panic!("{error}"),
        }
        if cluster.random(0..4) == 0 {
            cluster.pause(2000).await;
        }
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("BLOCKYARD_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => {
            let first = rand::random::<u64>() >> 8;
            (first..first + SEEDS).collect()
        }
    }
}

/// Two who write, and one who dies while he does.
async fn writers(seed: u64) {
    let faults = match seed % 3 {
        0 => 0,
        1 => 3,
        _ => 10,
    };
    let cluster = Cluster::new(seed, faults);
    image(&cluster).await;
    let model = Arc::new(Mutex::new(Model::default()));
    let clients: Vec<_> = (0..3).map(|index| Client::new(&cluster, 200 + index)).collect();
    let mut tasks = Vec::new();
    for (index, client) in clients.iter().enumerate() {
        let image = open(client).await;
        let (cluster, client, model) = (Arc::clone(&cluster), client.clone(), Arc::clone(&model));
        tasks.push(tokio::spawn(write_all(cluster, client, image, model, index as u64)));
    }
    cluster.pause(4000).await;
    cluster.kill(&clients[2]);
    for task in tasks.into_iter().take(2) {
        task.await.unwrap();
    }
    assert_eq!(cluster.intruders(), Vec::<String>::new());
    assert!(cluster.applied() > 0);
    let reader = Client::new(&cluster, 300);
    let image = Image::open(&reader, "a").await.unwrap();
    let bytes = image.read(0, SIZE).await.unwrap();
    model.lock().check(&bytes, "at the end");
    // And by the map of objects, which each owner has kept for the next one.
    let last = LiveImage::open(&reader, "a", Options::default()).await.unwrap();
    last.acquire().await.unwrap();
    let bytes = last.read(0, SIZE).await.unwrap();
    model.lock().check(&bytes, "by the map");
    assert!(last.image().await.unwrap().is_owner());
    last.close().await.unwrap();
}

#[test]
fn one_writes_at_a_time_and_nothing_is_lost() {
    for seed in seeds() {
        println!("BLOCKYARD_SEED={seed}");
        run(writers(seed));
    }
}

#[test]
fn a_lock_is_handed_over_and_whoever_waits_for_it_is_heard() {
    run(async {
        let cluster = Cluster::new(1, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (one, two) = (open(&one).await, open(&two).await);
        assert_eq!(one.owner(), None);
        for byte in 1..10 {
            let begin = tokio::time::Instant::now();
            one.write(0, vec![byte; 4096].into()).await.unwrap();
            assert!(one.owner().is_some() && one.status().borrow().is_owner);
            assert_eq!(two.read(0, 1).await.unwrap(), [byte]);
            two.write(0, vec![byte + 100; 4096].into()).await.unwrap();
            assert!(!one.status().borrow().is_owner);
            assert_eq!(one.read(0, 1).await.unwrap(), [byte + 100]);
            // No time is up in between.
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        }
        assert_eq!(cluster.intruders(), Vec::<String>::new());
        two.release().await.unwrap();
        assert_eq!(two.owner(), None);
        two.close().await.unwrap();
        one.write(0, vec![1; 10].into()).await.unwrap();
    });
}

#[test]
fn a_lock_that_may_be_held_is_given_back() {
    run(async {
        let cluster = Cluster::new(6, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (holder, other) = (open(&one).await, open(&two).await);
        // It was taken, and the answer was lost.
        let cookie = lock::cookie(holder.shared.state.lock().watch.unwrap());
        holder.shared.state.lock().held = Some(cookie.clone());
        assert!(lock::take(&one, &holder.shared.header, &cookie).await.unwrap());
        let begin = tokio::time::Instant::now();
        other.write(0, vec![1; 10].into()).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
        assert_eq!(holder.owner(), None);
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}

#[test]
fn one_waits_for_the_lock_no_longer_than_it_may_also_behind_others() {
    run(async {
        let cluster = Cluster::new(7, 0);
        let client = image(&cluster).await;
        let options = Options { lock_limit: Duration::from_secs(5), ..Options::default() };
        let live = LiveImage::open(&client, "a", options).await.unwrap();
        let _first = live.shared.acquiring.lock().await;
        let begin = tokio::time::Instant::now();
        let error = live.write(0, vec![1; 10].into()).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::TIMEDOUT), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    });
}

#[test]
fn one_who_asks_for_the_lock_gets_it_from_one_who_always_writes() {
    run(async {
        let cluster = Cluster::new(8, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (busy, other) = (open(&one).await, open(&two).await);
        busy.write(0, vec![1; 10].into()).await.unwrap();
        let always = async {
            loop {
                busy.write(0, vec![1; 10].into()).await.unwrap();
            }
        };
        let (mut status, mut taken) = (busy.status(), 0);
        let counting = async {
            loop {
                status.wait_for(|status| !status.is_owner).await.unwrap();
                status.wait_for(|status| status.is_owner).await.unwrap();
                taken += 1;
            }
        };
        let now_and_then = async {
            for byte in 0..20 {
                other.write(OBJECT, vec![byte; 10].into()).await.unwrap();
            }
        };
        tokio::select! {
            _ = always => unreachable!("it writes for ever"),
            _ = counting => unreachable!("it counts for ever"),
            () = now_and_then => {}
        }
        // Whoever gives it away has it again only after the other one.
        assert!(taken <= 20, "{taken} times for 20 writes of the other one");
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}

#[test]
fn all_get_the_lock_who_always_want_it() {
    run(async {
        let cluster = Cluster::new(9, 0);
        image(&cluster).await;
        let clients = [1, 2, 3].map(|number| Client::new(&cluster, number));
        let writers = clients.iter().map(|client| async {
            let live = open(client).await;
            for byte in 1..10 {
                live.write(0, vec![byte; 10].into()).await.unwrap();
                cluster.pause(10).await;
            }
        });
        let begin = tokio::time::Instant::now();
        let [one, two, three] = writers.collect::<Vec<_>>().try_into().ok().unwrap();
        tokio::join!(one, two, three);
        assert!(begin.elapsed() < Duration::from_secs(120), "{:?}", begin.elapsed());
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}

#[test]
fn after_a_change_that_was_given_up_the_image_is_written_again() {
    for millis in 1..80 {
        run(async {
            let cluster = Cluster::new(10, 0);
            let client = image(&cluster).await;
            let live = open(&client).await;
            live.acquire().await.unwrap();
            let limit = Duration::from_millis(millis);
            drop(tokio::time::timeout(limit, live.resize(2 * SIZE, true)).await);
            live.write(0, vec![1; 10].into()).await.unwrap();
            live.zero(0, 10).await.unwrap();
            live.resize(SIZE, true).await.unwrap();
            assert_eq!(live.image().await.unwrap().size(), SIZE);
        });
    }
}

#[test]
fn what_zeroes_an_object_beside_writes_leaves_a_map_that_is_right() {
    for seed in 0..60 {
        run(async {
            let cluster = Cluster::new(seed, 0);
            let client = image(&cluster).await;
            let live = open(&client).await;
            let length = usize::try_from(OBJECT).unwrap();
            live.write(0, vec![1; length].into()).await.unwrap();
            let writes = async {
                for byte in 2..3 + u8::try_from(seed % 6).unwrap() {
                    live.write(0, vec![byte; 512].into()).await.unwrap();
                }
            };
            let ((), zeroed) = tokio::join!(writes, live.zero(0, OBJECT));
            zeroed.unwrap();
            // Who believes the map reads what others do, who look.
            let there = Image::open(&client, "a").await.unwrap();
            assert!(
                live.read(0, OBJECT).await.unwrap() == there.read(0, OBJECT).await.unwrap(),
                "seed {seed}"
            );
        });
    }
}

#[test]
fn what_the_dead_have_sent_is_not_done_after_their_lock_is_broken() {
    run(async {
        let cluster = Cluster::new(2, 0);
        image(&cluster).await;
        let (dead, heir) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let image = open(&dead).await;
        image.write(0, vec![1; 4096].into()).await.unwrap();
        let begin = tokio::time::Instant::now();
        cluster.kill(&dead);
        let live = open(&heir).await;
        live.write(0, vec![2; 4096].into()).await.unwrap();
        assert!(cluster.is_fenced(&dead));
        // His watch was there until its time was up.
        let waited = begin.elapsed();
        assert!(waited > Duration::from_secs(20) && waited < Duration::from_secs(60), "{waited:?}");
    });
}

#[test]
fn a_dead_self_is_followed_at_once_and_kept_out() {
    run(async {
        let cluster = Cluster::new(3, 0);
        image(&cluster).await;
        let (before, after) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let old = open(&before).await;
        old.write(0, vec![1; 4096].into()).await.unwrap();
        let options = Options { dead_self: old.owner(), ..Options::default() };
        let begin = tokio::time::Instant::now();
        let new = LiveImage::open(&after, "a", options).await.unwrap();
        new.write(0, vec![2; 4096].into()).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        // It was not dead: it can do nothing any more, and says so.
        let error = old.write(0, vec![3; 4096].into()).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::SHUTDOWN), "{error}");
        let mut status = old.status();
        status.wait_for(|status| status.is_fenced).await.unwrap();
        assert!(old.read(0, 1).await.is_err());
        assert_eq!(new.read(0, 1).await.unwrap(), [2]);
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}

#[test]
fn the_owner_does_what_others_want_and_stays_it() {
    run(async {
        let cluster = Cluster::new(4, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (owner, other) = (open(&one).await, open(&two).await);
        owner.write(0, vec![1; 4096].into()).await.unwrap();
        let mut seen = owner.status();
        other.create_snapshot("s").await.unwrap();
        other.resize(SIZE / 2, true).await.unwrap();
        assert!(owner.status().borrow().is_owner && other.owner().is_none());
        seen.wait_for(|status| status.size == SIZE / 2).await.unwrap();
        assert_eq!(other.image().await.unwrap().size(), SIZE / 2);
        owner.write(0, vec![2; 4096].into()).await.unwrap();
        let then = Image::open_snapshot(&two, "a", "s").await.unwrap();
        assert_eq!(then.read(0, 4096).await.unwrap(), [1; 4096]);
        let error = other.create_snapshot("s").await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EXIST), "{error}");
        other.protect_snapshot("s").await.unwrap();
        let error = other.remove_snapshot("s").await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::BUSY), "{error}");
        other.unprotect_snapshot("s").await.unwrap();
        other.rename_snapshot("s", "r").await.unwrap();
        let error = other.rename_snapshot("s", "r").await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT), "{error}");
        other.rename("b").await.unwrap();
        assert_eq!(
            crate::image::find(&two, "b", Some("r")).await.unwrap().0,
            *other.image().await.unwrap().id()
        );
        other.rename("a").await.unwrap();
        other.remove_snapshot("r").await.unwrap();
        assert_eq!(other.image().await.unwrap().snapshots().count(), 0);
        assert!(owner.status().borrow().is_owner);
        // Nobody has it: whoever wants something done gets it.
        owner.close().await.unwrap();
        other.create_snapshot("t").await.unwrap();
        assert!(other.owner().is_some());
        other.release().await.unwrap();
        let error = other.create_snapshot("t").await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EXIST), "nobody else has made it: {error}");
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}

#[test]
fn an_image_is_flattened_beside_its_writes_and_by_whoever_has_the_lock() {
    run(async {
        let cluster = Cluster::new(5, 0);
        let first = image(&cluster).await;
        let parent = open(&first).await;
        parent.write(0, vec![7; usize::try_from(SIZE).unwrap()].into()).await.unwrap();
        parent.create_snapshot("s").await.unwrap();
        parent.image().await.unwrap().clone_snapshot("s", &first, "c").await.unwrap();
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let owner = LiveImage::open(&one, "c", Options::default()).await.unwrap();
        let other = LiveImage::open(&two, "c", Options::default()).await.unwrap();
        owner.write(0, vec![1; 10].into()).await.unwrap();
        // The owner's writes end while it goes on.
        let (mut flattening, mut writes) = (std::pin::pin!(other.flatten()), 0);
        loop {
            tokio::select! {
                done = &mut flattening => break done.unwrap(),
                written = owner.write(OBJECT, vec![2; 10].into()) => {
                    written.unwrap();
                    writes += 1;
                }
            }
        }
        assert!(writes > 3, "{writes}");
        assert_eq!(other.image().await.unwrap().overlap(), 0);
        assert!(owner.status().borrow().is_owner);
        let error = other.flatten().await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::INVAL), "{error}");
        let bytes = other.read(0, SIZE).await.unwrap();
        assert_eq!((bytes[0], bytes[10], bytes[4096]), (1, 7, 2));
        assert!(bytes[4106..].iter().all(|byte| *byte == 7));

        // Whoever wants the lock in the middle of it gets it, and it is done all the same.
        parent.image().await.unwrap().clone_snapshot("s", &first, "d").await.unwrap();
        let owner = LiveImage::open(&one, "d", Options::default()).await.unwrap();
        let other = LiveImage::open(&two, "d", Options::default()).await.unwrap();
        owner.acquire().await.unwrap();
        let begin = tokio::time::Instant::now();
        let (flattened, written) =
            tokio::join!(owner.flatten(), other.write(0, vec![3; 10].into()));
        flattened.unwrap();
        written.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        let image = other.image().await.unwrap();
        assert_eq!(image.overlap(), 0);
        assert_eq!(image.read(0, 11).await.unwrap()[9..], [3, 7]);
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}

#[test]
fn snapshots_are_made_once_whatever_is_lost_and_whoever_dies() {
    for seed in seeds() {
        println!("BLOCKYARD_SEED={seed}");
        run(async {
            let cluster = Cluster::new(seed, 8);
            image(&cluster).await;
            let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
            let (owner, other) = (open(&one).await, open(&two).await);
            owner.write(0, vec![1; 4096].into()).await.unwrap();
            let dies = seed % 2 == 0;
            let victim = one.clone();
            let killer = Arc::clone(&cluster);
            let death = async move {
                killer.pause(1000).await;
                if dies {
                    killer.kill(&victim);
                }
            };
            let snapshots = async {
                for name in ["a", "b", "c"] {
                    other.create_snapshot(name).await.unwrap();
                }
            };
            tokio::join!(death, snapshots);
            let image = other.image().await.unwrap();
            let names: Vec<_> = image.snapshots().map(|(_, name, _)| name.to_owned()).collect();
            assert_eq!(names, ["a", "b", "c"]);
        });
    }
}
