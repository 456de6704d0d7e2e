//! Files of images and diffs, ours and those of Ceph's own tools.

use std::ops::Range;

use crate::common::{Daemon, noise, peer};
use crate::{Yard, text};

/// An image with two snapshots; what it was in each of them, and is now.
fn history(yard: &Yard) -> [Vec<u8>; 3] {
    let mut bytes = vec![0; 6 << 20];
    bytes[..1 << 20].copy_from_slice(&noise(1 << 20, 1));
    let file = yard.write("one", &bytes);
    yard.image(&["import", text(&file), "a", "--order", "20"]);
    yard.image(&["snap", "create", "a@one"]);
    let one = bytes.clone();
    bytes[3 << 20..4 << 20].copy_from_slice(&noise(1 << 20, 2));
    bytes[..65536].fill(0);
    put(yard, &bytes, &[0..65536, 3 << 20..4 << 20]);
    yard.image(&["snap", "create", "a@two"]);
    yard.image(&["snap", "protect", "a@two"]);
    let two = bytes.clone();
    bytes[5 << 20..][..4096].copy_from_slice(&noise(4096, 3));
    put(yard, &bytes, &[5 << 20..(5 << 20) + 2048, (5 << 20) + 2048..(5 << 20) + 4096]);
    [one, two, bytes]
}

/// Makes the image have these bytes in these ranges.
fn put(yard: &Yard, bytes: &[u8], ranges: &[Range<usize>]) {
    let file = yard.write("now", bytes);
    let daemon = Daemon::serve(&[yard.uri("a")]);
    for range in ranges {
        let script = format!(
            "h.pwrite(open('{}', 'rb').read()[{start}:{end}], {start})",
            text(&file),
            start = range.start,
            end = range.end
        );
        peer("nbdsh", &["-u", &daemon.uri("a"), "-c", &script]);
    }
    daemon.stop();
}

#[test]
fn an_image_goes_through_a_file_with_all_its_snapshots() {
    let yard = Yard::new();
    let [one, two, now] = history(&yard);
    yard.image(&["meta", "set", "a", "k", "v"]);
    let file = yard.path("file");
    yard.image(&["export", "a", text(&file), "--export-format", "2"]);
    yard.try_image(&["export", "a", text(&file)]).code(1).contains(&["remove the file"]);
    assert!(std::fs::read(&file).unwrap().starts_with(b"rbd image v2\n"));
    yard.image(&["import", text(&file), "b", "--export-format", "2"]);
    for (view, bytes) in [("b@one", &one), ("b@two", &two), ("b", &now)] {
        assert!(yard.bytes(view) == *bytes, "{view}");
    }
    let snaps = yard.json(&["snap", "ls", "b"]);
    assert_eq!((&snaps[0]["protected"], &snaps[1]["protected"]), (&"false".into(), &"true".into()));
    assert_eq!(yard.json(&["info", "b"])["order"], 20);
    assert_eq!(yard.image(&["meta", "get", "b", "k"]), "v\n");
    // One that is cut leaves no image.
    let whole = std::fs::read(&file).unwrap();
    let cut = yard.write("cut", &whole[..whole.len() / 2]);
    yard.try_image(&["import", text(&cut), "c", "--export-format", "2"])
        .code(1)
        .contains(&["ends in the middle"]);
    yard.try_image(&["import", text(&cut), "d/e"]).code(1);
    let other = yard.write("other", b"no image");
    yard.try_image(&["import", text(&other), "c", "--export-format", "2"])
        .code(1)
        .contains(&["the stream is not an exported image"]);
    assert_eq!(yard.image(&["ls"]), "a\nb\n");
    assert!(yard.image(&["check"]).contains("0 problems"));
}

#[test]
fn pipes_carry_images() {
    let yard = Yard::new();
    let [_, _, now] = history(&yard);
    let program = env!("CARGO_BIN_EXE_blockyard");
    let store = yard.store();
    let pipe = format!(
        "{program} image -d {0} export a - | {program} image -d {0} import - piped",
        store.display()
    );
    peer("sh", &["-ec", &pipe]);
    assert!(yard.bytes("piped") == now);
}

#[test]
fn diffs_lead_from_one_image_to_the_next() {
    let yard = Yard::new();
    let [one, two, now] = history(&yard);
    let [first, second, third] = ["d1", "d2", "d3"].map(|name| yard.path(name));
    yard.image(&["export-diff", "a@one", text(&first)]);
    yard.image(&["export-diff", "a@two", text(&second), "--from-snap", "one"]);
    yard.image(&["export-diff", "a", text(&third), "--from-snap", "two", "--whole-object"]);
    yard.try_image(&["export-diff", "a", text(&first)]).code(1);
    yard.try_image(&["export-diff", "a", "-", "--from-snap", "none"]).code(1);
    yard.image(&["create", "b", "-s", "1"]);
    yard.try_image(&["import-diff", text(&second), "b"])
        .code(1)
        .contains(&["starts from snapshot one"]);
    for diff in [&first, &second, &third] {
        yard.image(&["import-diff", text(diff), "b"]);
    }
    yard.try_image(&["import-diff", text(&first), "b"]).code(1).contains(&["already"]);
    for (view, bytes) in [("b@one", &one), ("b@two", &two), ("b", &now)] {
        assert!(yard.bytes(view) == *bytes, "{view}");
    }
    let changed = yard.json(&["diff", "a@two", "--from-snap", "one"]);
    let all = changed.as_array().unwrap();
    let covers = |at: u64| {
        all.iter().any(|row| {
            let start = row["offset"].as_u64().unwrap();
            (start..start + row["length"].as_u64().unwrap()).contains(&at)
        })
    };
    assert!(covers(0) && covers(3 << 20) && !covers(5 << 20), "{changed}");
    assert!(yard.image(&["diff", "a"]).starts_with("Offset"));
    yard.try_image(&["diff", "a", "--from-snap", "none"]).code(1);
    // Merged by us and by Ceph's own program, the image is the same.
    let (ours, theirs) = (yard.path("ours"), yard.path("theirs"));
    yard.image(&["merge-diff", text(&first), text(&second), text(&ours)]);
    peer("rbd", &["merge-diff", "--no-progress", text(&first), text(&second), text(&theirs)]);
    yard.image(&["create", "c", "-s", "1"]);
    yard.image(&["create", "d", "-s", "1"]);
    yard.image(&["import-diff", text(&ours), "c"]);
    yard.image(&["import-diff", text(&theirs), "d"]);
    assert!(yard.bytes("c@two") == two && yard.bytes("d@two") == two);
    yard.try_image(&["merge-diff", text(&second), text(&first), text(&yard.path("x"))])
        .code(64)
        .contains(&["do not follow"]);
    assert!(!yard.path("x").exists(), "what was begun is removed");
}
