//! `blockyard set`: a disk is changed while it is used.

use std::path::PathBuf;

use crate::cli::SetArgs;
use crate::control::client::{ask_at, ask_each};
use crate::control::{Answer, Question};
use crate::disks::{self, Value};
use crate::error::{Error, Result};
use crate::yard::report::{Daemon, DiskReport};

pub(super) fn run(args: &SetArgs) -> Result<()> {
    let changes = args.settings.iter().map(|text| change(text)).collect::<Result<Vec<_>>>()?;
    let Found { socket, pid, mut disk } = find(&args.disk)?;
    for Change { setting, value, size } in changes {
        if let Some(bytes) = size
            && bytes < disk.size
            && !args.shrink
        {
            let (name, size) = (&disk.name, disk.size);
            let what = format!("{name} has {size} bytes, and {bytes} would be less");
            return Err(
                Error::usage(what).help("add --shrink if nothing past the new end is needed")
            );
        }
        let question = Question::Set { disk: disk.name.clone(), setting, value };
        let answer = ask_at(&socket, &question)?
            .ok_or_else(|| Error::failed(format!("the daemon {pid} has ended")))?;
        answer
            .accepted()
            .map_err(|err| Error::failed(format!("cannot set {}", disk.name)).caused_by(err))?;
        if let Some(bytes) = size {
            // What comes next is compared with what it has become.
            disk.size = bytes;
        }
    }
    Ok(())
}

/// A setting that can be, and what it is to be.
struct Change {
    setting: String,
    value: String,
    /// It is the size, and this.
    size: Option<u64>,
}

/// A setting as it was typed.
fn change(text: &str) -> Result<Change> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        Error::usage(format!("{text:?} sets nothing")).help("write size=2G or read_only=1")
    })?;
    let (option, parsed) = disks::setting(key, value)?;
    let size = match parsed {
        Value::Number(bytes) if option.name == "size" => Some(bytes),
        _ => None,
    };
    Ok(Change { setting: option.name.into(), value: value.into(), size })
}

/// A disk, and the daemon that has it.
struct Found {
    socket: PathBuf,
    pid: u32,
    disk: DiskReport,
}

fn find(wanted: &str) -> Result<Found> {
    // A name may have a colon in it.
    let with_pid =
        wanted.split_once(':').and_then(|(pid, name)| Some((pid.parse::<u32>().ok()?, name)));
    let (mut found, mut by_pid) = (Vec::new(), None);
    for (socket, answer) in ask_each(&Question::Report)? {
        let Answer::Report(daemon) = answer else { continue };
        let Daemon { pid, disks, .. } = *daemon;
        for disk in disks {
            if disk.name == wanted {
                found.push(Found { socket: socket.clone(), pid, disk });
            } else if with_pid == Some((pid, &disk.name)) {
                by_pid = Some(Found { socket: socket.clone(), pid, disk });
            }
        }
    }
    if found.is_empty() {
        found.extend(by_pid);
    }
    let several = found.len() > 1;
    match found.pop() {
        None => Err(Error::failed(format!("no daemon has a disk {wanted:?}"))
            .help("see what runs: blockyard list")),
        Some(Found { pid, disk, .. }) if several => {
            let what = format!("several daemons have a disk {:?}", disk.name);
            Err(Error::usage(what).help(format!("say which, as in {pid}:{}", disk.name)))
        }
        Some(found) => Ok(found),
    }
}
