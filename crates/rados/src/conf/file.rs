//! The file `ceph.conf` (ceph: `src/common/ConfUtils.cc`, `doc/rados/configuration/ceph-conf.rst`).

use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

const DOING: &str = "reading ceph.conf";
/// Most bytes of a configuration file that are read.
pub const MAX_CONF: usize = 16 << 20;

/// The options of a file, by section. Values are as written, with variables in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfFile {
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

/// An option's name: words joined by underscores, however they were joined in the text.
pub(super) fn option_name(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c == '_' || c == '-');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_")
}

impl ConfFile {
    /// Reads the text of a file. Of an option that stands twice in a section, the last one counts.
    ///
    /// # Errors
    /// A line that is neither a section nor an assignment, or stands before the first section; an open quote.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_CONF {
            let (got, limit) = (text.len() as u64, MAX_CONF as u64);
            return Err(Error::too_big(DOING, "bytes of a configuration file", got, limit));
        }
        let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut section = None;
        for (number, line) in logical_lines(text) {
            let bad = |problem| {
                let text = format!("line {number}");
                Error::new(DOING, ErrorKind::BadParameter { problem, text })
            };
            let line = line.trim_start();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(rest) = line.strip_prefix('[') {
                let Some((name, _)) = rest.split_once(']') else {
                    return Err(bad("a section ends with ]"));
                };
                section = Some(name.trim().to_owned());
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err(bad("a line is a section, an assignment, or a comment"));
            };
            let Some(section) = &section else {
                return Err(bad("an option belongs into a section, such as [global]"));
            };
            let value = value_of(value).ok_or_else(|| bad("a quote is not closed"))?;
            sections.entry(section.clone()).or_default().insert(option_name(name), value);
        }
        Ok(Self { sections })
    }

    /// The names of all sections.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.sections.keys().map(String::as_str)
    }

    /// The value of an option in a section, as written.
    #[must_use]
    pub fn get(&self, section: &str, option: &str) -> Option<&str> {
        Some(self.sections.get(section)?.get(&option_name(option))?)
    }
}

/// Lines, joined where one ends with a backslash, each with the number of its first part.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let (part, continues) = match line.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some((_, whole)) if open => whole.push_str(part),
            _ => lines.push((number, part.to_owned())),
        }
        open = continues;
    }
    lines
}

/// A value: without blanks around it, quotes, or the comment behind it; a backslash takes the meaning from the next
/// character. None if a quote is not closed.
fn value_of(text: &str) -> Option<String> {
    let text = text.trim();
    let mut characters = text.chars();
    let quote = characters.next().filter(|c| matches!(c, '"' | '\''));
    let mut characters = if quote.is_some() { characters } else { text.chars() };
    let mut value = String::new();
    loop {
        match characters.next() {
            None if quote.is_some() => return None,
            None => break,
            c if c == quote => return Some(value),
            Some('#' | ';') if quote.is_none() => break,
            Some('\\') => value.extend(characters.next()),
            Some(other) => value.push(other),
        }
    }
    Some(value.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_the_manual_are_read() {
        let text = "# a comment\n; another\n[global]\nfsid = 1234   # behind\n\
            mon_host=10.0.0.1\n  auth  client   required = cephx ; none\n\
            [ client.admin ]\nkeyring = \"/a b/#c\"\nlog file = '/x;y'\nmon-host = a,\\\nb\n\
            escaped = a\\#b\nmon host = last\n\n";
        let file = ConfFile::parse(text).unwrap();
        let get = |section, option| file.get(section, option).unwrap();
        assert_eq!(get("global", "fsid"), "1234");
        assert_eq!(get("global", "mon host"), "10.0.0.1");
        assert_eq!(get("global", "auth_client_required"), "cephx");
        assert_eq!(get("client.admin", "keyring"), "/a b/#c");
        assert_eq!(get("client.admin", "log_file"), "/x;y");
        assert_eq!(get("client.admin", "escaped"), "a#b");
        assert_eq!(get("client.admin", "mon_host"), "last");
        assert_eq!(file.get("client.admin", "fsid"), None);
    }

    #[test]
    fn lines_are_continued() {
        let file = ConfFile::parse("[global]\nmon host = a, \\\n  b, \\\n  c\nnext = 1").unwrap();
        assert_eq!(file.get("global", "mon_host"), Some("a,   b,   c"));
        assert_eq!(file.get("global", "next"), Some("1"));
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, line) in
            [("a = 1", 1), ("[global\n", 1), ("[global]\nnonsense", 2), ("[global]\n\na = \"b", 3)]
        {
            let error = ConfFile::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}")), "{error}");
        }
    }
}
