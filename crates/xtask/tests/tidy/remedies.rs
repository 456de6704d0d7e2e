//! What messages advise to run is run by a test.

use crate::{assert_none, read, relative, words};
use std::fs;

/// The commands that messages advise to run, each with a test that runs it and the words by which it does. A command of ours
/// is all of it up to its arguments: `blockyard image snap purge`.
const REMEDIES: &[(&str, &str, &str)] = &[
    ("blockyard copy", "crates/blockyard/tests/tools.rs", "\"copy\""),
    ("blockyard detach", "crates/blockyard/tests/vm/ownership.sh", "blockyard detach --force"),
    ("blockyard fault", "crates/blockyard/tests/faults.rs", "a release"),
    ("blockyard image children", ADVICE, "protected snapshots not removed"),
    ("blockyard image cp", ADVICE, "[\"cp\", \"c@s\", &away]"),
    ("blockyard image create", ADVICE, "[\"create\", \"--dir\", &dir]"),
    ("blockyard image deep cp", ADVICE, "[\"deep\", \"cp\", \"a\", \"n/a\"]"),
    ("blockyard image lock ls", ADVICE, "[\"lock\", \"rm\", \"c\", \"id\", \"x\"]"),
    (
        "blockyard image lock rm",
        "crates/blockyard/tests/image/served.rs",
        "\"lock\", \"rm\", \"--force\"",
    ),
    ("blockyard image ls", ADVICE, "[\"ls\", \"--dir\", &dir]"),
    ("blockyard image namespace create", ADVICE, "[\"create\", \"n/b\", \"-s\", \"1\"]"),
    ("blockyard image namespace ls", ADVICE, "[\"namespace\", \"rm\", \"n\"]"),
    ("blockyard image object-map rebuild", "crates/blockyard/tests/image/images.rs", "\"rebuild\""),
    ("blockyard image snap limit set", ADVICE, "(\"N\", \"2\")"),
    ("blockyard image snap ls", ADVICE, "has no snapshot named t"),
    ("blockyard image snap purge", ADVICE, "[\"snap\", \"purge\", \"a\"]"),
    ("blockyard image snap unprotect", ADVICE, "[\"snap\", \"unprotect\", \"a@s\"]"),
    ("blockyard image status", "crates/blockyard/tests/image/served.rs", "\"status\""),
    ("blockyard info", "crates/blockyard/tests/remedies.rs", "or: blockyard info"),
    ("blockyard list", "crates/blockyard/tests/remedies.rs", "list the exports: "),
    ("blockyard rados", "crates/blockyard/tests/ceph_rados.rs", "list objects: "),
    ("blockyard recover", "crates/blockyard/tests/vm/recovery.sh", "blockyard recover"),
    ("blockyard serve", "crates/blockyard/tests/remedies.rs", "start one: "),
    ("blockyard set", "crates/blockyard/tests/remedies.rs", "\"set\", \"disk\", example"),
    ("blockyard up", "crates/blockyard/tests/up.rs", "yard/yard.toml"),
    ("blockdev --setrw", "crates/blockyard/tests/remedies.rs", "or run: "),
    ("ceph osd pool ls", "crates/blockyard/tests/ceph_rados.rs", "list pools: "),
    ("chmod 600", "crates/blockyard/tests/psk.rs", "chmod 600"),
    ("fuser -v", "crates/blockyard/tests/remedies.rs", "see: fuser"),
    ("ip address", "crates/blockyard/tests/remedies.rs", "see: ip address"),
    ("ls -l", "crates/blockyard/tests/remedies.rs", "see: ls -l"),
    ("lsblk", "crates/blockyard/tests/remedies.rs", "list the devices: "),
    ("mkdir", "crates/blockyard/tests/remedies.rs", "\"mount\", \"yard.toml\""),
    // The kernel of a machine of tests may have no modules: this only sees that they are named.
    ("modprobe", "crates/blockyard/tests/attach.rs", "modprobe ublk_drv"),
    ("nsenter -t", "crates/blockyard/tests/vm/ownership.sh", "in the namespace of process"),
    ("psktool -u", "crates/exports/nbd/tests/psk.rs", "psktool"),
    ("ss -lpn", "crates/blockyard/tests/remedies.rs", "see: ss -lpn"),
    ("sysctl fs.aio-max-nr", "crates/sys/src/signaller.rs", "sysctl fs.aio-max-nr="),
    (
        "sysctl kernel.io_uring_disabled",
        "crates/blockyard/tests/vm/ownership.sh",
        "io_uring_disabled",
    ),
    ("swapoff", "crates/blockyard/src/attach/usage.rs", "swapoff"),
    ("touch", "crates/blockyard/tests/remedies.rs", "\"--fuse\""),
    ("truncate -s", "crates/blockyard/tests/remedies.rs", "help: run: "),
    ("umount", "crates/blockyard/tests/vm/lifecycle.sh", "umount /mnt"),
];
/// Files whose commands are no remedies, and are run or parsed by tests of their own.
const EXAMPLES: &[&str] = &[
    "crates/blockyard/src/cli/mistakes.rs",
    "crates/blockyard/src/commands/man.rs",
    "crates/blockyard/src/commands/up.rs",
];
const ADVICE: &str = "crates/blockyard/tests/image/advice.rs";
/// Programs of others that messages may advise to run, as far as that tells them from other words.
const PROGRAMS: &[&str] = &[
    "blockdev -",
    "ceph osd",
    "chmod ",
    "fuser -",
    "ip address",
    "ls -l ",
    "lsblk ",
    "lsmod",
    "mkdir {",
    "modprobe ",
    "mount -",
    "nsenter -",
    "psktool -",
    "qemu-img ",
    "ss -",
    "swapoff ",
    "sysctl ",
    "systemctl ",
    "systemd-socket-activate ",
    "touch {",
    "truncate -",
    "udevadm ",
    "umount ",
];
/// Commands of ours that consist of more than one word.
const WITH_SUBCOMMANDS: &[&str] = &["image"];
/// Words behind the name of the product that are no command.
const NO_COMMANDS: &[&str] = &["object", "that", "would"];

/// The commands that a text names: ours up to their arguments, those of others from their names on.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, lead) in text.match_indices("blockyard ") {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || "/-_".contains(c)) {
            continue;
        }
        let mut command = "blockyard".to_owned();
        for word in text[at + lead.len()..].split(' ') {
            let end =
                word.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(word.len());
            if end == 0 || word.starts_with('-') || command.contains(' ') && word[..end].len() == 1
            {
                break;
            }
            command = format!("{command} {}", &word[..end]);
            let has_more = WITH_SUBCOMMANDS.iter().any(|name| command.contains(name));
            if end < word.len() || !has_more {
                break;
            }
        }
        let is_command = |word: &str| !NO_COMMANDS.contains(&word) && word != "blockyard";
        if command.split(' ').nth(1).is_some_and(is_command) {
            found.push(command);
        }
    }
    for program in PROGRAMS {
        for (at, _) in text.match_indices(program) {
            if !text[..at].ends_with(|c: char| c.is_alphanumeric() || "-_/.".contains(c)) {
                found.push(text[at..].to_owned());
            }
        }
    }
    found
}

#[test]
fn what_messages_advise_is_run_by_a_test() {
    let mut broken = Vec::new();
    let is_known = |command: &str| {
        REMEDIES.iter().any(|(known, ..)| match known.strip_prefix("blockyard") {
            Some(_) => command == *known,
            None => command.starts_with(known),
        })
    };
    let is_example = |file: &std::path::Path| EXAMPLES.contains(&relative(file).as_str());
    for file in words::message_files().into_iter().filter(|file| !is_example(file)) {
        for (number, text) in words::literals(&fs::read_to_string(&file).unwrap()) {
            let unknown = commands(&text).into_iter().filter(|command| !is_known(command));
            broken.extend(unknown.map(|it| format!("{}:{number}: {it}", relative(&file))));
        }
    }
    for (command, test, words) in REMEDIES {
        if !read(test).contains(words) {
            broken.push(format!("{test} does not run {command}: {words:?} is not there"));
        }
    }
    assert_none(
        &broken,
        "let a test run it, and name both in REMEDIES of crates/xtask/tests/tidy/remedies.rs",
    );
}

#[test]
fn commands_are_found_in_texts() {
    for (text, found) in [
        ("run: blockyard list", &["blockyard list"][..]),
        ("blockyard image snap purge IMAGE", &["blockyard image snap purge"]),
        ("list: blockyard image ls; or blockyard up", &["blockyard image ls", "blockyard up"]),
        ("blockyard image deep cp {from} {to}", &["blockyard image deep cp"]),
        ("the blockyard object store", &[]),
        ("stop it (see: fuser -v {path})", &["fuser -v {path})"]),
        ("list: blockyard image ls --dir DIR", &["blockyard image ls"]),
        ("tools -v, xss -lpn", &[]),
    ] {
        assert_eq!(commands(text), found, "{text}");
    }
}
