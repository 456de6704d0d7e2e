//! The log: lines on standard error, warnings and worse unless told otherwise. What comes from others in them cannot
//! leave its line, nor steer a terminal.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::error::{Error, Result};
use crate::text::term;

/// Starts it: as `BLOCKYARD_LOG` says, else as often as `-v` was given. Lines of a daemon that are kept in a file have the
/// time in front.
///
/// # Errors
/// `BLOCKYARD_LOG` is not understood.
pub fn start(verbose: u8, daemon: bool) -> Result<()> {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let targets = match std::env::var("BLOCKYARD_LOG").ok().filter(|text| !text.is_empty()) {
        None => Targets::new().with_default(level),
        Some(text) => targets(&text, level).map_err(|problem| {
            Error::usage(format!("BLOCKYARD_LOG={text:?} is not valid: {problem}")).help(
                "write a level (off, error, warn, info, debug, trace), TARGET=LEVEL, or several of them, \
                 e.g. warn,blockyard_export_nbd=trace",
            )
        })?,
    };
    let ansi = term::colored();
    let lines = fmt::layer().with_writer(Lines { ansi }).with_ansi(ansi);
    let lines =
        if daemon && keeps_no_time() { lines.boxed() } else { lines.without_time().boxed() };
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
    Ok(())
}

/// What `BLOCKYARD_LOG` asks for. `level` holds for what it does not name, so that naming one part, or one that does not
/// exist, silences no other.
fn targets(text: &str, level: LevelFilter) -> std::result::Result<Targets, String> {
    for part in text.split(',').map(str::trim) {
        let (target, wanted) = part.split_once('=').unwrap_or(("all", part));
        if target.is_empty() || wanted.parse::<LevelFilter>().is_err() || wanted.is_empty() {
            return Err(format!("{part:?} is neither a level nor TARGET=LEVEL"));
        }
    }
    let targets: Targets = text.parse().map_err(|err| format!("{err}"))?;
    let has_default = text.split(',').any(|part| !part.contains('='));
    Ok(if has_default { targets } else { targets.with_default(level) })
}

/// Whether standard error goes where lines get no time by themselves: neither a terminal, which somebody watches, nor the
/// journal (`JOURNAL_STREAM` has its device and inode, systemd.exec(5)).
fn keeps_no_time() -> bool {
    if io::stderr().is_terminal() {
        return false;
    }
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return true };
    let ours = std::fs::metadata("/proc/self/fd/2");
    !ours.is_ok_and(|ours| journal == format!("{}:{}", ours.dev(), ours.ino()))
}

/// Standard error, line by line.
#[derive(Clone, Copy)]
struct Lines {
    ansi: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for Lines {
    /// A line comes as a whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let clean = cleaned(text.strip_suffix('\n').unwrap_or(&text), self.ansi);
        io::stderr().lock().write_all(format!("{clean}\n").as_bytes())?;
        term::has_told();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line with its control characters written out; `ansi`: colours stay.
fn cleaned(line: &str, ansi: bool) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let colour = if ansi { colour_len(rest) } else { 0 };
        let len = if colour > 0 { colour } else { c.len_utf8() };
        let (now, later) = rest.split_at(len);
        if colour == 0 && c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push_str(now);
        }
        rest = later;
    }
    clean
}

/// Bytes of the sequence that sets a colour at the start of a text, `ESC [ 1 ; 31 m`; 0 if there is none.
fn colour_len(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\x1b[") else { return 0 };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';');
    end.filter(|&end| rest[end..].starts_with('m')).map_or(0, |end| "\x1b[".len() + end + 1)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn what_is_not_named_keeps_its_level() {
        let warn = LevelFilter::WARN;
        let all = targets("debug", warn).unwrap();
        assert!(all.would_enable("blockyard", &Level::DEBUG));
        let one = targets("blockyard_export_nbd=trace", warn).unwrap();
        assert!(one.would_enable("blockyard_export_nbd::server", &Level::TRACE));
        assert!(one.would_enable("blockyard", &Level::WARN), "errors are not silenced");
        assert!(!one.would_enable("blockyard", &Level::INFO));
        let both = targets("error, blockyard_blkmq=info", warn).unwrap();
        assert!(!both.would_enable("blockyard", &Level::WARN));
        assert!(!targets("off", warn).unwrap().would_enable("blockyard", &Level::ERROR));
    }

    #[test]
    fn a_word_that_is_no_level_is_a_mistake() {
        for wrong in ["verbose", "=debug", "blockyard=loud", "debug,,info", "blockyard=", "warn,x"]
        {
            let problem = targets(wrong, LevelFilter::WARN).unwrap_err();
            assert!(problem.contains("neither a level"), "{wrong}: {problem}");
        }
    }

    #[test]
    fn foreign_text_stays_in_its_line() {
        let foreign = "name=\x1b]0;title\x07 \x1b[31mred\nfake line\u{9b}2J é";
        assert_eq!(
            cleaned(foreign, false),
            r"name=\u{1b}]0;title\u{7} \u{1b}[31mred\nfake line\u{9b}2J é"
        );
        let ours = "\x1b[33m WARN\x1b[0m x\x1b[2J";
        assert_eq!(cleaned(ours, true), "\x1b[33m WARN\x1b[0m x\\u{1b}[2J");
    }
}
