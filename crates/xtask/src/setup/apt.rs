//! Debian's package manager: installing, and where the system gets its packages from.

use crate::run::{run, succeeds};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Installs packages with lists that are up to date.
///
/// # Errors
/// There is no apt here, or it fails.
pub(super) fn install(names: &[&str]) -> Result<()> {
    if !succeeds(Command::new("apt-get").arg("--version")) {
        bail!(
            "no apt-get here: this setup knows Debian and its kin only; install by hand: {}",
            names.join(" ")
        );
    }
    // A source of third parties may be out of reach without harm: whether ours is, the installation tells.
    if let Err(error) = run(Command::new("apt-get").args(["update", "-qq"])) {
        eprintln!("setup: {error:#}; going on with the lists at hand");
    }
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "-qq", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends"])
        .args(names);
    run(command.env("DEBIAN_FRONTEND", "noninteractive"))
        .context("apt-get could not install what the tests need")
}

/// Where one suite of packages comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// The archive, as apt knows it.
    pub uri: String,
    /// The suites, `bookworm` for one.
    pub suites: Vec<String>,
    /// The key that signs them, if the source names one in a file.
    pub signed_by: Option<String>,
}

impl Source {
    /// The line for apt's sources that takes `suite` from the same archive.
    #[must_use]
    pub(super) fn line(&self, suite: &str) -> String {
        let options =
            self.signed_by.as_ref().map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        format!("deb {options}{} {suite} main", self.uri)
    }
}

/// The sources of this system, in both of apt's formats.
///
/// # Errors
/// A file of apt cannot be read.
pub(super) fn sources() -> Result<Vec<Source>> {
    let etc = Path::new("/etc/apt");
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        sources.extend(parse_file(file)?);
    }
    Ok(sources)
}

/// The archive of the running release, and the release's code name.
///
/// # Errors
/// The release is not known, or no source of apt has it.
pub(super) fn archive() -> Result<(Source, String)> {
    let release = release()?;
    let source = archive_of(sources()?, &release)?;
    Ok((source, release))
}

fn archive_of(sources: Vec<Source>, release: &str) -> Result<Source> {
    let has_it = |source: &Source| source.suites.iter().any(|suite| suite == release);
    let found = sources.into_iter().find(has_it);
    found.with_context(|| format!("apt's sources name no archive of {release}"))
}

/// The code name of the running Debian release.
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

fn parse_file(file: &PathBuf) -> Result<Vec<Source>> {
    let text =
        || fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("list") => Ok(text()?.lines().filter_map(parse_line).collect()),
        Some("sources") => {
            Ok(stanzas(&text()?).iter().filter_map(|stanza| parse_stanza(stanza)).collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// `deb [options] uri suite components...`
fn parse_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let uri = words.next().filter(|uri| !uri.starts_with("cdrom:"))?.to_owned();
    let suite = words.next()?.to_owned();
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Source { uri, suites: vec![suite], signed_by: signed_by.map(str::to_owned) })
}

/// The paragraphs of a deb822 file without its comments.
fn stanzas(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter(|stanza| !stanza.is_empty())
        .map(<[_]>::to_vec)
        .collect()
}

fn parse_stanza(stanza: &[&str]) -> Option<Source> {
    let field = |name: &str| {
        stanza.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let has_packages = field("Types")?.split_whitespace().any(|kind| kind == "deb");
    let is_off = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    if !has_packages || is_off {
        return None;
    }
    Some(Source {
        uri: field("URIs")?.split_whitespace().next()?.to_owned(),
        suites: field("Suites")?.split_whitespace().map(str::to_owned).collect(),
        signed_by: field("Signed-By").filter(|key| key.starts_with('/')).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_sources() {
        let source = parse_line(
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main",
        )
        .unwrap();
        assert_eq!(source.uri, "http://mirror.example/debian");
        assert_eq!(source.suites, ["bookworm"]);
        assert_eq!(source.signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(
            source.line("bookworm-backports"),
            "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm-backports main"
        );
        assert_eq!(
            parse_line("deb http://mirror.example/debian sid main").unwrap().signed_by,
            None
        );
        for other in [
            "",
            "# deb http://x y z",
            "deb-src http://x y z",
            "deb cdrom:[Debian]/ bookworm main",
            "deb http://x",
        ] {
            assert_eq!(parse_line(other), None, "{other}");
        }
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\n\
            Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\
            \nTypes: deb-src\nURIs: http://x\nSuites: y\n\nTypes: deb\nEnabled: no\nURIs: http://x\nSuites: y\n\
            \nTypes: deb\nURIs: mirror+file:/etc/apt/mirrors\nSuites: bookworm\nSigned-By:\n -----BEGIN PGP\n";
        let sources: Vec<_> =
            stanzas(text).iter().filter_map(|stanza| parse_stanza(stanza)).collect();
        let expected = |uri: &str, suites: &[&str], key: Option<&str>| Source {
            uri: uri.to_owned(),
            suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
            signed_by: key.map(str::to_owned),
        };
        assert_eq!(
            sources,
            [
                expected(
                    "http://mirror.example/debian",
                    &["bookworm", "bookworm-updates"],
                    Some("/k.gpg")
                ),
                expected("mirror+file:/etc/apt/mirrors", &["bookworm"], None),
            ]
        );
    }

    #[test]
    fn the_archive_is_the_one_that_has_the_release() {
        let source = |uri: &str, suite: &str| Source {
            uri: uri.to_owned(),
            suites: vec![suite.to_owned()],
            signed_by: None,
        };
        let sources = vec![
            source("http://other.example", "nodistro"),
            source("http://mirror.example", "bookworm"),
        ];
        assert_eq!(archive_of(sources.clone(), "bookworm").unwrap().uri, "http://mirror.example");
        assert!(archive_of(sources, "trixie").is_err());
    }
}
