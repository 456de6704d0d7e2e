//! A Linux guest under software emulation: Debian's kernel of the backports or its newest, a root of busybox and what a test
//! takes along, and a script that runs in it as root.
//!
//! ```no_run
//! use blockyard_lab::vm::Vm;
//! let mut guest = Vm::new()
//!     .module("nbd")
//!     .program("mkfs.ext4")
//!     .program("nbd-client")
//!     .script("nbd-client -N disk 10.0.2.2 $(host 'which port?') /dev/nbd0 && mkfs.ext4 -q /dev/nbd0")
//!     .boot()?;
//! guest.expect("which port?")?;
//! guest.answer("10809")?;
//! let outcome = guest.finish()?;
//! assert_eq!(outcome.status, 0, "{}", outcome.console);
//! # Ok::<(), blockyard_lab::vm::Error>(())
//! ```
//!
//! A guest boots in 5 to 8 seconds, has one CPU and 768 MiB unless told otherwise: let one run do many checks. In it
//! are `/proc`, `/sys`, `/dev`, a `/tmp` in memory, and `eth0`, by which the host's loopback is 10.0.2.2. A guest talks
//! with its test by the shell function `host TEXT`: it tells the host, waits for the answer, and prints that; the
//! test's part is [`Guest::expect`] and [`Guest::answer`]. Its output, and the kernel's messages, are the console.
//! `lab.sh` beside this file has more functions for scripts: `check_file_system DEVICE` for one makes a file system,
//! fills it, mounts it again and compares.
//!
//! KVM is not used even where it is there, so that a run means the same on every machine.

mod cpio;
mod error;
mod guest;
mod initramfs;
mod places;

pub use error::Error;
pub use guest::{Guest, Outcome};

use initramfs::Initramfs;
use places::Places;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a guest may run unless told otherwise: a bound for one that hangs, on a machine that is busy.
const DEFAULT_LIMIT: Duration = Duration::from_secs(600);
/// A guest's memory, unless told otherwise.
const MEMORY_MIB: u32 = 768;
/// The modules that every guest loads: its network.
const MODULES: &[&str] = &["virtio_net"];
/// What the shell function `check_file_system` runs; busybox has the rest.
const FILE_SYSTEM_PROGRAMS: &[&str] = &["mkfs.ext4", "fsck.ext4", "blkdiscard", "fstrim"];

/// What a guest is to be: modules, programs, files, devices, a script.
#[derive(Clone, Debug)]
pub struct Vm {
    laboratory: Option<PathBuf>,
    newest_kernel: bool,
    modules: Vec<String>,
    programs: Vec<String>,
    files: Vec<(String, PathBuf)>,
    script: String,
    devices: Vec<OsString>,
    backends: usize,
    limit: Duration,
    shows_console: bool,
    cpus: u32,
    memory_mib: u32,
}

impl Default for Vm {
    fn default() -> Self {
        Self::new()
    }
}

impl Vm {
    /// A guest whose script does nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            laboratory: None,
            newest_kernel: false,
            modules: MODULES.iter().map(|&name| name.to_owned()).collect(),
            programs: Vec::new(),
            files: Vec::new(),
            script: String::new(),
            devices: Vec::new(),
            backends: 0,
            limit: DEFAULT_LIMIT,
            shows_console: false,
            cpus: 1,
            memory_mib: MEMORY_MIB,
        }
    }

    /// The directory of the kernel and the emulator, if it is not the one that `BLOCKYARD_LAB` names.
    #[must_use]
    pub fn laboratory(mut self, dir: &Path) -> Self {
        self.laboratory = Some(dir.to_owned());
        self
    }

    /// With the newest kernel that Debian has, from the backports of the next release.
    #[must_use]
    pub fn newest_kernel(mut self) -> Self {
        self.newest_kernel = true;
        self
    }

    /// Loads a module of the kernel, and those that it needs, before the script runs.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Takes a program along, by its path or by its name on the search path: it is in the guest's `/bin`, its
    /// libraries are where it looks for them.
    #[must_use]
    pub fn program(mut self, program: &str) -> Self {
        self.programs.push(program.to_owned());
        self
    }

    /// Takes along what the shell function `check_file_system` needs.
    #[must_use]
    pub fn file_systems(self) -> Self {
        FILE_SYSTEM_PROGRAMS.iter().fold(self.module("ext4"), |vm, program| vm.program(program))
    }

    /// Takes a file of the host along as `guest_path`, with its permissions.
    #[must_use]
    pub fn file(mut self, guest_path: &str, host_path: &Path) -> Self {
        self.files.push((guest_path.to_owned(), host_path.to_owned()));
        self
    }

    /// What runs in the guest, for busybox's shell. Its exit status is the guest's.
    #[must_use]
    pub fn script(mut self, text: &str) -> Self {
        text.clone_into(&mut self.script);
        self
    }

    /// A disk of a vhost-user-blk back end that listens at this socket. The emulator connects again when the
    /// connection is lost. `options` are those of QEMU's device `vhost-user-blk-pci`, `num-queues=2` for one.
    #[must_use]
    pub fn vhost_user_blk(mut self, socket: &Path, options: &str) -> Self {
        let id = format!("backend{}", self.backends);
        self.backends += 1;
        let comma = if options.is_empty() { "" } else { "," };
        let path = socket.display();
        self.args([
            "-chardev".to_owned(),
            format!("socket,id={id},path={path},reconnect-ms=100"),
            "-device".to_owned(),
            format!("vhost-user-blk-pci,chardev={id}{comma}{options}"),
        ])
    }

    /// A file system of a vhost-user-fs back end that listens at this socket, which the guest mounts by its tag: `mount -t
    /// virtiofs TAG /mnt`. `options` are those of QEMU's device `vhost-user-fs-pci`, `num-request-queues=2` for one.
    #[must_use]
    pub fn vhost_user_fs(mut self, socket: &Path, tag: &str, options: &str) -> Self {
        let id = format!("backend{}", self.backends);
        self.backends += 1;
        let comma = if options.is_empty() { "" } else { "," };
        let path = socket.display();
        self.args([
            "-chardev".to_owned(),
            format!("socket,id={id},path={path}"),
            "-device".to_owned(),
            format!("vhost-user-fs-pci,chardev={id},tag={tag}{comma}{options}"),
        ])
    }

    /// More arguments for QEMU. The guest's memory is shared, as devices in other processes need it.
    #[must_use]
    pub fn args<I: IntoIterator<Item: Into<OsString>>>(mut self, args: I) -> Self {
        self.devices.extend(args.into_iter().map(Into::into));
        self
    }

    /// With so many processors, each on a thread of its own: the kernel has as many queues, which really race.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// With so much memory, of which its root takes a part.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// How long the guest may run, from its start to its end.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Shows the console on standard error while the guest runs, instead of keeping it.
    #[must_use]
    pub fn show_console(mut self) -> Self {
        self.shows_console = true;
        self
    }

    /// Starts the guest.
    ///
    /// # Errors
    /// The laboratory, a module, a program or a file is missing; the emulator does not start.
    pub fn boot(&self) -> Result<Guest, Error> {
        let places = Places::find(self.laboratory.as_deref(), self.newest_kernel)?;
        let mut initramfs = Initramfs::new(&places, &self.script)?;
        initramfs.add_modules(&self.modules)?;
        for program in &self.programs {
            initramfs.add_program(program)?;
        }
        for (guest_path, host_path) in &self.files {
            initramfs.add_file(guest_path, host_path)?;
        }
        Guest::start(&places, initramfs, self)
    }
}
