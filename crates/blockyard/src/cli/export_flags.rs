//! Flags that ask for exports, made from what the kinds of front-ends say of themselves.

use std::ffi::OsString;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::exports::{ExportKind, Flag, KINDS};

/// The flags of all kinds that were given; `REPEATED`: of several disks, once for each.
#[derive(Debug)]
pub struct ExportFlags<const REPEATED: bool>(Vec<GivenFlag>);

/// A flag that was given.
#[derive(Debug)]
pub struct GivenFlag {
    /// Of this kind of export.
    pub kind: &'static ExportKind,
    /// Its name, without dashes.
    pub name: &'static str,
    /// An option of the kind.
    pub option: &'static str,
    /// A value for each of the disks, as far as they go.
    pub values: Vec<OsString>,
}

/// An export that flags ask for.
#[derive(Debug)]
pub struct WantedExport<'a> {
    /// Its kind.
    pub kind: &'static ExportKind,
    /// Which of the disks.
    pub disk: usize,
    /// What was said of it: options of its kind.
    pub said: Vec<(&'static str, &'a OsString)>,
}

impl<const REPEATED: bool> ExportFlags<REPEATED> {
    /// What was given.
    #[must_use]
    pub fn given(&self) -> &[GivenFlag] {
        &self.0
    }

    /// What is asked for, kind by kind.
    pub fn exports(&self) -> impl Iterator<Item = WantedExport<'_>> {
        let places = self.0.iter().filter(|given| given.name == given.kind.name);
        places.flat_map(|place| (0..place.values.len()).map(|disk| self.nth(place.kind, disk)))
    }

    fn nth(&self, kind: &'static ExportKind, disk: usize) -> WantedExport<'_> {
        let of_kind = self.0.iter().filter(|given| given.kind == kind);
        let said = of_kind.filter_map(|given| Some((given.option, given.values.get(disk)?)));
        WantedExport { kind, disk, said: said.collect() }
    }
}

/// All flags, with their names.
fn flags() -> impl Iterator<Item = (&'static ExportKind, &'static Flag, &'static str)> {
    KINDS.iter().flat_map(|kind| {
        let names = std::iter::once(kind.name).chain(kind.flags.iter().skip(1).map(|it| it.option));
        kind.flags.iter().zip(names).map(|(flag, name)| (*kind, flag, name))
    })
}

impl<const REPEATED: bool> Args for ExportFlags<REPEATED> {
    fn augment_args(command: Command) -> Command {
        command.args(flags().map(|(kind, flag, name)| {
            let arg = Arg::new(name).long(name).value_name(flag.value_name);
            let arg = arg.value_parser(OsStringValueParser::new());
            let (arg, repeated) = if name == kind.name {
                (arg, ". Repeatable: one per disk, in order".to_owned())
            } else {
                (arg.requires(kind.name), format!(". Repeatable, like --{}", kind.name))
            };
            if REPEATED {
                arg.action(ArgAction::Append).help(format!("{}{repeated}", flag.help))
            } else {
                arg.help(flag.help)
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const REPEATED: bool> FromArgMatches for ExportFlags<REPEATED> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = flags().filter_map(|(kind, flag, name)| {
            let values = matches.get_many(name)?.cloned().collect();
            Some(GivenFlag { kind, name, option: flag.option, values })
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
