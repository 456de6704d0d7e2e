//! A qemu that knows 64-bit NBD headers: the system's own, or one from the backports in a private root.

use super::private_root::PrivateRoot;
use crate::paths;
use crate::run::capture;
use anyhow::{Context, Result, bail};
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
    let root = PrivateRoot::create(private)?;
    root.fetch(&["qemu-utils"], &[])?;
    PROGRAMS.iter().try_for_each(|program| root.write_wrapper(program, &[]))?;
    root.finish()
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
}
