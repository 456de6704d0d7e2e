//! Arguments that all programs of Ceph take, also in the environment variable CEPH_ARGS.

use super::file::option_name;
use crate::auth::Identity;
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// What was said on a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `-n`, `--name`, `--id`, `--user`.
    pub identity: Option<Identity>,
    /// `-c`, `--conf`.
    pub conf: Option<String>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// Options of the configuration, by their names with underscores: `--mon-host a`, `--keyring=b`.
    pub options: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads words: those of CEPH_ARGS, split at blanks, then those of the command line, so that these count.
    ///
    /// # Errors
    /// A word that is no option, an option without its value, a name that is none.
    pub fn parse<'a>(
        words: impl IntoIterator<Item = &'a (impl AsRef<str> + ?Sized + 'a)>,
    ) -> Result<Self> {
        let mut words = words.into_iter().map(AsRef::as_ref);
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) if word.starts_with("--") => (flag, Some(value)),
                _ => (word, None),
            };
            let bad = |problem| {
                Error::new(
                    "reading arguments",
                    ErrorKind::BadParameter { problem, text: flag.to_owned() },
                )
            };
            let long = match flag {
                "-n" => "name",
                "-c" => "conf",
                "-k" => "keyring",
                "-m" => "mon_host",
                _ => flag.strip_prefix("--").ok_or_else(|| bad("an option starts with --"))?,
            };
            let value = value.or_else(|| words.next());
            arguments.set(long, value.ok_or_else(|| bad("a value is missing"))?)?;
        }
        Ok(arguments)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "name" => self.identity = Some(value.parse()?),
            "id" | "user" => self.identity = Some(Identity::client(value)),
            "conf" => self.conf = Some(value.to_owned()),
            "cluster" => self.cluster = Some(value.to_owned()),
            _ => {
                self.options.insert(option_name(name), value.to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_taken_and_the_last_counts() {
        let words = "--id a --mon-host=1 -c /x -k /k -m 2 --cluster east --name client.b";
        let arguments = Arguments::parse(words.split(' ')).unwrap();
        assert_eq!(arguments.identity, Some(Identity::client("b")));
        assert_eq!(arguments.conf.as_deref(), Some("/x"));
        assert_eq!(arguments.cluster.as_deref(), Some("east"));
        assert_eq!(arguments.options["mon_host"], "2");
        assert_eq!(arguments.options["keyring"], "/k");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [&["word"][..], &["--id"], &["--name", "nobody"]] {
            assert!(Arguments::parse(bad.iter().copied()).is_err(), "{bad:?}");
        }
    }
}
