//! A guest that runs.

use super::Error;
use super::initramfs::Initramfs;
use super::places::{MACHINE, Places};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The guest's memory.
const MEMORY_MIB: u32 = 768;
/// The longest line that a guest may tell the host.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// How much of a console is kept.
const MAX_CONSOLE_BYTES: u64 = 4 << 20;
/// How much longer than its limit a guest whose host is gone may run.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);

/// How a guest's script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The script's exit status.
    pub status: i32,
    /// What the script and the kernel have said.
    pub console: String,
}

/// A running guest. Dropped, it is killed, and nothing of it is left.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    /// The port by which the guest's `host` function talks with us.
    port: BufReader<UnixStream>,
    deadline: Instant,
    limit: Duration,
    dir: TempDir,
}

impl Guest {
    pub(super) fn start(
        places: &Places,
        initramfs: Initramfs<'_>,
        devices: &[OsString],
        limit: Duration,
        shows_console: bool,
    ) -> Result<Self, Error> {
        let making = || Error::host("cannot make the files of a guest");
        let dir = tempfile::Builder::new().prefix("blockyard-vm-").tempdir().map_err(making())?;
        let root = dir.path().join("initramfs");
        fs::write(&root, initramfs.finish()).map_err(making())?;
        let log = File::create(dir.path().join("emulator")).map_err(making())?;
        let console = if shows_console { "/dev/stderr".into() } else { dir.path().join("console") };
        let (ours, theirs) = UnixStream::pair().map_err(making())?;

        let mut command = Command::new(&places.emulator);
        command.args(["-accel", "tcg,thread=single", "-smp", "1"]).args(MACHINE.args);
        let memory = format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on");
        command.args(["-m", &MEMORY_MIB.to_string(), "-object", &memory]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        // Standard input is the socket of the port.
        command.args(["-chardev", "socket,id=port,fd=0", "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=port,name=host"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-kernel").arg(&places.kernel).arg("-initrd").arg(&root);
        let orphan_seconds = (limit + ORPHAN_GRACE).as_secs();
        let tty = MACHINE.console;
        let line = format!("console={tty} quiet panic=-1 LAB_LIMIT={orphan_seconds}");
        command.args(["-append", &line]).args(devices);
        if shows_console {
            command.stderr(Stdio::inherit());
        } else {
            command.stderr(log.try_clone().map_err(making())?);
        }
        command.stdin(OwnedFd::from(theirs)).stdout(log);
        let child = command.spawn();
        let child =
            child.map_err(Error::host(format!("cannot start {}", places.emulator.display())))?;
        Ok(Self { child, port: BufReader::new(ours), deadline: Instant::now() + limit, limit, dir })
    }

    /// The process id of the emulator.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the guest's script calls `host TEXT` with exactly this text.
    ///
    /// # Errors
    /// It says something else, ends, or its time is up.
    pub fn expect(&mut self, text: &str) -> Result<(), Error> {
        let line = self.receive()?;
        match line.as_deref().map(|line| line.split_once(' ').unwrap_or((line, ""))) {
            Some(("ask", asked)) if asked == text => Ok(()),
            Some((_, said)) => Err(self.failure(format!("says {said:?} instead of {text:?}"))),
            None => Err(self.failure(format!("ended and never said {text:?}"))),
        }
    }

    /// Answers what the guest waits for with one line.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn answer(&mut self, line: &str) -> Result<(), Error> {
        assert!(!line.contains('\n'), "an answer is one line: {line:?}");
        let sent = self.port.get_mut().write_all(format!("{line}\n").as_bytes());
        sent.map_err(|_| self.failure(format!("is gone and takes no answer {line:?}")))
    }

    /// Waits for the end of the script and of the guest.
    ///
    /// # Errors
    /// The guest wants an answer, ends before its script does, or its time is up.
    pub fn finish(mut self) -> Result<Outcome, Error> {
        let line = self.receive()?;
        let said = line.as_deref().map(|line| line.split_once(' ').unwrap_or((line, "")));
        let status = match said {
            Some(("exit", status)) => status.parse().ok(),
            Some(("fail", reason)) => return Err(self.failure(format!("failed: {reason}"))),
            Some((_, said)) => {
                return Err(self.failure(format!("says {said:?} and waits for an answer")));
            }
            None => None,
        };
        let Some(status) = status else {
            return Err(self.failure("ended before its script did"));
        };
        // The port is closed when the guest has powered off, so that the console is complete.
        if self.receive()?.is_some() {
            return Err(self.failure("went on after its script"));
        }
        self.child.wait().map_err(Error::host("cannot wait for the emulator"))?;
        Ok(Outcome { status, console: self.console() })
    }

    /// What the guest and the emulator have said so far.
    #[must_use]
    pub fn console(&self) -> String {
        let mut bytes = Vec::new();
        for name in ["emulator", "console"] {
            if let Ok(file) = File::open(self.dir.path().join(name)) {
                // What cannot be read is missing in a message.
                let _ = file.take(MAX_CONSOLE_BYTES).read_to_end(&mut bytes);
            }
        }
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// A directory that is removed with the guest, for sockets and images of its devices.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// The next line from the guest, or `None` when it has ended.
    fn receive(&mut self) -> Result<Option<String>, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let limited =
            self.port.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))));
        limited.map_err(Error::host("cannot bound the wait for a guest"))?;
        let mut line = String::new();
        match (&mut self.port).take(MAX_LINE_BYTES).read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) if line.ends_with('\n') => Ok(Some(line.trim_end().to_owned())),
            Ok(_) => Err(self.failure("cut a line short, or said one that is too long")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(self.failure(format!("did not come to its end within {:?}", self.limit)))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(source) => Err(Error::Host { what: "cannot hear the guest".to_owned(), source }),
        }
    }

    fn failure(&self, what: impl Into<String>) -> Error {
        Error::Guest { what: what.into(), console: self.console() }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest said:\n{}", self.console());
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
