//! Who may see whom. The corridor is: front-end, block layer, driver, protocol.

use crate::{assert_none, relative, rust_files, workspace};
use cargo_metadata::DependencyKind;
use std::fs;
use std::path::Path;

/// Which crates of the workspace one crate may depend on, outside of its tests.
#[derive(Debug, PartialEq, Eq)]
enum May {
    See(Vec<String>),
    SeeAll,
}

/// The rule for the crate in a folder of `crates/`; `None` for a folder that no rule knows.
fn rule(folder: &str) -> Option<May> {
    let see = |folders: &[&str]| {
        Some(May::See(folders.iter().map(|&folder| folder.to_owned()).collect()))
    };
    match folder {
        "error" | "buf" | "lab" => see(&[]),
        "sys" | "fuse" | "crush" | "vhost_user" => see(&["buf"]),
        "blkmq" | "nbd" => see(&["error", "buf"]),
        "rados" => see(&["buf", "crush"]),
        "fs" => see(&["buf", "sys", "fuse"]),
        "vhost_user_backend" => see(&["error", "buf", "sys", "vhost_user"]),
        // Images see the block layer in their driver only.
        "rbd" => see(&["buf", "sys", "rados"]),
        "blockyard" | "conformance" | "xtask" | "bench" => Some(May::SeeAll),
        // The protocol that is named after a device of it.
        "exports/vhost_user_blk" => {
            see(&["error", "buf", "sys", "blkmq", "vhost_user", "vhost_user_backend"])
        }
        // Two protocols, one inside of the other, and no disk.
        "exports/virtiofs" => {
            see(&["buf", "sys", "fuse", "fs", "vhost_user", "vhost_user_backend"])
        }
        _ => match folder.split_once('/')? {
            ("drivers" | "exports", protocol) => see(&["error", "buf", "sys", "blkmq", protocol]),
            _ => None,
        },
    }
}

/// Protocols know nothing of sockets, files, clocks, threads and chance: time and bytes are arguments.
const PROTOCOLS: &[&str] = &[
    "crates/nbd/src",
    "crates/fuse/src",
    "crates/vhost_user/src",
    "crates/crush/src",
    "crates/rados/src",
    "crates/rbd/src",
];
/// The folders of a protocol's crate that drive the rest with sockets, files, tasks and time.
const SHELLS: &[&str] = &[
    "crates/rados/src/net/",
    "crates/rbd/src/dir/",
    "crates/rbd/src/live/",
    "crates/rbd/src/store/rados/",
];
const OUTSIDE_WORLD: &[&str] = &[
    // Each by itself, so that what follows is seen.
    "use std::{",
    "std::net",
    "std::os::unix::net",
    "std::fs",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "tokio",
    "rand::",
];

#[test]
fn crates_depend_only_on_what_lies_below_them() {
    let metadata = workspace();
    let folder_of = |path: &Path| relative(path).trim_start_matches("crates/").to_owned();
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let folder = folder_of(package.manifest_path.parent().unwrap().as_std_path());
        let Some(may) = rule(&folder) else {
            broken.push(format!("crates/{folder} has no rule"));
            continue;
        };
        let May::See(allowed) = may else { continue };
        let dependencies = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind != DependencyKind::Development);
        for seen in dependencies.filter_map(|dependency| dependency.path.as_ref()) {
            let seen = folder_of(seen.as_std_path());
            if !allowed.contains(&seen) {
                broken.push(format!(
                    "crates/{folder} depends on crates/{seen}; it may see only {allowed:?}"
                ));
            }
        }
    }
    assert_none(
        &broken,
        "put what both need into a crate below both, or join them in crates/blockyard; \
         a new crate gets its rule in crates/xtask/tests/tidy/dependencies.rs (ARCHITECTURE.md says which)",
    );
}

#[test]
fn protocols_do_no_input_or_output() {
    let mut broken = Vec::new();
    let files = PROTOCOLS.iter().flat_map(|folder| rust_files(folder));
    // Modules of tests stand in folders of that name; they have to make a time to give.
    let is_shell = |file: &Path| SHELLS.iter().any(|shell| relative(file).starts_with(shell));
    let files = files.filter(|file| !file.iter().any(|part| part == "tests") && !is_shell(file));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in crate::sources::code_lines(&text) {
            let code = line.split("//").next().unwrap_or_default();
            let found = OUTSIDE_WORLD.iter().filter(|word| code.contains(**word));
            broken.extend(found.map(|word| format!("{}:{number}: {word}", relative(&file))));
        }
    }
    assert_none(
        &broken,
        "take the bytes or the time as an argument, and let the caller do the input and output",
    );
}

#[test]
fn drivers_and_exports_see_their_own_protocol_and_not_each_other() {
    let May::See(allowed) = rule("exports/nbd").unwrap() else { panic!("an export sees all") };
    assert!(allowed.contains(&"nbd".to_owned()));
    assert!(!allowed.iter().any(|folder| folder.contains('/')));
    assert_eq!(rule("buf"), Some(May::See(Vec::new())));
    assert_eq!(rule("somewhere/else"), None);
}
