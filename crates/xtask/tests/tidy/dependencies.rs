//! Who may see whom. The corridor is: front-end, block layer, driver, protocol.

use crate::{assert_none, relative, rust_files, workspace};
use cargo_metadata::DependencyKind;
use std::fs;
use std::path::Path;

/// What the map says of the crates in a folder.
struct Row {
    folder: String,
    package: String,
    /// The crates of the workspace that they depend on, outside of their tests; none is told: all.
    sees: Option<Vec<String>>,
}

/// The map in ARCHITECTURE.md.
fn rows() -> Vec<Row> {
    let text = crate::read("ARCHITECTURE.md");
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> =
        line.strip_prefix("| `crates/")?.trim_end_matches(" |").split(" | ").collect();
    let [folder, package, _, sees] = *cells else { panic!("four columns: {line}") };
    let mut seen: Vec<String> = sees.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    seen.extend(sees.contains("its protocol").then(|| PROTOCOL.to_owned()));
    Some(Row {
        folder: folder.trim_end_matches('`').to_owned(),
        package: package.trim_matches('`').to_owned(),
        sees: (sees != "everything").then_some(seen),
    })
}

/// Stands for the protocol that is called as the crate.
const PROTOCOL: &str = "*";

impl Row {
    /// Several crates of a kind; not all of them need all that they may see.
    fn is_of_many(&self) -> bool {
        self.folder.ends_with("/*")
    }

    fn covers(&self, folder: &str) -> bool {
        match self.folder.strip_suffix('*') {
            Some(kind) => folder.starts_with(kind),
            None => self.folder == folder,
        }
    }

    /// What is not as it says, of a crate with those dependencies.
    fn broken(&self, folder: &str, mut depends: Vec<String>) -> Option<String> {
        let name = folder.rsplit('/').next()?;
        let mut sees = self.sees.clone()?;
        sees.iter_mut().filter(|it| *it == PROTOCOL).for_each(|it| name.clone_into(it));
        if self.is_of_many() {
            depends.retain(|seen| !sees.contains(seen));
            return (!depends.is_empty())
                .then(|| format!("crates/{folder} depends on {depends:?}"));
        }
        depends.sort();
        depends.dedup();
        sees.sort();
        (depends != sees)
            .then(|| format!("crates/{folder} depends on {depends:?}, not on {sees:?}"))
    }
}

/// Protocols know nothing of sockets, files, clocks, threads and chance: time and bytes are arguments.
const PROTOCOLS: &[&str] = &[
    "crates/nbd/src",
    "crates/fuse/src",
    "crates/vhost_user/src",
    "crates/crush/src",
    "crates/rados/src",
    "crates/rbd/src",
];
/// The folders of a protocol's crate that drive the rest with sockets, files, tasks and time.
const SHELLS: &[&str] = &[
    "crates/rados/src/net/",
    "crates/rbd/src/dir/",
    "crates/rbd/src/live/",
    "crates/rbd/src/store/rados/",
];
const OUTSIDE_WORLD: &[&str] = &[
    // Each by itself, so that what follows is seen.
    "use std::{",
    "std::net",
    "std::os::unix::net",
    "std::fs",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "tokio",
    "rand::",
];

#[test]
fn crates_depend_only_on_what_the_map_says() {
    let (metadata, rows) = (workspace(), rows());
    let folder_of = |path: &Path| relative(path).trim_start_matches("crates/").to_owned();
    let mut broken = Vec::new();
    let mut known = vec![false; rows.len()];
    for package in &metadata.packages {
        let folder = folder_of(package.manifest_path.parent().unwrap().as_std_path());
        // One of its own comes before that of its kind.
        let covering = rows.iter().enumerate().filter(|(_, row)| row.covers(&folder));
        let Some((index, row)) = covering.min_by_key(|(_, row)| row.is_of_many()) else {
            broken.push(format!("crates/{folder} is not there"));
            continue;
        };
        known[index] = true;
        if !row.is_of_many() && row.package != package.name.as_str() {
            broken.push(format!("crates/{folder} is called {}", package.name));
        }
        let depends = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind != DependencyKind::Development)
            .filter_map(|dependency| dependency.path.as_ref())
            .map(|path| folder_of(path.as_std_path()));
        broken.extend(row.broken(&folder, depends.collect()));
    }
    let of_nothing = rows.iter().zip(known).filter(|(_, known)| !known);
    broken.extend(of_nothing.map(|(row, _)| format!("there is no crates/{}", row.folder)));
    assert_none(
        &broken,
        "the map in ARCHITECTURE.md says otherwise: put what both need into a crate below both, or join them in crates/blockyard",
    );
}

#[test]
fn protocols_do_no_input_or_output() {
    let mut broken = Vec::new();
    let files = PROTOCOLS.iter().flat_map(|folder| rust_files(folder));
    // Modules of tests stand in folders of that name; they have to make a time to give.
    let is_shell = |file: &Path| SHELLS.iter().any(|shell| relative(file).starts_with(shell));
    let files = files.filter(|file| !file.iter().any(|part| part == "tests") && !is_shell(file));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in crate::sources::code_lines(&text) {
            let code = line.split("//").next().unwrap_or_default();
            let found = OUTSIDE_WORLD.iter().filter(|word| code.contains(**word));
            broken.extend(found.map(|word| format!("{}:{number}: {word}", relative(&file))));
        }
    }
    assert_none(
        &broken,
        "take the bytes or the time as an argument, and let the caller do the input and output",
    );
}

/// Whatever the map says.
#[test]
fn drivers_and_exports_see_their_own_protocol_and_not_each_other() {
    let rows = rows();
    assert!(rows.iter().any(|row| row.folder == "exports/*") && rows.len() > 15);
    for row in rows.iter().filter(|row| row.folder.contains('/')) {
        let sees = row.sees.as_ref().expect("what it sees");
        assert!(!sees.iter().any(|folder| folder.contains('/')), "{}: {sees:?}", row.folder);
    }
    let row = row("| `crates/drivers/*` | `p` | w | `buf`, its protocol |").unwrap();
    let broken =
        |seen: &[&str]| row.broken("drivers/nbd", seen.iter().map(|it| (*it).into()).collect());
    assert_eq!(broken(&["nbd"]), None);
    assert!(broken(&["buf", "rbd"]).is_some_and(|it| it.contains("[\"rbd\"]")));
}
