//! Chance, which comes from outside.

use std::fmt;

type Fill = dyn FnMut(&mut [u8]) + Send;

/// Fills bytes with random ones, of a quality that fits keys.
pub struct Random(Box<Fill>);

impl Random {
    /// Chance from a function, such as one that asks the operating system.
    pub fn new(fill: impl FnMut(&mut [u8]) + Send + 'static) -> Self {
        Self(Box::new(fill))
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.0)(&mut bytes);
        bytes
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
