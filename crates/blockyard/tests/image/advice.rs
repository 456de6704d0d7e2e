//! What an error of an image advises is run here, as it was printed, and helps.

use super::Yard;
use super::common::Said;

/// The command behind "blockyard image " in what was said, with something for each of its placeholders.
#[track_caller]
fn advised<'a>(said: &'a Said, values: &[(&str, &'a str)]) -> Vec<&'a str> {
    let lead = "blockyard image ";
    let (_, rest) =
        said.err.split_once(lead).unwrap_or_else(|| panic!("no {lead:?} in\n{}", said.err));
    let command = rest.split([';', '\n']).next().unwrap();
    let value = |word: &'a str| {
        values.iter().find(|(name, _)| *name == word).map_or(word, |(_, value)| *value)
    };
    let words: Vec<_> = command.split_whitespace().map(value).collect();
    let left = |word: &&&str| word.chars().all(|c| c.is_ascii_uppercase());
    assert_eq!(words.iter().find(left), None, "{words:?}");
    words
}

#[test]
fn what_is_advised_about_images_helps() {
    let yard = Yard::new();
    let dir = yard.store().to_str().unwrap().to_owned();
    // The store, and an image.
    let said = yard.try_image(&["ls"]);
    let mut words = advised(said.code(1), &[("NAME", "a")]);
    assert_eq!(words[..3], ["create", "--dir", &dir]);
    words.drain(1..3);
    yard.image(&words);
    yard.image(&["resize", "a", "--size", "4M", "--allow-shrink"]);
    // One that is not there.
    let said = yard.try_image(&["info", "x"]);
    let mut words = advised(said.code(1), &[("DIR", &dir)]);
    assert_eq!(words, ["ls", "--dir", &dir]);
    words.truncate(1);
    assert!(yard.image(&words).contains('a'));
    yard.image(&["snap", "create", "a@s"]);
    let said = yard.try_image(&["export", "a@t", "-"]);
    said.code(1).contains(&["image a has no snapshot named t"]);
    assert!(yard.image(&advised(&said, &[])).contains('s'));
    // Namespaces.
    let said = yard.try_image(&["create", "n/b", "-s", "1"]);
    yard.image(&advised(said.code(1), &[]));
    yard.image(&["create", "n/b", "-s", "1"]);
    let said = yard.try_image(&["rename", "a", "n/a"]);
    assert_eq!(advised(said.code(64), &[]), ["deep", "cp", "a", "n/a"]);
    yard.image(&advised(&said, &[]));
    let said = yard.try_image(&["namespace", "rm", "n"]);
    assert!(yard.image(&advised(said.code(75), &[])).contains('n'));
    // Snapshots, their number, and their clones.
    yard.image(&["snap", "limit", "set", "a", "--limit", "1"]);
    let said = yard.try_image(&["snap", "create", "a@two"]);
    yard.image(&advised(said.code(1), &[("IMAGE", "a"), ("N", "2")]));
    yard.image(&["snap", "create", "a@two"]);
    let said = yard.try_image(&["rm", "a"]);
    yard.image(&["snap", "protect", "a@s"]);
    yard.image(&["clone", "a@s", "c"]);
    let purge = advised(said.code(1), &[("IMAGE", "a")]);
    assert_eq!(purge, ["snap", "purge", "a"]);
    let said = yard.try_image(&purge);
    said.code(75).contains(&["protected snapshots not removed: s"]);
    assert_eq!(yard.image(&advised(&said, &[("IMAGE", "a")])), "c\n");
    yard.image(&["flatten", "c"]);
    yard.image(&["snap", "unprotect", "a@s"]);
    yard.image(&purge);
    yard.image(&["rm", "a"]);
    // Locks.
    let said = yard.try_image(&["lock", "rm", "c", "id", "x"]);
    yard.image(&advised(said.code(64), &[("IMAGE", "c")]));
    // In another store, an image can be copied to only.
    let other = yard.path("other").to_str().unwrap().to_owned();
    yard.run(&["image", "create", "--dir", &other, "o", "-s", "1"]).code(0);
    yard.image(&["snap", "create", "c@s"]);
    let away = format!("rbd+dir:{other}/e");
    let said = yard.try_image(&["clone", "c@s", &away]);
    assert_eq!(advised(said.code(64), &[]), ["cp", "c@s", &away]);
    yard.image(&advised(&said, &[]));
}
