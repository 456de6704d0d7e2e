//! Running a command to its end.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// How many lines of what failed tests said go into the error of a run.
const FAILURE_LINES_MAX: usize = 120;

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
/// It cannot be started, or it fails.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs tests with their output shown, all of them even if some fail. What the failed ones said is part of the
/// error, so that it stands at the end of a long run too.
///
/// # Errors
/// Cargo cannot be started, or a test fails.
pub fn run_tests(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let mut failures = Failures::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            failures.see(&line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed: {status}{}", shown(command), failures.shown());
    }
    Ok(())
}

/// The parts of libtest's output that tell of failed tests: from `failures:` to the result of the binary.
#[derive(Default)]
pub(crate) struct Failures {
    lines: Vec<String>,
    is_inside: bool,
    left_out: usize,
}

impl Failures {
    /// Takes the next line.
    pub(crate) fn see(&mut self, line: &str) {
        self.is_inside |= line == "failures:";
        if self.is_inside && self.lines.len() < FAILURE_LINES_MAX {
            self.lines.push(line.to_owned());
        } else if self.is_inside {
            self.left_out += 1;
        }
        self.is_inside &= !line.starts_with("test result:");
    }

    /// What it has seen, to stand behind an error.
    pub(crate) fn shown(&self) -> String {
        let mut text = self.lines.iter().fold(String::new(), |text, line| text + "\n" + line);
        if self.left_out > 0 {
            text += &format!("\n({} more lines above)", self.left_out);
        }
        text
    }
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
    fn the_error_of_tests_tells_which_failed_and_what_they_said() {
        let said = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nlost a write\n\n\
                    failures:\n    b\n\ntest result: FAILED. 1 passed\nanother binary";
        let script = format!("echo '{said}'; exit 101");
        let error = run_tests(Command::new("sh").args(["-c", &script])).unwrap_err().to_string();
        let error = error.split_once("101\n").unwrap().1;
        assert!(error.starts_with("failures:") && error.ends_with("1 passed"), "{error}");
        assert!(error.contains("lost a write"), "{error}");
        run_tests(Command::new("sh").args(["-c", "echo test a ... ok"])).unwrap();
    }

    #[test]
    fn endless_failures_are_cut() {
        let mut failures = Failures::default();
        failures.see("failures:");
        (0..FAILURE_LINES_MAX).for_each(|_| failures.see("panicked"));
        assert!(failures.shown().ends_with("(1 more lines above)"), "{}", failures.shown());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("/nowhere/blockyard-none")).unwrap_err();
        assert!(error.to_string().contains("blockyard-none"), "{error}");
        assert!(!succeeds(&mut Command::new("/nowhere/blockyard-none")));
    }
}
