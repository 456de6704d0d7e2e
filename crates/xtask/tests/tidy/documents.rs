//! What the documents promise.

use crate::{assert_none, read};
use clap::CommandFactory;
use std::collections::BTreeSet;
use std::process::Command;
use xtask::cli::Xtask;
use xtask::run::{cargo, succeeds};

/// Whose command a line of an example runs.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Example {
    Xtask(String),
    Blockyard(String),
}

/// The commands in the fenced blocks of a document.
fn examples(text: &str) -> BTreeSet<Example> {
    let blocks = text.split("```").skip(1).step_by(2);
    blocks.flat_map(str::lines).filter_map(example).collect()
}

fn example(line: &str) -> Option<Example> {
    let line = line.trim().trim_start_matches("$ ");
    let first = |rest: &str| {
        rest.split_whitespace().next().filter(|word| !word.starts_with('-')).map(str::to_owned)
    };
    if let Some(rest) = line.strip_prefix("cargo xtask ") {
        return first(rest).map(Example::Xtask);
    }
    if line.starts_with("cargo run ") {
        return first(line.split_once(" -- ")?.1).map(Example::Blockyard);
    }
    first(line.strip_prefix("blockyard ")?).map(Example::Blockyard)
}

fn is_there(example: &Example) -> bool {
    match example {
        Example::Xtask(name) => Xtask::command().find_subcommand(name).is_some(),
        Example::Blockyard(name) => {
            // The part of the run says which was built; another build of it would take a minute.
            let mut command = match std::env::var_os("BLOCKYARD_PROGRAM") {
                Some(program) => Command::new(program),
                None => cargo(["run", "--quiet", "-p", "blockyard", "--"]),
            };
            succeeds(command.args([name.as_str(), "--help"]))
        }
    }
}

#[test]
fn the_readme_names_commands_that_exist() {
    let examples = examples(&read("README.md"));
    assert!(
        examples.contains(&Example::Xtask("test".to_owned())),
        "README.md does not say: cargo xtask test"
    );
    let missing = examples.iter().filter(|example| !is_there(example));
    assert_none(
        &missing.map(|example| format!("{example:?}")).collect::<Vec<_>>(),
        "correct README.md",
    );
}

#[test]
fn contributing_names_commands_that_exist() {
    let examples = examples(&read("CONTRIBUTING.md"));
    let missing = examples.iter().filter(|example| !is_there(example));
    assert_none(
        &missing.map(|example| format!("{example:?}")).collect::<Vec<_>>(),
        "correct CONTRIBUTING.md",
    );
}

#[test]
fn the_changelog_has_a_place_for_what_is_not_released() {
    let has_section = read("CHANGELOG.md")
        .lines()
        .any(|line| line.starts_with("## ") && line.contains("Unreleased"));
    assert!(
        has_section,
        "CHANGELOG.md has no section `## Unreleased`; what to do: add it at the top"
    );
}

#[test]
fn examples_are_found_in_code_blocks_only() {
    let text = "cargo xtask no\n```sh\ncargo xtask test --part fmt\n$ cargo run --release -- up -f y\nblockyard info ram:1M\n\
        ```\nblockyard no\n```\nblockyard --version\ncargo run --release\n```\n";
    let expected = [
        Example::Xtask("test".to_owned()),
        Example::Blockyard("info".to_owned()),
        Example::Blockyard("up".to_owned()),
    ];
    assert_eq!(examples(text), expected.into_iter().collect());
}
