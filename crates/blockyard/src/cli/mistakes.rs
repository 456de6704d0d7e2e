//! Mistakes on the command line: what the parser says of them, and what was most likely meant.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Commands of other tools, and which one of ours does that.
const COMMANDS: &[(&str, &str)] = &[
    (
        "create",
        "give the size in the URI, e.g. blockyard serve 'file:disk.img?create=10G' --nbd unix:/tmp/nbd.sock",
    ),
    ("resize", "blockyard set DISK size=2G resizes a disk in use"),
    ("stop", "send SIGTERM to the daemon; blockyard list shows its PID"),
    ("kill", "send SIGTERM to the daemon; blockyard list shows its PID"),
    ("status", "blockyard list"),
    ("ps", "blockyard list"),
    ("version", "blockyard --version"),
    ("connect", "blockyard attach URI"),
    ("disconnect", "blockyard detach DEVICE"),
    ("umount", "umount DIR, of the system, unmounts what blockyard mount has mounted"),
];

/// Flags of other tools, and what ours is called.
const FLAGS: &[(&str, &str)] = &[
    ("--port", "--nbd tcp:HOST:PORT"),
    ("-p", "--nbd tcp:HOST:PORT"),
    ("--socket", "--nbd unix:PATH"),
    ("-U", "--nbd unix:PATH"),
    ("--export-name", "--name NAME"),
    ("-r", "--read-only"),
    ("--readonly", "--read-only"),
];

/// The text of an error of the parser, or of the help that was asked for. A remedy is called `help`, as everywhere.
#[must_use]
pub fn text(mut error: clap::Error, ansi: bool) -> String {
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            // The parser lets an unknown command be a value of an argument; no command here has both.
            error.remove(ContextKind::Suggested);
            if let Some(meant) = meant(&error, ContextKind::InvalidSubcommand, COMMANDS) {
                error.remove(ContextKind::SuggestedSubcommand);
                advise(&mut error, meant.to_owned());
            }
        }
        ErrorKind::UnknownArgument => {
            // "to pass '--x' as a value, use '-- --x'": a flag was meant.
            error.remove(ContextKind::Suggested);
            if let Some(meant) = meant(&error, ContextKind::InvalidArg, FLAGS) {
                error.remove(ContextKind::SuggestedArg);
                advise(&mut error, format!("use {meant}"));
            }
        }
        _ => {}
    }
    let asked = !error.use_stderr();
    let text = error.render();
    let text = if ansi { text.ansi().to_string() } else { text.to_string() };
    if asked { text } else { text.replacen("tip:", "help:", 1) }
}

/// What is known of the word that `kind` has.
fn meant(
    error: &clap::Error,
    kind: ContextKind,
    known: &[(&str, &'static str)],
) -> Option<&'static str> {
    let Some(ContextValue::String(word)) = error.get(kind) else { return None };
    let word = word.split(['=', ' ']).next()?;
    known.iter().find(|(name, _)| *name == word).map(|(_, meant)| *meant)
}

fn advise(error: &mut clap::Error, advice: String) {
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn said(args: &[&str]) -> String {
        let args = std::iter::once(&"blockyard").chain(args);
        text(crate::cli::command().try_get_matches_from(args).unwrap_err(), false)
    }

    #[test]
    fn what_other_tools_call_it_is_known() {
        for (args, help) in [
            (&["stop"][..], "help: send SIGTERM to the daemon; blockyard list"),
            (&["version"], "help: blockyard --version"),
            (&["resize", "ram0", "2G"], "help: blockyard set DISK size=2G"),
            (&["serve", "ram:1M", "--port", "10809"], "help: use --nbd tcp:HOST:PORT"),
            (&["serve", "ram:1M", "--port=10809"], "help: use --nbd tcp:HOST:PORT"),
            (&["serv"], "help: some similar subcommands exist: 'set', 'serve'"),
            (
                &["serve", "ram:1M", "--max-client", "1"],
                "help: a similar argument exists: '--max-clients'",
            ),
        ] {
            let said = said(args);
            assert!(said.contains(help), "{said}");
            assert!(!said.contains("tip:") && !said.contains("as a value"), "{said}");
            assert_eq!(said.matches("help:").count(), 1, "{said}");
        }
        assert!(!said(&["serve", "ram:1M", "--frob"]).contains("help:"));
    }

    /// What is advised instead exists here.
    #[test]
    fn what_is_advised_exists() {
        let command = crate::cli::command();
        for (name, meant) in COMMANDS {
            assert!(command.find_subcommand(name).is_none(), "{name} is a command");
            for named in meant.split("blockyard ").skip(1) {
                let named = named.split(' ').next().unwrap();
                assert!(
                    named == "--version" || command.find_subcommand(named).is_some(),
                    "{named}"
                );
            }
        }
        let serve = command.find_subcommand("serve").unwrap();
        for (_, meant) in FLAGS {
            let long = meant.split(' ').next().unwrap().trim_start_matches('-');
            assert!(serve.get_arguments().any(|arg| arg.get_long() == Some(long)), "{long}");
        }
    }
}
