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
            if asked {
                let _ = err.print();
                return ExitCode::SUCCESS;
            }
            term::tell_painted(cli::mistakes::text(err, term::colored()).trim_end());
            return ExitCode::from(ErrorKind::Usage.exit_code());
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
