//! Random operations on images and their clones, against a model in memory.

use super::states::check_states;
use super::{Store, open, run, store};
use crate::format::{Features, Layout, ObjectState};
use crate::image::{CreateOptions, Image, create};
use crate::store::{ObjectStore, Op, Request};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt::Write as _;

const SEEDS: u64 = 40;
const STEPS: usize = 60;
const MAX_SIZE: usize = 80 << 10;
/// Clones of clones.
const MAX_IMAGES: usize = 4;

/// What an image should be.
#[derive(Clone, Debug, Default)]
struct Model {
    bytes: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
}

struct Run {
    rng: StdRng,
    store: Store,
    /// The images that are there; the last one is worked on.
    models: Vec<Model>,
    image: Image<Store>,
    next: u32,
    log: String,
}

fn name(index: usize) -> String {
    format!("image{index}")
}

impl Run {
    async fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let store = store();
        let size = rng.random_range(1..MAX_SIZE);
        let layout = match rng.random_range(0..3) {
            0 => Layout::striped(13, 1024, rng.random_range(2..4)).unwrap(),
            _ => Layout::new(12).unwrap(),
        };
        let features = match rng.random_range(0..4) {
            0 => Features::LAYERING,
            1 => Features::DEFAULT.difference(Features::DEEP_FLATTEN),
            _ => Features::DEFAULT,
        };
        create(&store, &name(0), &CreateOptions { size: size as u64, layout, features })
            .await
            .unwrap();
        let image = open(&store, &name(0)).await;
        let models = vec![Model { bytes: vec![0; size], snapshots: Vec::new() }];
        Self {
            rng,
            store,
            models,
            image,
            next: 0,
            log: format!("{layout:?} {features:?} {size}\n"),
        }
    }

    fn model(&mut self) -> &mut Model {
        self.models.last_mut().unwrap()
    }

    fn range(&mut self) -> (usize, usize) {
        let size = self.model().bytes.len();
        let start = self.rng.random_range(0..=size);
        let length = self.rng.random_range(0..=(size - start).min(12 << 10));
        (start, length)
    }

    fn a_snapshot(&mut self) -> Option<usize> {
        let count = self.model().snapshots.len();
        (count > 0).then(|| self.rng.random_range(0..count))
    }

    async fn step(&mut self) {
        let choice = self.rng.random_range(0..24);
        let (start, length) = self.range();
        let _ = writeln!(self.log, "{choice} {start} {length}");
        match choice {
            0..7 => {
                let byte = self.rng.random_range(1..=255);
                self.image.write(start as u64, vec![byte; length].into()).await.unwrap();
                self.model().bytes[start..start + length].fill(byte);
            }
            7..11 => {
                self.image.zero(start as u64, length as u64).await.unwrap();
                self.model().bytes[start..start + length].fill(0);
            }
            11..14 => self.check_head().await,
            14 => {
                let size = self.rng.random_range(1..MAX_SIZE);
                let _ = writeln!(self.log, "to {size}");
                self.image.resize(size as u64).await.unwrap();
                self.model().bytes.resize(size, 0);
            }
            15..18 => self.snapshot().await,
            18 => self.remove_snapshot().await,
            19 => self.rollback().await,
            20 | 21 => self.clone_snapshot().await,
            22 => {
                if self.image.overlap() > 0 {
                    self.image.flatten().await.unwrap();
                }
            }
            _ => {
                let current = name(self.models.len() - 1);
                self.image = open(&self.store, &current).await;
            }
        }
    }

    async fn snapshot(&mut self) {
        self.next += 1;
        let snapshot = format!("s{}", self.next);
        self.image.create_snapshot(&snapshot).await.unwrap();
        let bytes = self.model().bytes.clone();
        self.model().snapshots.push((snapshot, bytes));
    }

    async fn remove_snapshot(&mut self) {
        let Some(index) = self.a_snapshot() else { return };
        let (snapshot, _) = self.model().snapshots.remove(index);
        self.image.remove_snapshot(&snapshot).await.unwrap();
    }

    async fn rollback(&mut self) {
        let Some(index) = self.a_snapshot() else { return };
        let (snapshot, bytes) = self.model().snapshots[index].clone();
        let _ = writeln!(self.log, "to {snapshot}");
        self.image.rollback(&snapshot).await.unwrap();
        self.model().bytes = bytes;
    }

    async fn clone_snapshot(&mut self) {
        let Some(index) = self.a_snapshot().filter(|_| self.models.len() < MAX_IMAGES) else {
            return;
        };
        let (snapshot, bytes) = self.model().snapshots[index].clone();
        let clone = name(self.models.len());
        self.image.clone_snapshot(&snapshot, &self.store, &clone).await.unwrap();
        self.models.push(Model { bytes, snapshots: Vec::new() });
        self.image = open(&self.store, &clone).await;
    }

    async fn check_head(&mut self) {
        let size = self.image.size();
        let found = self.image.read(0, size).await.unwrap();
        self.same(&found, &self.models[self.models.len() - 1].bytes, "the head");
    }

    fn same(&self, found: &[u8], expected: &[u8], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}: the size; after\n{}", self.log);
        let other = found.iter().zip(expected).position(|(found, expected)| found != expected);
        assert_eq!(other, None, "{what} differs; after\n{}", self.log);
    }

    /// All images and snapshots are as they should be, and maps tell of every object.
    async fn check(&self) {
        for (index, model) in self.models.iter().enumerate() {
            let image = open(&self.store, &name(index)).await;
            let found = image.read(0, image.size()).await.unwrap();
            self.same(&found, &model.bytes, &name(index));
            let names: Vec<_> = image.snapshots().map(|(_, name, _)| name.to_owned()).collect();
            assert!(names.iter().eq(model.snapshots.iter().map(|(name, _)| name)), "{}", self.log);
            for (snapshot, bytes) in &model.snapshots {
                let then = Image::open_snapshot(&self.store, &name(index), snapshot).await.unwrap();
                let found = then.read(0, then.size()).await.unwrap();
                self.same(&found, bytes, &format!("{} at {snapshot}", name(index)));
            }
            self.check_map(&image).await;
            check_states(&self.store, &name(index), &self.log).await;
        }
    }

    async fn check_map(&self, image: &Image<Store>) {
        let objects = image.header.layout.objects(image.size());
        assert_eq!(
            image.has_map(),
            image.features().contains(Features::OBJECT_MAP),
            "{}",
            self.log
        );
        for object in 0..objects + 8 {
            let read = Request::read(vec![Op::assert_exists()]);
            let is_there = self.store.operate(&image.data_object(object), read).await.is_ok();
            let is_known = !matches!(image.map_state(object), Some(ObjectState::Nonexistent));
            assert!(
                !is_there || object < objects && is_known,
                "object {object}; after\n{}",
                self.log
            );
        }
    }
}

#[test]
fn images_and_clones_are_what_the_model_says() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("BLOCKYARD_SEED");
    let seeds = number("BLOCKYARD_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or_default();
    for seed in first..first.saturating_add(seeds) {
        println!("BLOCKYARD_SEED={seed}");
        run(async {
            let mut run = Run::new(seed).await;
            for _ in 0..STEPS {
                run.step().await;
            }
            run.check().await;
        });
    }
}
