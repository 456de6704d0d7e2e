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
    ("is no", "is not a ...; invalid ...: reason"),
    ("who does so", "a client that does"),
    ("so many", "up to N"),
    ("^where should", "say what is missing"),
    ("^how large", "size missing"),
    ("^which disk", "say what is missing"),
];
/// Where messages come from: not the crates of tests.
const NO_MESSAGES: &[&str] =
    &["crates/conformance/", "crates/lab/", "crates/xtask/", "crates/bench/"];
/// Documents for users, and for those who work on it.
const DOCUMENTS: &[&str] =
    &["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/yard.toml"];
/// Keys of fields of the log that have another name: one for each idea.
const LOG_KEYS: &[(&str, &str)] = &[
    ("%err", "error = %err"),
    ("?err", "error = %err"),
    ("err", "error = err"),
    ("%why", "error = %why"),
    ("why", "error = why"),
    ("what", "a name for what it is"),
    ("%warning", "warning = %warning"),
];

/// The string literals of code outside of tests, with the numbers of their lines.
pub(crate) fn literals(text: &str) -> Vec<(usize, String)> {
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
        // "there is no number" is English, and so is "is no longer".
        let is_english = lower == "is no"
            && (before.ends_with("there ")
                || [" longer", " more", " less", " different"]
                    .iter()
                    .any(|it| after.starts_with(it)));
        !is_word(before.chars().next_back()) && !is_word(after.chars().next()) && !is_english
    })
}

/// Whether an example is said to be like the thing: "as 30s".
fn has_example_with_as(text: &str) -> bool {
    text.match_indices(", as ").any(|(at, lead)| {
        let word = text[at + lead.len()..].split(' ').next().unwrap_or_default();
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        (1..word.len()).contains(&digits)
    })
}

fn wrong_phrases(place: &str, text: &str) -> Vec<String> {
    let mut wrong: Vec<_> = PHRASES.iter().filter(|(phrase, _)| has_phrase(text, phrase)).collect();
    if has_example_with_as(text) {
        wrong.push(&("as 4M", "e.g. 4M"));
    }
    wrong
        .iter()
        .map(|(phrase, better)| format!("{place}: {phrase:?} in {text:?}; write: {better}"))
        .collect()
}

pub(crate) fn message_files() -> Vec<std::path::PathBuf> {
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

/// The fields of each line of the log in a text, with the numbers of their lines: what stands in front of `=`, or alone.
fn log_fields(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let code: Vec<_> = crate::sources::code_lines(text).into_iter().collect();
    for (index, (number, line)) in code.iter().enumerate() {
        let Some((_, rest)) = line.split_once("tracing::") else { continue };
        let Some((level, rest)) = rest.split_once("!(") else { continue };
        if !["error", "warn", "info", "debug", "trace"].contains(&level) {
            continue;
        }
        let more = code[index + 1..].iter().map(|(_, line)| *line);
        let all: String = std::iter::once(rest).chain(more.take(12)).collect::<Vec<_>>().join(" ");
        let fields = all.split('"').next().unwrap_or_default();
        let keys = fields.split(", ").map(|field| field.split(" = ").next().unwrap_or(field));
        let keys = keys.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        found.extend(keys.map(|key| (*number, key)));
    }
    found
}

#[test]
fn an_idea_has_one_key_in_the_log() {
    let mut broken = Vec::new();
    for file in message_files() {
        for (number, key) in log_fields(&fs::read_to_string(&file).unwrap()) {
            let wrong = LOG_KEYS.iter().find(|(wrong, _)| *wrong == key);
            broken.extend(
                wrong.map(|(_, better)| format!("{}:{number}: {key}: {better}", relative(&file))),
            );
        }
    }
    assert_none(&broken, "write the field as it says");
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
fn texts_are_found_in_code() {
    let code = "let a = \"one \\\n    two\"; // \"no\"\nlet c = '\"'; let b = \"\\\"three\\\"\";\n\
        #[cfg(test)]\nmod tests {\n    \"no\"\n}\n";
    let found: Vec<_> = literals(code).into_iter().map(|(_, text)| text).collect();
    assert_eq!(found, ["one two", "\\\"three\\\""]);
    assert!(
        has_phrase("it is no number", "is no")
            && !has_phrase("there is no number", "is no")
            && !has_phrase("it is no longer", "is no")
    );
    assert!(has_example_with_as("a size, as 4M") && !has_example_with_as("the same, as 4 of 5"));
    let log =
        "tracing::warn!(%err, pid, \"text\");\ntracing::info!(\n  error = %err,\n  \"a, b\"\n);\n";
    let keys: Vec<_> = log_fields(log).into_iter().map(|(_, key)| key).collect();
    assert_eq!(keys, ["%err", "pid", "error"]);
    assert!(has_phrase("opened anew", "anew") && !has_phrase("renewal", "anew"));
    assert!(has_phrase("how large?", "^how large") && has_phrase("write 4, say", ", say$"));
}
