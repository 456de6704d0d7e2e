//! `yard.toml`: read whole, checked whole, and every mistake shown, before anything starts.

mod mistakes;
pub mod save;
mod table;
mod yard;

use std::path::Path;

pub use mistakes::{Mistake, Mistakes};

use crate::error::{Error, Result};
use crate::yard::plan::YardPlan;

/// Why a configuration cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable(Error),
    /// There are mistakes in it.
    Mistakes(Box<Mistakes>),
}

/// Reads and checks a file. Relative paths in it start at its directory.
///
/// # Errors
/// All mistakes in it.
pub fn load(path: &Path) -> Result<YardPlan, ConfigError> {
    load_for(path, Needs::Clients)
}

/// What a file has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// How anybody gets at the disks.
    Clients,
    /// Nothing but the disks: they are shown otherwise.
    Disks,
}

/// As [`load`], of a file that may say less.
///
/// # Errors
/// All mistakes in it.
pub fn load_for(path: &Path, needs: Needs) -> Result<YardPlan, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|err| {
        let error = Error::failed(format!("cannot read {}", path.display())).caused_by(err);
        ConfigError::Unreadable(error.help(match needs {
            Needs::Clients => "name a configuration file: blockyard up -f FILE",
            Needs::Disks => "name the yard.toml of the disks, or the process ID of a daemon",
        }))
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    let mut plan = parse_for(needs, &path.display().to_string(), &text, base)?;
    plan.file = std::path::absolute(path).ok();
    Ok(plan)
}

/// Checks the text of a file named `name`. Relative paths in it start at `base`.
///
/// # Errors
/// All mistakes in it.
pub fn parse(name: &str, text: &str, base: &Path) -> Result<YardPlan, ConfigError> {
    parse_for(Needs::Clients, name, text, base)
}

fn parse_for(needs: Needs, name: &str, text: &str, base: &Path) -> Result<YardPlan, ConfigError> {
    let (root, syntax) = toml::de::DeTable::parse_recoverable(text);
    let mut found: Vec<Mistake> = syntax.iter().map(Mistake::of_syntax).collect();
    let plan = if found.is_empty() { yard::check(&root, base, needs, &mut found) } else { None };
    match plan {
        Some(plan) if found.is_empty() => Ok(plan),
        _ => Err(ConfigError::Mistakes(Box::new(Mistakes::new(name, text, found)))),
    }
}

#[cfg(test)]
mod tests;
