//! The value of an option for one entity.

use super::arguments::Arguments;
use super::file::{ConfFile, option_name};
use crate::auth::Identity;
use std::collections::BTreeMap;

/// How deep variables may stand in the values of other variables.
const MAX_DEPTH: u32 = 10;
/// How many bytes the variables of one value may become: without a bound, four of ten levels become a million.
const MAX_EXPANDED: usize = 64 * 1024;
/// The keyrings that are tried if none is named (ceph: option `keyring`).
const KEYRINGS: &str = "/etc/ceph/$cluster.$name.keyring,/etc/ceph/$cluster.keyring,\
    /etc/ceph/keyring,/etc/ceph/keyring.bin";
/// The files that are tried if neither arguments nor environment name one.
const CONF_FILES: &str = "/etc/ceph/$cluster.conf,$home/.ceph/$cluster.conf,$cluster.conf";

/// What is known of the process, for variables.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `$host`: the machine's name.
    pub host: String,
    /// `$home`: the user's directory.
    pub home: String,
    /// `$pid`.
    pub pid: u32,
}

/// Options from arguments and a file, for one entity.
#[derive(Clone, Debug)]
pub struct Settings {
    identity: Identity,
    cluster: String,
    surroundings: Surroundings,
    overrides: BTreeMap<String, String>,
    file: ConfFile,
}

impl Settings {
    /// The settings before a file is read; [`files`](Self::files) says which one that is.
    #[must_use]
    pub fn new(arguments: &Arguments, surroundings: Surroundings) -> Self {
        Self {
            identity: arguments.identity.clone().unwrap_or_default(),
            cluster: arguments.cluster.clone().unwrap_or_else(|| "ceph".to_owned()),
            surroundings,
            overrides: arguments.options.clone(),
            file: ConfFile::default(),
        }
    }

    /// The files to try, in order: the one that was named, by argument or by `ceph_conf` (the environment variable
    /// CEPH_CONF), or the usual ones.
    #[must_use]
    pub fn files(&self, arguments: &Arguments, ceph_conf: Option<&str>) -> Vec<String> {
        let named = arguments.conf.as_deref().or(ceph_conf).filter(|named| !named.is_empty());
        self.list(&self.expand(named.unwrap_or(CONF_FILES)))
    }

    /// Uses a file.
    #[must_use]
    pub fn with_file(mut self, file: ConfFile) -> Self {
        self.file = file;
        self
    }

    /// Who the settings are for.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The value of an option: an argument's, or that of the section `[client.name]`, `[client]`, or `[global]`, with
    /// variables replaced.
    #[must_use]
    pub fn get(&self, option: &str) -> Option<String> {
        self.raw(&option_name(option)).map(|value| self.expand(value))
    }

    /// What the sections of single monitors say of their addresses, `[mon.a]` with `mon addr`, as one list (ceph:
    /// `src/mon/MonMap.cc`, `init_with_config_file`).
    #[must_use]
    pub fn mon_addrs(&self) -> Option<String> {
        let monitors = self.file.sections().filter(|section| section.starts_with("mon."));
        let addrs = monitors.filter_map(|section| self.file.get(section, "mon_addr"));
        let addrs: Vec<_> = addrs.map(|addr| self.expand(addr)).collect();
        (!addrs.is_empty()).then(|| addrs.join(" "))
    }

    /// The keyrings to try, in order.
    #[must_use]
    pub fn keyrings(&self) -> Vec<String> {
        let keyrings = self.get("keyring").unwrap_or_else(|| self.expand(KEYRINGS));
        self.list(&keyrings)
    }

    fn list(&self, text: &str) -> Vec<String> {
        let items = text.split([',', ';', ' ', '\t']).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect()
    }

    fn raw(&self, option: &str) -> Option<&str> {
        if let Some(value) = self.overrides.get(option) {
            return Some(value);
        }
        let name = self.identity.to_string();
        let sections = [&*name, self.identity.kind.name(), "global"];
        sections.into_iter().find_map(|section| self.file.get(section, option))
    }

    /// Replaces `$name` and `${name}`. What is no variable stays, as does what is too deep or too much.
    fn expand(&self, text: &str) -> String {
        let mut left = MAX_EXPANDED;
        self.expand_to(text, MAX_DEPTH, &mut left)
    }

    fn expand_to(&self, text: &str, depth: u32, left: &mut usize) -> String {
        let mut parts = text.split('$');
        let mut expanded = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) = match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
                Some(parts) => parts,
                None => {
                    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    part.split_at(part.find(|c| !is_name(c)).unwrap_or(part.len()))
                }
            };
            match self.variable(name, depth, left) {
                Some(value) => expanded.extend([value.as_str(), rest]),
                None => expanded.extend(["$", part]),
            }
        }
        expanded
    }

    /// `left`: bytes that may still be put in the place of variables.
    fn variable(&self, name: &str, depth: u32, left: &mut usize) -> Option<String> {
        let fixed = match name {
            "cluster" => self.cluster.clone(),
            "type" => self.identity.kind.name().to_owned(),
            "id" | "num" => self.identity.id.clone(),
            "name" => self.identity.to_string(),
            "host" => self.surroundings.host.clone(),
            "home" => self.surroundings.home.clone(),
            "pid" => self.surroundings.pid.to_string(),
            other => {
                let value = self.raw(other).filter(|_| depth > 0)?;
                *left = left.checked_sub(name.len() + value.len())?;
                return Some(self.expand_to(value, depth - 1, left));
            }
        };
        *left = left.checked_sub(name.len() + fixed.len())?;
        Some(fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str], file: &str) -> Settings {
        let arguments = Arguments::parse(arguments).unwrap();
        let surroundings = Surroundings { host: "h1".into(), home: "/home/me".into(), pid: 12 };
        Settings::new(&arguments, surroundings).with_file(ConfFile::parse(file).unwrap())
    }

    #[test]
    fn the_closest_section_counts_and_arguments_before_it() {
        let file = "[global]\na = g\nb = g\nc = g\nd = g\n[client]\nb = c\nc = c\nd = c\n\
            [client.rbd]\nc = n\nd = n\n[client.other]\na = o";
        let settings = settings(&["--id", "rbd", "--d=arg"], file);
        let got = ["a", "b", "c", "d"].map(|option| settings.get(option).unwrap());
        assert_eq!(got, ["g", "c", "n", "arg"]);
        assert_eq!(settings.get("e"), None);
    }

    #[test]
    fn variables_are_replaced_also_by_other_options() {
        let file = "[global]\nrun dir = /run/$cluster\nadmin socket = ${run_dir}/$name.$pid.asok\n\
            loop = $loop\nplain = 5$ and $nothing/x\nwhere = $type/$id@$host";
        let settings = settings(&["--cluster", "east", "-n", "client.x"], file);
        assert_eq!(settings.get("admin_socket").unwrap(), "/run/east/client.x.12.asok");
        assert_eq!(settings.get("plain").unwrap(), "5$ and $nothing/x");
        assert_eq!(settings.get("where").unwrap(), "client/x@h1");
        assert!(settings.get("loop").unwrap().contains("$loop"), "an end is found");
    }

    #[test]
    fn variables_that_multiply_have_an_end() {
        let file = format!("[global]\na = {}\nb = {}\n", "$b".repeat(200), "$a".repeat(200));
        let value = settings(&[], &file).get("a").unwrap();
        assert!(value.len() <= MAX_EXPANDED + 400, "{}", value.len());
        assert!(value.ends_with("$b"), "what is too much stays as it is");
    }

    #[test]
    fn files_and_keyrings_have_usual_places() {
        let settings = settings(&["--id=a"], "");
        let none = Arguments::default();
        let usual = ["/etc/ceph/ceph.conf", "/home/me/.ceph/ceph.conf", "ceph.conf"];
        assert_eq!(settings.files(&none, None), usual);
        assert_eq!(settings.files(&none, Some("/e/$cluster.conf")), ["/e/ceph.conf"]);
        let named = Arguments { conf: Some("/n".into()), ..none };
        assert_eq!(settings.files(&named, Some("/e")), ["/n"]);
        assert_eq!(settings.keyrings()[0], "/etc/ceph/ceph.client.a.keyring");
        assert_eq!(settings.keyrings().len(), 4);
    }
}
