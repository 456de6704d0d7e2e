//! `share --socket`: a directory in a virtual machine, by virtiofs. Options are spelled as those of virtiofsd, too.

use std::time::Duration;

use blockyard_export_virtiofs::{self as virtiofs, Export, Listener, Prepared};
use sd_notify::NotifyState;

use super::{directory, passed_through};
use crate::cli::ShareArgs;
use crate::daemon::signals::{Signals, ended_at_once};
use crate::daemon::{block_on, extending, notify, raise_file_limit};
use crate::error::{Error, ErrorKind, Result};
use crate::text::term;

/// Request queues, unless told otherwise.
const QUEUES: u16 = 1;
/// Requests of each that are carried out at a time, unless told otherwise.
const THREADS: u16 = 4;
/// How long requests have that are being carried out at its end.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn run(args: &ShareArgs) -> Result<()> {
    // Each file that the guest has open is open here.
    let _ = raise_file_limit();
    let mut signals = Signals::with_a_last_word()?;
    let server = prepare(args)?.start();
    let shared = directory(args).display();
    match server.path() {
        Some(path) => {
            term::tell(format_args!("serving {shared} at vhost-user-fs:{}", path.display()));
        }
        None => term::tell(format_args!("serving {shared} at an inherited socket")),
    }
    notify(&[NotifyState::Ready]);
    block_on(async move {
        tokio::select! {
            () = signals.next() => {}
            // The front-end that it was started for has left.
            () = server.ended() => {}
        }
        notify(&[NotifyState::Stopping]);
        let ending = async {
            server.shutdown(GRACE).await;
            Ok(())
        };
        tokio::select! {
            ended = extending(ending) => ended,
            () = signals.second() => Err(ended_at_once()),
        }
    })
}

fn prepare(args: &ShareArgs) -> Result<Prepared> {
    let place = &args.place;
    // Before there is no umask any more: who may connect can do all that may be done to the directory.
    let listener = match (&place.socket, place.fd) {
        (Some(path), _) => virtiofs::bind(path, None),
        (None, fd) => Listener::from_passed(fd.and_then(|fd| fd.try_into().ok()).unwrap_or(-1)),
    };
    let listener = listener.map_err(error)?;
    let export = Export {
        fs: passed_through(args)?,
        tag: args.tag.clone(),
        queues: args.queues.unwrap_or(QUEUES),
        threads: args.threads.unwrap_or(THREADS),
        stop_patience: virtiofs::STOP_PATIENCE,
    };
    virtiofs::prepare(export, listener).map_err(error)
}

fn error(err: virtiofs::Error) -> Error {
    use virtiofs::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::InUse => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::Config => ErrorKind::Usage,
        Kind::Io => ErrorKind::Failed,
    };
    Error::new(kind, "cannot serve virtiofs").caused_by(err)
}
