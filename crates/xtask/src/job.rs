//! A command that is run to its end, or to its limit, with all that it says kept.

use crate::paths;
use crate::processes;
use crate::run::shown;
use crate::verdict::{Counts, reason};
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A command with a name for people.
#[derive(Debug)]
pub struct Job {
    /// What it is called.
    pub name: String,
    /// What is run, without input.
    pub command: Command,
    /// How long it may run.
    pub limit: Duration,
}

/// Where the output goes while the command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// To the terminal, as it comes.
    Live,
    /// To the terminal at the end, in one piece, and only if it fails; of one that passes a line is enough.
    IfItFails,
}

impl Job {
    /// Runs it, and says how many tests passed.
    ///
    /// # Errors
    /// It cannot be started, fails, ignores tests, or runs into its limit, at which it is killed with all that it has
    /// started: the error has the reason, briefly, and the file in which all of its output is.
    pub(crate) fn run(mut self, output: Output) -> Result<Counts> {
        let file = tempfile::tempfile().context("cannot make a file for the output")?;
        let (out, err) = (file.try_clone()?, file.try_clone()?);
        let start = Instant::now();
        let child = self.command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("cannot start `{}`", shown(&self.command)))?;
        let mut reader = Reader { file, at: 0, said: Vec::new(), output };
        let status = wait(child, self.limit, &mut reader)?;
        let said = reader.finish()?;
        let counts = Counts::of(&said);
        let problem = match status {
            Some(status) if !status.success() => status.to_string(),
            Some(_) if counts.ignored > 0 => format!("{} tests are ignored", counts.ignored),
            Some(_) => {
                self.tell_success(output, counts, start.elapsed());
                return Ok(counts);
            }
            None => format!("ran for more than {:?} and was killed", self.limit),
        };
        let took = start.elapsed().as_secs_f64();
        if output == Output::IfItFails {
            // In one piece, so that nothing of another job comes between.
            println!("$ {} ({took:.1} s): {problem}\n{said}", self.name);
        }
        let kept = keep(&self.name, &said).unwrap_or_else(|error| format!("{error:#}"));
        bail!("{}: {problem}{}\n  all of it: {kept}", self.name, reason(&said))
    }

    fn tell_success(&self, output: Output, counts: Counts, took: Duration) {
        if output == Output::IfItFails {
            let took = took.as_secs_f64();
            match counts.passed {
                0 => println!("ok {} ({took:.1} s)", self.name),
                passed => println!("ok {}: {passed} passed ({took:.1} s)", self.name),
            }
        }
    }
}

/// Waits for the end; `None` if it was not reached in time, and the child was killed.
fn wait(mut child: Child, limit: Duration, reader: &mut Reader) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        let status = child.try_wait()?;
        reader.follow()?;
        if status.is_some() {
            return Ok(status);
        }
        if Instant::now() > deadline {
            processes::kill_below(child.id());
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Follows a file that others write to.
struct Reader {
    file: File,
    at: u64,
    said: Vec<u8>,
    output: Output,
}

impl Reader {
    /// Reads what has come, if somebody wants to see it now.
    fn follow(&mut self) -> Result<()> {
        if self.output == Output::Live {
            self.read()?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let len = self.file.metadata()?.len();
        let mut new = vec![0; usize::try_from(len.saturating_sub(self.at))?];
        self.file.read_exact_at(&mut new, self.at)?;
        self.at = len;
        if self.output == Output::Live {
            std::io::stdout().write_all(&new)?;
        }
        self.said.append(&mut new);
        Ok(())
    }

    fn finish(mut self) -> Result<String> {
        self.read()?;
        Ok(String::from_utf8_lossy(&self.said).into_owned())
    }
}

/// Keeps the output of a job, and says where.
fn keep(name: &str, said: &str) -> Result<String> {
    let dir = paths::tools().join("failed");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(100).collect();
    let path = dir.join(name + ".log");
    fs::write(&path, said).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(script: &str, limit: Duration) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job { name: "a job".to_owned(), command, limit }
    }

    fn error(script: &str) -> String {
        job(script, Duration::from_secs(60)).run(Output::IfItFails).unwrap_err().to_string()
    }

    #[test]
    fn the_error_of_tests_says_why_and_where_the_rest_is() {
        let said = "test b ... FAILED\n\nfailures:\n\n---- b stdout ----\nlost a write\n\nfailures:\n    b\n\n\
                    test result: FAILED. 1 passed; 1 failed; 0 ignored;";
        let error = error(&format!("echo '{said}'; exit 101"));
        assert!(error.starts_with("a job: exit status: 101\n  b\n    lost a write\n"), "{error}");
        let (_, kept) = error.rsplit_once("all of it: ").unwrap();
        assert_eq!(fs::read_to_string(kept).unwrap().trim_end(), said);
    }

    #[test]
    fn whatever_aborts_has_its_last_words_told() {
        let error = error("echo stuck here >&2; kill -ABRT $$");
        assert!(error.contains("signal: 6") && error.contains("stuck here"), "{error}");
    }

    #[test]
    fn tests_that_are_ignored_are_no_success() {
        let error = error("echo 'test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured'");
        assert!(error.contains("2 tests are ignored"), "{error}");
    }

    #[test]
    fn what_hangs_is_ended_with_all_that_it_has_started() {
        let started = "sleep 600 & echo $!; wait";
        let error = job(started, Duration::from_secs(1)).run(Output::Live).unwrap_err().to_string();
        assert!(error.starts_with("a job: ran for more than 1s"), "{error}");
        let pid = error.lines().nth(1).unwrap().trim();
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z"), "{state}");
    }

    #[test]
    fn a_descendant_that_keeps_the_output_open_is_not_waited_for() {
        let begun = Instant::now();
        job("sleep 30 & exit 0", Duration::from_secs(600)).run(Output::Live).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
