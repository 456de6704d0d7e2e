//! `blockyard up`: a yard from a file, or a demo.

use std::path::Path;

use blockyard_export_nbd::{Address, DEFAULT_PORT};

use super::serve::{ready, uri_for};
use crate::api::client::values_of_all;
use crate::cli::UpArgs;
use crate::daemon::{self, Daemon, Passed};
use crate::error::{Error, ErrorKind, Result};
use crate::images::demo;
use crate::text::term;
use crate::yard::config::{self, ConfigError, Needs};
use crate::yard::plan::YardPlan;
use crate::yard::report;

/// The file that is taken if none is named.
const FILE: &str = "yard.toml";
/// Where the demo keeps its files.
const DEMO: &str = "yard";
/// The store of images in it.
const DEMO_STORE: &str = "images";
/// Bytes of each disk of the demo, as URIs have it.
const DEMO_SIZE: &str = "1G";
/// The socket of the demo.
const DEMO_SOCKET: &str = "nbd.sock";
/// The configuration of the demo.
const DEMO_YARD: &str = include_str!("demo.toml");

pub(super) fn run(args: &UpArgs) -> Result<()> {
    let passed = Passed::take();
    let usual = Path::new(FILE);
    let named = args.file.as_deref().or(args.path.as_deref());
    let file = named.or_else(|| usual.exists().then_some(usual));
    let Some(file) = file else { return demo(args.check, passed) };
    let plan = load(file, Needs::Clients)?;
    if args.check {
        daemon::check(&plan)?;
        let (disks, exports) = (plan.disks.len(), plan.exports.len());
        return term::say(format_args!(
            "{}: OK ({disks} disks, {exports} exports)",
            file.display()
        ));
    }
    Daemon::start(plan, passed)?.run(ready)
}

/// The plan of a file, whose mistakes are shown.
pub(super) fn load(file: &Path, needs: Needs) -> Result<YardPlan> {
    config::load_for(file, needs).map_err(|err| match err {
        ConfigError::Unreadable(err) => err,
        ConfigError::Mistakes(mistakes) => {
            term::tell_painted(mistakes.render(term::colored()));
            Error::usage(format!("invalid configuration: {}", file.display()))
        }
    })
}

fn demo(check: bool, passed: Passed) -> Result<()> {
    let folder = std::path::absolute(DEMO)
        .map_err(|err| Error::failed("cannot determine the working directory").caused_by(err))?;
    if check {
        return term::say("no yard.toml here; blockyard up would start a demo");
    }
    std::fs::create_dir_all(DEMO).map_err(|err| {
        Error::failed("cannot create the directory ./yard of the demo").caused_by(err)
    })?;
    let file = folder.join(FILE);
    let is_own = configure(&file)?;
    let mut plan = load(&file, Needs::Clients)?;
    for listen in &mut plan.nbd.listen {
        listen.or_another_port = matches!(listen.address, Address::Tcp { port: DEFAULT_PORT, .. });
    }
    if is_own {
        demo::make(&folder.join(DEMO_STORE), super::size("the demo", DEMO_SIZE)?)?;
    }
    Daemon::start(plan, passed).map_err(|err| already_running(err, &folder))?.run(|daemon| {
        ready(daemon);
        if is_own {
            // A reader of the text who has left does not end the demo.
            let _ = term::say(what_next(daemon));
        }
    })
}

/// The configuration of the demo is in its directory, to be edited; whether it is still as it was written.
fn configure(file: &Path) -> Result<bool> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text == DEMO_YARD),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            std::fs::write(file, DEMO_YARD).map_err(|err| {
                Error::failed(format!("cannot write {}", file.display())).caused_by(err)
            })?;
            Ok(true)
        }
        Err(err) => Err(Error::failed(format!("cannot read {}", file.display())).caused_by(err)),
    }
}

/// If it is the demo itself that has its sockets, that is said.
fn already_running(err: Error, folder: &Path) -> Error {
    if err.kind() != ErrorKind::Busy {
        return err;
    }
    let socket = Address::Unix(folder.join(DEMO_SOCKET)).to_string();
    let daemons = values_of_all::<report::Daemon>("/v1/daemon").unwrap_or_default();
    let running = daemons.iter().find(|(_, daemon)| daemon.nbd.listen.contains(&socket));
    match running {
        Some((_, daemon)) => Error::new(
            ErrorKind::Busy,
            format!("the demo in ./{DEMO} is already running (PID {})", daemon.pid),
        )
        .help("list daemons and disks: blockyard list"),
        None => err,
    }
}

/// What to do next, ready to paste.
fn what_next(daemon: &Daemon) -> String {
    let addresses = daemon.addresses();
    let (ram, disk) = (uri_for(daemon, &addresses, "ram"), uri_for(daemon, &addresses, "disk"));
    let clone = uri_for(daemon, &addresses, demo::CLONE);
    let snapshot = format!("rbd+dir:yard/{DEMO_STORE}/{}@{}", demo::IMAGE, demo::SNAPSHOT);
    let tcp: Vec<_> = addresses
        .iter()
        .filter(|address| matches!(address, Address::Tcp { .. }))
        .cloned()
        .collect();
    let over_tcp = uri_for(daemon, &tcp, "ram");
    format!(
        "
The disks of ./yard/yard.toml are served: \"ram\" in memory, \"disk\" in ./yard/disk.img, an RBD image and a clone of its
snapshot in ./yard/images. Ctrl-C stops the daemon. In another terminal:

  # list, inspect and benchmark
  blockyard list
  blockyard info '{ram}'
  blockyard bench '{ram}' --rw randread --depth 32
  nbdinfo '{over_tcp}'
  # random writes, verified
  fio --name=try --ioengine=nbd --uri='{ram}' --rw=randwrite --bs=4k --iodepth=32 --size=64M --verify=crc32c --verify_state_save=0
  # copy ram to disk, disk to a file, and back
  nbdcopy '{ram}' '{disk}'
  nbdcopy '{disk}' /tmp/disk.img
  qemu-img convert -n -f raw -O raw /tmp/disk.img '{disk}'
  # list the images, and compare the clone with its snapshot
  blockyard image --dir yard/{DEMO_STORE} ls --long
  blockyard compare '{clone}' '{snapshot}'

To change the disks, stop the daemon, edit ./yard/yard.toml, and run: blockyard up -f yard/yard.toml
"
    )
}
