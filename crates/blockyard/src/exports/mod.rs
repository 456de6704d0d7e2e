//! Front-ends: one file for each kind, and what is made from what the kinds say of themselves.
//!
//! A new kind is a file here with an [`ExportKind`], and a line in [`KINDS`]. Disks of the kernel, which outlive their daemons,
//! are in [`crate::attach`].

pub mod fuse;
pub mod nbd;
pub mod share;
#[cfg(test)]
mod toy;
pub mod vhost_user_blk;
pub mod virtiofs;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bdev, OpenMode};
use tokio::runtime::Handle;

use crate::disks::{DiskPlan, OpenDisk, OptionSpec, Settings, Value, ValueKind};
use crate::error::{Error, Result};
use crate::text::suggest;
use crate::yard::follow::State;
use crate::yard::report;

/// The kinds of front-ends that there are.
pub static KINDS: &[&ExportKind] = &[
    &nbd::KIND,
    &vhost_user_blk::KIND,
    &fuse::KIND,
    &fuse::DIRECTORY,
    #[cfg(test)]
    &toy::KIND,
];

/// The kinds that serve no disk: a daemon of its own has one such export, and nothing else, as a command asks for it.
pub static ALONE: &[&ExportKind] = &[&share::KIND, &virtiofs::KIND];

/// A kind of front-end. `yard.toml`, the control API and the flags of `serve` and `add` are made from this.
pub struct ExportKind {
    /// Its name.
    pub name: &'static str,
    /// Its tables in `yard.toml`, as they are written there.
    pub table: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// The options that only this kind has.
    pub options: &'static [OptionSpec],
    /// Options that are flags of `serve` and `add`. The first one says where a disk is served, and is called as the kind; the
    /// others say something about that. None: no flag asks for such an export.
    pub flags: &'static [Flag],
    /// It is of all disks of the yard, whichever there are, and not of one.
    pub whole_yard: bool,
    /// The kernel of this machine reads and writes by it, also to get memory back.
    pub local_kernel: bool,
    /// Checks what the options say together. The error is a sentence for people.
    pub check: fn(&Settings) -> Result<(), String>,
    /// Takes the place of an export, where nobody is served yet.
    pub bind: fn(&ExportPlan) -> Result<Bound>,
    /// What daemons that died have left mounted.
    pub leftovers: fn() -> Result<Vec<Leftover>>,
}

/// An option of a kind of front-end as a flag.
#[derive(Debug)]
pub struct Flag {
    /// The option.
    pub option: &'static str,
    /// What stands for its value in the help.
    pub value_name: &'static str,
    /// What it does, without a full stop.
    pub help: &'static str,
}

/// What a daemon that died has left mounted.
#[derive(Debug)]
pub struct Leftover {
    /// Where.
    pub path: PathBuf,
    /// The process that was the daemon.
    pub pid: u32,
    /// What has become of it, and what to do.
    pub told: String,
}

impl ExportKind {
    /// A kind of which there is nothing to be said but its name, its table, what it is and how it begins.
    const fn new(
        name: &'static str,
        table: &'static str,
        summary: &'static str,
        bind: fn(&ExportPlan) -> Result<Bound>,
    ) -> Self {
        Self {
            name,
            table,
            summary,
            options: &[],
            flags: &[],
            whole_yard: false,
            local_kernel: false,
            check: |_| Ok(()),
            bind,
            leftovers: || Ok(Vec::new()),
        }
    }

    /// An option of an export of this kind.
    pub(crate) fn option(&self, name: &str) -> Option<&'static OptionSpec> {
        self.all_options().find(|option| option.name == name)
    }

    /// The options of an export of this kind: those of all, then its own.
    fn all_options(&self) -> impl Iterator<Item = &'static OptionSpec> {
        COMMON.iter().chain(self.options)
    }

    /// Those that `yard.toml` and the control API have.
    pub fn said_options(&self) -> impl Iterator<Item = &'static OptionSpec> {
        self.all_options().filter(|option| !option.only_at_start)
    }
}

impl fmt::Debug for ExportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for ExportKind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for ExportKind {}

/// The options that every export has.
pub static COMMON: [OptionSpec; 1] =
    [OptionSpec::new("read_only", ValueKind::Flag, "0", "refuse writes (also: ro)")];

/// The kind of that name, of those that daemons report.
#[must_use]
pub fn known(name: &str) -> Option<&'static ExportKind> {
    KINDS.iter().chain(ALONE).copied().find(|kind| kind.name == name)
}

/// The place of one of [`ALONE`] is taken by its command.
fn only_by_command(plan: &ExportPlan) -> Result<Bound> {
    unreachable!("{} cannot be an export of a yard", plan.kind.name)
}

/// The kind of that name, of those that a yard can have.
///
/// # Errors
/// There is none.
pub fn kind(name: &str) -> Result<&'static ExportKind> {
    KINDS.iter().copied().find(|kind| kind.name == name).ok_or_else(|| {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        let hint = suggest::hint(name, &names);
        Error::usage(format!("unknown kind of export {name:?}; {hint}"))
    })
}

/// The name of exports of the whole yard that were given none.
pub const WHOLE_YARD: &str = "yard";

/// An export of a disk, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPlan {
    /// Its kind.
    pub kind: &'static ExportKind,
    /// Its name, which no other of its kind has.
    pub name: String,
    /// The name of its disk; empty if it is of all.
    pub disk: String,
    /// What was said of it.
    pub settings: Settings,
}

impl ExportPlan {
    /// An export with nothing special about it.
    #[must_use]
    pub fn new(
        kind: &'static ExportKind,
        disk: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        let (name, disk) = (name.into(), disk.into());
        Self { kind, name, disk, settings: Settings::default() }
    }

    /// With an option of its kind, once.
    #[must_use]
    pub fn with(mut self, option: &'static str, value: Value) -> Self {
        match self.kind.option(option) {
            None => unreachable!("{} has no option {option}", self.kind.name),
            // What goes without saying makes no other export.
            Some(known) if known.is_default(&value) => {}
            Some(_) => {
                self.settings.set(option, value);
            }
        }
        self
    }

    /// Clients may not change it.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.settings.flag("read_only").unwrap_or(false)
    }

    /// What it is called where all kinds are listed.
    #[must_use]
    pub fn label(&self) -> String {
        if self.kind == &nbd::KIND {
            self.name.clone()
        } else {
            format!("{}:{}", self.kind.name, self.name)
        }
    }
}

/// What a front-end is opened with.
pub struct Front<'a> {
    /// What was said of it.
    pub plan: &'a ExportPlan,
    /// Its disk; all of them, if it is of the whole yard.
    pub disks: &'a [FrontDisk],
    /// The queue threads.
    pub threads: &'a [Handle],
    /// The NBD server of the yard.
    pub nbd: &'a Arc<blockyard_export_nbd::Server>,
}

/// A disk that a front-end is opened with.
pub struct FrontDisk {
    /// Its name.
    pub name: String,
    /// What was said of it.
    pub plan: Arc<DiskPlan>,
    /// The disk.
    pub open: Arc<OpenDisk>,
}

impl Front<'_> {
    /// The one disk.
    ///
    /// # Errors
    /// There is none.
    pub fn disk(&self) -> Result<&FrontDisk> {
        self.disks.first().ok_or_else(|| Error::failed("no disk to export"))
    }

    /// The one disk, as the front-end may use it.
    ///
    /// # Errors
    /// It cannot be opened so.
    pub fn bdev(&self) -> Result<Arc<Bdev>> {
        bdev(self.plan, &self.disk()?.open)
    }
}

/// A disk as a front-end with that plan may use it.
fn bdev(plan: &ExportPlan, open: &OpenDisk) -> Result<Arc<Bdev>> {
    let disk = open.disk();
    let read_only = plan.read_only() || disk.is_read_only();
    let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let failed = |err| Error::failed(format!("cannot export {}", disk.name())).caused_by(err);
    disk.open(None, mode).map(Arc::new).map_err(failed)
}

/// An export that has its place: it is opened when its disk is.
pub type Bound = Box<dyn FnOnce(&Front<'_>) -> Result<Arc<dyn Export>> + Send>;

/// Says how many requests of the clients of an export that has ended its disk has not ended yet.
pub type InFlight = Box<dyn Fn() -> usize + Send + Sync>;

/// What an export does in its own time.
pub type Doing<'a, T = ()> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An open export. Nobody is served before [`Export::start`].
pub trait Export: Send + Sync {
    /// Serves clients from now on.
    ///
    /// # Errors
    /// What keeps it from that.
    fn start(&self) -> Result<()>;

    /// Takes no new requests, if that is for it alone to say. [`Export::end`] waits for those that were taken.
    fn stop(&self) {}

    /// Ends it: requests that were taken are answered; what takes longer than `grace` is cut off. Clients that may go on for a
    /// while, as they have something to flush or a file open, have `clients` of that. It is not served any more then, whatever
    /// this says.
    ///
    /// # Errors
    /// Something of it is left, or not durable.
    fn end(&self, clients: Duration, grace: Duration) -> Doing<'_, Result<()>>;

    /// What its disk still has of its clients once it has ended, where it can end before that.
    fn in_flight(&self) -> Option<InFlight> {
        None
    }

    /// The disk has changed: its size, its medium, or whether it may be written to. Called where that happens: it must not wait.
    /// No front-end of a yard hears of it otherwise.
    fn follow(&self, _now: State) {}

    /// Waits until there is nobody more to serve; none for those that always may have another client.
    fn deserted(&self) -> Option<Doing<'_>> {
        None
    }

    /// Whether others have ended it.
    fn is_over(&self) -> bool {
        false
    }

    /// These are the disks of the yard now, for those of the whole yard: they take what is new, and let go of what is gone. May
    /// wait; not called on a queue thread.
    fn show(&self, _disks: &[FrontDisk]) {}

    /// A path that it listens at.
    fn socket(&self) -> Option<&Path> {
        None
    }

    /// What it tells of itself.
    fn report(&self) -> report::Served;
}
