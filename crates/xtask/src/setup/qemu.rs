//! A qemu that knows 64-bit NBD headers: the system's own, or one from the backports in a private root.
//!
//! The private root leaves the system as it is: apt works out with lists of its own which packages the newer
//! qemu needs beyond what is installed, downloads them, and they are unpacked under the build directory. Small
//! scripts run its programs with its libraries.

use super::apt;
use crate::paths;
use crate::run::{capture, run};
use anyhow::{Context, Result, bail};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first version with extended headers in its client and server.
const OLDEST: (u32, u32) = (8, 2);
const PROGRAMS: &[&str] = &["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"];

/// The directory of the programs, which are fetched if the system's are too old.
pub(super) fn ensure() -> Result<PathBuf> {
    let system = Path::new("/usr/bin");
    if is_modern(system) {
        return Ok(system.to_owned());
    }
    let private = paths::tools().join("qemu");
    let programs = private.join("bin");
    if is_modern(&programs) {
        return Ok(programs);
    }
    eprintln!(
        "setup: the system's qemu-utils is older than {}.{}: fetching the one from the backports",
        OLDEST.0, OLDEST.1
    );
    fetch(&private)
        .context("cannot fetch a newer qemu-utils from the backports of this Debian release")?;
    if !is_modern(&programs) {
        bail!(
            "{} does not run; remove {} and try again",
            programs.join("qemu-img").display(),
            private.display()
        );
    }
    Ok(programs)
}

fn is_modern(dir: &Path) -> bool {
    capture(Command::new(dir.join("qemu-img")).arg("--version"))
        .is_ok_and(|said| version(&said).is_some_and(|found| found >= OLDEST))
}

/// `qemu-img version 10.0.2 (Debian ...)` is (10, 0).
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_whitespace().nth(2)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn fetch(private: &Path) -> Result<()> {
    if private.exists() {
        fs::remove_dir_all(private)?;
    }
    let root = private.join("root");
    for dir in ["lists/partial", "cache/archives/partial", "bin", "root"] {
        fs::create_dir_all(private.join(dir))?;
    }
    let release = release()?;
    let backports = format!("{release}-backports");
    let sources = private.join("sources.list");
    fs::write(&sources, source_lines(&apt::sources()?, &release, &backports)?)?;
    run(apt_get(private).args(["update", "-qq"]))?;
    let wanted = format!("qemu-utils/{backports}");
    run(apt_get(private).args([
        "install",
        "--download-only",
        "--no-install-recommends",
        "-y",
        "-qq",
        &wanted,
    ]))?;
    for entry in fs::read_dir(private.join("cache/archives"))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").args([&file, &root]))?;
        }
    }
    fs::remove_dir_all(private.join("cache"))?;
    fs::remove_dir_all(private.join("lists"))?;
    PROGRAMS.iter().try_for_each(|program| write_wrapper(private, program))
}

/// The code name of the running Debian release.
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

/// The archive of the running release, and of its backports.
fn source_lines(sources: &[apt::Source], release: &str, backports: &str) -> Result<String> {
    let source = sources.iter().find(|source| source.suites.iter().any(|suite| suite == release));
    let source = source.with_context(|| format!("apt's sources name no archive of {release}"))?;
    Ok(format!("{}\n{}\n", source.line(release), source.line(backports)))
}

/// apt-get with sources, lists and cache of its own, but the system's list of what is installed.
fn apt_get(private: &Path) -> Command {
    let mut command = Command::new("apt-get");
    for (option, value) in [
        ("Dir::Etc::sourcelist", private.join("sources.list")),
        ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
        ("Dir::State::Lists", private.join("lists")),
        ("Dir::Cache", private.join("cache")),
        ("Debug::NoLocking", PathBuf::from("true")),
        ("APT::Sandbox::User", PathBuf::from("root")),
    ] {
        command.arg("-o").arg(format!("{option}={}", value.display()));
    }
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn write_wrapper(private: &Path, program: &str) -> Result<()> {
    let root = private.join("root");
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = [root.join("usr/lib").join(&triplet), root.join("lib").join(&triplet)];
    let libraries: Vec<_> = libraries.iter().map(|path| path.display().to_string()).collect();
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libraries.join(":"),
        root.join("usr/bin").join(program).display()
    );
    let path = private.join("bin").join(program);
    fs::write(&path, script)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set up {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("qemu-img version 10.0.2 (Debian 1:10.0.2)\nCopyright"), Some((10, 0)));
        assert!(version("qemu-img version 7.2.17 (Debian)").unwrap() < OLDEST);
        assert!(version("qemu-img version 10.0.2").unwrap() > OLDEST);
        assert_eq!(version("nonsense"), None);
    }

    #[test]
    fn the_backports_come_from_the_archive_of_the_release() {
        let source = |uri: &str, suite: &str| apt::Source {
            uri: uri.to_owned(),
            suites: vec![suite.to_owned()],
            signed_by: None,
        };
        let sources = [
            source("http://other.example", "nodistro"),
            source("http://mirror.example", "bookworm"),
        ];
        assert_eq!(
            source_lines(&sources, "bookworm", "bookworm-backports").unwrap(),
            "deb http://mirror.example bookworm main\ndeb http://mirror.example bookworm-backports main\n"
        );
        assert!(source_lines(&sources, "trixie", "trixie-backports").is_err());
    }
}
