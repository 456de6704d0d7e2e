//! Writing a change of a running yard back to its `yard.toml`. Comments, order and whatever else is not changed stay as they
//! are; what comes out is checked as any `yard.toml` before it takes the place of the one before.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tempfile::NamedTempFile;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{ConfigError, load, parse};
use crate::disks::{DiskPlan, Value, ValueKind, canonical_key};
use crate::error::{Error, Result};
use crate::exports::{self, ExportKind, ExportPlan};
use crate::yard::plan::YardPlan;

/// A change.
#[derive(Debug)]
pub enum Edit<'a> {
    /// There is another disk.
    AddDisk {
        /// The disk.
        plan: &'a DiskPlan,
        /// What was said of it besides its URI.
        options: &'a [(String, Json)],
    },
    /// A disk is gone.
    RemoveDisk(&'a str),
    /// A disk is otherwise now.
    Set {
        /// Its name.
        disk: &'a str,
        /// What was set.
        settings: Vec<(&'static str, &'a Json)>,
    },
    /// There is another export.
    AddExport(&'a ExportPlan),
    /// An export is gone.
    RemoveExport(&'static ExportKind, &'a str),
}

/// A file that says what was changed, to be put in the place of the one before.
#[derive(Debug)]
pub struct Prepared {
    file: PathBuf,
    text: String,
}

/// Makes the text; none if the file says it already.
///
/// # Errors
/// The file cannot be read, or cannot say that.
pub fn prepare(file: &Path, edit: &Edit<'_>) -> Result<Option<Prepared>> {
    let failed = |err: Error| {
        Error::new(err.kind(), format!("{} cannot say that", file.display())).caused_by(err)
    };
    let before = load(file).map_err(|err| failed(mistakes(err)))?;
    let text = std::fs::read_to_string(file)
        .map_err(|err| Error::failed(format!("cannot read {}", file.display())).caused_by(err))?;
    let mut document: DocumentMut =
        text.parse().map_err(|err: toml_edit::TomlError| failed(Error::failed(err.to_string())))?;
    if !apply(&mut document, &before, edit).map_err(failed)? {
        return Ok(None);
    }
    let text = document.to_string();
    let base = file.parent().unwrap_or(Path::new(""));
    let after =
        parse(&file.display().to_string(), &text, base).map_err(|err| failed(mistakes(err)))?;
    if let Edit::AddDisk { plan, .. } = edit {
        check_same(plan, &after).map_err(failed)?;
    }
    Ok(Some(Prepared { file: file.to_owned(), text }))
}

impl Prepared {
    /// Puts it in its place, whole or not at all, with the permissions of the one before.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(self) -> Result<()> {
        let Self { file, text } = self;
        let put = || {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            let mut new = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
            new.write_all(text.as_bytes())?;
            new.as_file().set_permissions(std::fs::metadata(&file)?.permissions())?;
            new.as_file().sync_all()?;
            new.persist(&file)?;
            Ok::<_, std::io::Error>(())
        };
        put().map_err(|err| {
            let what = format!("it is in effect, but was not saved to {}", file.display());
            Error::failed(what).caused_by(err)
        })
    }
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

/// A relative path starts at the folder of the file.
fn check_same(plan: &DiskPlan, after: &YardPlan) -> Result<()> {
    let name = plan.options.name.as_deref().unwrap_or_default();
    let place = |plan: &DiskPlan| format!("{:?} {:?}", plan.source, plan.below);
    match after.disk(name) {
        Some(saved) if place(saved) == place(plan) => Ok(()),
        _ => {
            let what = format!("{} would be another disk in that file", plan.uri);
            Err(Error::usage(what).help("write an absolute path"))
        }
    }
}

/// Says whether anything was changed.
fn apply(document: &mut DocumentMut, before: &YardPlan, edit: &Edit<'_>) -> Result<bool> {
    match edit {
        Edit::AddDisk { plan, options } => {
            let name = plan.options.name.as_deref().unwrap_or_default();
            if before.disk(name).is_some() {
                return check_same(plan, before).map(|()| false);
            }
            let mut table = table();
            table["name"] = value(name);
            table["uri"] = value(&plan.uri);
            for (key, said) in *options {
                table[key] = of_json(said);
            }
            tables(document, "disk")?.push(table);
        }
        Edit::RemoveDisk(name) => {
            let Some(at) = place_of(before, name) else { return Ok(false) };
            tables(document, "disk")?.remove(at);
        }
        Edit::Set { disk, settings } => {
            let at = place_of(before, disk)
                .ok_or_else(|| Error::failed(format!("there is no disk {disk:?} in it")))?;
            let table = tables(document, "disk")?.get_mut(at);
            let table = table.ok_or_else(not_as_tables)?;
            for (name, said) in settings {
                set(table, name, of_json(said));
            }
        }
        Edit::AddExport(plan) => {
            let is_it = |it: &&ExportPlan| it.kind == plan.kind && it.name == plan.name;
            let is_implied = !document.contains_key(key(plan.kind));
            match before.exports.iter().find(is_it) {
                Some(known) if known == *plan => return Ok(false),
                Some(_) if !is_implied => {
                    let what = format!("there is another export {:?} in it", plan.label());
                    return Err(Error::usage(what));
                }
                _ => {}
            }
            // One that goes without saying is said otherwise now.
            write_implied(document, before, |it| !is_it(&it))?;
            tables(document, key(plan.kind))?.push(of_export(plan));
        }
        Edit::RemoveExport(kind, name) => {
            let of_kind: Vec<_> = before.exports.iter().filter(|it| it.kind == *kind).collect();
            let Some(at) = of_kind.iter().position(|it| it.name == *name) else { return Ok(false) };
            if *kind == &exports::nbd::KIND && of_kind.len() == 1 {
                let what = "without any [[export]], every disk is exported by NBD";
                return Err(Error::usage(what).help("edit the file, or leave --save out"));
            }
            write_implied(document, before, |_| true)?;
            tables(document, key(kind))?.remove(at);
            forget_default(document, name);
        }
    }
    Ok(true)
}

/// Where a disk is among the tables.
fn place_of(plan: &YardPlan, name: &str) -> Option<usize> {
    plan.disks.iter().position(|disk| disk.options.name.as_deref() == Some(name))
}

fn key(kind: &ExportKind) -> &'static str {
    kind.table.trim_matches(['[', ']'])
}

fn not_as_tables() -> Error {
    Error::usage("it has disks or exports in another form than [[disk]] and [[export]]")
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
    table["disk"] = value(&plan.disk);
    if plan.name != plan.disk {
        table["name"] = value(&plan.name);
    }
    for (name, said) in plan.settings.iter() {
        let is_mode =
            plan.kind.said_options().any(|it| it.name == name && it.value == ValueKind::Mode);
        table[name] = match said {
            Value::Flag(flag) => value(*flag),
            Value::Number(mode) if is_mode => value(format!("{mode:o}")),
            Value::Number(number) => value(i64::try_from(*number).unwrap_or(i64::MAX)),
            Value::Time(time) => value(format!("{}ns", time.as_nanos())),
            Value::Text(text) => value(text),
            Value::Path(path) => value(path.to_string_lossy().into_owned()),
        };
    }
    table
}

/// Where no `[[export]]` stands, every disk has one: with the first that does, the others have to be said.
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

/// An export that is gone is not the default any more.
fn forget_default(document: &mut DocumentMut, name: &str) {
    let Some(nbd) = document.get_mut("nbd").and_then(Item::as_table_like_mut) else { return };
    let keys: Vec<String> = nbd
        .iter()
        .filter(|(key, item)| canonical_key(key) == "default_export" && item.as_str() == Some(name))
        .map(|(key, _)| key.to_owned())
        .collect();
    for key in keys {
        nbd.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YARD: &str = "# Our yard.\n\n# Fast, and gone in the end.\n[[disk]]\nname = \"a\" # the first\n\
                        uri = \"ram:1M\"\nread-only = true # for now\n\n[[disk]]\nuri = \"file:b.img\"\n\n\
                        [nbd]\nlisten = \"unix:s\"\ndefault_export = \"b\" # most want it\n";

    fn edited(edits: &[Edit<'_>]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("yard.toml");
        std::fs::write(&file, YARD).unwrap();
        for edit in edits {
            if let Some(prepared) = prepare(&file, edit)? {
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

    #[test]
    fn comments_stay_and_what_was_changed_is_there() {
        let (c, options) = (disk("ram:2M", "c"), [("depth".to_owned(), Json::from(7))]);
        let (no, size) = (Json::from(false), Json::from("2M"));
        let set = Edit::Set { disk: "a", settings: vec![("read_only", &no), ("size", &size)] };
        assert!(
            edited(&[set]).unwrap_err().to_string().contains("cannot say that"),
            "it is in the URI"
        );
        let set = Edit::Set { disk: "a", settings: vec![("read_only", &no)] };
        let export = ExportPlan::new(&exports::nbd::KIND, "c", "c")
            .with("description", Value::Text("C".into()));
        let edits = [
            set,
            Edit::AddDisk { plan: &c, options: &options },
            Edit::AddExport(&export),
            Edit::RemoveExport(&exports::nbd::KIND, "b"),
            Edit::RemoveDisk("b"),
            // Once more changes nothing.
            Edit::RemoveDisk("b"),
            Edit::AddDisk { plan: &c, options: &options },
        ];
        let expected = "# Our yard.\n\n# Fast, and gone in the end.\n[[disk]]\nname = \"a\" # the first\n\
                        uri = \"ram:1M\"\nread-only = false # for now\n\n[[disk]]\nname = \"c\"\nuri = \"ram:2M\"\n\
                        depth = 7\n\n[nbd]\nlisten = \"unix:s\"\n\n[[export]]\ndisk = \"a\"\n\n[[export]]\n\
                        disk = \"c\"\ndescription = \"C\"\n";
        assert_eq!(edited(&edits).unwrap(), expected);
    }

    #[test]
    fn what_the_file_cannot_say_is_refused_before_anything_is_written() {
        let elsewhere = disk("./there.img", "there");
        for (edit, part) in [
            (Edit::AddDisk { plan: &elsewhere, options: &[] }, "would be another disk"),
            (Edit::Set { disk: "x", settings: Vec::new() }, "no disk \"x\" in it"),
            (Edit::RemoveDisk("a"), ""),
        ] {
            let told =
                edited(&[edit]).map_or_else(|err| err.told().0.join("; "), |_| String::new());
            assert!(told.contains(part), "{part}: {told}");
        }
        let last = [
            Edit::RemoveExport(&exports::nbd::KIND, "a"),
            Edit::RemoveExport(&exports::nbd::KIND, "b"),
        ];
        assert!(edited(&last).unwrap_err().told().0[0].contains("every disk is exported"));
    }
}
