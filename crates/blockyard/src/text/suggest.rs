//! The name that somebody most likely meant.

/// The nearest of `names` to `text`, if it is near enough to be meant.
#[must_use]
pub fn nearest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = text.to_lowercase();
    let most = (wanted.chars().count() / 3).clamp(1, 3);
    names
        .into_iter()
        .map(|name| (distance(&wanted, name), name))
        .filter(|(distance, name)| *distance <= most || starts_alike(&wanted, name))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// ` (did you mean "x"?)`, or which names there are.
#[must_use]
pub fn hint(text: &str, names: &[&str]) -> String {
    match nearest(text, names.iter().copied()) {
        Some(name) => format!("did you mean {name:?}?"),
        None => format!("supported: {}", list(names)),
    }
}

/// `a, b and c`.
#[must_use]
pub fn list(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        [one] => (*one).into(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

fn starts_alike(wanted: &str, name: &str) -> bool {
    wanted.len() >= 3 && (name.starts_with(wanted) || wanted.starts_with(name) && name.len() >= 3)
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood_and_other_words_are_not() {
        let names = ["size", "block", "queues", "depth", "scheduler"];
        for (text, meant) in [
            ("szie", Some("size")),
            ("Size", Some("size")),
            ("sized", Some("size")),
            ("block_size", Some("block")),
            ("sched", Some("scheduler")),
            ("dept", Some("depth")),
            ("queue", Some("queues")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(text, names), meant, "{text}");
        }
        assert!(hint("nothing", &["a", "b", "c"]).ends_with("a, b and c"));
    }
}
