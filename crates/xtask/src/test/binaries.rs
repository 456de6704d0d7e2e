//! The test binaries of the workspace, built by one call of cargo.

use crate::job::Job;
use crate::run::{capture, shown};
use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message, Package};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long the tests of one binary, or one test in a laboratory, may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// A binary of tests: those of a library, of a program, or of a file in `tests`.
#[derive(Clone, Debug)]
pub(super) struct TestBinary {
    /// Its package.
    pub package: String,
    /// The name of its target.
    pub target: String,
    /// Whether it is a file or folder of `tests`.
    pub is_integration: bool,
    executable: PathBuf,
    directory: PathBuf,
}

impl TestBinary {
    /// Runs it as cargo does: in the directory of its package.
    pub(super) fn job(&self, args: &[String]) -> Job {
        let mut command = self.command();
        // What failed is told without the frames of the harness: they bury the reason.
        command.args(args).env("RUST_BACKTRACE", "0");
        Job { name: self.name(), command, limit: LIMIT }
    }

    /// A job for each of its tests that these arguments choose.
    ///
    /// # Errors
    /// It cannot say which tests it has.
    pub(super) fn jobs(&self, args: &[String]) -> Result<Vec<Job>> {
        let listed = capture(self.command().args(args).args(["--list", "--format=terse"]))?;
        let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        let jobs = names.map(|name| {
            let mut job = self.job(&[]);
            job.command.args(["--exact", name]);
            job.name = format!("{} {name}", self.name());
            job
        });
        Ok(jobs.collect())
    }

    fn name(&self) -> String {
        format!("{} {}", self.package, self.target)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command
    }

    fn of(artifact: &Artifact, packages: &[Package]) -> Option<Self> {
        let executable = artifact.executable.as_ref().filter(|_| artifact.profile.test)?;
        let package = packages.iter().find(|package| package.id == artifact.package_id)?;
        Some(Self {
            package: package.name.to_string(),
            target: artifact.target.name.clone(),
            is_integration: artifact.target.is_test(),
            executable: executable.into(),
            directory: package.manifest_path.parent()?.into(),
        })
    }
}

/// What was built.
#[derive(Debug)]
pub(super) struct Built {
    /// The binaries of tests.
    pub tests: Vec<TestBinary>,
    /// The programs that they run, by their names.
    programs: Vec<(String, PathBuf)>,
}

impl Built {
    /// A program of the workspace.
    pub(super) fn program(&self, name: &str) -> Option<&Path> {
        let found = self.programs.iter().find(|(program, _)| program == name);
        found.map(|(_, path)| path.as_path())
    }
}

/// Has `cargo test --no-run` build, and says what came of it.
///
/// # Errors
/// The build fails, or there are no tests.
pub(super) fn build(command: &mut Command, packages: &[Package]) -> Result<Built> {
    command.args(["--no-run", "--message-format=json-render-diagnostics"]);
    eprintln!("$ {}", shown(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let (mut tests, mut programs) = (Vec::new(), Vec::new());
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Message::CompilerArtifact(artifact) = message? {
                tests.extend(TestBinary::of(&artifact, packages));
                if let Some(path) = artifact.executable.filter(|_| !artifact.profile.test) {
                    programs.push((artifact.target.name, path.into()));
                }
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    if tests.is_empty() {
        bail!("`{}` built no tests", shown(command));
    }
    Ok(Built { tests, programs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_runs_in_the_directory_of_its_package() {
        let directory = tempfile::tempdir().unwrap();
        let binary = TestBinary {
            package: "blockyard-ram".to_owned(),
            target: "suite".to_owned(),
            is_integration: true,
            executable: "/bin/pwd".into(),
            directory: directory.path().into(),
        };
        let mut job = binary.job(&[]);
        assert_eq!(job.name, "blockyard-ram suite");
        let said = String::from_utf8(job.command.output().unwrap().stdout).unwrap();
        assert_eq!(said.trim_end(), directory.path().to_str().unwrap());
    }

    #[test]
    fn each_test_is_a_job_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let executable = directory.path().join("tests");
        std::fs::write(
            &executable,
            "#!/bin/sh\necho a::b: test\necho c: test\necho d: benchmark\n",
        )
        .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&executable, mode).unwrap();
        let binary = TestBinary {
            package: "blockyard".to_owned(),
            target: "vm".to_owned(),
            is_integration: true,
            executable,
            directory: directory.path().into(),
        };
        let jobs = binary.jobs(&[]).unwrap();
        let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["blockyard vm a::b", "blockyard vm c"]);
        let args: Vec<_> = jobs[1].command.get_args().collect();
        assert_eq!(args, ["--exact", "c"]);
    }

    #[test]
    fn a_build_without_tests_is_an_error() {
        let error = build(&mut Command::new("true"), &[]).unwrap_err().to_string();
        assert!(error.contains("built no tests"), "{error}");
    }
}
