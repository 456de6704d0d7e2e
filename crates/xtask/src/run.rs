//! Running a command to its end.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::job::{Job, Output};
use crate::verdict::Counts;

/// No command takes longer: one that does hangs.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// `cargo` with these arguments, in the root of the repository.
pub fn cargo<I: IntoIterator<Item: AsRef<OsStr>>>(args: I) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(crate::paths::root());
    command
}

/// The command as a person would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    command.get_args().fold(name, |line, arg| line + " " + &arg.to_string_lossy())
}

/// Runs the command with its output shown and without input.
///
/// # Errors
/// It cannot be started, fails, or runs for more than an hour; the end of what it said is part of the error.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    live(command).map(drop)
}

/// Runs tests with their output shown.
///
/// # Errors
/// As of [`run`], or there are no tests of these names; why each test failed is part of the error.
pub fn run_tests(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    if live(command)?.passed == 0 {
        bail!("`{}` ran no tests", shown(command));
    }
    Ok(())
}

fn live(command: &mut Command) -> Result<Counts> {
    let name = shown(command);
    let command = std::mem::replace(command, Command::new("true"));
    Job { name, command, limit: LIMIT }.run(Output::Live)
}

/// Runs the command without input and returns what it wrote to stdout.
///
/// # Errors
/// It cannot be started, or it fails; what it wrote to stderr is part of the error.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", shown(command), output.status, said.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the command starts and succeeds; what it says is not shown.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_what_the_command_said() {
        let error =
            capture(Command::new("sh").args(["-c", "echo no such disk >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("no such disk"), "{error}");
        assert!(error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn a_run_of_no_tests_is_no_success() {
        let said =
            |passed| format!("echo 'test result: ok. {passed} passed; 0 failed; 0 ignored;'");
        run_tests(Command::new("sh").args(["-c", &said(1)])).unwrap();
        let error = run_tests(Command::new("sh").args(["-c", &said(0)])).unwrap_err().to_string();
        assert!(error.contains("ran no tests"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("/nowhere/blockyard-none")).unwrap_err();
        assert!(error.to_string().contains("blockyard-none"), "{error}");
        assert!(!succeeds(&mut Command::new("/nowhere/blockyard-none")));
    }
}
