//! What a source file looks like.

use crate::{assert_none, relative, rust_files, workspace};
use std::fs;
use std::path::Path;

/// The longest file, in lines that are no tests.
const FILE_LINES: usize = 700;
/// The longest line, in characters.
const LINE_COLUMNS: usize = 130;
/// The crates in which unsafe code may be.
const UNSAFE_CRATES: &[&str] = &["blockyard-buf", "blockyard-sys"];
/// Words that belong into an issue, or nowhere, with what to do. They are split here because this file is
/// checked too.
const WORDS: &[(&str, &str)] = &[
    (concat!("to", "do!"), "finish it, or leave it out"),
    (concat!("TO", "DO"), "open an issue, or do it"),
    (concat!("FIX", "ME"), "open an issue, or fix it"),
    (concat!("unimple", "mented!"), "finish it, or leave it out"),
    (concat!("db", "g!("), "remove it"),
    (concat!("#[ig", "nore"), "make the test run everywhere, or remove it"),
];
/// Ways to sleep.
const SLEEPS: &[&str] = &[concat!("thread::", "sleep"), concat!("time::", "sleep")];
/// The files of tests that may sleep, each with the reason.
const MAY_SLEEP: &[(&str, &str)] = &[
    ("crates/exports/fuse/src/follow/tests.rs", "virtual time, of which none passes"),
    ("crates/exports/nbd/tests/hostile.rs", "a client that sends a byte at a time"),
    ("crates/rbd/src/live/tests/cluster.rs", "the time of a simulation, of which none passes"),
];

/// The lines that are no test modules, with their numbers.
pub(crate) fn code_lines(text: &str) -> Vec<(usize, &str)> {
    split_tests(text).0
}

type Numbered<'a> = Vec<(usize, &'a str)>;

/// The lines of code, and the lines inside of `#[cfg(test)] mod name { }`. Formatted sources end such a module
/// with a brace in column 0.
fn split_tests(text: &str) -> (Numbered<'_>, Numbered<'_>) {
    let (mut code, mut tests) = (Vec::new(), Vec::new());
    let mut inside = false;
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line)).peekable();
    while let Some((number, line)) = lines.next() {
        let next = lines.peek().map_or("", |next| next.1);
        inside |= line == "#[cfg(test)]" && next.contains("mod ") && next.ends_with('{');
        if inside { &mut tests } else { &mut code }.push((number, line));
        inside &= line != "}";
    }
    (code, tests)
}

fn is_test_file(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn files_are_short_enough_to_read() {
    let mut broken = Vec::new();
    for file in rust_files("crates").iter().filter(|file| !is_test_file(file)) {
        let count = code_lines(&fs::read_to_string(file).unwrap()).len();
        if count > FILE_LINES {
            broken.push(format!("{}: {count} lines of code, at most {FILE_LINES}", relative(file)));
        }
    }
    assert_none(
        &broken,
        "find the idea in the file that has a name of its own, and give it a file",
    );
}

#[test]
fn lines_fit_on_a_screen() {
    let mut broken = Vec::new();
    for file in rust_files("crates").into_iter().chain(rust_files("fuzz")) {
        for (index, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let columns = line.chars().count();
            if columns > LINE_COLUMNS {
                broken.push(format!(
                    "{}:{}: {columns} columns, at most {LINE_COLUMNS}",
                    relative(&file),
                    index + 1
                ));
            }
        }
    }
    assert_none(&broken, "cargo fmt breaks code; break a comment or a string by hand");
}

#[test]
fn nothing_is_left_for_later() {
    let mut broken = Vec::new();
    for file in rust_files("crates").into_iter().chain(rust_files("fuzz")) {
        for (index, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let found = WORDS.iter().filter(|(word, _)| line.contains(word));
            broken.extend(
                found.map(|(word, hint)| {
                    format!("{}:{}: {word}: {hint}", relative(&file), index + 1)
                }),
            );
        }
    }
    assert_none(&broken, "see each line");
}

#[test]
fn tests_wait_for_what_they_need_and_not_for_time() {
    let mut broken = Vec::new();
    for file in rust_files("crates") {
        let name = relative(&file);
        if MAY_SLEEP.iter().any(|(allowed, _)| *allowed == name) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let (code, mut lines) = split_tests(&text);
        if is_test_file(&file) {
            lines.extend(code);
        }
        let sleeping =
            lines.iter().filter(|(_, line)| SLEEPS.iter().any(|word| line.contains(word)));
        broken.extend(sleeping.map(|(number, line)| format!("{name}:{number}: {}", line.trim())));
    }
    assert_none(
        &broken,
        "wait for the event itself (a channel, a reply, a child's exit, a socket that accepts); a bounded wait that can only \
         polls calls `blockyard_conformance::pause`; MAY_SLEEP of \
         crates/xtask/tests/tidy/sources.rs names the files that may, with reasons",
    );
}

#[test]
fn the_list_of_files_that_may_sleep_is_up_to_date() {
    let gone = MAY_SLEEP.iter().filter(|(name, _)| !xtask::paths::root().join(name).is_file());
    assert_none(
        &gone.map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>(),
        "remove it from MAY_SLEEP",
    );
}

#[test]
fn unsafe_code_is_forbidden_outside_of_two_crates() {
    let mut broken = Vec::new();
    for package in workspace()
        .packages
        .iter()
        .filter(|package| !UNSAFE_CRATES.contains(&package.name.as_str()))
    {
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let text = fs::read_to_string(&target.src_path).unwrap();
            if !text.lines().any(|line| line == "#![forbid(unsafe_code)]") {
                broken.push(relative(target.src_path.as_std_path()));
            }
        }
    }
    assert_none(
        &broken,
        "add #![forbid(unsafe_code)]; what needs unsafe code goes into crates/buf or crates/sys",
    );
}

#[test]
fn test_modules_are_told_from_code() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n#[cfg(test)]\nmod other;\n";
    let numbers = |lines: Numbered<'_>| lines.iter().map(|(number, _)| *number).collect::<Vec<_>>();
    let (code, tests) = split_tests(text);
    assert_eq!(numbers(code), [1, 7, 8, 9]);
    assert_eq!(numbers(tests), [2, 3, 4, 5, 6]);
}

/// Whatever a command asks a daemon, it asks by the control API: there is one that connects to control sockets.
#[test]
fn only_the_client_of_the_api_connects_to_daemons() {
    const CLIENT: &str = "crates/blockyard/src/api/client.rs";
    const WAYS: &[&str] = &["connect_unix", "UnixStream::connect"];
    let connects = |file: &Path| {
        let text = fs::read_to_string(file).unwrap();
        code_lines(&text).iter().any(|(_, line)| WAYS.iter().any(|way| line.contains(way)))
    };
    let files = rust_files("crates/blockyard/src");
    let found: Vec<_> = files
        .iter()
        .filter(|file| !is_test_file(file) && connects(file))
        .map(|file| relative(file))
        .collect();
    assert_eq!(found, [CLIENT], "ask daemons by the API: blockyard::api::client");
}
