//! Each command, and a wrong use of each.

use crate::common::noise;
use crate::{Yard, text};

#[test]
fn images_come_change_and_go() {
    let yard = Yard::new();
    yard.try_image(&["ls"]).code(1).contains(&["no object store here"]);
    yard.try_image(&["create", "a", "-s", "1x"]).code(64).contains(&["--size"]);
    yard.try_image(&["create", "a@s", "-s", "1"]).code(64).contains(&["is a snapshot"]);
    yard.image(&["create", "a", "--size", "10"]);
    yard.try_image(&["create", "a", "--size", "10"])
        .code(1)
        .contains(&["cannot create a", "choose another name"]);
    yard.image(&[
        "create",
        "b",
        "-s",
        "4G",
        "--object-size",
        "64K",
        "--image-feature",
        "layering,exclusive-lock",
        "--stripe-unit",
        "16K",
        "--stripe-count",
        "4",
    ]);
    for (wrong, part) in [
        (
            &["create", "c", "-s", "1", "--image-feature", "lairing"][..],
            "did you mean \"layering\"?",
        ),
        (&["create", "c", "-s", "1", "--image-feature", "object-map"], "needs exclusive-lock"),
        (&["create", "c", "-s", "1", "--object-size", "5000"], "not a power of two"),
        (
            &["create", "c", "-s", "1", "--stripe-unit", "5K", "--stripe-count", "2"],
            "stripe unit divides",
        ),
    ] {
        yard.try_image(wrong).code(64).contains(&[part]);
    }
    assert_eq!(yard.image(&["ls"]), "a\nb\n");
    assert_eq!(yard.json(&["ls"]), serde_json::json!(["a", "b"]));
    assert_eq!(yard.run(&["image", "ls", &yard.uri("")]).code(0).out, "a\nb\n");
    let info = yard.json(&["info", "a"]);
    assert_eq!(
        (&info["size"], &info["objects"], &info["order"]),
        (&(10 << 20).into(), &3.into(), &22.into())
    );
    assert_eq!(info["features"][3], "fast-diff");
    let id = info["id"].as_str().unwrap();
    assert_eq!(info["block_name_prefix"], format!("rbd_data.{id}"));
    let striped = yard.json(&["info", "b"]);
    assert_eq!((&striped["stripe_unit"], &striped["stripe_count"]), (&16384.into(), &4.into()));
    let said = yard.image(&["info", "a"]);
    for part in [
        "rbd image 'a':",
        "\tsize 10 MiB in 3 objects",
        "\torder 22 (4 MiB objects)",
        "\tformat: 2",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    yard.try_image(&["info", "nobody"])
        .code(1)
        .contains(&["no image named nobody", "list images: blockyard image ls --dir DIR"]);
    yard.image(&["rename", "a", "c"]);
    yard.try_image(&["rename", "a", "d"]).code(1).contains(&["cannot rename a"]);
    yard.try_image(&["rename", "c", "b"]).code(1).contains(&["choose another name"]);
    yard.image(&["resize", "c", "-s", "20"]);
    yard.try_image(&["resize", "c", "-s", "5"]).code(64).contains(&["--allow-shrink", "20 MiB"]);
    yard.image(&["resize", "c", "-s", "5", "--allow-shrink"]);
    assert_eq!(yard.json(&["info", "c"])["size"], 5 << 20);
    assert_eq!(yard.image(&["status", "c"]), "Watchers: none\n");
    yard.try_image(&["status", "x"]).code(1);
    yard.image(&["rm", "b"]);
    yard.try_image(&["rm", "b"]).code(1).contains(&["cannot remove b"]);
    assert_eq!(yard.image(&["ls"]), "c\n");
    yard.image(&["rm", "c"]);
    let said = yard.image(&["check"]);
    assert!(said.contains("0 images") && said.contains("0 problems"), "{said}");
}

#[test]
fn without_a_store_it_is_said_what_to_write() {
    let yard = Yard::new();
    let lost = yard.run(&["image", "-c", "/nowhere", "ls"]);
    assert_ne!(lost.code, 0);
    lost.contains(&["--dir", "/nowhere"]);
    yard.run(&["image", "info", "rbd:a"]).code(64).contains(&["write rbd:pool/image"]);
    yard.run(&["image", "-d", "x", "-p", "y", "ls"]).code(64);
    yard.run(&["image", "mk"]).code(64);
}

#[test]
fn snapshots_and_clones() {
    let yard = Yard::new();
    let first = noise(3 << 20, 1);
    let file = yard.write("first", &first);
    yard.image(&["import", text(&file), "a"]);
    yard.try_image(&["import", text(&file), "a"]).code(1).contains(&["cannot create a"]);
    yard.image(&["snap", "create", "a@one"]);
    yard.try_image(&["snap", "create", "a@one"]).code(1);
    yard.try_image(&["snap", "create", "a"]).code(64).contains(&["write a@SNAPSHOT"]);
    yard.image(&["snap", "protect", "a@one"]);
    yard.try_image(&["snap", "protect", "a@one"]).code(75);
    yard.try_image(&["snap", "rm", "a@one"]).code(75).contains(&["unprotect"]);
    let listed = yard.json(&["snap", "ls", "a"]);
    assert_eq!(
        (&listed[0]["name"], &listed[0]["protected"], &listed[0]["size"]),
        (&"one".into(), &"true".into(), &(3 << 20).into())
    );
    yard.image(&["clone", "a@one", "b"]);
    yard.try_image(&["clone", "a", "b"])
        .code(64)
        .contains(&["snapshot missing in a", "write a@SNAPSHOT"]);
    yard.try_image(&["clone", "a@two", "c"]).code(1);
    assert_eq!(yard.image(&["children", "a@one"]), "b\n");
    assert_eq!(yard.json(&["children", "a"])[0]["image"], "b");
    assert_eq!(yard.json(&["info", "b"])["parent"]["snapshot"], "one");
    assert_eq!(yard.bytes("b"), first);
    let long = yard.image(&["ls", "-l"]);
    for part in ["a@one  3 MiB", "yes"] {
        assert!(long.contains(part), "{part}: {long}");
    }
    // What is changed in the image is not changed in the snapshot, nor in the clone.
    let second = noise(3 << 20, 2);
    let changed = yard.write("second", &second);
    yard.run(&["copy", text(&changed), &yard.uri("a")]).code(0);
    assert_eq!(yard.bytes("a"), second);
    assert_eq!(yard.bytes("a@one"), first);
    assert_eq!(yard.bytes("b"), first);
    yard.image(&["snap", "rollback", "a@one"]);
    assert_eq!(yard.bytes("a"), first);
    yard.try_image(&["snap", "rollback", "a@two"]).code(1);
    yard.image(&["snap", "unprotect", "a@one"]);
    yard.try_image(&["snap", "unprotect", "a@one"]).code(1);
    // What is removed while it has clones goes with the last of them.
    yard.image(&["snap", "create", "a@kept"]);
    yard.image(&["snap", "protect", "a@kept"]);
    yard.image(&["clone", "a@kept", "c"]);
    yard.try_image(&["snap", "purge", "a"]).code(75).contains(&["not removed: kept", "unprotect"]);
    assert_eq!(yard.json(&["snap", "ls", "a"]).as_array().unwrap().len(), 1);
    let all = yard.json(&["snap", "ls", "a", "--all"]);
    let trashed = serde_json::json!({"type": "trash", "original_name": "one"});
    assert_eq!((&all[0]["namespace"], &all[1]["namespace"]["type"]), (&trashed, &"user".into()));
    assert!(yard.image(&["snap", "ls", "a", "--all"]).contains("trash (one)"));
    assert_eq!(yard.bytes("b"), first);
    yard.image(&["snap", "unprotect", "a@kept"]);
    yard.image(&["flatten", "b"]);
    assert_eq!(yard.json(&["snap", "ls", "a", "--all"]).as_array().unwrap().len(), 1);
    yard.image(&["rm", "c"]);
    yard.image(&["snap", "rename", "a@kept", "a@one"]);
    yard.try_image(&["flatten", "b"]).code(64).contains(&["is not a clone"]);
    assert_eq!(yard.image(&["children", "a"]), "");
    assert_eq!(yard.bytes("b"), first);
    yard.image(&["snap", "rename", "a@one", "a@two"]);
    yard.try_image(&["snap", "rename", "a@two", "b@two"])
        .code(64)
        .contains(&["cannot move a snapshot"]);
    yard.image(&["snap", "limit", "set", "a", "--limit", "1"]);
    yard.try_image(&["snap", "create", "a@three"]).code(1).contains(&["image snap limit"]);
    yard.image(&["snap", "limit", "clear", "a"]);
    yard.try_image(&["rm", "a"]).code(1).contains(&["image snap purge"]);
    yard.image(&["snap", "purge", "a"]);
    assert_eq!(yard.image(&["snap", "ls", "a"]), "");
    yard.image(&["rm", "a"]);
    assert!(yard.image(&["check"]).contains("1 images"));
}

#[test]
fn usage_copies_and_zeroes() {
    let yard = Yard::new();
    let mut bytes = vec![0; 12 << 20];
    bytes[5 << 20..][..4096].copy_from_slice(&noise(4096, 3));
    let file = yard.write("file", &bytes);
    yard.image(&["import", text(&file), "a"]);
    yard.image(&["snap", "create", "a@s"]);
    let du = yard.json(&["du", "a"]);
    assert_eq!(
        (&du["images"][0]["used_size"], &du["images"][1]["used_size"]),
        (&(4 << 20).into(), &0.into())
    );
    assert_eq!(du["total_provisioned_size"], 12 << 20);
    assert!(yard.image(&["du"]).contains("<TOTAL>"));
    assert_eq!(yard.json(&["du", "a@s", "--exact"])["images"][0]["used_size"], (1 << 20) + 4096);
    yard.try_image(&["du", "b"]).code(1);
    yard.image(&["meta", "set", "a", "owner", "me"]);
    assert_eq!(yard.image(&["meta", "get", "a", "owner"]), "me\n");
    assert_eq!(yard.json(&["image-meta", "list", "a"]), serde_json::json!({"owner": "me"}));
    yard.try_image(&["meta", "get", "a", "other"]).code(1);
    yard.image(&["deep", "cp", "a", "b"]);
    assert_eq!(yard.bytes("b@s"), bytes);
    assert_eq!(yard.json(&["du", "b"])["total_used_size"], 4 << 20);
    yard.image(&["cp", "a@s", "c"]);
    assert_eq!(yard.bytes("c"), bytes);
    assert_eq!(yard.image(&["snap", "ls", "c"]), "");
    assert_eq!(yard.image(&["meta", "get", "c", "owner"]), "me\n");
    yard.try_image(&["cp", "a", "b"]).code(1);
    yard.try_image(&["deep", "cp", "x", "y"]).code(1);
    yard.image(&["meta", "rm", "a", "owner"]);
    yard.try_image(&["meta", "rm", "a", "owner"]).code(1);
    // A whole object of zeroes is written, and given back.
    let zeroes = yard.write("zeroes", &vec![0; 4 << 20]);
    yard.run(&[
        "run",
        &yard.uri("c"),
        "--",
        "sh",
        "-c",
        &format!("nbdcopy --allocated {} \"$uri\" || true", text(&zeroes)),
    ]);
    yard.image(&["sparsify", "c"]);
    yard.try_image(&["sparsify", "c", "--sparse-size", "5000"])
        .code(64)
        .contains(&["must divide the object size"]);
    assert_eq!(yard.bytes("c"), bytes);
}

#[test]
fn trash_namespaces_locks_and_maps() {
    let yard = Yard::new();
    yard.image(&["create", "a", "-s", "8"]);
    yard.image(&["trash", "mv", "a", "--expires-in", "60m"]);
    yard.try_image(&["trash", "mv", "a"]).code(1);
    assert_eq!(yard.image(&["ls"]), "");
    let id = yard.json(&["trash", "ls"])[0]["id"].as_str().unwrap().to_owned();
    assert!(yard.image(&["trash", "ls", "-l"]).contains("protected until"));
    yard.try_image(&["trash", "rm", &id]).code(77).contains(&["--force"]);
    yard.image(&["trash", "purge"]);
    yard.image(&["trash", "restore", &id, "--image", "b"]);
    yard.try_image(&["trash", "restore", &id]).code(1);
    yard.image(&["trash", "mv", "b"]);
    yard.image(&["trash", "rm", &id]);
    assert_eq!(yard.image(&["trash", "ls"]), "");
    yard.image(&["namespace", "create", "n"]);
    yard.try_image(&["namespace", "create", "n"]).code(1);
    yard.try_image(&["create", "m/a", "-s", "1"]).code(1).contains(&["namespace create m"]);
    yard.image(&["create", "n/a", "-s", "1"]);
    assert_eq!(yard.image(&["ls", "n"]), "a\n");
    assert_eq!(yard.image(&["ls", "-N", "n"]), "a\n");
    assert_eq!(yard.json(&["namespace", "ls"])[0]["name"], "n");
    yard.try_image(&["namespace", "rm", "n"]).code(75).contains(&["empty"]);
    yard.image(&["lock", "add", "n/a", "mine"]);
    yard.try_image(&["lock", "add", "n/a", "yours"]).code(75);
    let locks = yard.json(&["lock", "ls", "n/a"]);
    assert_eq!(locks[0]["id"], "mine");
    assert!(yard.image(&["lock", "ls", "n/a"]).contains("There is 1 exclusive lock"));
    yard.try_image(&["lock", "rm", "n/a", "mine", "me"]).code(64).contains(&["client.4711"]);
    yard.image(&["lock", "rm", "n/a", "mine", locks[0]["locker"].as_str().unwrap()]);
    yard.image(&["lock", "add", "n/a", "x", "--shared", "tag"]);
    assert!(yard.image(&["lock", "ls", "n/a"]).contains("Lock tag: tag"));
    // Whoever has locked it by hand is not to be disturbed.
    let refused = yard.try_image(&["object-map", "rebuild", "n/a"]);
    refused.code(75).contains(&["has locked the image by hand", "image lock ls"]);
    let locks = yard.json(&["lock", "ls", "n/a"]);
    yard.image(&["lock", "rm", "n/a", "x", locks[0]["locker"].as_str().unwrap()]);
    yard.image(&["object-map", "check", "n/a"]);
    yard.image(&["object-map", "rebuild", "n/a"]);
    yard.image(&["create", "plain", "-s", "1", "--image-feature", "layering"]);
    yard.try_image(&["object-map", "check", "plain"]).code(1).contains(&["feature object-map"]);
    yard.image(&["rm", "n/a"]);
    yard.image(&["namespace", "rm", "n"]);
    assert_eq!(yard.image(&["namespace", "ls"]), "");
    let bench = yard.json(&["bench", "plain", "--io-type", "write", "--io-total", "1M"]);
    assert_eq!(bench["errors"], 0);
    yard.try_image(&["bench", "plain", "--io-type", "read", "--io-total", "1"]).code(64);
    yard.try_image(&["watch", "nobody"]).code(1);
}

/// A snapshot that has clones goes into the trash, and with the last of them; what is left there does not keep an image.
#[test]
fn an_image_whose_snapshot_outlived_its_clones_is_removed() {
    let yard = Yard::new();
    for features in [&["--image-feature", "layering"][..], &[]] {
        yard.image(&[&["create", "base", "-s", "4"], features].concat());
        yard.image(&["snap", "create", "base@s"]);
        yard.image(&["clone", "base@s", "c"]);
        yard.image(&["snap", "rm", "base@s"]);
        yard.try_image(&["rm", "base"]).code(1).contains(&["clones", "image children"]);
        assert_eq!(yard.image(&["children", "base"]), "c\n");
        // Somebody needs it.
        yard.image(&["snap", "purge", "base"]);
        assert_eq!(yard.json(&["snap", "ls", "--all", "base"]).as_array().unwrap().len(), 1);
        yard.image(&["rm", "c"]);
        assert_eq!(yard.json(&["snap", "ls", "--all", "base"]).as_array().unwrap().len(), 0);
        yard.image(&["rm", "base"]);
    }
}
