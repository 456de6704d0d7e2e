//! What a request says, checked: nothing that is not understood is left out.

use std::fmt;
use std::path::PathBuf;

use blockyard_blkmq::FaultSpec;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value as Json};

use super::problem::{Answer, Refusal};
use crate::disks::fault;
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

/// The members of an object in the order in which they come, also if there are two of a name, which RFC 8259 leaves open and
/// a map would forget.
struct Members(Vec<(String, Json)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        from.deserialize_map(Object)
    }
}

fn given_twice(place: String, name: &str) -> Refusal {
    let err = Error::usage(format!("{name:?} is given twice"));
    Refusal::new(place, &err.help("remove one"))
}

/// The body as an object.
pub(super) fn object(body: &[u8]) -> Answer<Map<String, Json>> {
    let Members(members) = serde_json::from_slice(body).map_err(|err| {
        let what = if err.is_data() {
            "the body is not a JSON object".into()
        } else {
            format!("invalid JSON: {err}")
        };
        Refusal::usage("body", what)
    })?;
    let mut object = Map::new();
    for (name, value) in members {
        if object.contains_key(&name) {
            return Err(given_twice(field(&name), &name));
        }
        object.insert(name, value);
    }
    Ok(object)
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
            return Err(given_twice(field(&key), option.name));
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
    let mut all: Vec<Wanted> = Vec::with_capacity(object.len());
    for (key, said) in object {
        let (option, value) = setting(&key, &text_of(&key, &said)?)
            .map_err(|err: Error| Refusal::new(field(&key), &err))?;
        // By its short name, say.
        if all.iter().any(|other| other.option.name == option.name) {
            return Err(given_twice(field(&key), option.name));
        }
        all.push(Wanted { option, value, said });
    }
    Ok(all)
}

/// A fault that is wanted.
pub(super) fn fault(object: &Map<String, Json>) -> Answer<FaultSpec> {
    let members = object.iter().map(|(name, value)| Ok((name.clone(), text_of(name, value)?)));
    fault::spec(&members.collect::<Answer<Vec<_>>>()?)
        .map_err(|(name, problem)| Refusal::usage(field(&name), problem))
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
                let err = Error::usage(format!("unknown parameter {key:?}"));
                return Err(Refusal::new(place(), &err.help(suggest::hint(key, known))));
            }
            let value = uri::decode(value).map_err(|problem| Refusal::usage(place(), problem))?;
            Ok((key.to_owned(), value))
        };
        let mut all: Vec<(String, String)> = Vec::new();
        for parameter in parameters.map(parse) {
            let (key, value) = parameter?;
            if all.iter().any(|(other, _)| *other == key) {
                return Err(given_twice(format!("query.{key}"), &key));
            }
            all.push((key, value));
        }
        Ok(Self(all))
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

    #[test]
    fn what_is_said_twice_is_refused() {
        let place = |refused: Refusal| refused.problem().r#where.clone();
        let refused = object(br#"{"depth": 7, "uri": "ram:1M", "depth": 8}"#).unwrap_err();
        assert_eq!(place(refused), "body.depth");
        let twice = br#"{"ro": true, "read_only": false}"#;
        let refused = settings(object(twice).unwrap()).err().unwrap();
        assert_eq!(refused.problem().what, r#""read_only" is given twice"#);
        let whole = br#"{"uri": "ram:1M", "ro": true, "read_only": true}"#;
        assert!(disk("a", object(whole).unwrap()).is_err());
        assert_eq!(
            place(Query::parse(Some("save=1&save=0"), &["save"]).err().unwrap()),
            "query.save"
        );
        for wrong in [&b"[]"[..], b"7", b"", b"{", b"{} {}"] {
            assert_eq!(place(object(wrong).unwrap_err()), "body");
        }
    }

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
