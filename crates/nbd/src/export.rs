//! What both sides say about an export.

use crate::error::Error;
use crate::wire::TransmissionFlags;

/// Sizes in bytes that the requests for an export keep to (`doc/proto.md`, "Size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    max_payload: u32,
}

impl BlockSizes {
    /// What holds when nothing was agreed: any alignment, 4 KiB preferred, payloads up to 32 MiB.
    pub const DEFAULT: Self = Self { minimum: 1, preferred: 4096, max_payload: 32 << 20 };

    /// Checks the rules of the specification: `minimum` is a power of two of at most 64 KiB, `preferred`
    /// a power of two of at least 512 and `minimum`, `max_payload` at least `preferred`.
    ///
    /// # Errors
    ///
    /// The rule that is broken.
    pub const fn new(minimum: u32, preferred: u32, max_payload: u32) -> Result<Self, Error> {
        const DOING: &str = "checking block sizes";
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            let rule = "the minimum block size must be a power of two up to 65536";
            return Err(Error::violation(DOING, rule, minimum as u64));
        }
        if !preferred.is_power_of_two() || preferred < 512 || preferred < minimum {
            let rule =
                "the preferred block size must be a power of two, at least 512 and the minimum";
            return Err(Error::violation(DOING, rule, preferred as u64));
        }
        if max_payload < preferred {
            let rule = "the maximum payload must be at least the preferred block size";
            return Err(Error::violation(DOING, rule, max_payload as u64));
        }
        Ok(Self { minimum, preferred, max_payload })
    }

    /// Smallest unit of offsets and lengths.
    #[must_use]
    pub const fn minimum(self) -> u32 {
        self.minimum
    }

    /// Smallest unit that is fast.
    #[must_use]
    pub const fn preferred(self) -> u32 {
        self.preferred
    }

    /// Most data in one request or reply.
    #[must_use]
    pub const fn max_payload(self) -> u32 {
        self.max_payload
    }
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// An export as its server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name; the server may know the export by other names, such as the empty one.
    pub name: String,
    /// A text for people, empty if there is none.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
    /// Units of requests; `None` if the server did not say, which means [`BlockSizes::DEFAULT`].
    pub block_sizes: Option<BlockSizes>,
}

/// A metadata context that was chosen for a connection ("Metadata querying").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// Its number in the replies to BLOCK_STATUS on this connection.
    pub id: u32,
    /// Its name, such as [`BASE_ALLOCATION`](crate::wire::BASE_ALLOCATION).
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_follow_the_specification() {
        assert_eq!(BlockSizes::new(1, 4096, 32 << 20), Ok(BlockSizes::DEFAULT));
        assert!(BlockSizes::new(65536, 65536, u32::MAX).is_ok());
        for (minimum, preferred, max_payload) in [
            (0, 4096, 1 << 20),
            (3, 4096, 1 << 20),
            (1 << 17, 1 << 17, 1 << 20),
            (1, 256, 1 << 20),
            (4096, 512, 1 << 20),
            (512, 5000, 1 << 20),
            (512, 4096, 4095),
        ] {
            assert!(BlockSizes::new(minimum, preferred, max_payload).is_err());
        }
    }
}
