//! Mistakes in a configuration, each with its place, a pointer and a remedy.

use std::fmt::{self, Write as _};
use std::ops::Range;

use miette::{Diagnostic, LabeledSpan};

use crate::text::term::plain;

/// A mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong.
    pub what: String,
    /// The bytes that are wrong.
    pub at: Range<usize>,
    /// What would be right.
    pub remedy: String,
}

impl Mistake {
    /// A mistake at a place, with what would be right.
    #[must_use]
    pub fn new(at: Range<usize>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), at, remedy: remedy.into() }
    }

    pub(super) fn of_syntax(err: &toml::de::Error) -> Self {
        let what = format!("TOML syntax error: {}", err.message());
        Self::new(err.span().unwrap_or(0..0), what, "see https://toml.io for the syntax")
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Mistake {}

impl Diagnostic for Mistake {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.remedy))
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = LabeledSpan::new(None, self.at.start, self.at.len());
        Some(Box::new(std::iter::once(span)))
    }
}

/// All mistakes of a file, in its order.
#[derive(Clone, Debug)]
pub struct Mistakes {
    name: String,
    text: String,
    mistakes: Vec<Mistake>,
}

impl Mistakes {
    pub(super) fn new(name: &str, text: &str, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.at.start);
        Self { name: name.into(), text: text.into(), mistakes }
    }

    /// The mistakes.
    #[must_use]
    pub fn list(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Shows all, each with its line and a pointer to what is wrong in it.
    #[must_use]
    pub fn render(&self, colored: bool) -> String {
        let paint = Paint { colored };
        let mut out = String::new();
        for mistake in &self.mistakes {
            // Writing to a string does not fail.
            let _ = self.render_one(mistake, &paint, &mut out);
        }
        let count = self.mistakes.len();
        let plural = if count == 1 { "" } else { "s" };
        let _ = write!(out, "{}: {count} error{plural}", plain(&self.name));
        out
    }

    fn render_one(&self, mistake: &Mistake, paint: &Paint, out: &mut String) -> fmt::Result {
        // Lines and columns count from 1, columns in characters.
        let start = mistake.at.start.min(self.text.len());
        let (before, after) = self.text.split_at_checked(start).unwrap_or((&self.text, ""));
        let line = before.matches('\n').count() + 1;
        let before = before.rsplit('\n').next().unwrap_or("");
        let rest = after.lines().next().unwrap_or("");
        // All of it is as wide as it has characters, and what acts on a terminal is shown: the pointer points at that.
        let shown = |text: &str| plain(&text.replace('\t', " ")).into_owned();
        let line_text = shown(&format!("{before}{rest}"));
        let column = shown(before).chars().count();
        let marked = rest.get(..mistake.at.len()).unwrap_or(rest);
        let marked = shown(marked).chars().count().max(1);
        let margin = " ".repeat(line.to_string().len());
        let place = format!("{}:{line}:{}", plain(&self.name), before.chars().count() + 1);
        writeln!(out, "{} {}", paint.red("error:"), plain(&mistake.what))?;
        writeln!(out, "{margin}{} {place}", paint.blue("-->"))?;
        writeln!(out, "{} {} {line_text}", paint.blue(&line.to_string()), paint.blue("|"))?;
        let pointer = format!("{}{}", " ".repeat(column), paint.red(&"^".repeat(marked)));
        writeln!(out, "{margin} {} {pointer}", paint.blue("|"))?;
        writeln!(out, "{margin} {} {}\n", paint.blue("= help:"), plain(&mistake.remedy))
    }
}

struct Paint {
    colored: bool,
}

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }

    fn red(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn blue(&self, text: &str) -> String {
        self.with("1;34", text)
    }
}
