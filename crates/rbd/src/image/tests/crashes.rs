//! An image whose disk loses its power in the middle of whatever it does, against a model of what may be there then.

use super::{Store, open, run};
use crate::dir::DirStore;
use crate::dir::tests::simulated::Simulated;
use crate::error::Result;
use crate::format::{Features, Layout};
use crate::image::{CreateOptions, Image, create};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;

const SEEDS: u64 = 60;
const STEPS: usize = 30;
const SECTOR: usize = 512;
const OBJECT: usize = 4096;
const SECTORS: usize = 6 * OBJECT / SECTOR;
/// Changes of the disk in a run, more or less.
const CHANGES: u64 = 700;

/// What an image may be after a cut.
#[derive(Clone)]
struct Model {
    /// What was written last, by sectors.
    now: Vec<u8>,
    /// What may be there: also what was there at the last flush, and all that was written since.
    maybe: Vec<BTreeSet<u8>>,
    snapshots: Vec<(String, Vec<u8>)>,
    /// A snapshot that is being made or removed.
    under_way: Option<(String, Vec<u8>)>,
}

struct Run {
    rng: StdRng,
    image: Image<Store>,
    model: Model,
    next: u32,
}

fn filled(sectors: &[u8]) -> Vec<u8> {
    sectors.iter().flat_map(|byte| [*byte; SECTOR]).collect()
}

/// A clone of an image whose objects are there, or are not.
async fn start(store: &Store) -> (Image<Store>, Vec<u8>) {
    let options = CreateOptions {
        size: (SECTORS * SECTOR) as u64,
        layout: Layout::new(12).unwrap(),
        features: Features::DEFAULT,
    };
    create(store, "parent", &options).await.unwrap();
    let mut parent = open(store, "parent").await;
    let bytes: Vec<u8> = (0..SECTORS).map(|at| u8::from(at % 16 < 8) * 200).collect();
    for (object, sectors) in bytes.chunks(OBJECT / SECTOR).enumerate().filter(|(at, _)| at % 2 == 0)
    {
        parent.write((object * OBJECT) as u64, filled(sectors).into()).await.unwrap();
    }
    let there = parent.read(0, parent.size()).await.unwrap();
    parent.create_snapshot("s").await.unwrap();
    parent.clone_snapshot("s", store, "a").await.unwrap();
    parent.flush().await.unwrap();
    (open(store, "a").await, there.chunks(SECTOR).map(|sector| sector[0]).collect())
}

impl Run {
    async fn step(&mut self) -> Result<()> {
        let start = self.rng.random_range(0..SECTORS);
        let count = self.rng.random_range(1..=(SECTORS - start).min(12));
        match self.rng.random_range(0..16) {
            choice @ 0..10 => {
                let byte = if choice < 3 { 0 } else { self.rng.random_range(1..=199) };
                let range = start..start + count;
                self.model.maybe[range.clone()].iter_mut().for_each(|maybe| {
                    maybe.insert(byte);
                });
                let (offset, length) = ((start * SECTOR) as u64, count * SECTOR);
                match choice {
                    0..3 => self.image.zero(offset, length as u64).await?,
                    _ => self.image.write(offset, vec![byte; length].into()).await?,
                }
                self.model.now[range].fill(byte);
            }
            10..13 => {
                self.image.flush().await?;
                self.flushed();
            }
            13 | 14 if self.model.snapshots.len() < 3 => {
                self.next += 1;
                let snapshot = (format!("s{}", self.next), self.model.now.clone());
                self.model.under_way = Some(snapshot.clone());
                self.image.create_snapshot(&snapshot.0).await?;
                self.model.under_way = None;
                self.model.snapshots.push(snapshot);
                self.flushed();
            }
            _ if !self.model.snapshots.is_empty() => {
                let index = self.rng.random_range(0..self.model.snapshots.len());
                let snapshot = self.model.snapshots.remove(index);
                self.model.under_way = Some(snapshot.clone());
                self.image.remove_snapshot(&snapshot.0).await?;
                self.model.under_way = None;
            }
            _ => {}
        }
        Ok(())
    }

    fn flushed(&mut self) {
        let now = self.model.now.iter();
        self.model.maybe = now.map(|byte| BTreeSet::from([*byte])).collect();
    }
}

/// After a cut everything is as it may be, and by the map of objects it is the same.
async fn check(store: &Store, model: &mut Model, seed: u64) -> Image<Store> {
    let at = format!("BLOCKYARD_SEED={seed}");
    let reader = Image::open(store, "a").await.unwrap();
    let found = reader.read(0, reader.size()).await.unwrap();
    for (sector, (bytes, maybe)) in found.chunks(SECTOR).zip(&model.maybe).enumerate() {
        let is_whole = bytes.iter().all(|byte| *byte == bytes[0]);
        assert!(
            is_whole && maybe.contains(&bytes[0]),
            "{at}: sector {sector}: {} {maybe:?}",
            bytes[0]
        );
    }
    let image = open(store, "a").await;
    let by_map = image.read(0, image.size()).await.unwrap();
    assert!(by_map == found, "{at}: the map hides an object");
    let names: Vec<_> = image.snapshots().map(|(_, name, _)| name.to_owned()).collect();
    let expected = model.snapshots.iter().chain(model.under_way.as_ref());
    for (name, bytes) in expected {
        let is_there = names.contains(name);
        let may_be_gone = model.under_way.as_ref().is_some_and(|(other, _)| other == name);
        assert!(is_there || may_be_gone, "{at}: snapshot {name} is gone");
        if is_there && !(may_be_gone && is_being_removed(store, name).await) {
            let then = Image::open_snapshot(store, "a", name).await.unwrap();
            let then = then.read(0, then.size()).await.unwrap();
            assert!(then == filled(bytes), "{at}: snapshot {name} has changed");
        }
    }
    // What was seen stays.
    model.now = found.chunks(SECTOR).map(|sector| sector[0]).collect();
    image
}

/// One that is removed in part is removed by doing so again.
async fn is_being_removed(store: &Store, name: &str) -> bool {
    let mut image = open(store, "a").await;
    image.remove_snapshot(name).await.is_ok()
}

async fn crash(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = Simulated::default();
    let store = DirStore::on(disk.clone()).unwrap();
    let (image, now) = start(&store).await;
    let maybe = now.iter().map(|byte| BTreeSet::from([*byte])).collect();
    let model = Model { now, maybe, snapshots: Vec::new(), under_way: None };
    disk.cut_after(rng.random_range(1..CHANGES));
    let mut run = Run { rng, image, model, next: 0 };
    for _ in 0..STEPS {
        if let Err(error) = run.step().await {
            assert!(disk.is_cut(), "BLOCKYARD_SEED={seed}: {error}");
            break;
        }
    }
    disk.cut_after(0);
    let after = disk.power_on(&mut run.rng);
    let store = DirStore::on(after).unwrap();
    run.image = check(&store, &mut run.model, seed).await;
    // It can be used as before.
    let again: BTreeSet<_> = run.image.snapshots().map(|(_, name, _)| name.to_owned()).collect();
    run.model.snapshots.retain(|(name, _)| again.contains(name));
    run.model.under_way = None;
    run.next = 1000;
    run.flushed();
    for _ in 0..5 {
        run.step().await.unwrap();
    }
    run.image.flush().await.unwrap();
    run.flushed();
    check(&store, &mut run.model, seed).await;
}

#[test]
fn a_power_cut_leaves_what_was_flushed_and_every_snapshot() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("BLOCKYARD_SEED");
    let seeds = number("BLOCKYARD_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or_default();
    for seed in first..first.saturating_add(seeds) {
        println!("BLOCKYARD_SEED={seed}");
        run(crash(seed));
    }
}
