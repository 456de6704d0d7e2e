//! The commands: from the command line to a plan, from the plan to what is done.

pub(crate) mod add;
mod attach;
mod bench;
mod check;
mod compare;
mod copy;
mod docs;
mod fault;
mod found;
mod image;
mod info;
mod interrupt;
mod list;
mod man;
mod map;
mod mount;
mod rados;
mod run;
pub(crate) mod serve;
mod set;
mod share;
mod up;
mod vhost_user_blk;

use blockyard_driver_nbd::TlsFiles;

use crate::attach::usage::try_claim;
use crate::cli::{Cli, ClientTlsArgs, Command};
use crate::disks::{DiskPlan, TlsTaken};
use crate::error::{Error, Result};
use crate::yard::queue_threads::QueueThreads;

/// The exit code of a predicate whose answer is no.
pub const NO: u8 = 2;

/// Does what the command line says, and returns the exit code.
///
/// # Errors
/// Whatever keeps it from being done.
pub fn run(cli: Cli) -> Result<u8> {
    // Before anybody leaves the working directory. Whoever needs it says why there is none.
    let _ = crate::api::runtime_dir();
    match cli.command {
        Command::Up(args) => up::run(&args).map(|()| 0),
        Command::Serve(args) => serve::run(&args),
        Command::Share(args) => share::run(&args).map(|()| 0),
        Command::Mount(args) => mount::run(&args).map(|()| 0),
        Command::Attach(args) => attach::attach(*args, cli.verbose),
        Command::Detach(args) => attach::detach(&args).map(|()| 0),
        Command::Recover(args) => attach::recover(&args, cli.verbose),
        Command::LookAt { device, claim: true, .. } => try_claim(&device).map(|()| 0),
        Command::LookAt { device, read_only, .. } => {
            attach::look_at(&device, read_only).map(|()| 0)
        }
        Command::VhostUserBlk(args) => vhost_user_blk::run(&args).map(|()| 0),
        Command::List(args) => list::run(args).map(|()| 0),
        Command::Set(args) => set::run(&args).map(|()| 0),
        Command::Fault(args) => fault::run(&args).map(|()| 0),
        Command::Add(args) => add::add(&args).map(|()| 0),
        Command::Remove(args) => add::remove(&args).map(|()| 0),
        Command::Info(args) => info::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Rados(args) => rados::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Copy(args) => copy::run(args).map(|()| 0),
        Command::Compare(args) => compare::run(args),
        Command::Map(args) => map::run(args).map(|()| 0),
        Command::Check(args) => check::run(args),
        Command::Run(args) => run::run(&args),
        Command::Completions { shell } => docs::completions(shell).map(|()| 0),
        Command::Man { directory } => docs::man(directory.as_deref()).map(|()| 0),
    }
}

/// A disk URI from the command line.
pub(crate) fn disk_uri(text: &str) -> Result<DiskPlan> {
    text.parse()
        .map_err(|err: crate::disks::uri::UriError| Error::usage(format!("invalid disk URI {err}")))
}

/// The disks of a command, with the files of TLS that it was given. Those are not for nothing: one of the disks speaks TLS.
fn with_tls<const N: usize>(
    mut plans: [DiskPlan; N],
    args: ClientTlsArgs,
) -> Result<[DiskPlan; N]> {
    let files = TlsFiles::from(args);
    if files == TlsFiles::default() {
        return Ok(plans);
    }
    let mut secure = None;
    let mut taken = false;
    for plan in &mut plans {
        match plan.take_tls(&files)? {
            TlsTaken::Yes => taken = true,
            TlsTaken::OnlyBy(uri) => secure = secure.or(Some(uri)),
            TlsTaken::NoServer => {}
        }
    }
    if taken {
        return Ok(plans);
    }
    let what = "TLS files are given, but the URI does not use TLS";
    Err(Error::usage(what).help(match secure {
        Some(uri) => format!("use '{uri}'"),
        None => "omit them: they are for NBD servers".into(),
    }))
}

/// The same of one disk.
fn one_with_tls(plan: DiskPlan, args: ClientTlsArgs) -> Result<DiskPlan> {
    with_tls([plan], args).map(|[plan]| plan)
}

/// Queue threads: as many as there are CPUs, unless told otherwise.
fn threads(wanted: Option<u16>) -> usize {
    wanted.map_or_else(QueueThreads::default_count, usize::from)
}

/// A size from the command line.
fn size(flag: &str, text: &str) -> Result<u64> {
    crate::text::size::parse(text).map_err(|problem| Error::usage(format!("{flag}: {problem}")))
}
