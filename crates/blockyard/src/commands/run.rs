//! `blockyard run`: a command with a disk, which is served for as long as the command runs.

use std::process::Command;

use super::disk_uri;
use super::serve::uri_for;
use crate::cli::RunArgs;
use crate::daemon::runner::Runner;
use crate::daemon::{Daemon, Passed};
use crate::error::Result;
use crate::exports::{self, ExportPlan};
use crate::yard::plan::YardPlan;

pub(super) fn run(args: &RunArgs) -> Result<u8> {
    let mut disk = disk_uri(&args.uri)?;
    disk.options.read_only |= args.read_only;
    let mut plan = YardPlan::new(vec![disk])?;
    let name = plan.disk_name(0).to_owned();
    plan.exports.push(ExportPlan::new(&exports::nbd::KIND, &name, &name));
    plan.nbd.default_export = Some(name);
    let mut words = args.command.iter();
    // clap sees to it that there is one.
    let mut command = Command::new(words.next().cloned().unwrap_or_default());
    command.args(words);
    let runner = Runner::new(command, true)?;
    plan.nbd.listen.extend(runner.listen());
    let daemon = Daemon::start(plan, Passed::take())?;
    let uri = uri_for(&daemon, &daemon.addresses(), "");
    runner.run(daemon, &uri)
}
