//! The counterpart of the reader.

/// A structure that can be written.
pub trait Encode {
    /// Appends the structure.
    fn encode(&self, writer: &mut Writer);
}

/// Appends fields to bytes.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

/// A length or a count of this side that the wire holds in 32 bits: longer things are never built.
fn count(len: usize) -> u32 {
    assert!(u32::try_from(len).is_ok(), "a structure of {len} elements was built");
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Writer {
    /// A writer that has nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// A writer that has nothing yet, and room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends bytes behind their u32 count.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(count(bytes.len()));
        self.raw(bytes);
    }

    /// Appends text behind its u32 count.
    pub fn string(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Appends a bool.
    pub fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// Appends a u32 count and the elements.
    pub fn vec<T>(&mut self, elements: &[T], mut element: impl FnMut(&mut Self, &T)) {
        self.u32(count(elements.len()));
        for each in elements {
            element(self, each);
        }
    }

    /// Appends a versioned structure (`ENCODE_START`, `ENCODE_FINISH`).
    pub fn versioned(&mut self, version: u8, compat: u8, fields: impl FnOnce(&mut Self)) {
        self.u8(version);
        self.u8(compat);
        let length_at = self.bytes.len();
        self.u32(0);
        let start = self.bytes.len();
        fields(self);
        let length = count(self.bytes.len() - start);
        self.bytes[length_at..start].copy_from_slice(&length.to_le_bytes());
    }

    /// Appends a structure.
    pub fn put(&mut self, value: &impl Encode) {
        value.encode(self);
    }
}

macro_rules! integers {
    ($($name:ident)*) => {
        impl Writer {
            $(
                #[doc = concat!("Appends a little-endian ", stringify!($name), ".")]
                pub fn $name(&mut self, value: $name) {
                    self.raw(&value.to_le_bytes());
                }
            )*
        }
        $(
            impl Encode for $name {
                fn encode(&self, writer: &mut Writer) {
                    writer.$name(*self);
                }
            }
        )*
    };
}
integers!(u8 i8 u16 u32 i32 u64 i64);

/// The bytes of one structure.
#[must_use]
pub fn encoded(value: &impl Encode) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.put(value);
    writer.into_bytes()
}
