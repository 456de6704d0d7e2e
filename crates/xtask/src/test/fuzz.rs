//! A short run of every fuzz target.
//!
//! `cargo fuzz` works with a stable compiler when no sanitizer is asked for: safe Rust panics where C would
//! corrupt memory. A target starts from a copy of its corpus, because the engine adds to the folder that it is
//! given.

use crate::child::fresh_dir;
use crate::job::Job;
use crate::paths;
use crate::run::{cargo, run};
use crate::setup::Tools;
use crate::side_by_side::{self, processors};
use crate::static_program::host_target;
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long one input may take. Longer, and the engine writes it down as one that hangs.
const INPUT_SECONDS: u64 = 30;
/// How much is told of an input that failed.
const ARTIFACT_BYTES_MAX: usize = 512;

/// The crate of the fuzz targets, which is no member of the workspace.
pub(super) fn dir() -> PathBuf {
    paths::root().join("fuzz")
}

/// Builds all targets, then runs them, as many at a time as there are processors; a target that fails does not keep
/// the others from running.
pub(crate) fn run_all(tools: &Tools, seconds: u64, deadline: Instant) -> Result<()> {
    let targets = targets(&dir())?;
    let target_dir = dir().join("target");
    let mut build = cargo(["fuzz", "build", "--sanitizer", "none", "--target-dir"]);
    run(tools.apply(build.arg(&target_dir)))?;
    let built = target_dir.join(host_target()?).join("release");
    // One that the user gives is for a single target, whose name is in the error.
    let seed = match std::env::var("BLOCKYARD_SEED") {
        Ok(seed) => seed.parse().context("BLOCKYARD_SEED is not a 32-bit number")?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos().max(1),
    };
    // The engine ends by itself; what it is given beside its time is for the last input.
    let limit = Duration::from_secs(seconds + 2 * INPUT_SECONDS);
    let (mut scratch, begun) = (Vec::new(), SystemTime::now());
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
        command.env("RUST_BACKTRACE", "0");
        command.arg(format!("-timeout={INPUT_SECONDS}")).arg(format!("-seed={seed}"));
        let name = format!("fuzz {target}, from {seeds} inputs, BLOCKYARD_SEED={seed}");
        jobs.push(Job { name, command, limit });
        scratch.push(corpus);
    }
    let result = side_by_side::run(jobs, processors(), deadline);
    result.map(drop).with_context(|| artifacts(&dir().join("artifacts"), begun))
}

/// The inputs that made targets fail, in full where they are short: a machine of CI keeps no files.
fn artifacts(dir: &Path, since: SystemTime) -> String {
    let targets = fs::read_dir(dir).into_iter().flatten().flatten();
    let files =
        targets.flat_map(|target| fs::read_dir(target.path()).into_iter().flatten().flatten());
    let mut text = format!("the inputs that made fuzz targets fail are in {}", dir.display());
    let is_new = |file: &fs::DirEntry| {
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| modified >= since)
    };
    for file in files.filter(is_new) {
        let bytes = fs::read(file.path()).unwrap_or_default();
        let hex: String =
            bytes.iter().take(ARTIFACT_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
        let _ = write!(text, "\n  {} ({} bytes): {hex}", file.path().display(), bytes.len());
    }
    text + "\n"
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
