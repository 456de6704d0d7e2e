//! `blockyard vhost-user-blk`: one disk of a virtual machine, started as QEMU and libvirt start such programs
//! (docs/interop/vhost-user.rst of QEMU, "Backend program conventions").

use super::disk_uri;
use super::serve::ready;
use crate::cli::VhostUserBlkArgs;
use crate::daemon::{Daemon, Passed};
use crate::disks::Value;
use crate::error::{Error, Result};
use crate::exports::ExportPlan;
use crate::exports::vhost_user_blk::{FD, KIND};
use crate::text::term;
use crate::yard::plan::YardPlan;

pub(super) fn run(args: &VhostUserBlkArgs) -> Result<()> {
    if args.print_capabilities {
        // "Other options and arguments should be ignored."
        return term::say_json(&serde_json::json!({
            "type": "block",
            "features": ["read-only", "blk-file"],
        }));
    }
    let Some(uri) = &args.blk_file else {
        return Err(
            Error::usage("--blk-file is missing").help("add --blk-file=PATH or --blk-file=URI")
        );
    };
    let (option, place) = match (&args.socket_path, args.fd) {
        (Some(path), None) => ("socket", Value::Path(path.clone())),
        (None, Some(fd)) => (FD, Value::Number(fd.into())),
        _ => {
            return Err(Error::usage("--socket-path or --fd is missing")
                .help("add --socket-path=PATH or --fd=FDNUM"));
        }
    };
    let mut disk = disk_uri(uri)?;
    disk.options.read_only |= args.read_only;
    let mut plan = YardPlan::new(vec![disk])?;
    let name = plan.disk_name(0).to_owned();
    plan.exports.push(ExportPlan::new(&KIND, &name, &name).with(option, place));
    Daemon::start(plan, Passed::take())?.run(ready)
}
