//! `blockyard fault`: faults are injected into a disk while it is used.

use serde_json::{Map, Value as Json};

use super::found::{self, Found};
use crate::api::client::{Ask, escaped};
use crate::cli::FaultArgs;
use crate::disks::fault::{self, FaultReport};
use crate::error::{Error, Result};
use crate::text::{size, term};

/// What is wanted.
enum Wanted {
    List,
    Clear(Option<u64>),
    Release(Option<u64>),
    Add(Map<String, Json>),
}

pub(super) fn run(args: &FaultArgs) -> Result<()> {
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let wanted = wanted(&words)?;
    if args.json && matches!(wanted, Wanted::Clear(_)) {
        return Err(Error::usage("--json is not for clear, which prints nothing"));
    }
    let (daemon, disk) = found::disk(&args.disk)?;
    let path = format!("/v1/disks/{}/faults", escaped(&disk.name));
    let name = &disk.name;
    match wanted {
        Wanted::List => list(&daemon, name, &path, args.json),
        Wanted::Clear(id) => {
            let path = id.map_or_else(|| path.clone(), |id| format!("{path}/{id}"));
            let failed =
                |err| Error::failed(format!("cannot clear faults of {name}")).caused_by(err);
            daemon.wish(&Ask::delete(path)).map_err(failed)
        }
        Wanted::Release(id) => {
            let query = id.map(|id| format!("?id={id}")).unwrap_or_default();
            let failed = |err| Error::failed(format!("cannot release {name}")).caused_by(err);
            let answer = daemon.ask(&Ask::post(format!("{path}/release{query}"), None));
            let answer: Json = answer.and_then(|answer| answer.value()).map_err(failed)?;
            if args.json {
                return term::say_json(&answer);
            }
            let released = answer["released"].as_u64().unwrap_or(0);
            term::say(format_args!("{name}: released {released} requests"))
        }
        Wanted::Add(members) => {
            let failed =
                |err| Error::failed(format!("cannot inject the fault into {name}")).caused_by(err);
            let answer = daemon.ask(&Ask::post(path, Some(members.into())));
            let added: FaultReport = answer.and_then(|answer| answer.value()).map_err(failed)?;
            if args.json {
                return term::say_json(&added);
            }
            term::say(format_args!("{name}: fault {} set: {}", added.id, added.rule))?;
            if added.kind == "power-cut" {
                let dropped = size::human(added.bytes);
                term::say(format_args!("{name}: {dropped} of unflushed writes dropped"))?;
                let is_volatile = disk.faults.iter().any(|fault| fault.kind == "volatile");
                if !is_volatile {
                    term::tell("note: only writes since a fault volatile was set can be dropped");
                }
            }
            Ok(())
        }
    }
}

fn wanted(words: &[&str]) -> Result<Wanted> {
    let id = |words: &[&str], verb: &str| match words {
        [] => Ok(None),
        [id] => id.parse().map(Some).map_err(|_| {
            Error::usage(format!("invalid ID {id:?}; {verb} takes the number of a fault"))
        }),
        _ => Err(Error::usage(format!("{verb} takes one ID, or none for all"))),
    };
    match words {
        [] | ["list"] => Ok(Wanted::List),
        ["list", ..] => Err(Error::usage("list takes no other words")),
        ["clear", rest @ ..] => id(rest, "clear").map(Wanted::Clear),
        ["release", rest @ ..] => id(rest, "release").map(Wanted::Release),
        words => add(words),
    }
}

/// What is said of a fault, which is checked here as it is by the daemon.
fn add(words: &[&str]) -> Result<Wanted> {
    let mut members: Vec<(String, String)> = Vec::new();
    for word in words {
        for (name, value) in fault::members_of(word).map_err(Error::usage)? {
            if members.iter().any(|(other, _)| other == name) {
                let what = match name {
                    "kind" => "a fault is of one kind; set another one by another command".into(),
                    name => format!("{name} is given twice"),
                };
                return Err(Error::usage(what));
            }
            members.push((name.to_owned(), value));
        }
    }
    fault::spec(&members).map_err(|(_, problem)| Error::usage(problem))?;
    Ok(Wanted::Add(members.into_iter().map(|(name, value)| (name, value.into())).collect()))
}

fn list(daemon: &Found, name: &str, path: &str, json: bool) -> Result<()> {
    let failed = |err| Error::failed(format!("cannot list the faults of {name}")).caused_by(err);
    let answer = daemon.ask(&Ask::get(path));
    let faults: Vec<FaultReport> = answer.and_then(|answer| answer.value()).map_err(failed)?;
    if json {
        return term::say_json(&faults);
    }
    if faults.is_empty() {
        term::tell(format_args!("no faults are injected into {name}"));
        return Ok(());
    }
    let mut table = term::table(&["ID", "FAULT", "MATCHED", "INJECTED", "HELD", "BYTES", "LEFT"]);
    for fault in faults {
        let left = fault.seconds_left.map_or_else(|| "-".into(), |left| format!("{left:.1}s"));
        table.add_row([
            fault.id.to_string(),
            fault.rule,
            fault.matched.to_string(),
            fault.injected.to_string(),
            fault.held.to_string(),
            size::human(fault.bytes),
            left,
        ]);
    }
    term::say(table.trim_fmt())
}
