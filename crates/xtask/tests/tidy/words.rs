//! Messages, help and documents are in plain English and in the terms of the field.

use crate::{assert_none, read, relative, rust_files};
use std::fs;
use std::path::Path;

/// Phrases that are not used, with what to write instead. `^` stands for the start of a text, `$` for its end.
const PHRASES: &[(&str, &str)] = &[
    ("nobody", "no client, no process; unused, unattended"),
    ("somebody", "another process, another user"),
    ("whoever", "the client, the owner, the next process"),
    ("goodbye", "disconnect"),
    ("hung up on", "disconnected"),
    ("hang up on", "disconnect"),
    ("anew", "again; reopen, restart, recreate"),
    ("for ever", "without limit"),
    ("cannot be told", "is unknown; cannot determine"),
    ("gone on with", "resumed"),
    ("as many as cpus", "[default: one per CPU]"),
    (", say$", "e.g., in front of the example"),
    ("write 660, say", "e.g. 660"),
    ("followed with a finger", "the path of ..."),
    ("is no number", "not a number; invalid number"),
    ("is no size", "invalid size"),
    ("is no time", "invalid duration"),
    ("is no address", "invalid address"),
    ("is no name", "invalid name"),
    ("is no multiple", "is not a multiple"),
    ("is no power", "is not a power"),
    ("is no disk", "is not a disk"),
    ("is no regular", "is not a regular"),
    ("is no directory", "is not a directory"),
    ("is no socket", "is not a socket"),
    ("is no toml", "TOML syntax error"),
    ("^where should", "say what is missing"),
    ("^how large", "size missing"),
    ("^which disk", "say what is missing"),
];
/// Ends of help texts that leave open what is meant.
const HELP_ENDS: &[&str] = &[" without.", " there."];
/// Help that names no action and no thing.
const HELP_THAT_SAYS_NOTHING: &[&str] = &["JSON.", "All."];
/// The longest help of an option or a command, in characters.
const HELP_CHARACTERS: usize = 440;
/// Where messages come from: not the crates of tests.
const NO_MESSAGES: &[&str] =
    &["crates/conformance/", "crates/lab/", "crates/xtask/", "crates/bench/"];
/// Documents for users, and for those who work on it.
const DOCUMENTS: &[&str] = &["README.md", "CONTRIBUTING.md", "docs/yard.toml"];

/// The commands that messages advise to run, each with a test that runs it and the words by which it does.
const REMEDIES: &[(&str, &str, &str)] = &[
    ("blockyard detach", "crates/blockyard/tests/vm/ownership.sh", "blockyard detach --force"),
    ("blockyard list", "crates/blockyard/tests/remedies.rs", "list the exports: "),
    ("blockyard recover", "crates/blockyard/tests/vm/recovery.sh", "blockyard recover"),
    ("blockyard serve", "crates/blockyard/tests/remedies.rs", "start one: "),
    ("blockdev --setrw", "crates/blockyard/tests/remedies.rs", "or run: "),
    ("chmod 600", "crates/blockyard/tests/psk.rs", "chmod 600"),
    // The kernel of a machine of tests may have no modules: this only sees that they are named.
    ("modprobe", "crates/blockyard/tests/attach.rs", "modprobe ublk_drv"),
    ("nsenter -t", "crates/blockyard/tests/vm/ownership.sh", "in the namespace of process"),
    ("swapoff", "crates/blockyard/src/attach/usage.rs", "swapoff"),
    ("truncate -s", "crates/blockyard/tests/remedies.rs", "help: run: "),
    ("umount", "crates/blockyard/tests/vm/lifecycle.sh", "umount /mnt"),
];
/// What stands before a command that a message advises.
const LEADS: &[&str] =
    &["run: ", "start one: ", "the exports: ", "and disks: ", "disks and exports: "];

/// The string literals of code outside of tests, with the numbers of their lines.
fn literals(text: &str) -> Vec<(usize, String)> {
    let code: Vec<_> = crate::sources::code_lines(text).into_iter().collect();
    let mut found = Vec::new();
    // A literal may continue on the next line; the indentation behind `\` is not part of it.
    let mut open: Option<(usize, String)> = None;
    for (number, line) in code {
        let mut chars = line.chars().peekable();
        if open.as_ref().is_some_and(|(_, text)| text.ends_with('\\')) {
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if let Some((_, text)) = &mut open {
                text.pop();
            }
        }
        let mut before = ' ';
        while let Some(c) = chars.next() {
            match (&mut open, c) {
                (Some((_, text)), '\\') => {
                    text.push('\\');
                    text.extend(chars.next());
                }
                (Some(_), '"') => found.extend(open.take()),
                (Some((_, text)), c) => text.push(c),
                (None, '/') if chars.peek() == Some(&'/') => break,
                (None, '"') if before != '\'' => open = Some((number, String::new())),
                (None, _) => {}
            }
            before = c;
        }
    }
    found
}

/// Whether the phrase is in the text as whole words.
fn has_phrase(text: &str, phrase: &str) -> bool {
    let (text, lower) = (text.to_lowercase(), phrase.to_lowercase());
    if let Some(start) = lower.strip_prefix('^') {
        return text.starts_with(start);
    }
    if let Some(end) = lower.strip_suffix('$') {
        return text.ends_with(end);
    }
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(&lower).any(|(at, found)| {
        let (before, after) = (&text[..at], &text[at + found.len()..]);
        // "there is no number" is English.
        let there = lower.starts_with("is no ") && before.ends_with("there ");
        !is_word(before.chars().next_back()) && !is_word(after.chars().next()) && !there
    })
}

fn wrong_phrases(place: &str, text: &str) -> Vec<String> {
    let wrong = PHRASES.iter().filter(|(phrase, _)| has_phrase(text, phrase));
    wrong
        .map(|(phrase, better)| format!("{place}: {phrase:?} in {text:?}; write: {better}"))
        .collect()
}

fn message_files() -> Vec<std::path::PathBuf> {
    let is_message = |file: &Path| {
        let name = relative(file);
        let in_tests =
            file.iter().any(|part| part == "tests" || part == "simulation" || part == "examples");
        !in_tests
            && !name.ends_with("tests.rs")
            && !NO_MESSAGES.iter().any(|dir| name.starts_with(dir))
    };
    let mut files = rust_files("crates");
    files.retain(|file| is_message(file));
    files
}

#[test]
fn messages_are_in_the_terms_of_the_field() {
    let mut broken = Vec::new();
    for file in message_files() {
        for (number, text) in literals(&fs::read_to_string(&file).unwrap()) {
            broken.extend(wrong_phrases(&format!("{}:{number}", relative(&file)), &text));
        }
    }
    assert_none(&broken, "see each line; CONTRIBUTING.md says how messages are written");
}

#[test]
fn help_names_what_it_is_about() {
    let mut broken = Vec::new();
    for file in &rust_files("crates/blockyard/src") {
        let text = fs::read_to_string(file).unwrap();
        if !text.contains("#[arg(") {
            continue;
        }
        let mut help = String::new();
        for (index, line) in text.lines().enumerate() {
            if let Some(more) = line.trim_start().strip_prefix("///") {
                help.push_str(more);
                continue;
            }
            let said = std::mem::take(&mut help);
            let place = format!("{}:{index}", relative(file));
            broken.extend(wrong_phrases(&place, said.trim()));
            let is_open = HELP_ENDS.iter().any(|end| said.to_lowercase().ends_with(end));
            let says_nothing = HELP_THAT_SAYS_NOTHING.contains(&said.trim());
            if is_open || says_nothing || said.chars().count() > HELP_CHARACTERS {
                broken.push(format!("{place}: {said}"));
            }
        }
    }
    assert_none(&broken, "a verb or a noun phrase, defaults in brackets: [default: one per CPU]");
}

#[test]
fn documents_are_in_the_terms_of_the_field() {
    let pages = fs::read_dir(xtask::paths::root().join("docs")).unwrap();
    let pages = pages.map(|page| relative(&page.unwrap().path()));
    let pages = pages.filter(|page| page.ends_with(".md"));
    let mut broken = Vec::new();
    for page in pages.chain(DOCUMENTS.iter().map(|&page| page.to_owned())) {
        for (index, line) in read(&page).lines().enumerate() {
            broken.extend(wrong_phrases(&format!("{page}:{}", index + 1), line));
        }
    }
    assert_none(&broken, "see each line");
}

#[test]
fn what_messages_advise_is_run_by_a_test() {
    let mut broken = Vec::new();
    for file in message_files() {
        for (number, text) in literals(&fs::read_to_string(&file).unwrap()) {
            for advice in LEADS.iter().flat_map(|lead| text.split(lead).skip(1)) {
                let is_known = REMEDIES.iter().any(|(command, ..)| advice.starts_with(command));
                if !is_known && !advice.starts_with("cargo ") && !advice.starts_with('{') {
                    broken.push(format!("{}:{number}: {advice}", relative(&file)));
                }
            }
        }
    }
    for (command, test, words) in REMEDIES {
        if !read(test).contains(words) {
            broken.push(format!("{test} does not run {command}: {words:?} is not there"));
        }
    }
    assert_none(
        &broken,
        "let a test run it, and name both in REMEDIES of crates/xtask/tests/tidy/words.rs",
    );
}

#[test]
fn texts_are_found_in_code() {
    let code = "let a = \"one \\\n    two\"; // \"no\"\nlet c = '\"'; let b = \"\\\"three\\\"\";\n\
        #[cfg(test)]\nmod tests {\n    \"no\"\n}\n";
    let found: Vec<_> = literals(code).into_iter().map(|(_, text)| text).collect();
    assert_eq!(found, ["one two", "\\\"three\\\""]);
    assert!(
        has_phrase("it is no number", "is no number")
            && !has_phrase("there is no number", "is no number")
    );
    assert!(has_phrase("opened anew", "anew") && !has_phrase("renewal", "anew"));
    assert!(has_phrase("how large?", "^how large") && has_phrase("write 4, say", ", say$"));
}
