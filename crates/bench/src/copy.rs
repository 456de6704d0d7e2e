//! Copying a disk of 4 GiB, half of it holes, from one nbdkit to another. All copy by the map of the source and write
//! zeroes where it has holes; none looks for zeroes in the data, and the peers have as many requests out as serve them
//! best. What was copied is compared afterwards, by a peer.

use super::Context;
use super::measure::{Case, Contender, Goal, RATE, Sample, Target, US};
use super::servers::nbdkit_of;
use anyhow::Result;
use std::process::Command;
use std::time::Instant;
use xtask::run::capture;

const NBDCOPY: &str = "nbdcopy";
const QEMU_IMG: &str = "qemu-img convert";
/// Bytes of the disk, as people write it.
const DISK: &str = "4G";
/// The same in MiB.
const DISK_MIB: f64 = 4096.0;
/// Data and holes, 32 MiB each in turn.
const FILL: &str = "import os; b = os.urandom(32 << 20)\nfor i in range(64): h.pwrite(b, i << 26)";

/// A command that copies from the first URI to the second.
type Copier = fn(&Context, &str, &str) -> Command;

pub(super) fn cases(_: &Context) -> Vec<Case> {
    let contender =
        |name, copier: Copier| Contender::new(name, move |context| measure(context, copier));
    vec![Case {
        name: "4 GiB, half of it holes".to_owned(),
        contenders: vec![
            contender(US, |context, from, to| {
                let mut command = context.blockyard();
                command.args(["copy", from, to]);
                command
            }),
            contender(NBDCOPY, |context, from, to| {
                let mut command = context.command("nbdcopy");
                command.args(["--sparse=0", from, to]);
                command
            }),
            contender(QEMU_IMG, |context, from, to| {
                let mut command = context.qemu("qemu-img");
                command.args(["convert", "-n", "-S", "0", "-W", "-m", "16"]);
                command.args(["-f", "raw", "-O", "raw", from, to]);
                command
            }),
        ],
        targets: [NBDCOPY, QEMU_IMG]
            .map(|peer| Target { metric: RATE, goal: Goal::MinTimes(1.3, peer) })
            .to_vec(),
    }]
}

fn measure(context: &Context, copier: Copier) -> Result<Sample> {
    let (from, to) = (nbdkit_of(context, DISK)?, nbdkit_of(context, DISK)?);
    capture(context.command("nbdsh").args(["-u", &from.uri, "-c", FILL]))?;
    let begun = Instant::now();
    capture(&mut copier(context, &from.uri, &to.uri))?;
    let rate = DISK_MIB / begun.elapsed().as_secs_f64();
    let same = ["compare", "-f", "raw", "-F", "raw", &from.uri, &to.uri];
    capture(context.qemu("qemu-img").args(same))?;
    Ok(vec![(RATE, rate)])
}
