//! `blockyard vhost-user-blk`: one disk of a virtual machine, started as QEMU and libvirt start such programs
//! (docs/interop/vhost-user.rst of QEMU, "Backend program conventions").

use super::disk_uri;
use super::serve::ready;
use crate::cli::VhostUserBlkArgs;
use crate::daemon::{Daemon, Passed};
use crate::error::{Error, Result};
use crate::text::term;
use crate::yard::plan::{VhostUserListen, VhostUserPlan, YardPlan};

pub(super) fn run(args: &VhostUserBlkArgs) -> Result<()> {
    if args.print_capabilities {
        // "Other options and arguments should be ignored."
        return term::say_json(&serde_json::json!({
            "type": "block",
            "features": ["read-only", "blk-file"],
        }));
    }
    let Some(uri) = &args.blk_file else {
        return Err(Error::usage("which disk?").help("add --blk-file=PATH; a URI will do, too"));
    };
    let listen = match (&args.socket_path, args.fd) {
        (Some(path), None) => VhostUserListen::Path(path.clone()),
        (None, Some(fd)) => VhostUserListen::Passed(fd),
        _ => {
            return Err(Error::usage("where does the front-end connect to?")
                .help("add --socket-path=PATH or --fd=FDNUM, one of them"));
        }
    };
    let mut disk = disk_uri(uri)?;
    disk.options.read_only |= args.read_only;
    let mut plan = YardPlan::new(vec![disk])?;
    plan.vhost_user.push(VhostUserPlan::new(0, listen));
    Daemon::start(plan, Passed::take())?.run(ready)
}
