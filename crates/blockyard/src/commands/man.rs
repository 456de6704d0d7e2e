//! Man pages: what the command line says of itself, with the sections that a man page has besides.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use clap_mangen::Man;

use crate::cli;
use crate::disks::{fault, help};
use crate::error::{Error, Result};
use crate::text::term;

/// Examples of commands: the command, what it does. Those of all are in the page of `blockyard` itself.
const EXAMPLES: &[(&str, &str)] = &[
    ("blockyard up -f yard.toml", "Run the disks and exports of a configuration file"),
    ("blockyard serve 'file:disk.img?create=10G' --nbd tcp:127.0.0.1:10809", "Serve a file by NBD"),
    (
        "blockyard serve ram:1G --vhost-user-blk /run/vm.sock",
        "Serve a RAM disk to a virtual machine",
    ),
    ("blockyard attach 'nbd://server/disk?connections=4'", "Use a remote disk as a local device"),
    ("blockyard detach /dev/ublkb0", "Flush and remove the device"),
    ("blockyard recover", "Restart the daemons of attached devices after a crash"),
    ("blockyard mount yard.toml /mnt/disks", "Show every disk of a yard as a file"),
    ("blockyard share /srv/tree --mount /mnt/tree", "Mount a directory at another place"),
    (
        "blockyard share /srv/tree --socket /run/tree.sock",
        "Share a directory with a virtual machine",
    ),
    ("blockyard add ram:1G --name scratch", "Add a disk to a running daemon"),
    ("blockyard set scratch size=2G", "Resize a disk in use"),
    ("blockyard fault scratch error=EIO op=write p=0.01 for=1m", "Fail one write of a hundred"),
    ("blockyard fault scratch stall op=flush", "Hold every flush of a disk"),
    ("blockyard fault scratch release", "Let them go on"),
    ("blockyard remove scratch", "Remove the disk again"),
    ("blockyard list", "List running daemons, disks and clients"),
    ("blockyard list nbd://localhost", "List the exports of an NBD server"),
    ("blockyard info nbd://localhost/disk --can trim", "Test whether a disk supports trim"),
    ("blockyard copy nbd://server/disk disk.img --resume disk.journal", "Copy a disk, resumable"),
    ("blockyard compare nbd://server/disk disk.img", "Compare the copy with the disk"),
    ("blockyard map disk.img --totals", "Show how much of a file is data"),
    ("blockyard check nbd://server/disk", "Read all data of a disk"),
    ("blockyard run disk.img -- sh -c 'nbdinfo \"$uri\"'", "Serve a disk while a command runs"),
    ("blockyard bench 'file:disk.img?direct=1' --rw randread", "Benchmark a disk"),
    ("blockyard rados --pool rbd put object FILE", "Write a file to an object"),
    ("blockyard image create --dir /srv/images --size 10G vm", "Create an image in a directory"),
    ("blockyard image ls rbd", "List the images of a pool"),
    ("blockyard completions bash", "Print the completion script of bash"),
    ("blockyard man /usr/local/share/man/man1", "Install the man pages"),
];
/// Exit status and meaning.
const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Success; yes."),
    ("1", "Failure. `compare`: the disks differ. `check`: incomplete."),
    ("2", "No (`info --is`, `--can`). `compare`: unknown. `check`, `image check`: errors found."),
    ("64", "Usage error: command line, URI or configuration file."),
    ("69", "Unavailable: the kernel or this build lacks what is needed."),
    ("75", "In use by another process."),
    ("77", "Permission denied."),
    ("126, 127", "`run`, `serve --run`: the command cannot be executed, does not exist."),
];
/// Variables of the environment.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("BLOCKYARD_LOG", "Log levels, e.g. `debug`, or `warn,blockyard_export_nbd=trace`."),
    (
        "BLOCKYARD_RUNTIME_DIR",
        "Directory of control sockets and attach records, instead of those under FILES.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "Its subdirectory `blockyard` is that directory for users other than root.",
    ),
    ("NO_COLOR", "If set, output has no colours."),
    ("CEPH_CONF", "Ceph configuration file."),
    ("TMPDIR", "Directory of the private socket of `run`."),
];
/// Files.
const FILES: &[(&str, &str)] = &[
    ("./yard.toml", "Default configuration file of `up`."),
    ("/run/blockyard", "Control sockets and attach records of root."),
    (
        "$XDG_RUNTIME_DIR/blockyard",
        "Those of other users; /tmp/blockyard-UID without that variable.",
    ),
];
/// Signals to daemons.
const SIGNALS: &[(&str, &str)] = &[(
    "SIGINT, SIGTERM",
    "Stop accepting clients, complete the requests in flight, flush the disks and exit. A second signal exits at once.",
)];

/// Shows the page of the whole command: by man(1) on a terminal, else its source.
pub(super) fn show() -> Result<()> {
    let page = page(cli::command().disable_help_subcommand(true))
        .map_err(|err| Error::failed("cannot create the man page").caused_by(err))?;
    if io::stdout().is_terminal() && shown_by_man(&page).is_ok_and(|shown| shown) {
        return Ok(());
    }
    term::say(page.trim_end())
}

/// Whether there is a man(1) that shows a page.
fn shown_by_man(page: &str) -> io::Result<bool> {
    let mut man = Command::new("man").args(["-l", "-"]).stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = man.stdin.take() {
        // A reader who has left has seen enough.
        let _ = stdin.write_all(page.as_bytes());
    }
    man.wait().map(|status| status.success())
}

/// Writes all pages to a directory.
pub(super) fn write_all(directory: &Path) -> io::Result<()> {
    let mut command = cli::command().disable_help_subcommand(true);
    command.build();
    write_below(&command, directory)
}

fn write_below(command: &clap::Command, directory: &Path) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_below(command, directory)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    std::fs::write(directory.join(format!("{name}.1")), page(command.clone())?)
}

/// The source of a page.
fn page(mut command: clap::Command) -> io::Result<String> {
    command.build();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let words = name.replace('-', " ");
    let usage = command.render_usage().to_string();
    let takes_uri =
        command.get_after_long_help().is_some_and(|help| help.to_string().contains("Options of "));
    let (has_options, has_commands) =
        (command.get_arguments().next().is_some(), command.has_subcommands());
    let is_whole = name == "blockyard";
    let man = Man::new(command).manual("Blockyard");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    section(&mut page, "SYNOPSIS", usage.trim_start_matches("Usage: "))?;
    man.render_description_section(&mut page)?;
    if has_options {
        man.render_options_section(&mut page)?;
    }
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    if takes_uri {
        section(&mut page, "DISK URIS", untitled(&help::uris_and_options()))?;
    } else if is_whole {
        section(&mut page, "DISK URIS", untitled(&help::uris()))?;
    } else if words == "blockyard fault" {
        section(&mut page, "FAULTS", untitled(&fault::help()))?;
    } else if words == "blockyard set" {
        section(&mut page, "SETTINGS", untitled(&help::settings()))?;
    }
    let examples: Vec<_> = EXAMPLES
        .iter()
        .filter(|(example, _)| is_whole || is_of(example, &words))
        .map(|(example, what)| format!("# {what}\n{example}"))
        .collect();
    if !examples.is_empty() {
        section(&mut page, "EXAMPLES", &examples.join("\n\n"))?;
    }
    list(&mut page, "EXIT STATUS", EXIT_STATUS)?;
    if is_whole {
        list(&mut page, "ENVIRONMENT", ENVIRONMENT)?;
        list(&mut page, "FILES", FILES)?;
        list(&mut page, "SIGNALS", SIGNALS)?;
    }
    let also = if is_whole {
        "blockyard-serve(1), blockyard-attach(1), blockyard-up(1)"
    } else {
        "blockyard(1)"
    };
    section(&mut page, "SEE ALSO", also)?;
    String::from_utf8(page).map_err(io::Error::other)
}

/// Whether an example is one of a command, or of what is above it.
fn is_of(example: &str, words: &str) -> bool {
    example.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Without the first line, which the title of a section repeats.
fn untitled(help: &str) -> &str {
    help.split_once('\n').map_or(help, |(_, rest)| rest)
}

/// Lines as they are.
fn section(page: &mut Vec<u8>, title: &str, text: &str) -> io::Result<()> {
    writeln!(page, ".SH \"{title}\"\n.nf")?;
    for line in text.lines() {
        writeln!(page, "{}", escaped(line))?;
    }
    writeln!(page, ".fi")
}

/// Terms and what they mean.
fn list(page: &mut Vec<u8>, title: &str, rows: &[(&str, &str)]) -> io::Result<()> {
    writeln!(page, ".SH \"{title}\"")?;
    for (name, meaning) in rows {
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(name), escaped(&meaning.replace('`', "")))?;
    }
    Ok(())
}

/// A line of text, in which nothing is a command of troff (groff(7)).
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    let begins = line.starts_with(['.', '\'']);
    if begins { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a command as a shell splits them.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        for c in line.chars().chain([' ']) {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(std::mem::take(&mut word)),
                c => word.push(c),
            }
        }
        words
    }

    #[test]
    fn examples_are_understood() {
        for (example, _) in EXAMPLES {
            let parsed = cli::command().try_get_matches_from(words(example));
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn a_page_has_the_sections_of_a_man_page() {
        let whole = page(cli::command()).unwrap();
        for title in
            ["SYNOPSIS", "DISK URIS", "EXAMPLES", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"]
        {
            assert!(whole.contains(&format!(".SH \"{title}\"")), "{title}");
        }
        assert!(!whole.contains("EXTRA"));
        let mut command = cli::command();
        command.build();
        let serve = page(command.find_subcommand("serve").unwrap().clone()).unwrap();
        assert!(serve.contains("dead_conn_timeout=TIME") && serve.contains("blockyard serve"));
        assert!(serve.contains("vhost\\-user\\-blk /run/vm.sock") && !serve.contains("recover"));
        assert_eq!(escaped(".a-b\\"), "\\&.a\\-b\\e");
    }
}
