//! Taking values out of a table, with their places, until nothing is left that nobody knows.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistakes::Mistake;
use crate::disks::{OptionSpec, Value, ValueKind, canonical_key};
use crate::text::suggest;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: Range<usize>,
}

/// What is left to take from a table.
pub(super) struct Taker<'a, 'i> {
    /// As the user sees it: `[[disk]]`.
    title: &'static str,
    table: &'a DeTable<'i>,
    at: Range<usize>,
    known: Vec<&'static str>,
}

impl<'a, 'i> Taker<'a, 'i> {
    pub(super) fn new(title: &'static str, table: &'a DeTable<'i>, at: Range<usize>) -> Self {
        Self { title, table, at, known: Vec::new() }
    }

    /// The place of the table.
    pub(super) fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    /// A value of any kind.
    pub(super) fn any(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.known.push(key);
        let mut all = self.table.iter();
        all.find(|(name, _)| canonical_key(name.get_ref()) == key).map(|(_, value)| value)
    }

    /// A value that `read` understands; what it is not is said as "expected `what`".
    fn typed<T>(
        &mut self,
        key: &'static str,
        what: &str,
        found: &mut Vec<Mistake>,
        read: impl FnOnce(&'a DeValue<'i>) -> Option<T>,
    ) -> Option<At<T>> {
        let value = self.any(key)?;
        let at = value.span();
        match read(value.get_ref()) {
            Some(value) => Some(At { value, at }),
            None => {
                let kind = value.get_ref().type_str();
                let problem = format!("{key} is {} {kind}", article(kind));
                found.push(Mistake::new(at, problem, format!("write {what}")));
                None
            }
        }
    }

    pub(super) fn text(
        &mut self,
        key: &'static str,
        found: &mut Vec<Mistake>,
    ) -> Option<At<String>> {
        let what = format!("a string: {key} = \"...\"");
        self.typed(key, &what, found, |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn flag(&mut self, key: &'static str, found: &mut Vec<Mistake>) -> Option<At<bool>> {
        self.typed(key, "true or false", found, DeValue::as_bool)
    }

    /// A whole number from `least` to `most`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        (least, most): (u64, u64),
        found: &mut Vec<Mistake>,
    ) -> Option<At<u64>> {
        let range = format!("a whole number from {least} to {most}");
        let number = self.typed(key, &range, found, |value| {
            value.as_integer().map(|written| (integer(value), written.as_str().to_owned()))
        })?;
        let (value, written) = number.value;
        match value.filter(|value| (least..=most).contains(value)) {
            Some(value) => Some(At { value, at: number.at }),
            None => {
                let problem = format!("{key} = {written} is out of range");
                found.push(Mistake::new(number.at, problem, format!("write {range}")));
                None
            }
        }
    }

    /// What an option can be.
    pub(super) fn option(
        &mut self,
        option: &'static OptionSpec,
        found: &mut Vec<Mistake>,
    ) -> Option<At<Value>> {
        let of = |at: Range<usize>, value| Some(At { value, at });
        match option.value {
            ValueKind::Flag => {
                let flag = self.flag(option.name, found)?;
                of(flag.at, Value::Flag(flag.value))
            }
            ValueKind::Number { least, most } => {
                let number = self.number(option.name, (least, most), found)?;
                of(number.at, Value::Number(number.value))
            }
            ValueKind::PowerOfTwo { least, most } => {
                let number = self.number(option.name, (least, most), found)?;
                if !number.value.is_power_of_two() {
                    let what = format!("{} must be a power of two", option.name);
                    found.push(Mistake::new(number.at, what, "write e.g. 4096"));
                    return None;
                }
                of(number.at, Value::Number(number.value))
            }
            _ => {
                let text = self.text(option.name, found)?;
                match option.value.parse(option.name, option.default, &text.value) {
                    Ok(value) => of(text.at, value),
                    Err(problem) => {
                        let what = format!("{} cannot be {:?}", option.name, text.value);
                        found.push(Mistake::new(text.at, what, problem));
                        None
                    }
                }
            }
        }
    }

    /// A list of texts, or one text.
    pub(super) fn texts(&mut self, key: &'static str, found: &mut Vec<Mistake>) -> Vec<At<String>> {
        let Some(value) = self.any(key) else { return Vec::new() };
        let items: Vec<&Spanned<DeValue<'_>>> = match value.get_ref().as_array() {
            Some(array) => array.iter().collect(),
            None => vec![value],
        };
        let mut texts = Vec::new();
        for item in items {
            match item.get_ref().as_str() {
                Some(text) => texts.push(At { value: text.to_owned(), at: item.span() }),
                None => found.push(Mistake::new(
                    item.span(),
                    format!(
                        "{key} has {} {}",
                        article(item.get_ref().type_str()),
                        item.get_ref().type_str()
                    ),
                    format!("write strings: {key} = [\"...\"]"),
                )),
            }
        }
        texts
    }

    /// A table of its own.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        title: &'static str,
        found: &mut Vec<Mistake>,
    ) -> Option<Taker<'a, 'i>> {
        let table = self.typed(key, &format!("a table: {title}"), found, DeValue::as_table)?;
        Some(Taker::new(title, table.value, table.at))
    }

    /// Tables in a list: `[[disk]]`.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        title: &'static str,
        found: &mut Vec<Mistake>,
    ) -> Vec<Taker<'a, 'i>> {
        let what = format!("one or more {title}");
        let Some(list) = self.typed(key, &what, found, DeValue::as_array) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in list.value {
            match item.get_ref().as_table() {
                Some(table) => tables.push(Taker::new(title, table, item.span())),
                None => {
                    let problem = format!("{key} contains a value that is not a table");
                    found.push(Mistake::new(item.span(), problem, format!("write {title}")));
                }
            }
        }
        tables
    }

    /// The keys that were not taken, with their values as text where they are simple.
    pub(super) fn rest(&self) -> Vec<(At<String>, Option<At<String>>)> {
        let mut taken: Vec<&str> = Vec::new();
        let left = self.table.iter().filter(|(key, _)| {
            let key = canonical_key(key.get_ref());
            let known = self.known.iter().find(|known| **known == key);
            // The same once more, by another spelling, is left.
            let Some(known) = known else { return true };
            let twice = taken.contains(known);
            taken.push(known);
            twice
        });
        left.map(|(key, value)| {
            let text = scalar(value.get_ref()).map(|text| At { value: text, at: value.span() });
            (At { value: key.get_ref().to_string(), at: key.span() }, text)
        })
        .collect()
    }

    /// Nothing else belongs here.
    pub(super) fn finish(self, found: &mut Vec<Mistake>) {
        for (key, _) in self.rest() {
            if self.known.contains(&canonical_key(&key.value).as_ref()) {
                let what = format!("{:?} is given twice, in two spellings", key.value);
                found.push(Mistake::new(key.at, what, "remove one"));
                continue;
            }
            let what = format!("{} has no key {:?}", self.title, key.value);
            found.push(Mistake::new(key.at, what, suggest::hint(&key.value, &self.known)));
        }
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

/// Numbers and flags as an option in a URI has them.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    if let Some(flag) = value.as_bool() {
        return Some(if flag { "1" } else { "0" }.into());
    }
    integer(value).map(|number| number.to_string())
}
