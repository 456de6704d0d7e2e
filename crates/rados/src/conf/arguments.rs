//! Arguments that all programs of Ceph take, also in the environment variable CEPH_ARGS.

use super::file::option_name;
use crate::auth::Identity;
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// Options that never have a value of their own (ceph: `src/common/ceph_argparse.cc`, `src/common/config.cc`).
const FLAGS: [&str; 6] = [
    "no_mon_config",
    "no_config_file",
    "foreground",
    "debug_foreground",
    "show_config",
    "no_log_to_stderr",
];
/// Options that are nothing without a value.
const VALUES: [&str; 9] =
    ["name", "id", "user", "conf", "cluster", "keyring", "keyfile", "key", "mon_host"];

/// What was said on a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `-n`, `--name`, `--id`, `--user`.
    pub identity: Option<Identity>,
    /// `-c`, `--conf`.
    pub conf: Option<String>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `--no-config-file`: no file is read.
    pub no_conf: bool,
    /// Options of the configuration, by their names with underscores: `--mon-host a`, `--keyring=b`.
    pub options: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads words: those of CEPH_ARGS, split at blanks, then those of the command line, so that these count.
    ///
    /// # Errors
    /// A word that is no option, an option that needs a value and has none, a name that is none.
    pub fn parse<'a>(
        words: impl IntoIterator<Item = &'a (impl AsRef<str> + ?Sized + 'a)>,
    ) -> Result<Self> {
        let mut words = words.into_iter().map(AsRef::as_ref).peekable();
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
                "-f" => "foreground",
                "-d" => "debug_foreground",
                _ => flag.strip_prefix("--").ok_or_else(|| bad("an option starts with --"))?,
            };
            let name = option_name(long);
            let value = match value {
                Some(value) => Some(value),
                None if FLAGS.contains(&name.as_str()) => None,
                // What is on or off may be said without a value: another option follows, or nothing.
                None => words.next_if(|next| !next.starts_with("--")),
            };
            match value {
                Some(value) => arguments.set(&name, value)?,
                None if VALUES.contains(&name.as_str()) => return Err(bad("a value is missing")),
                None => arguments.switch(&name),
            }
        }
        Ok(arguments)
    }

    /// Takes an option that stands without a value: it is on, or off.
    fn switch(&mut self, name: &str) {
        let (name, value) = match (name, name.strip_prefix("no_")) {
            ("no_config_file", _) => {
                self.no_conf = true;
                return;
            }
            // This client never asks the monitors for its configuration.
            ("no_mon_config", _) => return,
            (_, Some(name)) => (name, "false"),
            (name, None) => (name, "true"),
        };
        self.options.insert(name.to_owned(), value.to_owned());
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "name" => self.identity = Some(value.parse()?),
            "id" | "user" => self.identity = Some(Identity::client(value)),
            "conf" => self.conf = Some(value.to_owned()),
            "cluster" => self.cluster = Some(value.to_owned()),
            _ => {
                self.options.insert(name.to_owned(), value.to_owned());
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
    fn a_flag_does_not_take_the_next_option_for_its_value() {
        let read = |words: &str| Arguments::parse(words.split(' ')).unwrap();
        let arguments = read("--no-mon-config --id x");
        assert_eq!(arguments.identity, Some(Identity::client("x")));
        assert!(arguments.options.is_empty());
        let arguments = read("--no-config-file --log-to-stderr --no-ms-bind-ipv6 --id y -f");
        assert!(arguments.no_conf);
        assert_eq!(arguments.identity, Some(Identity::client("y")));
        let options = &arguments.options;
        assert_eq!((&*options["log_to_stderr"], &*options["ms_bind_ipv6"]), ("true", "false"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [&["word"][..], &["--id"], &["--id", "--conf", "x"], &["--name", "nobody"]] {
            assert!(Arguments::parse(bad.iter().copied()).is_err(), "{bad:?}");
        }
    }
}
