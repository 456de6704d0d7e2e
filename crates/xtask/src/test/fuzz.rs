//! A short run of every fuzz target.
//!
//! `cargo fuzz` works with a stable compiler when no sanitizer is asked for: safe Rust panics where C would
//! corrupt memory. A target starts from a copy of its corpus, because the engine adds to the folder that it is
//! given.

use crate::child::fresh_dir;
use crate::paths;
use crate::run::{cargo, run};
use crate::setup::Tools;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The crate of the fuzz targets, which is no member of the workspace.
pub(super) fn dir() -> PathBuf {
    paths::root().join("fuzz")
}

/// How many run at a time: each keeps a processor busy.
const AT_ONCE: usize = 2;

/// Builds all targets, then runs them, [`AT_ONCE`] at a time; a target that fails does not keep the others from running.
pub(crate) fn run_all(tools: &Tools, seconds: u64) -> Result<()> {
    let targets = targets(&dir())?;
    run(tools.apply(&mut cargo(["fuzz", "build", "--sanitizer", "none"])))?;
    let failed = failures(&targets, |target| run_one(tools, target, seconds));
    if !failed.is_empty() {
        bail!("fuzz targets failed: {}; the inputs are in fuzz/artifacts/", failed.join(", "));
    }
    Ok(())
}

/// Those of the targets for which `run` fails, in their order.
fn failures(targets: &[String], run: impl Fn(&str) -> Result<()> + Sync) -> Vec<&str> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = Vec::new();
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = run(target) {
                println!("fuzz: {target} failed: {error:#}");
                failed.push(target.as_str());
            }
        }
        failed
    };
    let mut failed: Vec<&str> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        // A panic is ours, and goes on here.
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    failed.sort_unstable();
    failed
}

fn run_one(tools: &Tools, target: &str, seconds: u64) -> Result<()> {
    let scratch = fresh_dir()?;
    let seeds = copy_corpus(&dir().join("corpus").join(target), scratch.path())?;
    println!("fuzz: {target} from {seeds} seeds");
    let corpus = scratch.path().display().to_string();
    let limit = format!("-max_total_time={seconds}");
    let mut command = cargo([
        "fuzz",
        "run",
        "--sanitizer",
        "none",
        target,
        &corpus,
        "--",
        &limit,
        "-rss_limit_mb=2048",
        "-verbosity=0",
    ]);
    if let Some(seed) = std::env::var_os("BLOCKYARD_SEED") {
        command.arg(format!("-seed={}", seed.display()));
    }
    run(tools.apply(&mut command))
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
    fn all_run_and_those_that_fail_are_named() {
        let targets: Vec<String> = (0..7).map(|index| format!("target{index}")).collect();
        let ran = std::sync::Mutex::new(Vec::new());
        let failed = failures(&targets, |target| {
            ran.lock().unwrap().push(target.to_owned());
            if ["target1", "target4"].contains(&target) {
                bail!("it crashed")
            }
            Ok(())
        });
        assert_eq!(failed, ["target1", "target4"]);
        let mut ran = ran.into_inner().unwrap();
        ran.sort();
        assert_eq!(ran, targets);
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
