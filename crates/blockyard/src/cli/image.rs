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
    /// The store is in this directory, and images are IMAGE or NAMESPACE/IMAGE. Without, they are in a Ceph cluster: IMAGE,
    /// POOL/IMAGE or POOL/NAMESPACE/IMAGE.
    #[arg(short, long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The namespace of images that are named without one.
    #[arg(short = 'N', long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Pool of the cluster [default: rbd].
    #[arg(short, long, global = true, value_name = "POOL", conflicts_with = "dir")]
    pub pool: Option<String>,
    /// Path of ceph.conf [default: CEPH_CONF, or the usual places].
    #[arg(short, long, global = true, value_name = "FILE", conflicts_with = "dir")]
    pub conf: Option<String>,
    /// Ceph user: client.ID.
    #[arg(long, global = true, value_name = "ID", conflicts_with = "dir")]
    pub id: Option<String>,
    /// Keyring file.
    #[arg(short, long, global = true, value_name = "FILE", conflicts_with = "dir")]
    pub keyring: Option<String>,
    /// Monitor addresses.
    #[arg(short, long, global = true, value_name = "ADDR", conflicts_with = "dir")]
    pub mon_host: Option<String>,
    /// Print JSON, with the keys of rbd --format json.
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress.
    #[arg(long, global = true)]
    pub no_progress: bool,
}

/// What a new image is to be.
#[derive(Clone, Debug, Args)]
pub struct NewImageArgs {
    /// Size of its objects, as a power of two: 12 to 25 [default: 22, which is 4 MiB].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(12..=25), conflicts_with = "object_size")]
    pub order: Option<u8>,
    /// The size of its objects, as 4M.
    #[arg(long, value_name = "SIZE")]
    pub object_size: Option<String>,
    /// Features, separated by commas or repeated [default: layering, exclusive-lock, object-map, fast-diff, deep-flatten].
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub image_feature: Vec<String>,
    /// Stripes: bytes of a unit, as 64K.
    #[arg(long, value_name = "SIZE", requires = "stripe_count")]
    pub stripe_unit: Option<String>,
    /// Stripes: over so many objects.
    #[arg(long, value_name = "N", requires = "stripe_unit")]
    pub stripe_count: Option<u64>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make an empty image, and a store for it if the directory has none.
    Create {
        /// The image.
        image: String,
        /// Size in MiB, or with a unit, e.g. 10G.
        #[arg(short, long, value_name = "SIZE")]
        size: String,
        /// What it is to be.
        #[command(flatten)]
        new: NewImageArgs,
    },
    /// List images.
    #[command(alias = "list")]
    Ls {
        /// A namespace of --dir, a POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
        /// With sizes, parents and snapshots.
        #[arg(short, long)]
        long: bool,
    },
    /// Show what an image or a snapshot is.
    Info {
        /// The image or snapshot.
        image: String,
    },
    /// Show who uses an image.
    Status {
        /// The image.
        image: String,
    },
    /// Remove an image that has no snapshots.
    #[command(alias = "remove")]
    Rm {
        /// The image.
        image: String,
    },
    /// Give an image another name.
    #[command(alias = "mv")]
    Rename {
        /// The image.
        from: String,
        /// Its new name.
        to: String,
    },
    /// Make an image larger or smaller.
    Resize {
        /// The image.
        image: String,
        /// New size in MiB, or with a unit, e.g. 10G.
        #[arg(short, long, value_name = "SIZE")]
        size: String,
        /// Also make it smaller: what is behind the new end is lost.
        #[arg(long)]
        allow_shrink: bool,
    },
    /// Snapshots.
    #[command(subcommand)]
    Snap(SnapCommand),
    /// Make an image that begins with what a snapshot has, and copies from it what it changes.
    Clone {
        /// The snapshot: IMAGE@SNAPSHOT.
        snapshot: String,
        /// The new image.
        image: String,
    },
    /// List the clones of an image, or of a snapshot.
    Children {
        /// The image or snapshot.
        image: String,
    },
    /// Copy into a clone what it has from its parent, and make it independent of that.
    Flatten {
        /// The clone.
        image: String,
    },
    /// Write an image or a snapshot to a file.
    Export {
        /// The image or snapshot.
        image: String,
        /// The file, which is made; - for standard output. Without, it is called as the image.
        file: Option<PathBuf>,
        /// 1: the bytes; 2: with snapshots and metadata.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        export_format: u8,
    },
    /// Make an image from a file.
    Import {
        /// The file; - for standard input.
        file: PathBuf,
        /// The new image; without, it is called as the file.
        image: Option<String>,
        /// 1: the bytes; 2: with snapshots and metadata.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        export_format: u8,
        /// What it is to be.
        #[command(flatten)]
        new: NewImageArgs,
    },
    /// Write what changed since a snapshot, or all that there is, to a file.
    ExportDiff {
        /// The image or snapshot.
        image: String,
        /// The file, which is made; - for standard output.
        file: PathBuf,
        /// Where to start.
        #[command(flatten)]
        diff: DiffArgs,
    },
    /// Do to an image what a diff says, then make the snapshot that it leads to.
    ImportDiff {
        /// The file; - for standard input.
        file: PathBuf,
        /// The image.
        image: String,
    },
    /// Make one diff from two that follow each other.
    MergeDiff {
        /// The first diff; - for standard input.
        first: PathBuf,
        /// The second.
        second: PathBuf,
        /// The merged one, which is made; - for standard output.
        file: PathBuf,
    },
    /// List what changed since a snapshot, or all that there is.
    Diff {
        /// The image or snapshot.
        image: String,
        /// Where to start.
        #[command(flatten)]
        diff: DiffArgs,
    },
    /// Show how much images and snapshots use.
    #[command(alias = "disk-usage")]
    Du {
        /// An image or snapshot; without, all of the store.
        image: Option<String>,
        /// Count what is written of objects, not whole objects: slow.
        #[arg(long)]
        exact: bool,
    },
    /// Copy an image or a snapshot, without its snapshots.
    #[command(alias = "copy")]
    Cp {
        /// The image or snapshot.
        from: String,
        /// The new image.
        to: String,
    },
    /// Copy an image with its snapshots.
    #[command(subcommand)]
    Deep(DeepCommand),
    /// Locks that are taken by hand.
    #[command(subcommand)]
    Lock(LockCommand),
    /// The map of an image's objects.
    #[command(subcommand)]
    ObjectMap(ObjectMapCommand),
    /// Give back the space of what is zeroes.
    Sparsify {
        /// The image.
        image: String,
        /// Look for zeroes of this size, which divides an object.
        #[arg(long, value_name = "SIZE", default_value = "4K")]
        sparse_size: String,
    },
    /// Images that are removed, and can be had back.
    #[command(subcommand)]
    Trash(TrashCommand),
    /// Namespaces: images of the same name in each.
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Notes about an image.
    #[command(subcommand, alias = "image-meta")]
    Meta(MetaCommand),
    /// Show what others tell each other about an image, until interrupted.
    Watch {
        /// The image.
        image: String,
    },
    /// Put load on an image and measure it.
    Bench(ImageBenchArgs),
    /// Look whether all is well with the images of a store: exit 0 if it is, 2 if not.
    Check {
        /// A namespace of --dir, a POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
        /// Rebuild object maps that are wrong.
        #[arg(long)]
        repair: bool,
    },
}

/// Where a diff starts.
#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// The snapshot from which it starts; without, all that there is.
    #[arg(long, value_name = "SNAPSHOT")]
    pub from_snap: Option<String>,
    /// Whole objects, in which something has changed: faster.
    #[arg(long)]
    pub whole_object: bool,
}

/// `image snap`.
#[derive(Debug, Subcommand)]
pub enum SnapCommand {
    /// Make a snapshot.
    #[command(alias = "add")]
    Create {
        /// IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// List the snapshots of an image.
    #[command(alias = "list")]
    Ls {
        /// The image.
        image: String,
        /// Also those of mirrors and groups, and those that were removed while they had clones.
        #[arg(short, long)]
        all: bool,
    },
    /// Remove a snapshot.
    #[command(alias = "remove")]
    Rm {
        /// IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Give a snapshot another name.
    Rename {
        /// IMAGE@SNAPSHOT.
        from: String,
        /// IMAGE@SNAPSHOT.
        to: String,
    },
    /// Make the image what it was in a snapshot.
    #[command(alias = "revert")]
    Rollback {
        /// IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Keep a snapshot from being removed.
    Protect {
        /// IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Let a snapshot be removed again.
    Unprotect {
        /// IMAGE@SNAPSHOT.
        snapshot: String,
    },
    /// Remove all snapshots that are neither protected nor cloned.
    Purge {
        /// The image.
        image: String,
    },
    /// How many snapshots an image may have.
    #[command(subcommand)]
    Limit(LimitCommand),
}

/// `image snap limit`.
#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// Set it.
    Set {
        /// The image.
        image: String,
        /// So many.
        #[arg(long, value_name = "N")]
        limit: u64,
    },
    /// As many as one likes.
    Clear {
        /// The image.
        image: String,
    },
}

/// `image deep`.
#[derive(Debug, Subcommand)]
pub enum DeepCommand {
    /// Copy an image with its snapshots. A clone's copy is none.
    #[command(alias = "copy")]
    Cp {
        /// The image.
        from: String,
        /// The new image.
        to: String,
    },
}

/// `image lock`.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// List who has the lock.
    #[command(alias = "list")]
    Ls {
        /// The image.
        image: String,
    },
    /// Take the lock.
    Add {
        /// The image.
        image: String,
        /// What to call it.
        lock_id: String,
        /// Share it with all who give the same tag.
        #[arg(long, value_name = "TAG")]
        shared: Option<String>,
    },
    /// Break the lock of a client.
    #[command(alias = "remove")]
    Rm {
        /// The image.
        image: String,
        /// What it is called.
        lock_id: String,
        /// Who has it, as client.4711.
        locker: String,
    },
}

/// `image object-map`.
#[derive(Debug, Subcommand)]
pub enum ObjectMapCommand {
    /// Look whether the map knows all objects that there are: exit 0 if it does, 2 if not.
    Check {
        /// The image or snapshot.
        image: String,
    },
    /// Rebuild it, and those of the snapshots.
    Rebuild {
        /// The image.
        image: String,
    },
}

/// `image trash`.
#[derive(Debug, Subcommand)]
pub enum TrashCommand {
    /// Move an image into the trash.
    #[command(alias = "move")]
    Mv {
        /// The image.
        image: String,
        /// Keep it at least this long, e.g. 10m [default: 0].
        #[arg(long, value_name = "TIME")]
        expires_in: Option<String>,
    },
    /// List what is in the trash.
    #[command(alias = "list")]
    Ls {
        /// A namespace of --dir, a POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
        /// With times.
        #[arg(short, long)]
        long: bool,
    },
    /// Take an image out of the trash.
    Restore {
        /// Its id, as `trash ls` shows it.
        image_id: String,
        /// New name [default: the old one].
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
    },
    /// Remove an image in the trash for good.
    #[command(alias = "remove")]
    Rm {
        /// Its id, as `trash ls` shows it.
        image_id: String,
        /// Also one that is to be kept.
        #[arg(long)]
        force: bool,
    },
    /// Remove all images in the trash that need not be kept any longer.
    Purge {
        /// A namespace of --dir, a POOL or POOL/NAMESPACE of a cluster, or rbd+dir:DIR.
        store: Option<String>,
    },
}

/// `image namespace`.
#[derive(Debug, Subcommand)]
pub enum NamespaceCommand {
    /// Make a namespace, and a store for it if the directory has none.
    Create {
        /// Its name.
        name: String,
    },
    /// List namespaces.
    #[command(alias = "list")]
    Ls {
        /// A POOL of a cluster, or rbd+dir:DIR.
        store: Option<String>,
    },
    /// Remove a namespace that has no images.
    #[command(alias = "remove")]
    Rm {
        /// Its name.
        name: String,
    },
}

/// `image meta`.
#[derive(Debug, Subcommand)]
pub enum MetaCommand {
    /// List all notes.
    #[command(alias = "list")]
    Ls {
        /// The image.
        image: String,
    },
    /// Show a note.
    Get {
        /// The image.
        image: String,
        /// Its key.
        key: String,
    },
    /// Note something down.
    Set {
        /// The image.
        image: String,
        /// The key.
        key: String,
        /// What.
        value: String,
    },
    /// Remove a note.
    #[command(alias = "remove")]
    Rm {
        /// The image.
        image: String,
        /// Its key.
        key: String,
    },
}

/// What `image bench` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IoType {
    /// Read.
    Read,
    /// Write, which destroys the contents.
    Write,
    /// Both.
    #[value(alias = "rw")]
    Readwrite,
}

/// Where `image bench` does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IoPattern {
    /// One block after the other.
    #[default]
    Seq,
    /// Anywhere.
    Rand,
}

/// `image bench`.
#[derive(Debug, Args)]
pub struct ImageBenchArgs {
    /// The image.
    pub image: String,
    /// What to do.
    #[arg(long, value_enum)]
    pub io_type: IoType,
    /// Bytes of one request.
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    pub io_size: String,
    /// Requests at a time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10240))]
    pub io_threads: u32,
    /// Bytes in all.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub io_total: String,
    /// Where.
    #[arg(long, value_enum, default_value_t)]
    pub io_pattern: IoPattern,
    /// The percentage of reads in readwrite.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rw_mix_read: u8,
}
