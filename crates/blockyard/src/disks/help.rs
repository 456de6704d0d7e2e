//! What the help says of disks, made from what their kinds say.

use std::fmt::Write as _;

use super::options::BELOW;
use super::{COMMON, KINDS, OptionSpec};

/// Columns of the widest line.
const WIDTH: usize = 100;

/// The URIs, a line for each kind.
#[must_use]
pub fn uris() -> String {
    let uri = |kind: &&super::DiskKind| (kind.usage.to_owned(), kind.summary.to_owned());
    format!("Disk URIs:\n{}", rows(&KINDS.iter().map(uri).collect::<Vec<_>>()))
}

/// The URIs, and all options that can stand in them.
#[must_use]
pub fn uris_and_options() -> String {
    let mut text = uris();
    let has_layers = KINDS.iter().any(|kind| kind.has_below);
    let common = COMMON.iter().filter(|option| has_layers || option.name != BELOW);
    let common = ("all disks".to_owned(), common.collect::<Vec<_>>());
    let own = KINDS
        .iter()
        .filter(|kind| !kind.options.is_empty())
        .map(|kind| (format!("{}: disks", kind.name), kind.options.iter().collect()));
    for (whose, options) in std::iter::once(common).chain(own) {
        // Writing to a string does not fail.
        let _ = write!(text, "\nOptions of {whose}:\n{}", rows(&described(&options)));
    }
    text.push_str(
        "\nOptions follow a question mark: ram:1G?block=4096&read_only=1. Options marked [live] can be changed \
         while the disk\nis in use: blockyard set DISK read_only=1",
    );
    text
}

/// What can be changed of a disk that is in use.
#[must_use]
pub fn settings() -> String {
    let settings: Vec<_> = super::settings().collect();
    let rows = rows(&described(&settings));
    format!("Settings:\n{}", rows.replace(" [live]", "").trim_end())
}

fn described(options: &[&OptionSpec]) -> Vec<(String, String)> {
    let described = |option: &&OptionSpec| {
        let live = if option.live.is_some() { " [live]" } else { "" };
        let usage = format!("{}={}", option.name, option.value.placeholder());
        (usage, format!("{} (default: {}){live}", option.help, option.default))
    };
    options.iter().map(described).collect()
}

/// Lines of two columns; the second one is wrapped.
pub(super) fn rows(rows: &[(String, String)]) -> String {
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    let indent = width + 4;
    let mut text = String::new();
    for (left, right) in rows {
        // Writing to a string does not fail.
        let _ = write!(text, "  {left:width$} ");
        let mut column = indent - 1;
        for word in right.split(' ') {
            if column + 1 + word.len() > WIDTH {
                let _ = write!(text, "\n{:indent$}{word}", "");
                column = indent + word.len();
            } else {
                let _ = write!(text, " {word}");
                column += 1 + word.len();
            }
        }
        text.push('\n');
    }
    text
}
