//! What every crate says of itself.

use crate::{assert_none, read, relative, workspace};
use std::fs;

const LICENCE: &str = "Apache-2.0 OR MIT";

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let mut broken = Vec::new();
    for package in &workspace().packages {
        let text = fs::read_to_string(&package.manifest_path).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        if lints.and_then(toml::Value::as_bool) != Some(true) {
            broken.push(relative(package.manifest_path.as_std_path()));
        }
    }
    assert_none(&broken, "add `[lints]` with `workspace = true`");
}

#[test]
fn every_crate_has_a_description_and_the_two_licences() {
    let mut broken = Vec::new();
    for package in &workspace().packages {
        let name = relative(package.manifest_path.as_std_path());
        if package.description.as_deref().unwrap_or_default().is_empty() {
            broken.push(format!("{name}: no description"));
        }
        if package.license.as_deref() != Some(LICENCE) {
            broken.push(format!("{name}: the licence is {:?}", package.license));
        }
    }
    assert_none(&broken, "one line of `description`, and `license.workspace = true`");
    assert!(read("LICENSE-APACHE").contains("Apache License"));
    assert!(read("LICENSE-MIT").contains("MIT"));
}
