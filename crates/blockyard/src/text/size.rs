//! Sizes in bytes as people write them: `512`, `4K`, `1MiB`, `7E`. Units are powers of 1024.

/// The largest size: 2^63 - 1 bytes.
pub const MAX: u64 = i64::MAX as u64;

const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// Parses a size. The error says what is wrong, and what would be right.
///
/// # Errors
/// A sentence for people.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let problem = |what: &str| {
        format!(
            "invalid size {text:?}: {what}; use bytes or a suffix K, M, G, T (powers of 1024), e.g. 512, 4K, 1G"
        )
    };
    if number.is_empty() {
        return Err(problem("no digit at the start"));
    }
    let shift = shift_of(unit).ok_or_else(|| problem(&unit_problem(unit)))?;
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes <= MAX => Ok(bytes),
        _ => Err(format!("{text:?} is more than the largest size, 2^63 - 1 bytes (just under 8E)")),
    }
}

fn shift_of(unit: &str) -> Option<u32> {
    let mut chars = unit.chars();
    let Some(letter) = chars.next() else { return Some(0) };
    if matches!(unit, "B" | "b") {
        return Some(0);
    }
    let at = UNITS.iter().position(|unit| unit.eq_ignore_ascii_case(&letter))?;
    let at = u32::try_from(at).ok()?;
    matches!(chars.as_str(), "" | "iB" | "ib").then_some(10 * (at + 1))
}

fn unit_problem(unit: &str) -> String {
    let letter = unit.chars().next().unwrap_or(' ').to_ascii_uppercase();
    match unit.chars().next() {
        Some('.') => "fractions are not supported".into(),
        _ if UNITS.contains(&letter) && matches!(&unit[1..], "B" | "b") => {
            format!("{unit} can mean 1000 or 1024; write {letter} or {letter}iB")
        }
        _ => format!("unknown unit {unit:?}"),
    }
}

/// A size for people: exact in the largest unit that divides it, else with a digit after the point.
#[must_use]
pub fn human(bytes: u64) -> String {
    let mut unit = 0;
    while unit < UNITS.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let (shift, name) = (10 * unit, UNITS[unit - 1]);
    if bytes.trailing_zeros() as usize >= shift {
        return format!("{} {name}iB", bytes >> shift);
    }
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {name}iB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_bytes_exact() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("1M", 1 << 20),
            ("1G", 1 << 30),
            ("1T", 1 << 40),
            ("7E", 7 << 60),
            ("9223372036854775807", MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_to_write() {
        for (text, part) in [
            ("", "no digit at the start"),
            ("G", "no digit at the start"),
            ("-1", "no digit at the start"),
            ("1.5G", "fraction"),
            ("1GB", "write G or GiB"),
            ("1X", "unknown unit \"X\""),
            ("1 G", "unknown unit"),
            ("8E", "2^63 - 1"),
            ("99999999999999999999", "2^63 - 1"),
            ("9223372036854775808", "2^63 - 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn people_see_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1000, "1000 B"),
            (1 << 10, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (MAX, "7.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
