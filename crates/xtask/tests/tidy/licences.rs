//! Under which licences our dependencies come.

use crate::assert_none;
use cargo_metadata::MetadataCommand;

/// Licences that a program under ours may contain.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether an SPDX expression can be met with allowed licences only.
fn is_allowed(expression: &str) -> bool {
    // An old way to write OR, which crates still have.
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = expression.split_whitespace().peekable();
    any_of(&mut words) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>) -> bool {
    let mut allowed = all_of(words);
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all_of(words);
    }
    allowed
}

fn all_of(words: &mut Words<'_>) -> bool {
    let mut allowed = one(words);
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words);
    }
    allowed
}

fn one(words: &mut Words<'_>) -> bool {
    match words.next() {
        Some("(") => {
            let allowed = any_of(words);
            words.next() == Some(")") && allowed
        }
        Some(licence) if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next().unwrap_or_default();
            ALLOWED.contains(&format!("{licence} WITH {exception}").as_str())
        }
        Some(licence) => ALLOWED.contains(&licence),
        None => false,
    }
}

#[test]
fn dependencies_have_licences_that_go_with_ours() {
    let platform = ["--filter-platform".to_owned(), "x86_64-unknown-linux-gnu".to_owned()];
    let metadata = MetadataCommand::new()
        .current_dir(xtask::paths::root())
        .other_options(platform)
        .exec()
        .unwrap();
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let licence = package.license.as_deref().unwrap_or("no licence");
        if !is_allowed(licence) {
            broken.push(format!("{} {}: {licence}", package.name, package.version));
        }
    }
    assert_none(
        &broken,
        "take another crate; or, if the licence lets us ship it, add it to ALLOWED in crates/xtask/tests/tidy/licences.rs",
    );
}

#[test]
fn expressions_of_licences() {
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "MIT/Apache-2.0",
        "(MIT OR GPL-3.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_allowed(good), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR ISC) AND GPL-3.0",
        "MIT ISC",
        "(MIT",
        "GPL-2.0 WITH LLVM-exception",
    ] {
        assert!(!is_allowed(bad), "{bad}");
    }
}
