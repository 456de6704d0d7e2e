//! What the output of a command says: how many tests have run, and of those that failed the reason, briefly.

use std::fmt::Write as _;

/// Lines of one failed test: the first say where and what it was, the last what a guest or a daemon said.
const FIRST_LINES: usize = 6;
const LAST_LINES: usize = 24;
/// Bytes of a line.
const LINE_BYTES_MAX: usize = 400;
/// Tests whose reasons are told.
const TESTS_MAX: usize = 12;

/// Counts of libtest's results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that were not run because they say so.
    pub ignored: usize,
}

impl Counts {
    /// Of all the lines `test result: ok. 5 passed; 0 failed; 0 ignored; ...`.
    pub(crate) fn of(output: &str) -> Self {
        let mut counts = Self::default();
        for line in output.lines().filter(|line| line.starts_with("test result: ")) {
            let number = |name: &str| {
                let (before, _) = line.split_once(name)?;
                before.rsplit(' ').next()?.parse::<usize>().ok()
            };
            counts.passed += number(" passed;").unwrap_or(0);
            counts.failed += number(" failed;").unwrap_or(0);
            counts.ignored += number(" ignored;").unwrap_or(0);
        }
        counts
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Why a command failed, from what it has said: of each failed test its name and the ends of its output; of a binary that
/// was killed or has aborted the tests that had begun, and the last lines; of anything else the last lines.
pub(crate) fn reason(output: &str) -> String {
    let tests = failed_tests(output);
    let mut text = String::new();
    for (name, lines) in tests.iter().take(TESTS_MAX) {
        let _ = write!(text, "\n  {name}");
        push(&mut text, lines, FIRST_LINES, LAST_LINES);
    }
    if let Some(more) = tests.len().checked_sub(TESTS_MAX).filter(|&more| more > 0) {
        let _ = write!(text, "\n  and {more} more tests");
    }
    if tests.is_empty() {
        for name in unfinished(output) {
            let _ = write!(text, "\n  {name} had begun");
        }
        let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        push(&mut text, &lines, 0, LAST_LINES);
    }
    text
}

fn push(text: &mut String, lines: &[&str], first: usize, last: usize) {
    let mut push = |line: &str| {
        let end = line.floor_char_boundary(LINE_BYTES_MAX);
        let _ = write!(text, "\n    {}", &line[..end]);
    };
    if lines.len() <= first + last {
        return lines.iter().for_each(|line| push(line));
    }
    lines[..first].iter().for_each(|line| push(line));
    push(&format!("({} lines)", lines.len() - first - last));
    lines[lines.len() - last..].iter().for_each(|line| push(line));
}

/// The failed tests with what they have said: libtest prints it under `---- NAME stdout ----`, after all have run.
fn failed_tests(output: &str) -> Vec<(&str, Vec<&str>)> {
    let mut tests: Vec<(&str, Vec<&str>)> = Vec::new();
    let (mut is_inside, mut is_list) = (false, true);
    for line in output.lines() {
        let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if line == "failures:" {
            // The second time it heads a list of the names alone.
            (is_inside, is_list) = (true, is_inside);
        } else if line.starts_with("test result: ") {
            is_inside = false;
        } else if let Some(name) = name.filter(|_| is_inside) {
            is_list = false;
            tests.push((name, Vec::new()));
        } else if is_inside
            && !is_list
            && !line.trim().is_empty()
            && let Some((_, lines)) = tests.last_mut()
        {
            lines.push(line);
        }
    }
    tests
}

/// The tests that have no result.
fn unfinished(output: &str) -> Vec<&str> {
    let lines = || output.lines().filter_map(|line| line.strip_prefix("test "));
    let mut names: Vec<_> = lines()
        .filter_map(|line| {
            line.strip_suffix(" has been running for over 60 seconds")
                .or_else(|| line.strip_suffix(" ... "))
        })
        .collect();
    names.retain(|name| {
        !lines().any(|line| {
            line.strip_prefix(*name)
                .is_some_and(|rest| rest.starts_with(" ... ") && rest.len() > " ... ".len())
        })
    });
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... FAILED\n\nfailures:\n\n\
                       ---- b stdout ----\n\nthread 'b' panicked at b.rs:1:2:\nlost a write\n\n\
                       ---- c stdout ----\nthread 'c' panicked at c.rs:3:4:\n";

    #[test]
    fn tests_are_counted_over_all_binaries() {
        let said = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured";
        assert_eq!(Counts::of(said), Counts { passed: 8, failed: 2, ignored: 1 });
        assert_eq!(Counts::of("no tests"), Counts::default());
    }

    #[test]
    fn each_failed_test_tells_its_reason_from_both_ends() {
        let long: String = (0..500).map(|n| format!("line {n}\n")).collect();
        let said = format!(
            "{TWO}{long}the end of it\n\nfailures:\n    b\n    c\n\ntest result: FAILED. 1 passed;"
        );
        let reason = reason(&said);
        for part in ["  b\n", "lost a write", "c.rs:3:4", "line 0", "line 499", "the end of it"] {
            assert!(reason.contains(part), "{part:?} is not in {reason}");
        }
        assert!(!reason.contains("line 100\n") && reason.contains("(472 lines)"), "{reason}");
        assert!(!reason.contains("test result"), "{reason}");
    }

    #[test]
    fn a_binary_that_aborts_says_what_it_was_at() {
        let said = "running 2 tests\ntest quick ... ok\n\
                    test stuck has been running for over 60 seconds\ntest other has been running for over 60 seconds\n\
                    test other ... ok\nqueue 0 holds 3 requests\n";
        let reason = reason(said);
        assert!(reason.contains("stuck had begun") && !reason.contains("other had"), "{reason}");
        assert!(reason.ends_with("queue 0 holds 3 requests"), "{reason}");
    }

    #[test]
    fn much_is_cut() {
        let line = "ü".repeat(LINE_BYTES_MAX);
        let said = format!("{line}\n").repeat(100);
        assert!(reason(&said).len() < (LAST_LINES + 1) * (LINE_BYTES_MAX + 10));
    }
}
