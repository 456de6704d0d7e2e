//! Writing a change of a running yard back to its `yard.toml`. Comments, order and whatever else is not changed stay as they
//! are; what comes out is checked as any `yard.toml` before it takes the place of the one before.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;
use tempfile::NamedTempFile;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{ConfigError, parse};
use crate::disks::{
    DiskPlan, PlanBuilder, Value, ValueKind, canonical_key, show_duration, throttle,
};
use crate::error::{Error, ErrorKind, Result};
use crate::exports::{self, ExportKind, ExportPlan};
use crate::yard::plan::YardPlan;

/// A change.
#[derive(Debug)]
pub enum Edit {
    /// There is another disk.
    AddDisk {
        /// The disk.
        plan: DiskPlan,
        /// What was said of it besides its URI.
        options: Vec<(String, Json)>,
    },
    /// A disk is gone.
    RemoveDisk(String),
    /// A disk is otherwise now.
    Set {
        /// Its name.
        disk: String,
        /// What was set.
        settings: Vec<(&'static str, Json)>,
    },
    /// There is another export.
    AddExport(ExportPlan),
    /// An export is gone.
    RemoveExport(&'static ExportKind, String),
}

/// How often the change is made to what somebody else has written meanwhile.
const MAX_TRIES: usize = 8;

/// A file that says what was changed, to be put in the place of the one before.
#[derive(Debug)]
pub struct Prepared {
    file: PathBuf,
    edit: Arc<Edit>,
    /// What it was made from.
    before: String,
    text: String,
}

/// Makes the text; none if the file says it already. Waits for the file: not for a thread that others need.
///
/// # Errors
/// The file cannot be read, or cannot say that.
pub fn prepare(file: &Path, edit: &Arc<Edit>) -> Result<Option<Prepared>> {
    let failed = |err: Error| {
        Error::new(err.kind(), format!("{} cannot express that", file.display())).caused_by(err)
    };
    let text = std::fs::read_to_string(file)
        .map_err(|err| Error::failed(format!("cannot read {}", file.display())).caused_by(err))?;
    let parsed = |text: &str| {
        let base = file.parent().unwrap_or(Path::new(""));
        parse(&file.display().to_string(), text, base).map_err(|err| failed(mistakes(err)))
    };
    let before = parsed(&text)?;
    let mut document: DocumentMut =
        text.parse().map_err(|err: toml_edit::TomlError| failed(Error::failed(err.to_string())))?;
    if !apply(&mut document, &before, edit).map_err(failed)? {
        return Ok(None);
    }
    let before = text;
    let text = with_head(head(&before), document.to_string());
    let after = parsed(&text)?;
    if let Edit::AddDisk { plan, .. } = &**edit {
        check_same(plan, &after).map_err(failed)?;
    }
    Ok(Some(Prepared { file: file.to_owned(), edit: Arc::clone(edit), before, text }))
}

impl Prepared {
    /// Puts it in its place, whole or not at all, with the owner and the permissions of the one before. What somebody else has
    /// written since it was made stays: then the change is made to that. Waits for the file, too.
    ///
    /// # Errors
    /// The folder cannot be written to, or what is there now cannot say that.
    pub fn write(self) -> Result<()> {
        let file = self.file.clone();
        let failed = |err: Error| {
            let what = format!("the change is in effect, but was not saved to {}", file.display());
            Error::new(err.kind(), what).caused_by(err)
        };
        let mut next = self;
        for _ in 0..MAX_TRIES {
            let put = next.put().map_err(|err| Error::failed("cannot write").caused_by(err));
            if put.map_err(failed)? {
                return Ok(());
            }
            match prepare(&file, &next.edit).map_err(failed)? {
                Some(prepared) => next = prepared,
                None => return Ok(()),
            }
        }
        Err(failed(Error::new(ErrorKind::Busy, "the file keeps changing")))
    }

    /// Gives the new file to the owner of the one before, as far as this process may: whoever owns the folder may replace the
    /// file, and need not be able to give away any (`CAP_CHOWN`, chown(2)). Says what it is to permit.
    fn give_to_owner(&self, new: &File, before: &Metadata) -> io::Result<Permissions> {
        let refused = |result: io::Result<()>| match result {
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => Ok(true),
            done => done.map(|()| false),
        };
        let (uid, gid) = (before.uid(), before.gid());
        if !refused(fchown(new, Some(uid), Some(gid)))? {
            return Ok(before.permissions());
        }
        let file = self.file.display();
        if !refused(fchown(new, None, Some(gid)))? {
            tracing::warn!(%file, uid, "owner of the file changed to the user of the daemon, which cannot restore it");
            return Ok(Permissions::from_mode(before.mode() & 0o777));
        }
        tracing::warn!(%file, uid, gid, "owner and group of the file changed to those of the daemon, which cannot restore them");
        Ok(of_other_group(before.mode()))
    }

    /// Says no if there is another file by now.
    fn put(&self) -> io::Result<bool> {
        // A link to it stays one.
        let file = self.file.canonicalize()?;
        let folder = file.parent().unwrap_or(Path::new("/"));
        let mut new = NamedTempFile::new_in(folder)?;
        new.write_all(self.text.as_bytes())?;
        let (before, now) = (std::fs::metadata(&file)?, new.as_file().metadata()?);
        let permissions = if (before.uid(), before.gid()) == (now.uid(), now.gid()) {
            before.permissions()
        } else {
            // Whoever it belongs to goes on with it. Only then the permissions: this takes some of them away.
            self.give_to_owner(new.as_file(), &before)?
        };
        new.as_file().set_permissions(permissions)?;
        new.as_file().sync_all()?;
        if std::fs::read(&file)? != self.before.as_bytes() {
            return Ok(false);
        }
        new.persist(&file)?;
        File::open(folder)?.sync_all()?;
        Ok(true)
    }
}

/// What a file is to permit when it has got another group than it is meant to have: that group may do what all others may. No
/// right goes with it that an owner or a group had by name (setuid, setgid).
fn of_other_group(mode: u32) -> Permissions {
    Permissions::from_mode(mode & 0o707 | (mode & 0o007) << 3)
}

/// What a file begins with that is of no table: comments, up to the blank line before those of its first table.
fn head(text: &str) -> &str {
    let is_comment = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let (mut end, mut head) = (0, 0);
    for line in text.split_inclusive('\n').take_while(is_comment) {
        end += line.len();
        if line.trim().is_empty() {
            head = end;
        }
    }
    text.get(..if head == 0 { end } else { head }).unwrap_or_default()
}

/// With that in front, also when it went with what came next.
fn with_head(head: &str, text: String) -> String {
    if text.starts_with(head) {
        return text;
    }
    format!("{head}{}", text.trim_start_matches('\n'))
}

fn mistakes(err: ConfigError) -> Error {
    match err {
        ConfigError::Unreadable(err) => err,
        ConfigError::Mistakes(mistakes) => {
            let first = mistakes.list().first().map(|it| (it.what.clone(), it.remedy.clone()));
            let (what, remedy) = first.unwrap_or_default();
            Error::usage(what).help(remedy)
        }
    }
}

/// Whether two plans are of the same disk, in whatever words.
fn is_same(one: &DiskPlan, two: &DiskPlan) -> bool {
    let meant = |plan: &DiskPlan| format!("{:?} {:?} {:?}", plan.source, plan.options, plan.below);
    meant(one) == meant(two)
}

/// A relative path starts at the folder of the file.
fn check_same(plan: &DiskPlan, after: &YardPlan) -> Result<()> {
    let name = plan.options.name.as_deref().unwrap_or_default();
    match after.disk(name) {
        Some(saved) if is_same(saved, plan) => Ok(()),
        _ => {
            let what = format!("{} would be another disk in that file", plan.uri);
            Err(Error::usage(what).help("use an absolute path"))
        }
    }
}

/// Says whether anything was changed.
fn apply(document: &mut DocumentMut, before: &YardPlan, edit: &Edit) -> Result<bool> {
    match edit {
        Edit::AddDisk { plan, options } => {
            let name = plan.options.name.as_deref().unwrap_or_default();
            if before.disk(name).is_some_and(|known| is_same(known, plan)) {
                return Ok(false);
            }
            let mut table = table();
            // It is said once.
            if !PlanBuilder::of_uri(&plan.uri).is_ok_and(|uri| uri.name().is_some()) {
                table["name"] = value(name);
            }
            table["uri"] = value(&plan.uri);
            for (key, said) in options {
                table[key] = of_json(said);
            }
            if before.disk(name).is_none() {
                // Whether the new one is exported is for others to say.
                write_implied(document, before, |_| true)?;
            }
            let tables = tables(document, "disk")?;
            match place_of(before, name).and_then(|at| tables.get_mut(at)) {
                // In the place of what the file has, with the comments before that.
                Some(there) => {
                    *table.decor_mut() = there.decor().clone();
                    table.set_position(there.position());
                    *there = table;
                }
                None => tables.push(table),
            }
        }
        Edit::RemoveDisk(name) => {
            let Some(at) = place_of(before, name) else { return Ok(false) };
            tables(document, "disk")?.remove(at);
        }
        Edit::Set { disk, settings } => {
            let at = place_of(before, disk)
                .ok_or_else(|| Error::failed(format!("no disk {disk:?} in the file")))?;
            let tables = tables(document, "disk")?;
            for (name, said) in settings {
                for at in said_at(before, at, name) {
                    let table = tables.get_mut(at).ok_or_else(not_as_tables)?;
                    set(table, name, of_json(said));
                }
            }
        }
        Edit::AddExport(plan) => {
            let is_it = |it: &&ExportPlan| it.kind == plan.kind && it.name == plan.name;
            let is_implied = !document.contains_key(key(plan.kind));
            match before.exports.iter().find(is_it) {
                Some(known) if known == plan => return Ok(false),
                Some(_) if !is_implied => {
                    let what = format!("another export {:?} is in the file", plan.label());
                    return Err(Error::usage(what));
                }
                _ => {}
            }
            if plan.kind == &exports::nbd::KIND {
                // One that goes without saying is said otherwise now.
                write_implied(document, before, |it| !is_it(&it))?;
            }
            tables(document, key(plan.kind))?.push(of_export(plan));
        }
        Edit::RemoveExport(kind, name) => {
            let of_kind: Vec<_> = before.exports.iter().filter(|it| it.kind == *kind).collect();
            let Some(at) = of_kind.iter().position(|it| it.name == *name) else { return Ok(false) };
            if *kind == &exports::nbd::KIND && of_kind.len() == 1 {
                let what = "without any [[export]], every disk is exported over NBD";
                return Err(Error::usage(what).help("edit the file, or omit --save"));
            }
            if *kind == &exports::nbd::KIND {
                write_implied(document, before, |_| true)?;
            }
            tables(document, key(kind))?.remove(at);
            if *kind == &exports::nbd::KIND && before.nbd.default_export.as_ref() == Some(name) {
                no_default(document);
            }
        }
    }
    Ok(true)
}

/// Where a disk is among the tables.
fn place_of(plan: &YardPlan, name: &str) -> Option<usize> {
    plan.disks.iter().position(|disk| disk.options.name.as_deref() == Some(name))
}

/// Where a setting of a disk is said, or is to be: the limits of a group by each of its disks that say them.
fn said_at(plan: &YardPlan, disk: usize, setting: &str) -> Vec<usize> {
    let group = plan.disks.get(disk).and_then(|it| it.options.throttle_group.as_ref());
    let says = |it: &DiskPlan| {
        group.is_some()
            && it.options.throttle_group.as_ref() == group
            && throttle::shown(&it.options.throttle).contains_key(setting)
    };
    let all = plan.disks.iter().enumerate().filter(|(_, it)| says(it));
    let all: Vec<_> = all.map(|(at, _)| at).collect();
    if all.is_empty() { vec![disk] } else { all }
}

fn key(kind: &ExportKind) -> &'static str {
    kind.table.trim_matches(['[', ']'])
}

fn not_as_tables() -> Error {
    Error::usage("disks and exports must be written as [[disk]] and [[export]]")
}

fn tables<'a>(document: &'a mut DocumentMut, key: &str) -> Result<&'a mut ArrayOfTables> {
    let item = document.entry(key).or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    item.as_array_of_tables_mut().ok_or_else(not_as_tables)
}

/// A table with a blank line before it.
fn table() -> Table {
    let mut table = Table::new();
    table.decor_mut().set_prefix("\n");
    table
}

/// Sets a key, however it is spelled.
fn set(table: &mut Table, name: &str, item: Item) {
    let spelled = table.iter().map(|(key, _)| key).find(|key| canonical_key(key) == name);
    let key = spelled.unwrap_or(name).to_owned();
    match (table.get_mut(&key).and_then(Item::as_value_mut), item.into_value()) {
        (Some(before), Ok(mut now)) => {
            *now.decor_mut() = before.decor().clone();
            *before = now;
        }
        (None, Ok(now)) => table[&key] = value(now),
        (_, Err(_)) => unreachable!("a setting is a value"),
    }
}

fn of_json(said: &Json) -> Item {
    match said {
        Json::Bool(flag) => value(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(number) => value(number),
            None => value(number.to_string()),
        },
        Json::String(text) => value(text),
        other => value(other.to_string()),
    }
}

fn of_export(plan: &ExportPlan) -> Table {
    let mut table = table();
    let unnamed = if plan.kind.whole_yard { exports::WHOLE_YARD } else { &plan.disk };
    if !plan.kind.whole_yard {
        table["disk"] = value(&plan.disk);
    }
    if plan.name != unnamed {
        table["name"] = value(&plan.name);
    }
    for (name, said) in plan.settings.iter() {
        let is_mode =
            plan.kind.said_options().any(|it| it.name == name && it.value == ValueKind::Mode);
        table[name] = match said {
            Value::Flag(flag) => value(*flag),
            Value::Number(mode) if is_mode => value(format!("{mode:o}")),
            Value::Number(number) => value(i64::try_from(*number).unwrap_or(i64::MAX)),
            Value::Time(time) => value(show_duration(*time)),
            Value::Rate(rate) => value(throttle::show_rate(*rate)),
            Value::Text(text) => value(text),
            Value::Path(path) => value(path.to_string_lossy().into_owned()),
        };
    }
    table
}

/// Where no `[[export]]` stands, every disk has one: with the first that does, the others have to be said. Exports of other kinds
/// leave that as it is.
fn write_implied(
    document: &mut DocumentMut,
    before: &YardPlan,
    which: impl Fn(&ExportPlan) -> bool,
) -> Result<()> {
    let key = key(&exports::nbd::KIND);
    if document.contains_key(key) {
        return Ok(());
    }
    let exports = tables(document, key)?;
    let implied = before.exports.iter().filter(|export| export.kind == &exports::nbd::KIND);
    implied.filter(|it| which(it)).for_each(|export| exports.push(of_export(export)));
    Ok(())
}

/// An export that is gone is not the default any more, and no other one is in its place.
fn no_default(document: &mut DocumentMut) {
    let Some(nbd) = document.get_mut("nbd").and_then(Item::as_table_like_mut) else { return };
    let known = nbd.iter().map(|(key, _)| key).find(|key| canonical_key(key) == "default_export");
    let key = known.unwrap_or("default_export").to_owned();
    let mut none = value("");
    if let (Some(before), Some(none)) =
        (nbd.get(&key).and_then(Item::as_value), none.as_value_mut())
    {
        *none.decor_mut() = before.decor().clone();
    }
    nbd.insert(&key, none);
}

#[cfg(test)]
mod tests {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

    use super::*;

    const YARD: &str = "# Our yard.\n\n# Fast, and gone in the end.\n[[disk]]\nname = \"a\" # the first\n\
                        uri = \"ram:1M\"\nread-only = true # for now\n\n[[disk]]\nuri = \"file:b.img\"\n\n\
                        [nbd]\nlisten = \"unix:s\"\ndefault_export = \"b\" # most want it\n";

    fn edited(edits: impl IntoIterator<Item = Edit>) -> Result<String> {
        edited_in(YARD, edits)
    }

    fn edited_in(yard: &str, edits: impl IntoIterator<Item = Edit>) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yard.toml");
        std::fs::write(&file, yard).unwrap();
        for edit in edits {
            if let Some(prepared) = prepare(&file, &Arc::new(edit))? {
                prepared.write()?;
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        Ok(std::fs::read_to_string(&file).unwrap())
    }

    fn disk(uri: &str, name: &str) -> DiskPlan {
        let mut plan: DiskPlan = uri.parse().unwrap();
        plan.options.name = Some(name.into());
        plan
    }

    /// Whichever of its disks was named; the others would say the old ones, or nobody them.
    #[test]
    fn limits_of_a_group_are_saved_where_they_are_said() {
        let disk = |name: &str, rest: &str| {
            format!("[[disk]]\nname = \"{name}\"\nuri = \"ram:1M\"\n{rest}\n")
        };
        let (group, iops) = ("throttle_group = \"g\"\n", "iops = 1\n");
        let (both, nbd) = (format!("{group}{iops}"), "[nbd]\nlisten = \"unix:s\"\n");
        let yard =
            [disk("a", &both), disk("b", &both), disk("c", group), disk("d", iops), nbd.into()];
        let set = |name: &str, key, said: Json| {
            let edit = Edit::Set { disk: name.into(), settings: vec![(key, said)] };
            edited_in(&yard.concat(), [edit]).unwrap()
        };
        let five = yard.concat().replacen("iops = 1", "iops = 5", 2);
        for name in ["a", "b", "c"] {
            assert_eq!(set(name, "iops", 5.into()), five, "{name}");
        }
        assert_eq!(set("d", "iops", 5.into()).matches("iops = 1").count(), 2, "it is in no group");
        let with_bps = set("c", "bps", "1M".into());
        assert_eq!(with_bps.replace(&format!("{group}bps = \"1M\"\n"), group), yard.concat());
        let with_depth = set("a", "io_size", 4096.into());
        assert_eq!(with_depth.matches("io_size").count(), 1);
    }

    #[test]
    fn comments_stay_and_what_was_changed_is_there() {
        let (mut c, options) = (disk("ram:2M", "c"), [("depth".to_owned(), Json::from(7))]);
        c.options.depth = 7;
        let set = |settings| Edit::Set { disk: "a".into(), settings };
        let (no, size) = (("read_only", Json::from(false)), ("size", Json::from("2M")));
        assert!(
            edited([set(vec![no.clone(), size])])
                .unwrap_err()
                .to_string()
                .contains("cannot express that"),
            "it is in the URI"
        );
        let export = ExportPlan::new(&exports::nbd::KIND, "c", "c")
            .with("description", Value::Text("C".into()));
        let add = || Edit::AddDisk { plan: c.clone(), options: options.to_vec() };
        let remove = || Edit::RemoveDisk("b".into());
        // Once more changes nothing.
        let edits = [
            set(vec![no]),
            add(),
            Edit::AddExport(export),
            Edit::RemoveExport(&exports::nbd::KIND, "b".into()),
            remove(),
            remove(),
            add(),
        ];
        let expected = "# Our yard.\n\n# Fast, and gone in the end.\n[[disk]]\nname = \"a\" # the first\n\
                        uri = \"ram:1M\"\nread-only = false # for now\n\n[[disk]]\nname = \"c\"\nuri = \"ram:2M\"\n\
                        depth = 7\n\n[nbd]\nlisten = \"unix:s\"\ndefault_export = \"\" # most want it\n\n\
                        [[export]]\ndisk = \"a\"\n\n[[export]]\n\
                        disk = \"c\"\ndescription = \"C\"\n";
        assert_eq!(edited(edits).unwrap(), expected);
    }

    #[test]
    fn what_the_file_cannot_say_is_refused_before_anything_is_written() {
        let elsewhere = disk("./there.img", "there");
        for (edit, part) in [
            (Edit::AddDisk { plan: elsewhere, options: Vec::new() }, "would be another disk"),
            (Edit::Set { disk: "x".into(), settings: Vec::new() }, "no disk \"x\" in the file"),
            (Edit::RemoveDisk("a".into()), ""),
        ] {
            let told = edited([edit]).map_or_else(|err| err.told().0.join("; "), |_| String::new());
            assert!(told.contains(part), "{part}: {told}");
        }
        let last = [
            Edit::RemoveExport(&exports::nbd::KIND, "a".into()),
            Edit::RemoveExport(&exports::nbd::KIND, "b".into()),
        ];
        assert!(edited(last).unwrap_err().told().0[0].contains("every disk is exported"));
    }

    /// What a file is after an edit.
    fn after(text: &str, edit: Edit) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yard.toml");
        std::fs::write(&file, text).unwrap();
        if let Some(prepared) = prepare(&file, &Arc::new(edit)).unwrap() {
            prepared.write().unwrap();
        }
        std::fs::read_to_string(&file).unwrap()
    }

    #[test]
    fn a_disk_that_is_otherwise_in_the_file_is_replaced_there() {
        let a = disk("ram:1M", "a");
        let text = after(YARD, Edit::AddDisk { plan: a, options: Vec::new() });
        let expected = YARD.replace("read-only = true # for now\n", "").replace(" # the first", "");
        assert_eq!(text, expected);
        // In other words it is the same one.
        let mut same = disk("ram:1M?read_only=1", "a");
        same.options.read_only = true;
        assert_eq!(after(YARD, Edit::AddDisk { plan: same, options: Vec::new() }), YARD);
        let (mut b, said) = (disk("ram:4M", "b"), [("depth".to_owned(), Json::from(7))]);
        b.options.depth = 7;
        let text = after(YARD, Edit::AddDisk { plan: b, options: said.to_vec() });
        let expected = YARD.replace(
            "[[disk]]\nuri = \"file:b.img\"",
            "[[disk]]\nname = \"b\"\nuri = \"ram:4M\"\ndepth = 7",
        );
        assert_eq!(text, expected);
    }

    /// Nobody has asked for it to be on the network.
    #[test]
    fn a_disk_that_is_new_in_a_file_is_no_export_by_itself() {
        let exports = |text: &str, edit| {
            let text = after(text, edit);
            let plan = parse("yard.toml", &text, Path::new("/")).unwrap();
            plan.exports.into_iter().map(|it| it.label()).collect::<Vec<_>>()
        };
        let (c, fuse) = (disk("ram:2M", "c"), "\n[[fuse]]\ndisk = \"a\"\npath = \"f\"\n");
        let add = || Edit::AddDisk { plan: c.clone(), options: Vec::new() };
        assert_eq!(exports(YARD, add()), ["a", "b"]);
        assert_eq!(exports(&format!("{YARD}{fuse}"), add()), ["a", "b", "fuse:a"]);
        let text = after(YARD, add());
        let export = ExportPlan::new(&exports::nbd::KIND, "c", "c");
        assert_eq!(exports(&text, Edit::AddExport(export)), ["a", "b", "c"]);
    }

    /// Somebody else's file is still his when root has written to it, with all its permissions.
    #[test]
    fn a_file_stays_its_owner_s() {
        assert!(rustix::process::geteuid().is_root(), "run as root, as cargo xtask test does");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yard.toml");
        std::fs::write(&file, YARD).unwrap();
        fchown(std::fs::File::open(&file).unwrap(), Some(1234), Some(5678)).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o2750)).unwrap();
        let before = std::fs::metadata(&file).unwrap();
        let edit = Arc::new(Edit::RemoveDisk("a".into()));
        prepare(&file, &edit).unwrap().unwrap().write().unwrap();
        let now = std::fs::metadata(&file).unwrap();
        assert_ne!(now.ino(), before.ino());
        assert_eq!((now.uid(), now.gid(), now.mode()), (1234, 5678, before.mode()));
    }

    /// One who may write the folder may replace the file.
    #[test]
    fn whoever_may_not_give_a_file_back_to_its_owner_saves_all_the_same() {
        const OWNER: u32 = 1234;
        const GROUP: u32 = 5678;
        const DAEMON: u32 = 4321;
        for (groups, gid, mode) in [(&[GROUP][..], GROUP, 0o664), (&[], DAEMON, 0o644)] {
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::chown(dir.path(), Some(DAEMON), Some(DAEMON)).unwrap();
            let file = dir.path().join("yard.toml");
            std::fs::write(&file, YARD).unwrap();
            fchown(File::open(&file).unwrap(), Some(OWNER), Some(GROUP)).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Only this thread is somebody else: setresuid(2).
                    let groups: Vec<_> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
                    set_thread_groups(&groups).unwrap();
                    let (uid, gid) = (Uid::from_raw(DAEMON), Gid::from_raw(DAEMON));
                    set_thread_res_gid(gid, gid, gid).unwrap();
                    set_thread_res_uid(uid, uid, uid).unwrap();
                    let edit = Arc::new(Edit::RemoveDisk("a".into()));
                    prepare(&file, &edit).unwrap().unwrap().write().unwrap();
                });
            });
            let now = std::fs::metadata(&file).unwrap();
            assert_eq!((now.uid(), now.gid(), now.mode() & 0o7777), (DAEMON, gid, mode));
            assert!(!std::fs::read_to_string(&file).unwrap().contains("\"a\""));
        }
    }

    #[test]
    fn the_head_of_a_file_stays_when_its_first_table_goes() {
        let named = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n\n[[disk]]\nname = \"b\"\nuri = \"ram:1M\"\n\n\
                     [nbd]\nlisten = \"unix:s\"\n\n[[export]]\ndisk = \"b\"\n";
        let rest = named.split_once("\n\n").unwrap().1;
        for (head, kept) in [
            ("# Ours.\n", "# Ours.\n"),
            ("# Ours.\n#\n# Do not touch.\n\n# A disk.\n", "# Ours.\n#\n# Do not touch.\n\n"),
            ("", ""),
        ] {
            let text = after(&format!("{head}{named}"), Edit::RemoveDisk("a".into()));
            assert_eq!(text.trim_start_matches('\n'), format!("{kept}{rest}"), "{head:?}");
        }
    }

    #[test]
    fn what_somebody_else_wrote_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yard.toml");
        std::fs::write(&file, YARD).unwrap();
        let plan = disk("ram:2M", "c");
        let edit = Arc::new(Edit::AddDisk { plan, options: Vec::new() });
        let prepared = prepare(&file, &edit).unwrap().unwrap();
        let theirs = YARD.replace("# Our yard.", "# Our yard, and theirs.");
        std::fs::write(&file, &theirs).unwrap();
        prepared.write().unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("and theirs") && text.contains("ram:2M"), "{text}");
    }

    #[test]
    fn a_link_to_the_file_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("real.toml"), dir.path().join("yard.toml"));
        std::fs::write(&file, YARD).unwrap();
        std::os::unix::fs::symlink("real.toml", &link).unwrap();
        let edit = Arc::new(Edit::RemoveDisk("a".into()));
        prepare(&link, &edit).unwrap().unwrap().write().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(!std::fs::read_to_string(&file).unwrap().contains("ram:1M"));
    }

    #[test]
    fn no_other_export_becomes_the_default_when_that_is_removed() {
        let implied = YARD.replace("default_export = \"b\" # most want it\n", "");
        for (text, gone, default) in
            [(YARD, "b", ""), (&implied, "a", ""), (YARD, "a", "b"), (&implied, "b", "a")]
        {
            let text = after(text, Edit::RemoveExport(&exports::nbd::KIND, gone.into()));
            let plan = parse("yard.toml", &text, Path::new("/")).unwrap();
            assert_eq!(plan.nbd.default_export.as_deref(), Some(default), "{text}");
        }
    }
}
