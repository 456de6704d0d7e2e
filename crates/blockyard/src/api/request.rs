//! What a request says, checked: nothing that is not understood is left out.

use std::path::PathBuf;

use serde_json::{Map, Value as Json};

use super::problem::{Answer, Refusal};
use crate::disks::{
    DiskPlan, OptionSpec, PlanBuilder, Value, ValueKind, canonical_key, setting, uri,
};
use crate::error::Error;
use crate::exports::{ExportKind, ExportPlan};
use crate::text::suggest;

/// Where a request says something.
fn field(name: &str) -> String {
    format!("body.{name}")
}

/// The body as an object.
pub(super) fn object(body: &[u8]) -> Answer<Map<String, Json>> {
    match serde_json::from_slice(body) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::usage("body", "the body is not a JSON object")),
        Err(err) => Err(Refusal::usage("body", format!("invalid JSON: {err}"))),
    }
}

/// A value as an option in a URI has it.
fn text_of(name: &str, value: &Json) -> Answer<String> {
    match value {
        Json::String(text) => Ok(text.clone()),
        Json::Bool(flag) => Ok(if *flag { "1" } else { "0" }.into()),
        Json::Number(number) => Ok(number.to_string()),
        _ => Err(Refusal::usage(
            field(name),
            format!("{name} must be a string, a number or a boolean"),
        )),
    }
}

fn text(object: &mut Map<String, Json>, name: &str) -> Answer<Option<String>> {
    match object.remove(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::usage(field(name), format!("{name} must be a string"))),
    }
}

fn needed(object: &mut Map<String, Json>, name: &str) -> Answer<String> {
    text(object, name)?.ok_or_else(|| Refusal::usage(field(name), format!("{name} is missing")))
}

/// Where relative paths start: a folder that the client names, as ours is not its own.
fn folder(object: &mut Map<String, Json>) -> Answer<PathBuf> {
    let Some(folder) = text(object, "folder")? else { return Ok(PathBuf::new()) };
    let folder = PathBuf::from(folder);
    if folder.is_absolute() {
        return Ok(folder);
    }
    Err(Refusal::usage(field("folder"), format!("{} is not an absolute path", folder.display())))
}

/// A disk that is wanted, and what was said of it besides its URI.
pub(super) struct WantedDisk {
    pub(super) plan: DiskPlan,
    pub(super) options: Vec<(String, Json)>,
}

pub(super) fn disk(name: &str, mut object: Map<String, Json>) -> Answer<WantedDisk> {
    let uri = needed(&mut object, "uri")?;
    let folder = folder(&mut object)?;
    if object.contains_key("name") {
        return Err(Refusal::usage(field("name"), "the name of a disk is in the path"));
    }
    let wrong = |problem: String| Refusal::usage(field("uri"), problem);
    let mut builder = PlanBuilder::of_uri(&uri).map_err(|err| wrong(err.to_string()))?;
    match builder.name() {
        None => builder.set("name", name).map_err(|problem| Refusal::usage("path", problem))?,
        Some(same) if same == name => {}
        Some(other) => {
            return Err(wrong(format!("the URI names the disk {other:?}, the path {name:?}")));
        }
    }
    let options: Vec<_> = object.into_iter().collect();
    for (key, value) in &options {
        let value = text_of(key, value)?;
        builder.set(key, &value).map_err(|problem| Refusal::usage(field(key), problem))?;
    }
    let plan = builder.finish(&uri, &folder).map_err(wrong)?;
    Ok(WantedDisk { plan, options })
}

/// An export that is wanted.
pub(super) fn export(
    kind: &'static ExportKind,
    name: &str,
    mut object: Map<String, Json>,
) -> Answer<ExportPlan> {
    let disk = if kind.whole_yard { String::new() } else { needed(&mut object, "disk")? };
    let folder = folder(&mut object)?;
    let mut plan = ExportPlan::new(kind, disk, name);
    let mut given = Vec::new();
    for (key, value) in object {
        let known = canonical_key(&key);
        let Some(option) = kind.said_options().find(|option| option.name == known) else {
            let names: Vec<_> = kind.said_options().map(|option| option.name).collect();
            let hint = suggest::hint(&key, &names);
            let what = format!("an export of kind {} has no option {key:?}; {hint}", kind.name);
            return Err(Refusal::usage(field(&key), what));
        };
        let value = option.value.parse(option.name, option.default, &text_of(&key, &value)?);
        let value = value.map_err(|problem| Refusal::usage(field(&key), problem))?;
        if given.contains(&option.name) {
            return Err(Refusal::usage(field(&key), format!("{key:?} is given twice")));
        }
        given.push(option.name);
        plan = plan.with(option.name, value);
    }
    let wrong = |problem| Refusal::usage("body", problem);
    plan.settings.make_paths_absolute(&folder).map_err(wrong)?;
    (kind.check)(&plan.settings).map_err(wrong)?;
    Ok(plan)
}

/// A job that is wanted, with names of disks.
pub(super) enum WantedJob {
    Check { disk: String },
    Copy { source: String, target: String, detect_zeroes: bool },
}

pub(super) fn job(mut object: Map<String, Json>) -> Answer<WantedJob> {
    let kind = needed(&mut object, "kind")?;
    let wanted = match kind.as_str() {
        "check" => WantedJob::Check { disk: needed(&mut object, "disk")? },
        "copy" => {
            let (source, target) = (needed(&mut object, "source")?, needed(&mut object, "target")?);
            let detect_zeroes = match object.remove("detect_zeroes") {
                None => false,
                Some(Json::Bool(flag)) => flag,
                Some(_) => {
                    let what = "detect_zeroes must be true or false";
                    return Err(Refusal::usage(field("detect_zeroes"), what));
                }
            };
            WantedJob::Copy { source, target, detect_zeroes }
        }
        other => {
            let hint = suggest::hint(other, &["check", "copy"]);
            let what = format!("unknown kind of job {other:?}; {hint}");
            return Err(Refusal::usage(field("kind"), what));
        }
    };
    match object.keys().next() {
        None => Ok(wanted),
        Some(key) => {
            let what = format!("unknown option {key:?} for a job of kind {kind}");
            Err(Refusal::usage(field(key), what))
        }
    }
}

/// Settings that are wanted, each with the text that it was made from.
pub(super) struct Wanted {
    pub(super) option: &'static OptionSpec,
    pub(super) value: Value,
    pub(super) said: Json,
}

pub(super) fn settings(object: Map<String, Json>) -> Answer<Vec<Wanted>> {
    if object.is_empty() {
        return Err(Refusal::usage("body", "no settings given"));
    }
    let wanted = |(key, said): (String, Json)| {
        let (option, value) = setting(&key, &text_of(&key, &said)?)
            .map_err(|err: Error| Refusal::new(field(&key), &err))?;
        Ok(Wanted { option, value, said })
    };
    object.into_iter().map(wanted).collect()
}

/// What a query says of `known` parameters.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>, known: &[&str]) -> Answer<Self> {
        let parameters = query.unwrap_or_default().split('&').filter(|text| !text.is_empty());
        let parse = |text: &str| {
            let (key, value) = text.split_once('=').unwrap_or((text, "1"));
            let place = || format!("query.{key}");
            if !known.contains(&key) {
                let what = format!("unknown parameter {key:?}; {}", suggest::hint(key, known));
                return Err(Refusal::usage(place(), what));
            }
            let value = uri::decode(value).map_err(|problem| Refusal::usage(place(), problem))?;
            Ok((key.to_owned(), value))
        };
        parameters.map(parse).collect::<Answer<_>>().map(Self)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn flag(&self, key: &str) -> Answer<bool> {
        let Some(text) = self.text(key) else { return Ok(false) };
        match ValueKind::Flag.parse(key, "0", text) {
            Ok(Value::Flag(flag)) => Ok(flag),
            Ok(_) => unreachable!("a flag is one"),
            Err(problem) => Err(Refusal::usage(format!("query.{key}"), problem)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::exports;
    use crate::yard::config;

    /// As a client that makes sure of its export finds a daemon that was started anew.
    #[test]
    fn an_export_is_the_same_in_a_file_and_in_a_request_in_any_order() {
        let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n[nbd]\nlisten = \"unix:s\"\n\
                    [[export]]\ndisk = \"a\"\nwhole_blocks = true\nread_only = false\n\
                    preferred_block_size = 4096\ndescription = \"A\"\n";
        let plan = config::parse("yard.toml", yard, Path::new("/")).unwrap();
        let json = br#"{"disk": "a", "description": "A", "whole_blocks": true, "tls_only": false,
                        "preferred_block_size": 4096}"#;
        let wanted = export(&exports::nbd::KIND, "a", object(json).unwrap()).unwrap();
        assert_eq!(plan.exports, std::slice::from_ref(&wanted));
        let json = br#"{"disk": "a", "description": "B", "whole_blocks": true,
                        "preferred_block_size": 4096}"#;
        let other = export(&exports::nbd::KIND, "a", object(json).unwrap()).unwrap();
        assert_ne!(other, wanted);
    }
}
