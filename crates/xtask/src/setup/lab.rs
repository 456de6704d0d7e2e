//! What the laboratory needs: two kernels, the emulator that runs them, and a static shell.
//!
//! `blockyard-lab` reads this directory, which tests know as `BLOCKYARD_LAB`.

use super::private_root::PrivateRoot;
use crate::paths;
use crate::run::{run, succeeds};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release whose backports have the newest kernel.
const NEXT_RELEASE: &str = "trixie";

/// What differs between the architectures.
struct Machine {
    /// The emulator's package, and its program.
    emulator: (&'static str, &'static str),
    /// The package that stands for the newest kernel.
    kernel: &'static str,
}

const fn machine() -> Machine {
    if cfg!(target_arch = "aarch64") {
        Machine {
            emulator: ("qemu-system-arm", "qemu-system-aarch64"),
            kernel: "linux-image-arm64",
        }
    } else {
        Machine { emulator: ("qemu-system-x86", "qemu-system-x86_64"), kernel: "linux-image-amd64" }
    }
}

/// The directory of the laboratory, which is fetched if it is not there.
pub(super) fn ensure() -> Result<PathBuf> {
    let dir = paths::tools().join("lab");
    if !is_complete(&dir) {
        eprintln!("setup: fetching kernels, an emulator and busybox for the laboratory");
        fetch(&dir).context("cannot fetch what the laboratory needs")?;
        if !is_complete(&dir) {
            bail!("{} is not complete; remove it and try again", dir.display());
        }
    }
    Ok(dir)
}

/// The emulator starts, and the indices of the modules, which are made last, are there.
fn is_complete(dir: &Path) -> bool {
    let has_kernel =
        |dir: &Path| modules(dir).is_ok_and(|modules| modules.join("modules.dep.bin").is_file());
    has_kernel(dir)
        && has_kernel(&newest(dir))
        && dir.join("root/bin/busybox").is_file()
        && succeeds(Command::new(dir.join("bin").join(machine().emulator.1)).arg("--version"))
}

fn fetch(dir: &Path) -> Result<()> {
    let machine = machine();
    let (package, program) = machine.emulator;
    let private = PrivateRoot::create(dir)?;
    // All that the emulator reads is named here: what is installed already would not be fetched as a
    // dependency, and may be of an older emulator.
    private.fetch(
        &[package, "qemu-system-common", "qemu-system-data", "seabios"],
        &["busybox-static", "ipxe-qemu"],
    )?;
    private.fetch_kernel(machine.kernel)?;
    let share = private.root().join("usr/share");
    let data = ["qemu", "seabios"].map(|name| share.join(name).display().to_string());
    let args: Vec<_> = data.into_iter().flat_map(|dir| ["-L".to_owned(), dir]).collect();
    private.write_wrapper(program, &args)?;
    private.finish()?;
    index_modules(dir)?;
    let private = PrivateRoot::create_of(&newest(dir), NEXT_RELEASE)?;
    private.fetch_kernel(machine.kernel)?;
    private.finish()?;
    index_modules(&newest(dir))
}

/// Where the newest kernel is.
fn newest(dir: &Path) -> PathBuf {
    dir.join("newest")
}

fn index_modules(dir: &Path) -> Result<()> {
    let modules = modules(dir)?;
    let version = modules.file_name().context("a kernel has a version")?;
    run(Command::new("depmod").arg("-b").arg(dir.join("root")).arg(version))
}

/// The directory of the kernel's modules, which carries its version.
fn modules(dir: &Path) -> Result<PathBuf> {
    let parent = dir.join("root/lib/modules");
    let entries =
        fs::read_dir(&parent).with_context(|| format!("cannot read {}", parent.display()))?;
    let mut found = entries.collect::<std::io::Result<Vec<_>>>()?;
    match (found.pop(), found.is_empty()) {
        (Some(entry), true) => Ok(entry.path()),
        _ => bail!("{} does not hold one kernel", parent.display()),
    }
}
