//! A short run of every fuzz target.
//!
//! `cargo fuzz` works with a stable compiler when no sanitizer is asked for: safe Rust panics where C would
//! corrupt memory. A target starts from a copy of its corpus, because the engine adds to the folder that it is
//! given.

use crate::child::fresh_dir;
use crate::paths;
use crate::run::{cargo, run};
use crate::setup::Tools;
use crate::side_by_side::{self, Job, processors};
use crate::static_program::host_target;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the input may take that a fuzz target has begun when its time ends.
const LAST_INPUT_LIMIT: Duration = Duration::from_secs(120);

/// The crate of the fuzz targets, which is no member of the workspace.
pub(super) fn dir() -> PathBuf {
    paths::root().join("fuzz")
}

/// Builds all targets, then runs them, as many at a time as there are processors; a target that fails does not keep
/// the others from running.
pub(crate) fn run_all(tools: &Tools, seconds: u64) -> Result<()> {
    let targets = targets(&dir())?;
    run(tools.apply(&mut cargo(["fuzz", "build", "--sanitizer", "none"])))?;
    let built = dir().join("target").join(host_target()?).join("release");
    let mut scratch = Vec::new();
    let mut jobs = Vec::new();
    for target in targets {
        let corpus = fresh_dir()?;
        let seeds = copy_corpus(&dir().join("corpus").join(&target), corpus.path())?;
        let artifacts = dir().join("artifacts").join(&target);
        fs::create_dir_all(&artifacts)?;
        let mut command = Command::new(built.join(&target));
        command.arg(corpus.path()).arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.arg(format!("-max_total_time={seconds}"));
        command.args(["-rss_limit_mb=2048", "-verbosity=0"]);
        if let Some(seed) = std::env::var_os("BLOCKYARD_SEED") {
            command.arg(format!("-seed={}", seed.display()));
        }
        jobs.push(Job { name: format!("fuzz {target}, from {seeds} seeds"), command });
        scratch.push(corpus);
    }
    // The engine ends by itself; what it is given beside its time is for the last input.
    let limit = Duration::from_secs(seconds) + LAST_INPUT_LIMIT;
    side_by_side::run(jobs, processors(), limit)
        .context("the inputs that made fuzz targets fail are in fuzz/artifacts/")
}

/// The names of the targets: one file each in `fuzz_targets`.
fn targets(dir: &Path) -> Result<Vec<String>> {
    let folder = dir.join("fuzz_targets");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "rs") {
            names.extend(file.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    if names.is_empty() {
        bail!("{} holds no fuzz target", folder.display());
    }
    names.sort();
    Ok(names)
}

/// Copies the seeds and says how many there are.
fn copy_corpus(from: &Path, to: &Path) -> Result<usize> {
    let entries = fs::read_dir(from).with_context(|| {
        format!("cannot read {}: every fuzz target has a corpus there", from.display())
    })?;
    let mut count = 0;
    for entry in entries {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_by_their_files() {
        let dir = fresh_dir().unwrap();
        assert!(targets(dir.path()).unwrap_err().to_string().contains("fuzz_targets"));
        let folder = dir.path().join("fuzz_targets");
        fs::create_dir(&folder).unwrap();
        assert!(targets(dir.path()).is_err());
        for name in ["request.rs", "options.rs", "README.md"] {
            fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(targets(dir.path()).unwrap(), ["options", "request"]);
    }

    #[test]
    fn the_corpus_itself_is_left_alone() {
        let (corpus, scratch) = (fresh_dir().unwrap(), fresh_dir().unwrap());
        fs::write(corpus.path().join("seed"), b"NBDMAGIC").unwrap();
        assert_eq!(copy_corpus(corpus.path(), scratch.path()).unwrap(), 1);
        fs::write(scratch.path().join("found"), b"x").unwrap();
        assert_eq!(fs::read_dir(corpus.path()).unwrap().count(), 1);
        assert!(copy_corpus(&corpus.path().join("none"), scratch.path()).is_err());
    }
}
