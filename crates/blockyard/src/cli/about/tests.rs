//! The help of every command and option, as it is printed.

use super::takes_uri;
use crate::cli::command;

/// The longest help of an option or a command, in characters.
const HELP_CHARACTERS: usize = 520;
/// Words that name neither an action nor a thing, at the start of a help.
const SAYS_NOTHING: &[&str] = &[
    "It", "Its", "What", "Where", "Who", "Which", "How", "So", "As", "Anywhere", "There", "Both",
    "Here", "Whether", "All", "Also", "Without", "With", "JSON",
];
/// Defaults that are not in brackets: `[default: one per CPU]`.
const NO_DEFAULTS: &[&str] = &[" without.", " there.", "Without, ", "; without, "];

/// The help of a command and all below it: which one, and the text.
fn helps(command: &clap::Command, path: &str) -> Vec<(String, String)> {
    let path = format!("{path} {}", command.get_name());
    let about = command.get_about().into_iter().chain(command.get_long_about());
    let mut all: Vec<_> = about.map(|text| (path.clone(), text.to_string())).collect();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let name = format!("{path} {}", arg.get_id());
        let help = arg.get_help().into_iter().chain(arg.get_long_help());
        all.extend(help.map(|text| (name.clone(), text.to_string())));
        let values = arg.get_possible_values();
        all.extend(
            values
                .iter()
                .filter_map(clap::builder::PossibleValue::get_help)
                .map(|text| (name.clone(), text.to_string())),
        );
    }
    all.extend(command.get_subcommands().flat_map(|command| helps(command, &path)));
    all
}

#[test]
fn help_names_what_it_is_about() {
    let mut wrong = Vec::new();
    let all = helps(&command(), "");
    assert!(all.len() > 300, "only {} texts", all.len());
    for (place, text) in all {
        let first = text.split([' ', '.', ',']).next().unwrap_or_default();
        let says_nothing = SAYS_NOTHING.contains(&first);
        let with_dot = format!("{text}.");
        let is_open = NO_DEFAULTS.iter().any(|words| with_dot.contains(words));
        if says_nothing || is_open || text.chars().count() > HELP_CHARACTERS {
            wrong.push(format!("{place}: {text}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "a verb or a noun phrase, defaults in brackets [default: one per CPU]:\n  {}",
        wrong.join("\n  ")
    );
}

/// The name of its value says that an argument is a URI: by that its command gets the help of URIs.
#[test]
fn every_argument_for_a_disk_is_found() {
    let sources = [
        include_str!("../../cli.rs"),
        include_str!("../changes.rs"),
        include_str!("../copy.rs"),
        include_str!("../serve.rs"),
    ];
    let in_source: usize =
        sources.iter().map(|source| source.matches("value_parser = uri()").count()).sum();
    let command = command();
    let names = |arg: &clap::Arg| {
        arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains("URI")))
    };
    let args: Vec<_> = command
        .get_subcommands()
        .flat_map(|command| command.get_arguments())
        .filter(|arg| names(arg) && arg.get_id() != "blk_file")
        .collect();
    assert_eq!(args.len(), in_source);
    for command in command.get_subcommands().filter(|command| takes_uri(command)) {
        let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Disk URIs:"), "{}", command.get_name());
    }
}
