//! The rules of the house. Each rule is a test, and each failure says what to do.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

mod dependencies;
mod documents;
mod licences;
mod manifests;
mod remedies;
mod sources;
mod words;

use cargo_metadata::{Metadata, MetadataCommand};
use std::fs;
use std::path::{Path, PathBuf};

/// Fails with every place where a rule is broken, and what to do about it.
fn assert_none(broken: &[String], remedy: &str) {
    assert!(broken.is_empty(), "\n\n  {}\n\n  what to do: {remedy}\n", broken.join("\n  "));
}

/// The members of the workspace, without what they depend on.
fn workspace() -> Metadata {
    MetadataCommand::new().current_dir(xtask::paths::root()).no_deps().exec().unwrap()
}

/// A path as people write it: from the root of the repository.
fn relative(path: &Path) -> String {
    path.strip_prefix(xtask::paths::root()).unwrap_or(path).display().to_string()
}

fn read(name: &str) -> String {
    let path = xtask::paths::root().join(name);
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{name}: {error}; what to do: write it"))
}

/// All Rust files below a folder of the repository, sorted. There are some: a rule about a folder that is not there any more
/// would hold by itself.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![xtask::paths::root().join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "{folder} holds no Rust file; what to do: correct the rule");
    files.sort();
    files
}
