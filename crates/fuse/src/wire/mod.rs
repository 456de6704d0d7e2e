//! The structures, numbers and flags of the uapi header.

mod args;
mod flags;
#[cfg(test)]
mod layout;
mod opcode;
mod outs;
mod reader;
mod shared;

pub use args::*;
pub use flags::*;
pub use opcode::{NotifyCode, Opcode};
pub use outs::*;
pub use reader::CBytes;
pub(crate) use reader::Reader;
pub use shared::*;

/// A value of a fixed length.
pub trait Wire: Sized {
    /// Bytes.
    const LEN: usize;

    /// Takes it off the front of `bytes`; `None` if they are too few.
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let value = Self::read(&mut reader)?;
        *bytes = reader.take_rest();
        Some(value)
    }

    #[doc(hidden)]
    #[expect(private_interfaces, reason = "only this module implements it")]
    fn read(reader: &mut Reader<'_>) -> Option<Self>;

    /// Appends it to `out`.
    fn write(&self, out: &mut Vec<u8>);
}

/// The fields of a structure, each as it is written.
#[cfg(test)]
pub(crate) trait Fields {
    fn fields(&self) -> Vec<(&'static str, Vec<u8>)>;
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            const LEN: usize = size_of::<$number>();

            #[inline]
            #[expect(private_interfaces, reason = "only this module implements it")]
            fn read(reader: &mut Reader<'_>) -> Option<Self> {
                reader.array().map(<$number>::from_le_bytes)
            }

            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
number!(u16, u32, u64, i32, i64);

/// A structure of the header: its name, its length, its fields in order, `[pad N]` bytes behind a field that are
/// written as zeroes and not looked at.
macro_rules! structure {
    ($(#[$meta:meta])* $name:ident: $len:literal $([lead $lead:literal])? {
        $($(#[$field_meta:meta])* $field:ident: $type:ty $([pad $pad:literal])?,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        #[cfg(test)]
        impl $crate::wire::Fields for $name {
            fn fields(&self) -> Vec<(&'static str, Vec<u8>)> {
                let mut fields = Vec::new();
                $({
                    let mut bytes = Vec::new();
                    self.$field.write(&mut bytes);
                    fields.push((stringify!($field), bytes));
                })*
                fields
            }
        }

        const _: () = assert!($len == $($lead +)? $(<$type as Wire>::LEN $(+ $pad)? +)* 0);

        impl Wire for $name {
            const LEN: usize = $len;

            #[inline]
            #[expect(private_interfaces, reason = "only this module implements it")]
            fn read(reader: &mut Reader<'_>) -> Option<Self> {
                $(reader.bytes($lead)?;)?
                $(let $field = <$type as Wire>::read(reader)?; $(reader.bytes($pad)?;)?)*
                Some(Self { $($field),* })
            }

            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                $(out.extend_from_slice(&[0; $lead]);)?
                $(self.$field.write(out); $(out.extend_from_slice(&[0; $pad]);)?)*
            }
        }
    };
}

/// Flags of the header. Bits that have no name are kept, as a newer peer may know them.
macro_rules! flag_set {
    ($(#[$($meta:tt)*])* $name:ident: $bits:ty {
        $($(#[$($flag_meta:tt)*])* $flag:ident = $value:expr;)*
    }) => {
        bitflags::bitflags! {
            $(#[$($meta)*])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub struct $name: $bits {
                $($(#[$($flag_meta)*])* const $flag = $value;)*
                const _ = !0;
            }
        }

        impl $name {
            /// All that have a name.
            pub const NAMED: Self = Self::from_bits_retain(0 $(| Self::$flag.bits())*);
        }

        impl Wire for $name {
            const LEN: usize = size_of::<$bits>();

            #[inline]
            #[expect(private_interfaces, reason = "only this module implements it")]
            fn read(reader: &mut Reader<'_>) -> Option<Self> {
                <$bits as Wire>::read(reader).map(Self::from_bits_retain)
            }

            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                self.bits().write(out);
            }
        }
    };
}

use flag_set;
pub(crate) use structure;
