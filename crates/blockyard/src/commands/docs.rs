//! Completions and man pages, made from the command line's own description.

use std::io;
use std::path::Path;

use super::man;
use crate::cli;
use crate::error::{Error, Result};
use crate::text::term;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "blockyard", &mut script);
    term::say(String::from_utf8_lossy(&script).trim_end())
}

pub(super) fn man(directory: Option<&Path>) -> Result<()> {
    let Some(directory) = directory else { return man::show() };
    let failed = |err: io::Error| {
        Error::failed(format!("cannot write man pages to {}", directory.display())).caused_by(err)
    };
    match std::fs::create_dir(directory) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            return Err(failed(err).help("create its parent directory, or correct the path"));
        }
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(failed(err)),
        _ => {}
    }
    man::write_all(directory).map_err(failed)
}
