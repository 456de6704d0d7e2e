//! Where setup has put the kernel and the emulator, and what the architecture asks for.

use super::Error;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The variable that names the directory.
const VARIABLE: &str = "BLOCKYARD_LAB";

/// The emulated machine.
#[derive(Debug)]
pub(super) struct Machine {
    /// The emulator.
    pub(super) program: &'static str,
    /// The machine and its processor. Processors on threads of their own, or one with all features, are not steady
    /// under software emulation.
    pub(super) args: &'static [&'static str],
    /// The kernel's name of the serial console.
    pub(super) console: &'static str,
}

/// The machine of this host's architecture, because the guest runs this host's programs.
pub(super) const MACHINE: Machine = if cfg!(target_arch = "aarch64") {
    Machine {
        program: "qemu-system-aarch64",
        args: &["-M", "virt,memory-backend=memory", "-cpu", "cortex-a72"],
        console: "ttyAMA0",
    }
} else {
    Machine {
        program: "qemu-system-x86_64",
        args: &["-M", "q35,memory-backend=memory", "-cpu", "Nehalem"],
        console: "ttyS0",
    }
};

/// The parts of the laboratory.
#[derive(Debug)]
pub(super) struct Places {
    /// The script that runs the emulator.
    pub(super) emulator: PathBuf,
    /// The kernel's image.
    pub(super) kernel: PathBuf,
    /// The kernel's version, which names the directory of its modules.
    pub(super) version: String,
    /// The unpacked packages.
    root: PathBuf,
    /// Those of the kernel.
    pub(super) kernel_root: PathBuf,
}

impl Places {
    /// Finds them in a directory that was named, or by `BLOCKYARD_LAB`: with the usual kernel, or the newest.
    pub(super) fn find(named: Option<&Path>, newest: bool) -> Result<Self, Error> {
        let lab = named.map(Path::to_owned).or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
        let Some(lab) = lab else {
            return Err(Error::Missing {
                what: format!("{VARIABLE} is not set"),
                remedy: "run the tests by cargo xtask test --part lab, or see CONTRIBUTING.md",
            });
        };
        let root = lab.join("root");
        let kernel_root = if newest { lab.join("newest/root") } else { root.clone() };
        let (kernel, version) = kernel(&kernel_root.join("boot"))?;
        let emulator = lab.join("bin").join(MACHINE.program);
        let places = Self { emulator, kernel, version, root, kernel_root };
        for part in [places.emulator.clone(), places.busybox()] {
            if !part.is_file() {
                return Err(Error::no_lab(format!("{} is missing", part.display())));
            }
        }
        Ok(places)
    }

    /// The static busybox.
    pub(super) fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }
}

/// The kernel's image in `boot`, and its version.
fn kernel(boot: &Path) -> Result<(PathBuf, String), Error> {
    for entry in fs::read_dir(boot).map_err(Error::reading(boot))? {
        let entry = entry.map_err(Error::reading(boot))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            return Ok((entry.path(), version.to_owned()));
        }
    }
    Err(Error::no_lab(format!("{} holds no kernel", boot.display())))
}
