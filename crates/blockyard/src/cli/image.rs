//! `blockyard image` on the command line, with the words of `rbd`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Which store, and how to speak.
    #[command(flatten)]
    pub place: ImagePlaceArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// Where images are.
#[derive(Clone, Debug, Args)]
pub struct ImagePlaceArgs {
    /// Store directory, for IMAGE or NAMESPACE/IMAGE [default: none; images are in a Ceph cluster, as IMAGE, POOL/IMAGE or
    /// POOL/NAMESPACE/IMAGE].
    #[arg(short, long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Namespace for images named without one.
    #[arg(short = 'N', long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Pool of the cluster [default: rbd].
    #[arg(short, long, global = true, value_name = "POOL", conflicts_with = "dir")]
    pub pool: Option<String>,
    /// Ceph configuration file [default: $CEPH_CONF, /etc/ceph/ceph.conf, ~/.ceph/config, ./ceph.conf].
    #[arg(short, long, global = true, value_name = "FILE", conflicts_with = "dir")]
    pub conf: Option<String>,
    /// Authenticate as client.ID [default: admin].
    #[arg(long, global = true, value_name = "ID", conflicts_with = "dir")]
    pub id: Option<String>,
    /// Keyring file.
    #[arg(short, long, global = true, value_name = "FILE", conflicts_with = "dir")]
    pub keyring: Option<String>,
    /// Monitor addresses.
    #[arg(short, long, global = true, value_name = "ADDR", conflicts_with = "dir")]
    pub mon_host: Option<String>,
    /// Print JSON with the keys of `rbd --format json`.
    #[arg(long, global = true)]
    pub json: bool,
    /// Hide progress.
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// What a new image is to be.
#[derive(Clone, Debug, Args)]
pub struct NewImageArgs {
    /// Object size as a power of two, 12 to 25 [default: 22 (4 MiB)].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(12..=25), conflicts_with = "object_size")]
    pub order: Option<u8>,
    /// Object size, e.g. 4M.
    #[arg(long, value_name = "SIZE")]
    pub object_size: Option<String>,
    /// Features, separated by commas or repeated [default: layering, exclusive-lock, object-map, fast-diff, deep-flatten].
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub image_feature: Vec<String>,
    /// Stripe unit, e.g. 64K.
    #[arg(long, value_name = "SIZE", requires = "stripe_count")]
    pub stripe_unit: Option<String>,
    /// Stripe count: objects that a stripe spans.
    #[arg(long, value_name = "N", requires = "stripe_unit")]
    pub stripe_count: Option<u64>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Create an empty image. The store in --dir is created if needed.
    Create {
        /// Image.
        image: String,
        /// Size in MiB, or with a unit, e.g. 10G.
        #[arg(short, long, value_name = "SIZE")]
        size: String,
        /// Properties of the new image.
        #[command(flatten)]
        new: NewImageArgs,
    },
    /// List images.
    #[command(alias = "list")]
    Ls {
        /// Namespace of --dir, POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
        /// Show sizes, parents and snapshots, too.
        #[arg(short, long)]
        long: bool,
    },
    /// Show size, features and parent of an image or a snapshot.
    Info {
        /// Image or snapshot.
        image: String,
    },
    /// Show the clients that use an image.
    Status {
        /// Image.
        image: String,
    },
    /// Remove an image that has no snapshots.
    #[command(alias = "remove")]
    Rm {
        /// Image.
        image: String,
    },
    /// Rename an image.
    #[command(alias = "mv")]
    Rename {
        /// Image.
        from: String,
        /// New name.
        to: String,
    },
    /// Resize an image.
    Resize {
        /// Image.
        image: String,
        /// New size in MiB, or with a unit, e.g. 10G.
        #[arg(short, long, value_name = "SIZE")]
        size: String,
        /// Allow shrinking. Data past the new end is lost.
        #[arg(long)]
        allow_shrink: bool,
    },
    /// Manage snapshots.
    #[command(subcommand)]
    Snap(SnapCommand),
    /// Create a copy-on-write clone of a snapshot.
    Clone {
        /// Snapshot to clone: IMAGE@SNAPSHOT.
        snapshot: String,
        /// New image.
        image: String,
    },
    /// List the clones of an image or a snapshot.
    Children {
        /// Image or snapshot.
        image: String,
    },
    /// Copy the parent's data into a clone, and detach the clone from its parent.
    Flatten {
        /// Clone.
        image: String,
    },
    /// Write an image or a snapshot to a file.
    Export {
        /// Image or snapshot.
        image: String,
        /// Target file, which must not exist; - for standard output [default: name of the image].
        file: Option<PathBuf>,
        /// Export format. 1: raw data; 2: with snapshots and metadata.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        export_format: u8,
    },
    /// Create an image from a file.
    Import {
        /// Source file; - for standard input.
        file: PathBuf,
        /// Name of the new image [default: name of the file].
        image: Option<String>,
        /// Export format. 1: raw data; 2: with snapshots and metadata.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        export_format: u8,
        /// Properties of the new image.
        #[command(flatten)]
        new: NewImageArgs,
    },
    /// Write the changes since a snapshot, or all data, to a file.
    ExportDiff {
        /// Image or snapshot.
        image: String,
        /// Target file, which must not exist; - for standard output.
        file: PathBuf,
        /// Where to start.
        #[command(flatten)]
        diff: DiffArgs,
    },
    /// Apply a diff to an image, and create its end snapshot.
    ImportDiff {
        /// Diff file; - for standard input.
        file: PathBuf,
        /// Image.
        image: String,
    },
    /// Merge two consecutive diffs.
    MergeDiff {
        /// First diff; - for standard input.
        first: PathBuf,
        /// Second diff.
        second: PathBuf,
        /// Target file, which must not exist; - for standard output.
        file: PathBuf,
    },
    /// List the ranges that changed since a snapshot, or all data.
    Diff {
        /// Image or snapshot.
        image: String,
        /// Where to start.
        #[command(flatten)]
        diff: DiffArgs,
    },
    /// Show provisioned and used space of images and snapshots.
    #[command(alias = "disk-usage")]
    Du {
        /// Image or snapshot [default: all of the store].
        image: Option<String>,
        /// Count allocated bytes instead of whole objects (slow).
        #[arg(long)]
        exact: bool,
    },
    /// Copy the data of an image or a snapshot to a new image.
    #[command(alias = "copy")]
    Cp {
        /// Image or snapshot.
        from: String,
        /// New image.
        to: String,
    },
    /// Copy an image with its snapshots.
    #[command(subcommand)]
    Deep(DeepCommand),
    /// Manage advisory locks.
    #[command(subcommand)]
    Lock(LockCommand),
    /// Check or rebuild object maps.
    #[command(subcommand)]
    ObjectMap(ObjectMapCommand),
    /// Reclaim zeroed extents.
    Sparsify {
        /// Image.
        image: String,
        /// Extent size; must divide the object size.
        #[arg(long, value_name = "SIZE", default_value = "4K")]
        sparse_size: String,
    },
    /// Manage the trash.
    #[command(subcommand)]
    Trash(TrashCommand),
    /// Manage namespaces.
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Manage image metadata.
    #[command(subcommand, alias = "image-meta")]
    Meta(MetaCommand),
    /// Print the notifications of an image's header object until interrupted.
    Watch {
        /// Image.
        image: String,
    },
    /// Benchmark an image. Writes destroy its contents.
    Bench(ImageBenchArgs),
    /// Check all images of a store. Exit status: 0 no errors, 2 errors found.
    Check {
        /// Namespace of --dir, POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
        /// Rebuild incorrect object maps.
        #[arg(long)]
        repair: bool,
    },
}

/// Where a diff starts.
#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// Start snapshot [default: none, for all data].
    #[arg(long, value_name = "SNAPSHOT")]
    pub from_snap: Option<String>,
    /// Compare whole objects (faster).
    #[arg(long)]
    pub whole_object: bool,
}

/// `image snap`.
#[derive(Debug, Subcommand)]
pub enum SnapCommand {
    /// Create a snapshot.
    #[command(alias = "add")]
    Create {
        /// Snapshot: IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// List the snapshots of an image.
    #[command(alias = "list")]
    Ls {
        /// Image.
        image: String,
        /// Include snapshots of mirrors and groups, and removed ones that had clones.
        #[arg(short, long)]
        all: bool,
    },
    /// Remove a snapshot.
    #[command(alias = "remove")]
    Rm {
        /// Snapshot: IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Rename a snapshot.
    Rename {
        /// Snapshot: IMAGE@SNAPSHOT.
        from: String,
        /// New name: IMAGE@SNAPSHOT.
        to: String,
    },
    /// Roll an image back to a snapshot. Data written since is lost.
    #[command(alias = "revert")]
    Rollback {
        /// Snapshot: IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Protect a snapshot from removal.
    Protect {
        /// Snapshot: IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Allow a protected snapshot to be removed again.
    Unprotect {
        /// Snapshot: IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Remove all unprotected snapshots of an image that have no clones.
    Purge {
        /// Image.
        image: String,
    },
    /// Limit the number of snapshots.
    #[command(subcommand)]
    Limit(LimitCommand),
}

/// `image snap limit`.
#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// Set the limit.
    Set {
        /// Image.
        image: String,
        /// Maximum number of snapshots.
        #[arg(long, value_name = "N")]
        limit: u64,
    },
    /// Remove the limit.
    Clear {
        /// Image.
        image: String,
    },
}

/// `image deep`.
#[derive(Debug, Subcommand)]
pub enum DeepCommand {
    /// Copy an image with its snapshots. The copy of a clone is independent of the parent.
    #[command(alias = "copy")]
    Cp {
        /// Image.
        from: String,
        /// New image.
        to: String,
    },
}

/// `image lock`.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// List lock holders.
    #[command(alias = "list")]
    Ls {
        /// Image.
        image: String,
    },
    /// Acquire a lock.
    Add {
        /// Image.
        image: String,
        /// Lock ID.
        lock_id: String,
        /// Acquire a shared lock; all holders give the same tag.
        #[arg(long, value_name = "TAG")]
        shared: Option<String>,
    },
    /// Break the lock of a client.
    #[command(alias = "remove")]
    Rm {
        /// Image.
        image: String,
        /// Lock ID.
        lock_id: String,
        /// Holder, e.g. client.4711.
        locker: String,
        /// Break the lock of a client that is alive; all images that it has open fail.
        #[arg(long)]
        force: bool,
    },
}

/// `image object-map`.
#[derive(Debug, Subcommand)]
pub enum ObjectMapCommand {
    /// Compare the object map with the objects. Exit status: 0 correct, 2 incorrect.
    Check {
        /// Image or snapshot.
        image: String,
    },
    /// Rebuild the object maps of an image and its snapshots.
    Rebuild {
        /// Image.
        image: String,
    },
}

/// `image trash`.
#[derive(Debug, Subcommand)]
pub enum TrashCommand {
    /// Move an image to the trash.
    #[command(alias = "move")]
    Mv {
        /// Image.
        image: String,
        /// Retention: keep the image at least this long, e.g. 10m [default: 0].
        #[arg(long, value_name = "TIME")]
        expires_in: Option<String>,
    },
    /// List the images in the trash.
    #[command(alias = "list")]
    Ls {
        /// Namespace of --dir, POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
        /// Show times, too.
        #[arg(short, long)]
        long: bool,
    },
    /// Restore an image from the trash.
    Restore {
        /// Image ID, as `trash ls` shows it.
        image_id: String,
        /// New name [default: the old name].
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
    },
    /// Delete an image in the trash permanently.
    #[command(alias = "remove")]
    Rm {
        /// Image ID, as `trash ls` shows it.
        image_id: String,
        /// Remove an image whose retention has not expired.
        #[arg(long)]
        force: bool,
    },
    /// Delete all images in the trash whose retention has expired.
    Purge {
        /// Namespace of --dir, POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
    },
}

/// `image namespace`.
#[derive(Debug, Subcommand)]
pub enum NamespaceCommand {
    /// Create a namespace. The store in --dir is created if needed.
    Create {
        /// Name of the namespace.
        name: String,
    },
    /// List namespaces.
    #[command(alias = "list")]
    Ls {
        /// POOL of a cluster, or rbd+dir:DIR.
        store: Option<String>,
    },
    /// Remove a namespace that has no images.
    #[command(alias = "remove")]
    Rm {
        /// Name of the namespace.
        name: String,
    },
}

/// `image meta`.
#[derive(Debug, Subcommand)]
pub enum MetaCommand {
    /// List all keys and values.
    #[command(alias = "list")]
    Ls {
        /// Image.
        image: String,
    },
    /// Print the value of a key.
    Get {
        /// Image.
        image: String,
        /// Key.
        key: String,
    },
    /// Set a key.
    Set {
        /// Image.
        image: String,
        /// Key.
        key: String,
        /// Value.
        value: String,
    },
    /// Remove a key.
    #[command(alias = "remove")]
    Rm {
        /// Image.
        image: String,
        /// Key.
        key: String,
    },
}

/// What `image bench` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IoType {
    /// Reads.
    Read,
    /// Writes, which destroy the contents.
    Write,
    /// Reads and writes.
    #[value(alias = "rw")]
    Readwrite,
}

/// Where `image bench` does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IoPattern {
    /// Sequential offsets.
    #[default]
    Seq,
    /// Random offsets.
    Rand,
}

/// `image bench`.
#[derive(Debug, Args)]
pub struct ImageBenchArgs {
    /// Image.
    pub image: String,
    /// Direction.
    #[arg(long, value_enum)]
    pub io_type: IoType,
    /// Size of a request.
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    pub io_size: String,
    /// Requests in flight.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10240))]
    pub io_threads: u32,
    /// Total amount of data.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub io_total: String,
    /// Access pattern.
    #[arg(long, value_enum, default_value_t)]
    pub io_pattern: IoPattern,
    /// Percentage of reads in readwrite.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rw_mix_read: u8,
}
