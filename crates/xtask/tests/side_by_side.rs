//! Jobs beside each other. In a process of its own: whoever looks for children that are left behind takes those of
//! other tests for such.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use xtask::job::Job;
use xtask::side_by_side;
use xtask::verdict::Counts;

const LIMIT: Duration = Duration::from_secs(60);

fn run(jobs: Vec<Job>, at_a_time: usize) -> anyhow::Result<Counts> {
    side_by_side::run(jobs, at_a_time, Instant::now() + LIMIT)
}

fn job(name: &str, script: &str) -> Job {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Job { name: name.to_owned(), command, limit: LIMIT }
}

#[test]
fn all_run_although_one_fails_and_the_error_says_which_and_why() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("ran");
    let failing = "echo lost a write; exit 3";
    let jobs = vec![job("first", failing), job("second", &format!("touch {}", mark.display()))];
    let error = run(jobs, 1).unwrap_err().to_string();
    assert!(error.starts_with("1 of 2 failed\nfirst: exit status: 3"), "{error}");
    assert!(error.contains("lost a write") && !error.contains("second"), "{error}");
    assert!(mark.exists());
}

#[test]
fn jobs_run_at_the_same_time_and_their_tests_are_summed_up() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    // Each waits for what the other does.
    let meet = |mine: &str, other: &str| {
        let (mine, other) = (path(mine), path(other));
        let result = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored;'";
        format!("touch {mine}; until [ -e {other} ]; do sleep 0.01; done; {result}")
    };
    let jobs = vec![job("a", &meet("a", "b")), job("b", &meet("b", "a"))];
    assert_eq!(run(jobs, 2).unwrap().passed, 4);
}

#[test]
fn a_file_and_a_mount_that_are_left_behind_are_a_failure_and_are_gone() {
    let _alone = alone();
    let script = "mkdir $TMPDIR/m && mount -t tmpfs none $TMPDIR/m && echo $TMPDIR > $TMPDIR/file";
    let jobs = vec![job("tidy", "touch $TMPDIR/a; rm $TMPDIR/a"), job("sly", script)];
    let error = run(jobs, 2).unwrap_err().to_string();
    assert!(error.starts_with("0 of 2 failed\nleft behind by sly: a mount on "), "{error}");
    assert!(error.contains("/1/file") && !error.contains("by tidy"), "{error}");
    let place = error.split_once("a mount on ").unwrap().1.lines().next().unwrap();
    assert!(!std::path::Path::new(place).exists(), "{place}");
}

#[test]
fn a_process_that_is_left_behind_is_a_failure_and_is_gone() {
    let _alone = alone();
    let error = run(vec![job("sly", "setsid sleep 600 & exit 0")], 1).unwrap_err().to_string();
    assert!(error.starts_with("0 of 1 failed\nleft behind: process "), "{error}");
    let pid = error.split_once("process ").unwrap().1.split_once(':').unwrap().0;
    assert!(!std::path::Path::new(&format!("/proc/{pid}/cmdline")).exists());
    assert!(error.ends_with("sleep 600"), "{error}");
}

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn at_the_deadline_what_runs_is_ended_and_what_is_known_is_told() {
    let _alone = alone();
    let jobs = vec![job("quick", "exit 3"), job("slow", "sleep 600"), job("next", "sleep 600")];
    let deadline = Instant::now() + Duration::from_secs(1);
    let error = side_by_side::run(jobs, 1, deadline).unwrap_err().to_string();
    assert!(error.starts_with("3 of 3 failed\nquick: exit status: 3"), "{error}");
    assert!(error.contains("slow: ran for more than") && error.contains("next: ran"), "{error}");
}
