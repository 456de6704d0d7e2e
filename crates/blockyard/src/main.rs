//! The `blockyard` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use blockyard::cli::{self, logging};
use blockyard::text::term;
use blockyard::{ErrorKind, commands};

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version are what was asked for.
            let asked = !err.use_stderr();
            let _ = err.print();
            let code = if asked { 0 } else { ErrorKind::Usage.exit_code() };
            return ExitCode::from(code);
        }
    };
    let result =
        logging::start(cli.verbose, cli.command.is_daemon()).and_then(|()| commands::run(cli));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            term::tell_error(&err);
            ExitCode::from(err.kind().exit_code())
        }
    }
}
