use super::*;
use crate::disks::nbd::NbdSource;
use crate::disks::{Body, DiskKind, KINDS, OptionSpec, ValueKind};
use crate::yard::plan::TlsUse;
use blockyard_export_nbd::TlsIdentity;

fn mistakes(text: &str) -> Mistakes {
    match parse("yard.toml", text, Path::new("/yard")) {
        Err(ConfigError::Mistakes(mistakes)) => *mistakes,
        other => panic!("{other:?}"),
    }
}

fn plan(text: &str) -> YardPlan {
    match parse("yard.toml", text, Path::new("/yard")) {
        Ok(plan) => plan,
        Err(ConfigError::Mistakes(mistakes)) => panic!("{}", mistakes.render(false)),
        Err(ConfigError::Unreadable(err)) => panic!("{err}"),
    }
}

const NBD: &str = "[nbd]\nlisten = \"unix:nbd.sock\"\n";

#[test]
fn the_documented_example_is_right() {
    let plan = plan(include_str!("../../../../../docs/yard.toml"));
    assert_eq!(plan.disks.len(), 4);
    let far = plan.disks[3].source.as_any().downcast_ref::<NbdSource>().unwrap();
    assert_eq!(far.config.connections, Some(2));
    let kinds: Vec<_> = plan.exports.iter().map(|export| export.kind.name).collect();
    assert_eq!(kinds, ["nbd", "nbd", "nbd", "vhost-user-blk", "fuse", "mount"]);
    assert_eq!(plan.disks[1].source.file(), Some(Path::new("/yard/disk.img")));
    assert_eq!(plan.nbd.listen.len(), 2);
    assert!(plan.nbd.tls.as_ref().is_some_and(|(usage, _)| *usage == TlsUse::Allow));
    assert_eq!(plan.threads, 2);
}

#[test]
fn little_is_enough() {
    let plan = plan(&format!("[[disk]]\nuri = \"ram:1M\"\n{NBD}"));
    assert_eq!((plan.disk_name(0), plan.exports[0].name.as_str()), ("ram0", "ram0"));
    assert_eq!(plan.nbd.default_export.as_deref(), Some("ram0"));
}

/// What an option can be, for URIs; and as TOML has it.
fn sample(option: &OptionSpec) -> (String, String) {
    let text = |text: &str| (text.to_owned(), format!("{text:?}"));
    match option.value {
        ValueKind::Flag => ("1".into(), "true".into()),
        ValueKind::Size | ValueKind::BlockSize => text("4096"),
        ValueKind::Number { least, .. } | ValueKind::PowerOfTwo { least, .. } => {
            (least.to_string(), least.to_string())
        }
        ValueKind::Time { .. } => text("3s"),
        ValueKind::Choice(words) => text(words[0]),
        ValueKind::Uri => text("ram:1M"),
        ValueKind::Path => text("/p"),
        ValueKind::Mode => text("600"),
        ValueKind::Rate { .. } => text("1000:5000/10s"),
        ValueKind::Name | ValueKind::Text => text("a"),
    }
}

/// A URI of a kind that says nothing of the option.
fn uri_without(kind: &DiskKind, option: &OptionSpec) -> String {
    let body = match kind.body {
        Body::Size if option.name != "size" => "1M",
        Body::Below if option.name != "below" => "ram%3A1M",
        Body::Size | Body::Below => "",
        Body::Path => "/folder/image",
        Body::Text => "pool/image",
        Body::Own(_) => "//host/export",
    };
    format!("{}:{body}", kind.schemes[0])
}

/// In a URI, beside it, and once in each, by every spelling that there is.
#[test]
fn every_option_of_every_kind_is_said_once() {
    for (kind, option) in KINDS.iter().flat_map(|kind| kind.all_options().map(move |of| (kind, of)))
    {
        let (uri, (value, toml)) = (uri_without(kind, option), sample(option));
        let disk = |uri: &str, more: &str| format!("[[disk]]\nuri = {uri:?}\n{more}\n{NBD}");
        let shown = |text: &str| match parse("yard.toml", text, Path::new("/yard")) {
            Err(ConfigError::Mistakes(mistakes)) => mistakes.render(false),
            _ => String::new(),
        };
        let dashed = option.name.replace('_', "-");
        let mut spellings = vec![option.name.to_owned(), dashed.clone()];
        spellings.extend((option.name == "read_only").then(|| "ro".to_owned()));
        for key in &spellings {
            let beside = format!("{key} = {toml}");
            for text in [disk(&format!("{uri}?{key}={value}"), ""), disk(&uri, &beside)] {
                let told = shown(&text);
                assert!(
                    ["given twice", "no key", "no option"].iter().all(|no| !told.contains(no)),
                    "{text}{told}"
                );
            }
            let own = matches!(kind.body, Body::Own(_)).then(|| format!("x-{dashed}"));
            for other in spellings.iter().chain(&own) {
                for text in [
                    disk(&format!("{uri}?{key}={value}&{other}={value}"), ""),
                    disk(&format!("{uri}?{other}={value}"), &beside),
                ] {
                    let told = shown(&text);
                    assert!(told.contains("given twice"), "{text}{told}");
                }
            }
            for other in spellings.iter().filter(|other| *other != key) {
                let told = shown(&disk(&uri, &format!("{beside}\n{other} = {toml}")));
                assert!(told.contains("given twice"), "{key} and {other}: {told}");
            }
        }
    }
}

/// That kind is one file and a line in a list; nothing here knows of it.
#[test]
fn the_options_of_a_kind_are_keys_and_so_is_the_disk_below() {
    let yard =
        |more: &str| format!("[[disk]]\nuri = \"toy:\"\nbelow = \"file:a.img\"\n{more}\n{NBD}");
    let toy = &plan(&yard("colour = \"blue\"\npatience = \"3s\"")).disks[0];
    assert_eq!(toy.below.as_ref().unwrap().source.file(), Some(Path::new("/yard/a.img")));
    let shown = mistakes(&yard("colour = \"green\"")).render(false);
    assert!(shown.contains("unknown colour \"green\"; supported: red and blue"), "{shown}");
}

#[test]
fn every_mistake_is_shown_with_its_place_and_a_remedy() {
    let text = r#"[[disk]]
name = "a"
uri = "ram:1G?szie=4"

[[disk]]
name = "a"
uri = "ram:1M"
depth = "many"
colour = "red"

[[disk]]
size = "1G"

[[export]]
disk = "b"
naem = "x"

[nbd]
listen = ["tcp:localhost", 7]
max_clients = 0
idle_timeout = "5 minutes"

[nbd.tls]
mode = "requrie"

[threads]
count = "all"

[web]
"#;
    let all = mistakes(text);
    let shown = all.render(false);
    for part in [
        "yard.toml:3:15",
        "did you mean \"size\"?",
        "yard.toml:6:8",
        "named \"a\" already",
        "yard.toml:8:9",
        "use 1 to 10240",
        "yard.toml:9:1",
        "no key \"colour\"",
        "yard.toml:11:1",
        "the disk has no uri",
        "yard.toml:15:8",
        "no disk named \"b\"",
        "yard.toml:16:1",
        "did you mean \"name\"?",
        "yard.toml:19:11",
        "the port is missing",
        "yard.toml:19:28",
        "listen has an integer",
        "yard.toml:20:15",
        "from 1 to 4294967295",
        "yard.toml:21:16",
        "whole number with a unit",
        "yard.toml:24:8",
        "did you mean \"require\"?",
        "yard.toml:27:9",
        "count is a string",
        "yard.toml:29:2",
        "no key \"web\"",
        "14 errors",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
}

#[test]
fn a_wrong_uri_hides_no_other_mistake() {
    let text = r#"[[disk]]
name = "a"
uri = "ram:1G?szie=4"
nam = "b"
queues = "two"

[[disk]]
name = "c"
uri = "rom:1G"

[[export]]
disk = "a"

[[export]]
disk = "c"

[nbd]
listen = "unix:s"

[threads]
count = 0
"#;
    let shown = mistakes(text).render(false);
    for part in [
        "yard.toml:3:15",
        "no key \"nam\"",
        "queues cannot be \"two\"",
        "unknown disk type \"rom\"",
        "count = 0 is out of range",
        "write a whole number from 1 to 256",
        "5 errors",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
}

#[test]
fn what_would_fail_at_the_start_is_a_mistake() {
    let yard = |rest: &str| format!("[[disk]]\nuri = \"ram:1M\"\n{rest}");
    for (rest, part) in [
        ("[nbd]\nlisten = \"unix:s\"\ndefault_export = \"ram1\"", "did you mean \"ram0\"?"),
        ("[[export]]\ndisk = \"ram0\"\ntls_only = true\n[nbd]\nlisten = \"unix:s\"", "TLS is off"),
        ("[nbd]\nlisten = [\"unix:s\", \"tcp::1\", \"unix:./s\"]", "yard.toml:4:31"),
        ("[nbd]\nlisten = [\"tcp::1\", \"tcp::1\"]", "duplicate listen address tcp::1"),
        (
            "throttle_group = \"g\"\niops = 1\n[[disk]]\nuri = \"ram:1M\"\nthrottle_group = \"g\"\niops = 2\n\
             [nbd]\nlisten = \"unix:s\"",
            "disks \"ram0\" and \"ram1\" of group \"g\" say different iops: 1 and 2",
        ),
        (
            "throttle_group = \"g\"\niops = 1\n[[disk]]\nuri = \"ram:1M\"\nthrottle_group = \"g\"\niops = 2\n\
             [nbd]\nlisten = \"unix:s\"",
            "yard.toml:5:1",
        ),
        ("[[vhost_user_blk]]\ndisk = \"ram0\"\nsocket = \"s\"\nfd = 3", "no key \"fd\""),
        (
            "[nbd]\nlisten = \"unix:s\"\n[[vhost_user_blk]]\ndisk = \"ram0\"\nsocket = \"/yard/s\"",
            "yard.toml:7:10",
        ),
        (
            "[nbd]\nlisten = \"unix:s\"\nflush_grace = \"6s\"",
            "longer than 2.5s, which a shutdown_grace of 10s",
        ),
        (
            "[nbd]\nlisten = \"unix:s\"\nflush_grace = \"3s\"\n[threads]\nshutdown_grace = \"5s\"",
            "yard.toml:5:15",
        ),
    ] {
        let shown = mistakes(&yard(rest)).render(false);
        assert!(shown.contains(part) && shown.contains(": 1 error"), "{part:?} is not in\n{shown}");
    }
    plan(&yard("[nbd]\nlisten = [\"tcp:127.0.0.1:0\", \"tcp:127.0.0.1:0\"]"));
    plan(&yard("[nbd]\nlisten = \"unix:s\"\nflush_grace = \"2500ms\""));
    // Who says nothing of flushes gets what fits.
    plan(&yard("[nbd]\nlisten = \"unix:s\"\n[threads]\nshutdown_grace = \"1s\""));
}

#[test]
fn a_pointer_marks_what_is_wrong() {
    let all = mistakes(&format!("[[disk]]\nuri = \"ram:1GB\"\n{NBD}"));
    assert_eq!(
        all.render(false),
        "error: invalid disk URI\n \
         --> yard.toml:2:12\n\
         2 | uri = \"ram:1GB\"\n  \
           |            ^^^\n  \
           = help: size: invalid size \"1GB\": GB can mean 1000 or 1024; write G or GiB; \
         use bytes or a suffix K, M, G, T (powers of 1024), e.g. 512, 4K, 1G\n\n\
         yard.toml: 1 error"
    );
}

#[test]
fn what_is_missing_is_said() {
    assert!(mistakes(NBD).render(false).contains("no disks configured"));
    assert!(mistakes("[[disk]]\nuri = \"ram:1M\"").render(false).contains("no listen address"));
    let tls = format!("[[disk]]\nuri = \"ram:1M\"\n{NBD}[nbd.tls]\nmode = \"allow\"\n");
    let shown = mistakes(&tls).render(false);
    assert!(shown.contains("needs a certificate") && shown.contains("needs a key"), "{shown}");
}

#[test]
fn pre_shared_keys_stand_for_certificates() {
    let yard =
        |rest| format!("[[disk]]\nuri = \"ram:1M\"\n{NBD}[nbd.tls]\npsk = \"k.psk\"\n{rest}");
    let tls = plan(&yard("")).nbd.tls;
    assert!(
        matches!(tls, Some((TlsUse::Require, TlsIdentity::Psk(path))) if path == Path::new("/yard/k.psk"))
    );
    let shown = mistakes(&yard("key = \"k.pem\"")).render(false);
    assert!(
        shown.contains("yard.toml:6:7")
            && shown.contains("certificates and pre-shared keys cannot be combined"),
        "{shown}"
    );
}

#[test]
fn what_is_no_toml_is_said_with_its_place() {
    let shown = mistakes("[[disk]\nuri = ram\n").render(false);
    assert!(shown.contains("TOML syntax error") && shown.contains("yard.toml:1:"), "{shown}");
}

#[test]
fn memory_for_clients_is_enough_for_one_request() {
    let disk = "[[disk]]\nuri = \"ram:1M\"\n";
    for (key, least) in [("memory_per_client", "32M"), ("max_memory", "64M")] {
        let yard = format!("{disk}{NBD}{key} = \"{least}\"\n");
        plan(&yard);
        let shown = mistakes(&format!("{disk}{NBD}{key} = \"1M\"\n")).render(false);
        assert!(shown.contains("less than one request"), "{shown}");
        assert!(shown.contains(&format!("write \"{least}\" or more")), "{shown}");
    }
}

#[test]
fn what_acts_on_a_terminal_is_shown_and_pointed_at() {
    let text = "[[disk]]\n\turi = \"ram:1M\" # \u{1b}[2J\u{202e}\n\u{9b}2J = \u{1b}]0;x\u{7}\n";
    let Err(ConfigError::Mistakes(mistakes)) = parse("a\u{1b}[2J.toml", text, Path::new("/yard"))
    else {
        panic!("it is no TOML");
    };
    let shown = mistakes.render(false);
    assert!(!shown.contains(|c: char| c != '\n' && c.is_control()), "{shown:?}");
    let text = "[[disk]]\nuri = \"ram:1M\"\n\"\u{1b}[2J\" = { wrong = 1 }\n";
    // TOML lets them stand in strings as they are only from U+0080 on.
    let text = text.replace('\u{1b}', "\u{9b}");
    let shown = super::tests::mistakes(&text).render(false);
    assert!(!shown.contains(|c: char| c != '\n' && c.is_control()), "{shown:?}");
    let lines: Vec<&str> = shown.lines().collect();
    let at = lines.iter().position(|line| line.contains("\\u{9b}[2J") && line.contains(" | "));
    let at = at.unwrap_or_else(|| panic!("{shown}"));
    let begin = lines[at].find("\"\\u{9b}").unwrap();
    assert_eq!(lines[at + 1].find('^'), Some(begin), "{shown}");
}
