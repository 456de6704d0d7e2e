//! Brings the machine to the state that the tests and benchmarks need, and proves it.

mod apt;
mod cargo_tools;
pub(crate) mod ceph;
mod lab;
mod packages;
mod private_root;
mod prometheus;
mod qemu;

use crate::paths;
use crate::run::succeeds;
use anyhow::{Context, Result, bail};
use packages::{PACKAGES, Package};
use std::env;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What the tests are told about this machine.
#[derive(Debug)]
pub struct Tools {
    /// The directory of a `qemu-img`, `qemu-io` and `qemu-nbd` that know 64-bit NBD headers.
    qemu_modern: PathBuf,
    /// The directory of the kernel and the emulator.
    lab: PathBuf,
    /// The directory of Prometheus's programs.
    prometheus: PathBuf,
}

impl Tools {
    /// Gives a command the environment of the tests: `PATH`, `BLOCKYARD_QEMU_MODERN`, `BLOCKYARD_LAB`,
    /// `BLOCKYARD_PROMETHEUS`.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("PATH", search_path())
            .env("BLOCKYARD_QEMU_MODERN", &self.qemu_modern)
            .env("BLOCKYARD_LAB", &self.lab)
            .env("BLOCKYARD_PROMETHEUS", &self.prometheus)
    }

    /// The directory of the newest QEMU's programs.
    #[must_use]
    pub fn qemu_modern(&self) -> &Path {
        &self.qemu_modern
    }

    /// The directory of the kernel and the emulator.
    #[must_use]
    pub fn lab(&self) -> &Path {
        &self.lab
    }
}

/// Installs what is missing, and checks that everything answers. Does nothing quickly when all is there.
///
/// # Errors
/// Something is missing and cannot be installed; the error says what to do.
pub fn ensure() -> Result<Tools> {
    let start = Instant::now();
    link_system_python()?;
    let missing = missing_packages();
    if !missing.is_empty() {
        install(&missing)?;
    }
    cargo_tools::ensure()?;
    let qemu_modern = qemu::ensure()?;
    let lab = lab::ensure()?;
    let prometheus = prometheus::ensure()?;
    eprintln!(
        "setup: all {} packages answer ({:.1} s)",
        PACKAGES.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(Tools { qemu_modern, lab, prometheus })
}

fn missing_packages() -> Vec<&'static Package> {
    PACKAGES.iter().filter(|package| !answers(package)).collect()
}

fn answers(package: &Package) -> bool {
    package.probes.iter().all(|probe| {
        let mut words = probe.split(' ');
        words.next().is_some_and(|program| {
            succeeds(Command::new(program).args(words).env("PATH", search_path()))
        })
    })
}

fn install(missing: &[&Package]) -> Result<()> {
    eprintln!("setup: missing on this machine:");
    for package in missing {
        eprintln!("  {:<16} {}", package.name, package.purpose);
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    if !rustix::process::geteuid().is_root() {
        bail!(
            "packages are missing and only root can install them; run: sudo apt-get install {}",
            names.join(" ")
        );
    }
    apt::install(&names)?;
    let silent: Vec<_> = missing.iter().filter(|package| !answers(package)).collect();
    if let Some(package) = silent.first() {
        bail!(
            "{} is installed, but `{}` fails; run it by hand to see why",
            package.name,
            package.probes.join("`, or `")
        );
    }
    Ok(())
}

/// `PATH` for probes, tests and benchmarks: the links of setup first, the system's administration programs
/// last.
fn search_path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let mut path = bin_dir().into_os_string();
    for part in [inherited.as_os_str(), "/usr/sbin:/usr/bin:/sbin:/bin".as_ref()] {
        path.push(":");
        path.push(part);
    }
    path
}

fn bin_dir() -> PathBuf {
    paths::tools().join("bin")
}

/// nbdsh starts the first `python3` on `PATH`, but its module is installed for the system's.
fn link_system_python() -> Result<()> {
    let link = bin_dir().join("python3");
    if link.is_symlink() {
        return Ok(());
    }
    std::fs::create_dir_all(bin_dir())
        .with_context(|| format!("cannot make {}", bin_dir().display()))?;
    symlink(Path::new("/usr/bin/python3"), &link)
        .with_context(|| format!("cannot make {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_or_is_missing_does_not_answer() {
        let package = |probes| Package { name: "x", probes, purpose: "x" };
        assert!(answers(&package(&["true", "sh -c true"])));
        assert!(!answers(&package(&["true", "false"])));
        assert!(!answers(&package(&["blockyard-no-such-program --version"])));
    }

    #[test]
    fn the_path_ends_with_the_administration_programs() {
        let path = search_path().into_string().unwrap();
        assert!(path.starts_with(bin_dir().to_str().unwrap()), "{path}");
        assert!(path.ends_with(":/usr/sbin:/usr/bin:/sbin:/bin"), "{path}");
    }
}
