//! Names of objects, keys and namespaces.

use std::borrow::Borrow;
use std::fmt::{self, Write as _};
use std::ops::Deref;

/// A name as RADOS has it: any bytes, most often text. It shows as text, in which what is no text, or no letter that a terminal
/// should see, is escaped: `\xff`, and `\\` for a backslash.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Vec<u8>);

impl ObjectName {
    /// No name.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl Deref for ObjectName {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for ObjectName {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for ObjectName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for ObjectName {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<Vec<u8>> for ObjectName {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for ObjectName {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for ObjectName {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl PartialEq<str> for ObjectName {
    fn eq(&self, text: &str) -> bool {
        self.0 == text.as_bytes()
    }
}

impl PartialEq<&str> for ObjectName {
    fn eq(&self, text: &&str) -> bool {
        self == *text
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    // Also what changes the direction of what follows, or is not seen.
                    c if c.is_control() || is_invisible(c) => {
                        let mut bytes = [0; 4];
                        c.encode_utf8(&mut bytes).bytes().try_for_each(|byte| escape(f, byte))?;
                    }
                    c => f.write_char(c)?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| escape(f, *byte))?;
        }
        Ok(())
    }
}

fn escape(f: &mut fmt::Formatter<'_>, byte: u8) -> fmt::Result {
    write!(f, "\\x{byte:02x}")
}

/// Unicode's formatting characters: zero widths, marks and overrides of the direction (Unicode, section 23.2).
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_escaped() {
        for (bytes, shown) in [
            (&b"rbd_header.1"[..], "rbd_header.1"),
            ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
            (b"a\xffb", "a\\xffb"),
            (b"cut\xe2\x82", "cut\\xe2\\x82"),
            (b"\x1b[31mred\n", "\\x1b[31mred\\x0a"),
            (b"a\\x", "a\\\\x"),
            ("\u{202e}x".as_bytes(), "\\xe2\\x80\\xaex"),
        ] {
            let name = ObjectName::from(bytes);
            assert_eq!(name.to_string(), shown);
            assert_eq!(format!("{name:?}"), format!("\"{shown}\""));
            assert_eq!(&*name, bytes);
        }
        let name = ObjectName::from("a");
        assert!(name == "a" && name != "b" && ObjectName::new().is_empty());
    }
}
