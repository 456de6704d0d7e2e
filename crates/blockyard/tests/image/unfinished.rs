//! Images that somebody has, that cannot be opened, or that something was begun with and not finished.

use blockyard_rados::encoding::Writer;
use blockyard_rbd::dir::DirStore;
use blockyard_rbd::format::{TrashEntry, names};
use blockyard_rbd::store::{ObjectName, Op, Request};

use crate::Yard;
use crate::common::noise;

fn id(yard: &Yard, image: &str) -> String {
    yard.json(&["info", image])["id"].as_str().unwrap().to_owned()
}

fn change(store: &DirStore, object: &ObjectName, op: Op) {
    store.operate_blocking(object, &Request::write(vec![op])).unwrap();
}

#[test]
fn a_purge_leaves_an_image_that_is_in_use_and_goes_on() {
    let yard = Yard::new();
    let (bytes, file) = (noise(1 << 20, 3), yard.path("file"));
    std::fs::write(&file, &bytes).unwrap();
    yard.image(&["import", file.to_str().unwrap(), "a"]);
    yard.image(&["create", "b", "-s", "1"]);
    yard.image(&["trash", "mv", "b"]);
    // Somebody has begun to move it, and was killed.
    let (store, id) = (DirStore::open(&yard.store(), false).unwrap(), id(&yard, "a"));
    let state = TrashEntry::MOVING;
    let mut input = Writer::new();
    input.string(&id);
    input.put(&TrashEntry { name: "a".into(), state, ..TrashEntry::default() });
    let add = Op::exec("rbd", "trash_add", input.into_bytes());
    change(&store, &names::TRASH.into(), add);
    let owned = store.own_blocking(&id, "process 7").unwrap().ok().unwrap();
    yard.try_image(&["trash", "purge"]).code(75).contains(&["in use by process 7"]);
    yard.try_image(&["trash", "rm", &id]).code(75).contains(&["in use by process 7"]);
    drop(owned);
    assert_eq!(yard.image(&["trash", "ls"]), format!("{id} a\n"));
    for command in [&["trash", "purge"][..], &["trash", "rm", &id], &["trash", "restore", &id]] {
        yard.try_image(command).code(75).contains(&["moved to the trash in part; move it again"]);
    }
    assert!(yard.bytes("a") == bytes);
    yard.image(&["trash", "mv", "a"]);
    yard.image(&["trash", "restore", &id]);
    assert!(yard.bytes("a") == bytes);
    yard.image(&["trash", "mv", "a"]);
    yard.image(&["trash", "purge"]);
    assert_eq!(yard.image(&["trash", "ls"]), "");
    assert!(yard.image(&["check"]).contains("0 images and 2 objects checked: 0 problems"));
}

#[test]
fn an_image_that_cannot_be_opened_is_removed_when_nobody_has_it() {
    let yard = Yard::new();
    yard.image(&["create", "parent", "-s", "1"]);
    yard.image(&["snap", "create", "parent@s"]);
    yard.image(&["clone", "parent@s", "clone"]);
    let (parent, clone) = (id(&yard, "parent"), id(&yard, "clone"));
    let store = DirStore::open(&yard.store(), false).unwrap();
    change(&store, &names::header(&parent), Op::remove());
    yard.try_image(&["info", "clone"]).code(1);
    let owned = store.own_blocking(&clone, "process 7").unwrap().ok().unwrap();
    yard.try_image(&["rm", "clone"]).code(75).contains(&["in use by process 7"]);
    let header = Request::read(vec![Op::assert_exists()]);
    store.operate_blocking(&names::header(&clone), &header).unwrap();
    drop(owned);
    yard.image(&["rm", "clone"]);
    yard.image(&["rm", "parent"]);
    assert_eq!(yard.image(&["ls"]), "");
}

#[test]
fn what_is_not_repaired_is_a_problem_and_not_in_the_way_of_others() {
    let yard = Yard::new();
    for name in ["a", "b"] {
        yard.image(&["create", name, "-s", "1"]);
    }
    let store = DirStore::open(&yard.store(), false).unwrap();
    for name in ["a", "b"] {
        let map = names::object_map(&id(&yard, name), None);
        change(&store, &map, Op::write_full(b"garbage".to_vec()));
    }
    let owned = store.own_blocking(&id(&yard, "a"), "process 7").unwrap().ok().unwrap();
    let said = yard.try_image(&["check", "--repair"]);
    said.code(2);
    for part in ["a is not repaired: image a is in use by process 7", "3 problems, 1 repaired"] {
        assert!(said.out.contains(part), "{}", said.out);
    }
    drop(owned);
    assert!(yard.image(&["check", "--repair"]).contains("1 problems, 1 repaired"));
    assert!(yard.image(&["check"]).contains("0 problems, 0 repaired"));
}
