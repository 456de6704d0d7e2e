//! What a disk is made from.

use std::path::PathBuf;

/// A file, and how it is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Past the page cache (`O_DIRECT`): no second copy in memory, and errors come with the write that meets
    /// them.
    pub direct: bool,
    /// The disk refuses writes; the file is opened for reading.
    pub read_only: bool,
    /// Make the file, sparse and of so many bytes, if it does not exist. If it does, it has the size that it has.
    pub create_size: Option<u64>,
    /// What carries the I/O out.
    pub engine: Engine,
    /// Take an advisory lock: a writer excludes all others who lock, QEMU among them; readers exclude writers
    /// only.
    pub lock: bool,
    /// The most threads for what blocks; all I/O of the thread engine does. There are more for a file whose server may not
    /// answer: [`FileConfig::THREADS_OF_SERVERS`] at least.
    pub threads: usize,
}

impl FileConfig {
    /// Threads for a file that the kernel cannot try to read without waiting, as it asks a server (NFS, FUSE): each waits for one
    /// answer, and so many are asked for at a time.
    pub const THREADS_OF_SERVERS: usize = 64;

    /// The file at `path`, buffered, for reading and writing, locked.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            direct: false,
            read_only: false,
            create_size: None,
            engine: Engine::Auto,
            lock: true,
            threads: 8,
        }
    }
}

/// What carries the I/O out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring if the kernel allows it and can try to read the file without waiting for a server, else threads.
    #[default]
    Auto,
    /// io_uring, or an error that says why not.
    Uring,
    /// Threads.
    Threads,
}
