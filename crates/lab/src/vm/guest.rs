//! A guest that runs.

use super::initramfs::Initramfs;
use super::places::{MACHINE, Places};
use super::{Error, Vm};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The longest line that a guest may tell the host.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// How much of a console is kept.
const MAX_CONSOLE_BYTES: u64 = 4 << 20;
/// The shortest bound of a wait that the system takes.
const MIN_WAIT: Duration = Duration::from_millis(1);
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
    pub(super) fn start(places: &Places, initramfs: Initramfs<'_>, vm: &Vm) -> Result<Self, Error> {
        let (limit, shows_console) = (vm.limit, vm.shows_console);
        let making = || Error::host("cannot make the files of a guest");
        let dir = tempfile::Builder::new().prefix("blockyard-vm-").tempdir().map_err(making())?;
        let root = dir.path().join("initramfs");
        fs::write(&root, initramfs.finish()).map_err(making())?;
        let log = File::create(dir.path().join("emulator")).map_err(making())?;
        let console = if shows_console { "/dev/stderr".into() } else { dir.path().join("console") };
        let (ours, theirs) = UnixStream::pair().map_err(making())?;

        let mut command = Command::new(&places.emulator);
        // A thread for each CPU, where there are several: only so do they race as real ones do.
        let accel = if vm.cpus > 1 { "tcg,thread=multi" } else { "tcg,thread=single" };
        command.args(["-accel", accel, "-smp", &vm.cpus.to_string()]);
        let memory = vm.memory_mib.to_string();
        let backend = format!("memory-backend-memfd,id=memory,size={memory}M,share=on");
        command.args(MACHINE.args).args(["-m", &memory, "-object", &backend]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        // Standard input is the socket of the port.
        command.args(["-chardev", "socket,id=port,fd=0", "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=port,name=host"]);
        // It appends: where the console is shown, that may be a file with more in it.
        let file = format!("file,id=console,path={},append=on", console.display());
        command.arg("-chardev").arg(file).args(["-serial", "chardev:console"]);
        command.arg("-kernel").arg(&places.kernel).arg("-initrd").arg(&root);
        let orphan_seconds = (limit + ORPHAN_GRACE).as_secs();
        let tty = MACHINE.console;
        // A kernel that has a fault goes on, with locks that nobody gives back: what follows says nothing, and takes long.
        // The timer is there; where the host is busy it ticks too seldom for the kernel's check of that, which panics.
        let line = format!(
            "console={tty} quiet no_timer_check oops=panic panic=-1 LAB_LIMIT={orphan_seconds}"
        );
        command.args(["-append", &line]).args(&vm.devices);
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
        match self.receive()? {
            Said::Ask(asked) if asked == text => Ok(()),
            other => Err(self.failure(format!("{other} instead of saying {text:?}"))),
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
        let status = match self.receive()? {
            Said::Exit(status) => status,
            other => return Err(self.failure(format!("{other} before the end of its script"))),
        };
        // The port is closed when the guest has powered off, so that the console is complete.
        match self.receive()? {
            Said::Nothing => {}
            other => return Err(self.failure(format!("{other} after its script"))),
        }
        self.child.wait().map_err(Error::host("cannot wait for the emulator"))?;
        Ok(Outcome { status, console: self.console() })
    }

    /// What the guest and the emulator have said so far.
    #[must_use]
    pub fn console(&self) -> String {
        let mut bytes = Vec::new();
        for name in ["emulator", "console"] {
            if let Ok(mut file) = File::open(self.dir.path().join(name)) {
                // The end of it: that says why. What cannot be read is missing in a message.
                let len = file.metadata().map_or(0, |metadata| metadata.len());
                let _ = file.seek(SeekFrom::Start(len.saturating_sub(MAX_CONSOLE_BYTES)));
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

    /// The next line from the guest.
    fn receive(&mut self) -> Result<Said, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let limited = self.port.get_ref().set_read_timeout(Some(left.max(MIN_WAIT)));
        limited.map_err(Error::host("cannot bound the wait for a guest"))?;
        let mut line = String::new();
        match (&mut self.port).take(MAX_LINE_BYTES).read_line(&mut line) {
            Ok(0) => Ok(Said::Nothing),
            Ok(_) if line.ends_with('\n') => Said::parse(line.trim_end())
                .ok_or_else(|| self.failure(format!("says {line:?}, which means nothing"))),
            Ok(_) => Err(self.failure("cut a line short, or said one that is too long")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(self.failure(format!("did not come to its end within {:?}", self.limit)))
            }
            // The emulator ended and had not read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Said::Nothing),
            Err(source) => Err(Error::Host { what: "cannot hear the guest".to_owned(), source }),
        }
    }

    fn failure(&self, what: impl Into<String>) -> Error {
        Error::Guest { what: what.into(), console: self.console() }
    }
}

/// What a guest tells by its port, see `init.sh` and `lab.sh`.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The script calls `host`.
    Ask(String),
    /// The script has ended with this status.
    Exit(i32),
    /// The guest cannot run the script.
    Fail(String),
    /// The guest has ended.
    Nothing,
}

impl Said {
    fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ask" => Some(Self::Ask(rest.to_owned())),
            "exit" => Some(Self::Exit(rest.parse().ok()?)),
            "fail" => Some(Self::Fail(rest.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask(text) => write!(f, "says {text:?} and waits for an answer"),
            Self::Exit(status) => write!(f, "ends its script with status {status}"),
            Self::Fail(reason) => write!(f, "fails ({reason})"),
            Self::Nothing => write!(f, "ended"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_guest() {
        assert_eq!(Said::parse("ask two and two?"), Some(Said::Ask("two and two?".to_owned())));
        assert_eq!(Said::parse("exit 3"), Some(Said::Exit(3)));
        assert_eq!(Said::parse("fail"), Some(Said::Fail(String::new())));
        assert_eq!(Said::parse("exit"), None);
        assert_eq!(Said::parse("login:"), None);
    }
}
