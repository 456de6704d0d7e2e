//! What `ceph.conf` says, beside ceph-conf(8).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;

use blockyard_rados::conf::{Arguments, ConfFile, Settings, Surroundings};

/// Spellings of keys, quotes, comments, lines that go on, variables, and which section counts. Without a dash in a key, which
/// the manual allows and ceph-conf does not find, and blanks around the name of a section, where it is the same.
const FILES: [&str; 21] = [
    "[global]\nmon host = 10.0.0.1, 10.0.0.2:6789\n",
    "[global]\n  mon_host=10.0.0.1;10.0.0.2\n",
    "[global]\nmon  host\t= [v2:10.0.0.3:3300,v1:10.0.0.3:6789]   # behind\n",
    "[global]\nMon Host = 10.0.0.1\n",
    "[global]\nmonhost = 10.0.0.1\n",
    "[global]\nmon host = \"10.0.0.1, 10.0.0.2\"\n",
    "[global]\nmon host = '10.0.0.1' ; behind\n",
    "[global]\nmon host = a,\\\n  b, \\\n  c\n",
    "[global]\nmon host =\n",
    "[global]\nmon host = 1\nmon_host = 2\n",
    "[global]\nmon host = 1\n[client]\nmon host = 2\n[client.x]\nmon host = 3\n",
    "[global]\nmon host = 1\n[client]\nmon host = 2\n[client.y]\nmon host = 3\n",
    "[client.x]\nmon host = 3\n[global]\nmon host = 1\n",
    "[mon]\nmon host = 5\n",
    "[global]\nkeyring = /etc/k/$cluster.$name.keyring\n",
    "[client]\nkeyring=/k/${type}/$id\n",
    "[global]\nkey ring = /k\n",
    "[global]\nKEYRING = /k\n",
    "[global]\nkeyring = /a\\#b\n",
    "[global]\nkeyring = \"/with a space/k\"\n",
    "# only\n; comments\n[global]\n\nfsid = 1\n",
];

/// What ceph-conf says, and nothing where it says no.
fn theirs(path: &std::path::Path, option: &str) -> Option<String> {
    let mut command = Command::new("ceph-conf");
    command.arg("-c").arg(path).args(["-n", "client.x", "--lookup", option]);
    let output = command.output().expect("ceph-conf is missing; run: cargo xtask setup");
    let said = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| said.trim_end_matches('\n').to_owned())
}

#[test]
fn options_are_found_and_read_as_by_ceph_conf() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ceph.conf");
    let arguments = Arguments::parse(["-n", "client.x"]).unwrap();
    for text in FILES {
        std::fs::write(&path, text).unwrap();
        let file = ConfFile::parse(text).unwrap();
        let settings = Settings::new(&arguments, Surroundings::default()).with_file(file);
        for option in ["mon host", "mon_host", "keyring"] {
            assert_eq!(settings.get(option), theirs(&path, option), "{option} in\n{text}");
        }
    }
}
