//! Speaking to people: standard output that may be a closed pipe, tables, and colours on a terminal only.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::{self, Error, Result};

/// Prints a line to standard output. Nobody there to read it any more is no error.
///
/// # Errors
/// The output cannot be written.
pub fn say(line: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(err) => Err(Error::failed("cannot write to standard output").caused_by(err)),
        Ok(()) => Ok(()),
    }
}

/// Prints a line to standard error, for people.
pub fn tell(line: impl Display) {
    // There is nobody to be told that nobody can be told.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Prints a value as JSON.
///
/// # Errors
/// The output cannot be written.
pub fn say_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|err| Error::failed("cannot write JSON").caused_by(err))?;
    say(text)
}

/// Shows an error, with its causes and what to do.
pub fn tell_error(error: &Error) {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = error::describe(error, &mut text);
    let (start, end) = if colored() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    tell(format_args!("{start}error:{end} {text}"));
}

/// Whether standard error shows colours (<https://no-color.org>).
#[must_use]
pub fn colored() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal()
        && !set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A table with no lines, columns two blanks apart.
#[must_use]
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Nanoseconds as people read them.
#[must_use]
pub fn human_ns(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{}.{} us", ns / 1_000, ns % 1_000 / 100),
        1_000_000..1_000_000_000 => format!("{}.{} ms", ns / 1_000_000, ns % 1_000_000 / 100_000),
        _ => format!("{}.{} s", ns / 1_000_000_000, ns % 1_000_000_000 / 100_000_000),
    }
}
