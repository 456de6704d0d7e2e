//! Speaking to people: standard output that may be a closed pipe, tables, and colours on a terminal only.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::{self, Error, Result};
use crate::text::size;

/// Text of others (names, descriptions, what servers say), for a line of ours: what would begin a new line, move the cursor,
/// change colours or turn the direction of writing is shown escaped, not done.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// The same of several lines, which are ours.
fn plain_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, is_ours: fn(char) -> bool) -> Cow<'_, str> {
    let acts = |c: char| (c.is_control() && !is_ours(c)) || turns(c);
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if acts(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// Separators of lines, and marks of the direction of writing (Unicode Standard Annex #9, section 2).
const fn turns(c: char) -> bool {
    matches!(
        c,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Prints a line to standard output. Nobody there to read it any more is no error.
///
/// # Errors
/// The output cannot be written.
pub fn say(line: impl Display) -> Result<()> {
    say_on(line).map(drop)
}

/// The same, for who has more to say: whether anybody is there to read it.
///
/// # Errors
/// The output cannot be written.
pub fn say_on(line: impl Display) -> Result<bool> {
    let line = line.to_string();
    let line = plain_lines(&line);
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(err) => Err(Error::failed("cannot write to standard output").caused_by(err)),
        Ok(()) => Ok(true),
    }
}

/// Prints a line to standard error, for people.
pub fn tell(line: impl Display) {
    tell_painted(plain_lines(&line.to_string()));
}

/// The same with colours, which are ours: nothing else in it acts on a terminal.
pub fn tell_painted(line: impl Display) {
    // There is nobody to be told that nobody can be told.
    let _ = writeln!(io::stderr().lock(), "{line}");
    has_told();
}

type AfterTelling = Box<dyn Fn() + Send + Sync>;

static AFTER_TELLING: OnceLock<AfterTelling> = OnceLock::new();

/// Has something done from now on when a line was written to standard error, on the thread that has written it. It writes none
/// itself. Once for a process.
pub(crate) fn after_telling(done: impl Fn() + Send + Sync + 'static) {
    let _ = AFTER_TELLING.set(Box::new(done));
}

/// A line was written to standard error.
pub(crate) fn has_told() {
    if let Some(done) = AFTER_TELLING.get() {
        done();
    }
}

/// Prints a value as JSON.
///
/// # Errors
/// The output cannot be written.
pub fn say_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|err| Error::failed("cannot write JSON").caused_by(err))?;
    say_json_text(&text)
}

/// Prints JSON that is text already.
///
/// # Errors
/// The output cannot be written.
pub fn say_json_text(text: &str) -> Result<()> {
    say(json_plain(text))
}

/// JSON escapes but the first 32 characters that act on a terminal; the others stand in texts only.
fn json_plain(text: &str) -> Cow<'_, str> {
    let acts = |c: char| (c.is_control() && c > '\u{1f}') || turns(c);
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if acts(c) {
            // Writing to a string does not fail.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Shows an error, with its causes and what to do.
pub fn tell_error(error: &Error) {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = error::describe(error, &mut text);
    let (start, end) = if colored() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    tell_painted(format_args!("{start}error:{end} {text}"));
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

/// The word for a flag.
#[must_use]
pub const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// A size for people, and for programs.
#[must_use]
pub fn exact_size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", size::human(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown() {
        for (text, shown) in [
            ("plain ä 漢", "plain ä 漢"),
            ("\x1b[31mred\nnext", "\\u{1b}[31mred\\nnext"),
            ("\u{9b}31m\x7f\r\t", "\\u{9b}31m\\u{7f}\\r\\t"),
            ("a\u{202e}b\u{2028}", "a\\u{202e}b\\u{2028}"),
        ] {
            assert_eq!(plain(text), shown);
        }
        assert_eq!(plain_lines("a\tb\nc\x1b"), "a\tb\nc\\u{1b}");
        let text = "\u{9b}x\u{202e}\x1b";
        let json = serde_json::to_string(text).unwrap();
        let shown = json_plain(&json);
        assert!(shown.is_ascii(), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }
}
