//! Files of unix sockets. A socket appears under its name when it listens and not before, it never takes the place of
//! one that is alive, and its file is removed in the end.
//!
//! A socket is bound to a temporary name in the same directory, listens, and is renamed. Renaming never replaces a file.
//! Only the socket of a dead server is replaced, and only by who holds a lock (flock(2)) on a file beside it: whoever
//! removes a socket file takes that lock first and then looks at what there is. So of any number of servers that are
//! started at once exactly one gets the name, and a connection that is refused means a dead server, never one that has
//! not come to listen(2) yet.
//!
//! The file of the lock is there for as long as somebody holds it, and only who runs the server may open it: a lock on the
//! directory itself could be held by anybody who can read it, for as long as they like.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, chmodat, flock, fstat,
    linkat, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// How long the lock of a directory is waited for: others hold it for some microseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// How often it is tried.
const LOCK_POLL: Duration = Duration::from_millis(1);
/// Who may open the file of a lock, and so hold it.
const LOCK_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// The longest name of a file (`NAME_MAX` of linux/limits.h).
const MAX_FILE_NAME: usize = 255;
/// How many temporary names are tried, and how often the name is when others come and go.
const ATTEMPTS: usize = 64;
/// The longest path that fits into the address of a unix socket, which ends with a zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// A socket file that is removed in the end, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself: as long as it is open, no other has its number.
    file: OwnedFd,
}

impl SocketFile {
    /// A stream socket that listens at `path`, with the permissions `mode` if they are given. The socket of a server
    /// that is gone is replaced. A path may be longer than [`MAX_SOCKET_PATH`].
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if somebody listens there, [`io::ErrorKind::AlreadyExists`] for a file of any other
    /// kind, and what the system says. Nothing is left behind then.
    pub fn bind(path: &Path, mode: Option<u32>, backlog: i32) -> io::Result<(OwnedFd, Self)> {
        let path = std::path::absolute(path)?;
        let place = Place::of(&path)?;
        let (socket, temporary) = Temporary::bind(&place)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&place.directory, &temporary.name, flags, Mode::empty())?;
        if let Some(mode) = mode {
            let mode = Mode::from_raw_mode(mode);
            chmodat(&place.directory, &temporary.name, mode, AtFlags::empty())?;
        }
        listen(&socket, backlog)?;
        temporary.publish()?;
        Ok((socket, Self { path, file }))
    }

    /// Where it is: an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket of a server that is gone; what is alive, or no socket, stays.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_stale(path: &Path) -> io::Result<()> {
        let place = Place::of(&std::path::absolute(path)?)?;
        let held = Held::Locked(place.lock()?);
        match place.look()? {
            Found::Stale => place.remove(&held),
            Found::Nothing | Found::Alive | Found::NoSocket => Ok(()),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(place) = Place::of(&self.path) else { return };
        let held = match place.lock() {
            Ok(lock) => Held::Locked(lock),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
            // Where there are no locks, nobody replaces anything.
            Err(_) => Held::NoLocksHere,
        };
        let same = |found: &Stat| fstat(&self.file).is_ok_and(|ours| is_same(&ours, found));
        if place.stat().is_ok_and(|found| same(&found)) {
            // Who is not let is not told: there is nobody to do something about it.
            let _ = place.remove(&held);
        }
    }
}

fn is_same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// What whoever removes a socket file, or replaces it, has for as long as that takes.
#[must_use]
enum Held<'a> {
    Locked(#[expect(dead_code, reason = "the lock ends when it is dropped")] Lock<'a>),
    /// The file system has none, or this process may not take one.
    NoLocksHere,
}

/// A lock on a socket's name: a file beside it, which goes when the lock does.
struct Lock<'a> {
    place: &'a Place,
    name: OsString,
    _file: OwnedFd,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Before it is let go of: who has opened it meanwhile finds that it is gone, and makes another.
        let _ = unlinkat(&self.place.directory, &self.name, AtFlags::empty());
    }
}

/// A directory, and a name in it.
struct Place {
    directory: OwnedFd,
    path: PathBuf,
    name: OsString,
}

/// What there is under a name.
enum Found {
    Nothing,
    /// The socket of a server that is gone.
    Stale,
    Alive,
    NoSocket,
}

impl Found {
    fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    fn is_stale(&self) -> bool {
        matches!(self, Self::Stale)
    }
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            let what = format!("{} is a directory", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        let open = |flags: OFlags| {
            openat(CWD, parent, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        // It need not be readable.
        let directory = open(OFlags::RDONLY).or_else(|_| open(OFlags::PATH))?;
        Ok(Self { directory, path: path.to_owned(), name: name.to_owned() })
    }

    /// The lock, for [`Held`].
    fn lock(&self) -> io::Result<Lock<'_>> {
        let name = self.lock_name();
        let begun = Instant::now();
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&self.directory, &name, flags, LOCK_MODE)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_LIMIT => {
                    std::thread::sleep(LOCK_POLL);
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(err) => {
                    // Where there are no locks, nobody has made it but for this.
                    if err != Errno::WOULDBLOCK {
                        let _ = unlinkat(&self.directory, &name, AtFlags::empty());
                    }
                    return Err(err.into());
                }
            }
            // Who held it before may have removed it.
            let found = statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW);
            if found.is_ok_and(|found| fstat(&file).is_ok_and(|ours| is_same(&ours, &found))) {
                return Ok(Lock { place: self, name, _file: file });
            }
        }
    }

    /// `.NAME.lock`, or of a long name as much as fits.
    fn lock_name(&self) -> OsString {
        let most = MAX_FILE_NAME - ".".len() - ".lock".len();
        let name = self.name.as_bytes();
        let mut lock = OsString::from(".");
        lock.push(OsStr::from_bytes(name.get(..most).unwrap_or(name)));
        lock.push(".lock");
        lock
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn look(&self) -> io::Result<Found> {
        match self.stat() {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(err) => return Err(err),
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Socket => {
                return Ok(Found::NoSocket);
            }
            Ok(_) => {}
        }
        // Never waits: a server that is alive but busy has a full queue.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let asked = ShortPath::of(&self.path)
            .and_then(|short| Ok(connect(&socket, &SocketAddrUnix::new(short.as_ref())?)?));
        Ok(match asked {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Found::Stale,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Found::Nothing,
            // Accepted, or nobody knows.
            _ => Found::Alive,
        })
    }

    fn remove(&self, _: &Held<'_>) -> io::Result<()> {
        Ok(unlinkat(&self.directory, &self.name, AtFlags::empty())?)
    }
}

/// A socket under a name that nobody knows. It is removed, unless it is published.
struct Temporary<'a> {
    place: &'a Place,
    name: OsString,
    published: bool,
}

impl<'a> Temporary<'a> {
    /// Binds a socket to a name that is free.
    fn bind(place: &'a Place) -> io::Result<(OwnedFd, Self)> {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let random = RandomState::new();
        for attempt in 0..ATTEMPTS {
            let mut hasher = random.build_hasher();
            hasher.write_usize(attempt);
            let suffix = hasher.finish() & 0xffff_ffff;
            // Tools that list sockets show this name, so that it begins like the one that was asked for.
            let mut name = place.name.clone();
            name.push(format!(".{suffix:08x}"));
            let mut path = place.path.with_file_name(&name);
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                name = format!(".socket.{suffix:08x}").into();
                path = in_directory(&place.directory, &name);
            }
            match bind(&socket, &SocketAddrUnix::new(path.as_path())?) {
                Ok(()) => return Ok((socket, Self { place, name, published: false })),
                Err(Errno::ADDRINUSE) => {}
                Err(err) => return Err(err.into()),
            }
        }
        Err(io::Error::other("no temporary name is free in its directory"))
    }

    /// Gives it its name.
    fn publish(self) -> io::Result<()> {
        self.publish_by(|Place { directory, .. }, from, to| {
            renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE)
        })
    }

    /// `rename_new` gives it a name that is not taken, as far as the file system knows how to.
    fn publish_by(
        mut self,
        rename_new: impl Fn(&Place, &OsStr, &OsStr) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            match rename_new(self.place, &self.name, &self.place.name) {
                Ok(()) => {
                    self.published = true;
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                // NFS, 9P and others know only a rename that replaces (renameat2(2), "EINVAL").
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match self.link() {
                    // It is there under both names: the temporary one goes when this is dropped.
                    Ok(()) => return Ok(()),
                    Err(Errno::EXIST) => {}
                    Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        if self.rename_if(Found::is_nothing)? {
                            return Ok(());
                        }
                    }
                    Err(err) => return Err(err.into()),
                },
                Err(err) => return Err(err.into()),
            }
            match self.place.look()? {
                Found::Stale => {}
                Found::NoSocket => {
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, "not a socket"));
                }
                Found::Alive => return Err(io::ErrorKind::AddrInUse.into()),
                // It has just gone.
                Found::Nothing => continue,
            }
            if self.rename_if(Found::is_stale)? {
                return Ok(());
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn link(&self) -> rustix::io::Result<()> {
        let Place { directory, name, .. } = self.place;
        linkat(directory, &self.name, directory, name, AtFlags::empty())
    }

    /// Takes the place of what is there, if that is as it should be. Nobody takes it away, or its place, meanwhile.
    fn rename_if(&mut self, is_right: impl Fn(&Found) -> bool) -> io::Result<bool> {
        let place = self.place;
        let _lock = place.lock().map_err(|err| {
            let lock = place.lock_name();
            let what = format!(
                "to take the place of a dead server's socket needs a lock on {} beside it: {err}",
                Path::new(&lock).display()
            );
            io::Error::new(err.kind(), what)
        })?;
        if !is_right(&place.look()?) {
            return Ok(false);
        }
        let Place { directory, name, .. } = place;
        renameat_with(directory, &self.name, directory, name, RenameFlags::empty())?;
        self.published = true;
        Ok(true)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.published {
            // It is ours alone; what cannot be removed is said by what failed before.
            let _ = unlinkat(&self.place.directory, &self.name, AtFlags::empty());
        }
    }
}

/// The path of a socket for bind(2) and connect(2), which take [`MAX_SOCKET_PATH`] bytes at most: a longer one is reached
/// by way of `/proc/self/fd`, as long as this lives.
#[derive(Debug)]
pub struct ShortPath {
    path: PathBuf,
    _file: Option<OwnedFd>,
}

impl ShortPath {
    /// A short path to a socket that exists.
    ///
    /// # Errors
    /// What opening a long one says.
    pub fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_SOCKET_PATH {
            return Ok(Self { path: path.to_owned(), _file: None });
        }
        let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Self { path, _file: Some(file) })
    }
}

impl AsRef<Path> for ShortPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

fn in_directory(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    path.push(OsStr::from_bytes(name.as_bytes()));
    path
}

/// Connects to a stream socket, whose path may be longer than [`MAX_SOCKET_PATH`], within `limit`: a server that accepts nobody
/// any more lets others wait for ever (unix(7), `SO_SNDTIMEO` in socket(7)).
///
/// # Errors
/// What open(2) and connect(2) say; [`io::ErrorKind::TimedOut`] after the limit.
pub fn connect_unix(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let path = ShortPath::of(path)?;
    let address = SocketAddrUnix::new(path.as_ref())?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    match connect(&socket, &address) {
        Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
        connected => connected?,
    }
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
