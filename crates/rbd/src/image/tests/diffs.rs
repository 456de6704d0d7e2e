//! Diffs: whoever applies one to what was before has what is after.

use super::{Store, open, run, store};
use crate::format::{Features, Layout};
use crate::image::{Changed, CreateOptions, DiffOptions, Image, create};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const KIB: u64 = 1 << 10;

fn at(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

async fn changes(image: &Image<Store>, options: DiffOptions) -> Vec<Changed> {
    let mut diff = image.diff(options).await.unwrap();
    let mut all = Vec::new();
    while let Some(found) = diff.next().await.unwrap() {
        all.extend(found);
    }
    all
}

async fn bytes(image: &Image<Store>) -> Vec<u8> {
    image.read(0, image.size()).await.unwrap()
}

/// Does what a diff says to what was before, with what there is after.
fn apply(before: &[u8], after: &[u8], changes: &[Changed]) -> Vec<u8> {
    let mut bytes = before.to_vec();
    bytes.resize(after.len(), 0);
    let mut end = 0;
    for changed in changes {
        assert!(changed.offset >= end && changed.length > 0, "in order: {changes:?}");
        end = changed.offset + changed.length;
        let range = at(changed.offset)..at(end);
        if changed.is_data {
            bytes[range.clone()].copy_from_slice(&after[range]);
        } else {
            bytes[range].fill(0);
        }
    }
    bytes
}

/// All snapshots of an image, and it, against each other.
async fn check(store: &Store, name: &str) {
    let image = Image::open(store, name).await.unwrap();
    let mut views = Vec::new();
    for snapshot in image.snapshot_records() {
        let view = Image::open_snapshot(store, name, &snapshot.name).await.unwrap();
        views.push((Some(snapshot.id), view));
    }
    views.push((None, image));
    for (index, (_, after)) in views.iter().enumerate() {
        let contents = bytes(after).await;
        for whole_object in [false, true] {
            let options = DiffOptions { from: None, whole_object, with_parent: true };
            let all = changes(after, options).await;
            assert!(apply(&[], &contents, &all) == contents, "{name}, {index}, from the start");
            for (earlier, (from, before)) in views[..index].iter().enumerate() {
                let found = changes(after, DiffOptions { from: *from, ..options }).await;
                let before = bytes(before).await;
                let applied = apply(&before, &contents, &found);
                assert!(applied == contents, "{name}, {earlier} to {index}, {whole_object}");
            }
        }
    }
}

async fn change(image: &mut Image<Store>, random: &mut StdRng) {
    for _ in 0..random.random_range(1..6) {
        let size = image.size();
        let start = random.random_range(0..size / KIB) * KIB;
        let length = random.random_range(1..40) * KIB;
        let length = length.min(size - start);
        match random.random_range(0..5) {
            0..3 => {
                let byte: u8 = random.random_range(1..=255);
                image.write(start, vec![byte; at(length)].into()).await.unwrap();
            }
            3 => image.zero(start, length).await.unwrap(),
            _ => image.resize(random.random_range(64..400) * KIB).await.unwrap(),
        }
    }
}

#[test]
fn diffs_lead_from_each_snapshot_to_each_other() {
    let seed = std::env::var("BLOCKYARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("BLOCKYARD_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    run(async {
        let layouts = [Layout::new(15).unwrap(), Layout::striped(15, 8192, 3).unwrap()];
        for (layout, features) in layouts.into_iter().zip([Features::DEFAULT, Features::LAYERING]) {
            let store = store();
            let options = CreateOptions { size: 300 * KIB, layout, features };
            create(&store, "a", &options).await.unwrap();
            let mut image = open(&store, "a").await;
            for name in ["1", "2", "3"] {
                change(&mut image, &mut random).await;
                image.create_snapshot(name).await.unwrap();
            }
            change(&mut image, &mut random).await;
            check(&store, "a").await;
            image.clone_snapshot("2", &store, "b").await.unwrap();
            let mut clone = open(&store, "b").await;
            check(&store, "b").await;
            change(&mut clone, &mut random).await;
            clone.create_snapshot("1").await.unwrap();
            change(&mut clone, &mut random).await;
            check(&store, "b").await;
        }
    });
}

#[test]
fn what_was_written_once_is_counted_once() {
    run(async {
        let store = store();
        let layout = Layout::new(16).unwrap();
        let options = CreateOptions { size: 1024 * KIB, layout, features: Features::DEFAULT };
        create(&store, "a", &options).await.unwrap();
        let mut image = open(&store, "a").await;
        image.write(0, vec![1; 4096].into()).await.unwrap();
        image.write(200 * KIB, vec![1; 100].into()).await.unwrap();
        image.create_snapshot("s").await.unwrap();
        image.write(200 * KIB, vec![2; 100].into()).await.unwrap();
        let snapshot = image.snapshot_record("s").unwrap().id;
        assert_eq!(image.used_bytes(None, false).await.unwrap(), 128 * KIB);
        assert_eq!(image.used_bytes(None, true).await.unwrap(), 4096 + 8 * KIB + 100);
        assert_eq!(image.used_bytes(Some(snapshot), false).await.unwrap(), 64 * KIB);
        let nowhere = image.used_bytes(Some(99), false).await.unwrap_err();
        assert!(nowhere.is_not_found());
    });
}
