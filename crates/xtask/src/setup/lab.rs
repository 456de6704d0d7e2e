//! What the laboratory needs: a kernel, the emulator that runs it, and a static shell.
//!
//! `blockyard-lab` reads this directory, which tests know as `BLOCKYARD_LAB`.

use super::private_root::PrivateRoot;
use crate::paths;
use crate::run::{run, succeeds};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
        eprintln!("setup: fetching a kernel, an emulator and busybox for the laboratory");
        fetch(&dir).context("cannot fetch what the laboratory needs")?;
        if !is_complete(&dir) {
            bail!("{} is not complete; remove it and try again", dir.display());
        }
    }
    Ok(dir)
}

/// The emulator starts, and the index of the modules, which is made last, is there.
fn is_complete(dir: &Path) -> bool {
    modules(dir).is_ok_and(|modules| modules.join("modules.dep.bin").is_file())
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
    private.fetch_behind(machine.kernel)?;
    let share = private.root().join("usr/share");
    let data = ["qemu", "seabios"].map(|name| share.join(name).display().to_string());
    let args: Vec<_> = data.into_iter().flat_map(|dir| ["-L".to_owned(), dir]).collect();
    private.write_wrapper(program, &args)?;
    let root = private.root();
    private.finish()?;
    let modules = modules(dir)?;
    let version = modules.file_name().context("a kernel has a version")?;
    run(Command::new("depmod").arg("-b").arg(&root).arg(version))
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
