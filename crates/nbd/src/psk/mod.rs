//! Pre-shared keys, for both sides: files of them, as `psktool` of GnuTLS writes them, and nbdkit, QEMU and libnbd read them;
//! and the records of a session.

mod records;

pub use records::Records;

use std::collections::HashMap;
use std::fmt;

/// The longest name and key that every version of OpenSSL takes, in bytes.
const MAX_USER: usize = 128;
const MAX_KEY: usize = 256;
/// Bytes of a file: some thousand users.
pub const MAX_FILE: u64 = 1 << 20;

/// Cipher suites of TLS 1.3, as OpenSSL names them. Keys that are not from an earlier session go with SHA-256 alone.
pub const SUITES: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";

/// Keys by user.
pub type Keys = HashMap<Vec<u8>, Vec<u8>>;

/// What is wrong with a file, without any key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line that it is in; none if it is the whole file.
    pub line: Option<usize>,
    problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl std::error::Error for Mistake {}

/// Lines of `user:key`; a user with a `#` in front is in hexadecimal, too.
///
/// # Errors
/// What is wrong: no file of keys has more than [`MAX_FILE`] bytes, or none at all.
pub fn parse(text: &[u8]) -> Result<Keys, Mistake> {
    let wrong = |line, problem: &str| Mistake { line, problem: problem.into() };
    if text.len() as u64 > MAX_FILE {
        return Err(wrong(None, &format!("longer than {MAX_FILE} bytes")));
    }
    let mut keys = Keys::new();
    for (line, number) in text.split(|&byte| byte == b'\n').zip(1..) {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let (user, key) = entry(line).map_err(|problem| wrong(Some(number), problem))?;
        let name = String::from_utf8_lossy(&user).into_owned();
        if keys.insert(user, key).is_some() {
            let problem = format!("duplicate key of user {name:?}");
            return Err(wrong(Some(number), &problem));
        }
    }
    if keys.is_empty() {
        return Err(wrong(None, "empty; create a key: psktool -u USER -p FILE"));
    }
    Ok(keys)
}

fn entry(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
    let colon = line.iter().position(|&byte| byte == b':');
    let (user, key) = line.split_at(colon.ok_or("no colon; write user:key")?);
    let user = match user.strip_prefix(b"#") {
        Some(hex) => from_hex(hex).ok_or("a user behind # is in hexadecimal")?,
        None => user.to_vec(),
    };
    if user.is_empty() || user.len() > MAX_USER || user.contains(&0) {
        return Err("a user is of 1 to 128 bytes, none of them zero");
    }
    let key = from_hex(&key[1..]).ok_or("the key is not in hexadecimal")?;
    if key.is_empty() || key.len() > MAX_KEY {
        return Err("a key is of 1 to 256 bytes");
    }
    Ok((user, key))
}

fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    let byte = |pair: &[u8; 2]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_keys() {
        let text = b"alice:00ff7A\n\r\n  \nb b:01\r\n#c3a9:02\n#00ff:03";
        let mistake = parse(text).unwrap_err();
        assert_eq!(mistake.to_string(), "line 6: a user is of 1 to 128 bytes, none of them zero");
        let keys = parse(&text[..text.len() - 9]).unwrap_or_default();
        assert_eq!(keys.len(), 3);
        assert_eq!(keys[&b"alice"[..]], [0, 0xff, 0x7a]);
        assert_eq!(keys[&b"b b"[..]], [1]);
        assert_eq!(keys["é".as_bytes()], [2]);
    }

    #[test]
    fn what_is_wrong_and_where() {
        let long = format!("{}:00", "u".repeat(129));
        let longer = format!("u:{}", "00".repeat(257));
        for (text, at, problem) in [
            ("a:00\nb", 2, "no colon"),
            ("a:0", 1, "hexadecimal"),
            ("\n\na:0g", 3, "hexadecimal"),
            ("a:+f", 1, "hexadecimal"),
            ("a:", 1, "a key is of 1"),
            (":00", 1, "a user is of 1"),
            ("#zz:00", 1, "behind #"),
            ("# a comment", 1, "no colon"),
            ("a:00\nb:11\na:22", 3, "duplicate key of user \"a\""),
            (&long, 1, "a user is of"),
            (&longer, 1, "a key is of"),
        ] {
            let mistake = parse(text.as_bytes()).unwrap_err();
            assert_eq!(mistake.line, Some(at), "{text}: {mistake}");
            assert!(mistake.to_string().contains(problem), "{text}: {mistake}");
        }
        assert!(parse(b"\n\n").unwrap_err().to_string().contains("empty; create a key"));
    }
}
