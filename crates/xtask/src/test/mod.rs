//! `cargo xtask test`: every check that a change must pass, one part after another, and what came of each.

mod binaries;
pub(crate) mod fuzz;
mod parts;

use crate::cli::TestOptions;
use crate::setup::{self, Tools};
use anyhow::{Result, bail};
use parts::{PARTS, Part};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How a part ended.
struct Outcome {
    part: &'static Part,
    error: Option<anyhow::Error>,
    took: Duration,
}

/// Runs the parts that were asked for, goes on after one that fails, and sums up.
///
/// # Errors
/// A part is named that does not exist, or a single part was asked for and its setup fails.
pub fn run(options: &TestOptions) -> Result<ExitCode> {
    if options.list {
        for part in PARTS {
            println!("{:<10} {}", part.name, part.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&options.part)?;
    let mut outcomes = Vec::new();
    let tools = prepare(&chosen, &mut outcomes);
    let context = parts::Context::new(tools, options)?;
    for part in chosen.into_iter().filter(|part| part.name != parts::SETUP) {
        outcomes.push(timed(part, || (part.run)(&context)));
    }
    Ok(summarize(&outcomes))
}

fn choose(names: &[String]) -> Result<Vec<&'static Part>> {
    if let Some(unknown) =
        names.iter().find(|name| PARTS.iter().all(|part| part.name != name.as_str()))
    {
        let known: Vec<_> = PARTS.iter().map(|part| part.name).collect();
        bail!("no part `{unknown}`; supported: {}", known.join(" "));
    }
    Ok(PARTS
        .iter()
        .filter(|part| names.is_empty() || names.iter().any(|name| name == part.name))
        .collect())
}

/// Setup runs first if it, or a part that cannot do without, was chosen. It counts as a part only if it was
/// chosen or failed.
fn prepare(chosen: &[&'static Part], outcomes: &mut Vec<Outcome>) -> Option<Tools> {
    let is_chosen = chosen.iter().any(|part| part.name == parts::SETUP);
    if !is_chosen && chosen.iter().all(|part| !part.needs_setup) {
        return None;
    }
    let mut tools = None;
    let outcome = timed(&PARTS[0], || {
        tools = Some(setup::ensure()?);
        Ok(())
    });
    if is_chosen || outcome.error.is_some() {
        outcomes.push(outcome);
    }
    tools
}

fn timed(part: &'static Part, run: impl FnOnce() -> Result<()>) -> Outcome {
    println!("\n== {}: {}", part.name, part.about);
    let start = Instant::now();
    let error = run().err();
    if error.is_some() {
        println!("== {} failed; why is said at the end", part.name);
    }
    Outcome { part, error, took: start.elapsed() }
}

fn summarize(outcomes: &[Outcome]) -> ExitCode {
    println!("\n{:<10} {:<6} {:>8}", "part", "result", "seconds");
    for outcome in outcomes {
        let result = if outcome.error.is_some() { "FAILED" } else { "passed" };
        println!("{:<10} {result:<6} {:>8.1}", outcome.part.name, outcome.took.as_secs_f64());
    }
    let took: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    println!("{:<10} {:<6} {:>8.1}", "all", "", took.as_secs_f64());
    for outcome in outcomes {
        if let Some(error) = &outcome.error {
            println!(
                "\n{} failed: {error:#}\nrun it alone: cargo xtask test --part {0}",
                outcome.part.name
            );
        }
    }
    let failed = outcomes.iter().filter(|outcome| outcome.error.is_some()).count();
    println!("\n{} passed, {failed} failed", outcomes.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_part_is_refused_with_the_known_ones() {
        let error = choose(&["e2".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`e2`") && error.contains("e2e"), "{error}");
    }

    #[test]
    fn parts_run_in_the_order_of_the_table() {
        let chosen = choose(&["unit".to_owned(), "fmt".to_owned()]).unwrap();
        assert_eq!(chosen.iter().map(|part| part.name).collect::<Vec<_>>(), ["fmt", "unit"]);
        assert_eq!(choose(&[]).unwrap().len(), PARTS.len());
        assert_eq!(PARTS[0].name, parts::SETUP);
    }

    #[test]
    fn a_failed_part_fails_the_run() {
        let outcome = |error| Outcome { part: &PARTS[1], error, took: Duration::ZERO };
        let passed = summarize(&[outcome(None)]);
        let failed = summarize(&[outcome(None), outcome(Some(anyhow::anyhow!("broken")))]);
        assert_eq!(format!("{passed:?}"), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(format!("{failed:?}"), format!("{:?}", ExitCode::FAILURE));
    }
}
