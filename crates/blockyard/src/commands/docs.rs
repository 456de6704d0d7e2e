//! Completions and man pages, made from the command line's own description.

use std::io;
use std::path::Path;

use crate::cli;
use crate::error::{Error, Result};
use crate::text::term;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "blockyard", &mut script);
    term::say(String::from_utf8_lossy(&script).trim_end())
}

pub(super) fn man(directory: Option<&Path>) -> Result<()> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(cli::command()).render(&mut page);
        rendered.map_err(|err| Error::failed("cannot create the man page").caused_by(err))?;
        return term::say(String::from_utf8_lossy(&page).trim_end());
    };
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
    clap_mangen::generate_to(cli::command(), directory).map_err(failed)
}
