//! `blockyard up`: a yard from a file, or a demo.

use std::path::Path;

use blockyard_export_nbd::{Address, DEFAULT_PORT};

use super::serve::{ready, uri_for};
use crate::cli::UpArgs;
use crate::daemon::{self, Daemon, Passed};
use crate::disks::{DiskPlan, PlanBuilder, Value, file, rbd};
use crate::error::{Error, Result};
use crate::exports::{self, ExportPlan};
use crate::images::demo;
use crate::text::term;
use crate::yard::config::{self, ConfigError, Needs};
use crate::yard::plan::{Listen, YardPlan};

/// The file that is taken if none is named.
const FILE: &str = "yard.toml";
/// Where the demo keeps its files.
const DEMO: &str = "yard";
/// The store of images in it.
const DEMO_STORE: &str = "images";
/// Bytes of each disk of the demo, as URIs have it.
const DEMO_SIZE: &str = "1G";

pub(super) fn run(args: &UpArgs) -> Result<()> {
    let passed = Passed::take();
    let usual = Path::new(FILE);
    let file = args.file.as_deref().or_else(|| usual.exists().then_some(usual));
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
    let plan = demo_plan(&folder)?;
    if check {
        return term::say("no yard.toml here; blockyard up would start a demo");
    }
    std::fs::create_dir_all(DEMO).map_err(|err| {
        Error::failed("cannot create the directory ./yard of the demo").caused_by(err)
    })?;
    demo::make(&folder.join(DEMO_STORE), super::size("the demo", DEMO_SIZE)?)?;
    Daemon::start(plan, passed)?.run(|daemon| {
        ready(daemon);
        // A reader of the text who has left does not end the demo.
        let _ = term::say(what_next(daemon));
    })
}

/// A RAM disk, a file, an image and a clone of its snapshot, on a socket and a port.
fn demo_plan(directory: &Path) -> Result<YardPlan> {
    let mut ram = PlanBuilder::of_uri(&format!("ram:{DEMO_SIZE}"))
        .map_err(|err| Error::usage(err.to_string()))?;
    set(&mut ram, &[("name", "ram")])?;
    let path = directory.join("disk.img");
    let mut file = PlanBuilder::new(&file::KIND);
    file.path(&path).map_err(Error::usage)?;
    let create: &[_] = if path.exists() { &[] } else { &[("create", DEMO_SIZE)] };
    set(&mut file, create)?;
    set(&mut file, &[("name", "disk")])?;
    let uri = format!("file:{}", path.display());
    let mut disks = vec![finish(ram, &format!("ram:{DEMO_SIZE}"))?, finish(file, &uri)?];
    for image in [demo::IMAGE, demo::CLONE] {
        let path = directory.join(DEMO_STORE).join(image);
        let mut builder = PlanBuilder::new(&rbd::KIND);
        builder.path(&path).map_err(Error::usage)?;
        set(&mut builder, &[("name", image)])?;
        disks.push(finish(builder, &format!("rbd+dir:{}", path.display()))?);
    }
    let mut plan = YardPlan::new(disks)?;
    let described = [
        "In memory; lost when the daemon exits",
        "In ./yard/disk.img; kept",
        "RBD image in ./yard/images, with a snapshot",
        "Clone of that snapshot",
    ];
    for (index, description) in described.into_iter().enumerate() {
        let name = plan.disk_name(index);
        let export = ExportPlan::new(&exports::nbd::KIND, name, name);
        plan.exports.push(export.with("description", Value::Text(description.into())));
    }
    plan.nbd.default_export = Some("ram".into());
    let socket = directory.join("nbd.sock");
    let tcp = Address::Tcp { host: "127.0.0.1".into(), port: DEFAULT_PORT };
    plan.nbd.listen =
        vec![Address::Unix(socket).into(), Listen { address: tcp, or_another_port: true }];
    Ok(plan)
}

fn set(builder: &mut PlanBuilder, options: &[(&str, &str)]) -> Result<()> {
    options.iter().try_for_each(|(key, value)| builder.set(key, value).map_err(Error::usage))
}

fn finish(builder: PlanBuilder, uri: &str) -> Result<DiskPlan> {
    builder.finish(uri, Path::new("")).map_err(Error::usage)
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
Two disks are served: \"ram\" in memory, \"disk\" in ./yard/disk.img. Ctrl-C stops the daemon. In another terminal:

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
  # the images, and whether the clone is still what its snapshot is
  blockyard image --dir yard/{DEMO_STORE} ls --long
  blockyard compare '{clone}' '{snapshot}'
"
    )
}
