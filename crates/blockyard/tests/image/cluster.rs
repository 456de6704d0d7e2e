//! Files of `blockyard image` and of Ceph's `rbd`, each read by the other; and the JSON of both.

use std::collections::BTreeSet;
use std::path::PathBuf;

use blockyard_lab::ceph::Cluster;
use serde_json::Value;

use crate::common::{Said, noise, run};

struct Both<'a> {
    lab: &'a Cluster,
}

impl Both<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.lab.dir().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn ours(&self, args: &[&str]) -> Said {
        let said = run(&[&["image", "--dir", &self.text("images")], args].concat());
        said.code(0);
        said
    }

    fn theirs(&self, args: &[&str]) -> String {
        let args = [&["--rbd_default_pool=images"][..], args].concat();
        self.lab.run(self.lab.tool("rbd").args(args)).unwrap()
    }

    /// The JSON of both.
    fn json(&self, args: &[&str]) -> (Value, Value) {
        let question = [&["--rbd_default_pool=images", "--format", "json"], args].concat();
        let ask = || self.lab.run(self.lab.tool("rbd").args(&question));
        // On a busy machine, rbd of 16.2 may abort when it has answered, as its threads end ("Owner died"): it is asked again.
        let theirs = ask().or_else(|_| ask()).unwrap();
        let theirs = serde_json::from_str(&theirs).unwrap();
        (self.ours(&[args, &["--json"]].concat()).json(), theirs)
    }

    fn bytes(&self, view: &str) -> (Vec<u8>, Vec<u8>) {
        let (ours, theirs) = (self.text("ours"), self.text("theirs"));
        self.ours(&["export", view, &ours]);
        self.theirs(&["export", view, &theirs]);
        let bytes = [&ours, &theirs].map(|file| std::fs::read(file).unwrap());
        [ours, theirs].iter().for_each(|file| std::fs::remove_file(file).unwrap());
        bytes.into()
    }

    fn history(&self) {
        let mut bytes = vec![0; 6 << 20];
        bytes[..1 << 20].copy_from_slice(&noise(1 << 20, 1));
        std::fs::write(self.path("file"), &bytes).unwrap();
        self.ours(&["import", &self.text("file"), "a", "--order", "20"]);
        self.ours(&["snap", "create", "a@one"]);
        bytes[3 << 20..4 << 20].copy_from_slice(&noise(1 << 20, 2));
        bytes[..65536].fill(0);
        std::fs::write(self.path("file"), &bytes).unwrap();
        run(&["copy", &self.text("file"), &format!("rbd+dir:{}/a", self.text("images"))]).code(0);
        self.ours(&["snap", "create", "a@two"]);
        self.ours(&["snap", "protect", "a@two"]);
        self.ours(&["meta", "set", "a", "k", "v"]);
    }
}

/// The keys of a value, and of the values in it; those of lists as those of their elements.
fn keys(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = format!("{at}/{key}");
                keys(value, &key, found);
                found.insert(key);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| keys(value, at, found)),
        _ => {}
    }
}

/// Whoever reads the JSON of `rbd` finds in ours what he looks for.
fn has_their_keys(what: &str, (ours, theirs): (Value, Value)) {
    let of = |value: &Value| {
        let mut found = BTreeSet::new();
        keys(value, "", &mut found);
        found
    };
    let missing: Vec<_> = of(&theirs).difference(&of(&ours)).cloned().collect();
    assert!(missing.is_empty(), "{what}: {missing:?} are not in {ours}, but in {theirs}");
    assert_eq!(ours.is_array(), theirs.is_array(), "{what}");
}

pub(crate) fn images_go_to_and_fro(lab: &Cluster) {
    lab.create_pool("images", 8).unwrap();
    let both = Both { lab };
    both.history();
    let (ours, theirs) = (both.text("ours.v2"), both.text("theirs.v2"));
    both.ours(&["export", "a", &ours, "--export-format", "2"]);
    both.theirs(&["import", "--export-format", "2", &ours, "a"]);
    for view in ["a@one", "a@two", "a"] {
        let (ours, theirs) = both.bytes(view);
        assert!(ours == theirs, "{view}");
    }
    assert_eq!(both.theirs(&["image-meta", "get", "a", "k"]).trim(), "v");
    both.theirs(&["export", "--export-format", "2", "a", &theirs]);
    both.ours(&["import", &theirs, "b", "--export-format", "2"]);
    both.theirs(&["deep", "cp", "a", "b"]);
    for view in ["b@one", "b@two", "b"] {
        let (ours, theirs) = both.bytes(view);
        assert!(ours == theirs, "{view}");
    }
    for name in ["one", "two"] {
        let (from, file) = (both.text(&format!("{name}.diff")), both.text("diff"));
        let from_snap = ["--from-snap", "one"];
        let since = if name == "two" { &from_snap[..] } else { &[] };
        let view = format!("a@{name}");
        both.ours(&[&["export-diff", &view, &from], since].concat());
        both.theirs(&[&["export-diff", &view, &file], since].concat());
        if name == "one" {
            both.ours(&["create", "c", "-s", "1"]);
            both.theirs(&["create", "-s", "1", "c"]);
        }
        both.ours(&["import-diff", &file, "c"]);
        both.theirs(&["import-diff", &from, "c"]);
        std::fs::remove_file(file).unwrap();
        let (ours, theirs) = both.bytes(&format!("c@{name}"));
        assert!(ours == theirs && ours == both.bytes(&view).0, "{view}");
    }
    json(&both);
    in_the_cluster(&both);
}

/// Images of the cluster itself, by our command and as our disks, and by theirs.
fn in_the_cluster(both: &Both<'_>) {
    let conf = both.lab.conf().to_str().unwrap().to_owned();
    let uri = |image: &str| format!("rbd:images/{image}?conf={conf}");
    let image = |args: &[&str]| run(&[&["image", "-c", &conf, "-p", "images"], args].concat());
    let file = both.text("disk");
    std::fs::write(&file, noise(9 << 20, 5)).unwrap();
    image(&["create", "e", "-s", "9"]).code(0);
    image(&["info", "images/e"]).code(0).contains(&["size 9 MiB in 3 objects"]);
    image(&["info", "nobody"]).code(1).contains(&["no image named nobody"]);
    run(&["copy", &file, &uri("e")]).code(0);
    let theirs = |view: &str| {
        let to = both.text("theirs");
        both.theirs(&["export", view, &to]);
        let bytes = std::fs::read(&to).unwrap();
        std::fs::remove_file(to).unwrap();
        bytes
    };
    assert!(theirs("e") == std::fs::read(&file).unwrap());
    image(&["snap", "create", "e@s"]).code(0);
    run(&["copy", "null:9M", &uri("e")]).code(0);
    assert!(theirs("e@s") == std::fs::read(&file).unwrap());
    run(&["compare", &file, &uri("e@s")]).code(0);
    image(&["clone", "e@s", "f"]).code(0);
    assert!(both.theirs(&["children", "e@s"]).contains("images/f"));
    assert_eq!(image(&["children", "e@s"]).code(0).out, "images/f\n");
    both.theirs(&["resize", "--size", "12", "f"]);
    image(&["object-map", "check", "f"]).code(0);
    both.theirs(&["object-map", "check", "e"]);
    assert_eq!(run(&["info", &uri("f"), "--size"]).code(0).out.trim(), "12582912");
    image(&["flatten", "f"]).code(0);
    assert!(theirs("f")[..9 << 20] == std::fs::read(&file).unwrap());
    image(&["rm", "f"]).code(0);
    image(&["snap", "purge", "e"]).code(0);
    image(&["rm", "e"]).code(0);
    assert!(!both.theirs(&["ls"]).lines().any(|name| name == "e" || name == "f"));
    // What they made we read, and a copy makes an image that is not there.
    both.theirs(&["import", &file, "g"]);
    run(&["compare", &file, &uri("g")]).code(0);
    run(&["copy", &file, &uri("h")]).code(0);
    assert!(theirs("h") == std::fs::read(&file).unwrap());
}

fn json(both: &Both<'_>) {
    both.ours(&["clone", "a@two", "d"]);
    both.theirs(&["clone", "a@two", "d"]);
    for args in [
        &["info", "a"][..],
        &["info", "a@two"],
        &["info", "d"],
        &["snap", "ls", "a"],
        &["ls"],
        &["ls", "-l"],
        &["du", "a"],
        &["diff", "a"],
        &["children", "a@two"],
        &["status", "a"],
        &["image-meta", "ls", "a"],
    ] {
        has_their_keys(&args.join(" "), both.json(args));
    }
    let (ours, theirs) = both.json(&["du"]);
    assert_eq!(ours["total_provisioned_size"], theirs["total_provisioned_size"]);
    both.ours(&["lock", "add", "a", "id"]);
    both.theirs(&["lock", "add", "a", "id"]);
    has_their_keys("lock ls", both.json(&["lock", "ls", "a"]));
    both.ours(&["trash", "mv", "c"]);
    both.theirs(&["trash", "mv", "c"]);
    has_their_keys("trash ls", both.json(&["trash", "ls"]));
}
