//! Which objects of an image there are: two bits for each (ceph: `src/common/bit_vector.hpp`,
//! `src/include/rbd/object_map_types.h`).
//!
//! Stored, it is a header of 18 bytes with the number of objects, the bits, and a footer with the checksums of the
//! header and of each 4096 bytes of bits. What methods give over the wire has an empty footer.

use crate::error::{Error, Result};
use blockyard_rados::encoding::{Encode, Reader, Writer};
use blockyard_rados::msgr::ceph_crc32c;

/// Most objects of a map (`cls_rbd_types.h`, `MAX_OBJECT_MAP_OBJECT_COUNT`).
pub const MAX_OBJECTS: u64 = 256_000_000;
/// Bytes that have a checksum of their own.
const BLOCK: usize = 4096;
const PER_BYTE: u64 = 4;

/// What is known of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectState {
    /// It is not there.
    Nonexistent,
    /// It may be there, and may have changed since the last snapshot.
    Exists,
    /// It is being removed.
    Pending,
    /// It may be there, and has not changed since the last snapshot.
    ExistsClean,
}

impl ObjectState {
    /// The one with a number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Nonexistent),
            1 => Some(Self::Exists),
            2 => Some(Self::Pending),
            3 => Some(Self::ExistsClean),
            _ => None,
        }
    }
}

/// The map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectMap {
    objects: u64,
    bits: Vec<u8>,
}

/// The checksum of a header or a block: from 0.
fn crc(bytes: &[u8]) -> u32 {
    ceph_crc32c(0, bytes)
}

fn bytes_for(objects: u64) -> usize {
    usize::try_from(objects.div_ceil(PER_BYTE)).unwrap_or(usize::MAX)
}

impl ObjectMap {
    /// A map of so many objects, none of which is there.
    ///
    /// # Errors
    /// There are more than [`MAX_OBJECTS`].
    pub fn new(objects: u64) -> Result<Self> {
        let mut map = Self::default();
        map.resize(objects, ObjectState::Nonexistent)?;
        Ok(map)
    }

    /// How many objects it is of.
    #[must_use]
    pub const fn objects(&self) -> u64 {
        self.objects
    }

    /// Where an object's bits are: the first object is in the highest bits of the first byte.
    fn place(&self, object: u64) -> Option<(usize, u64)> {
        if object >= self.objects {
            return None;
        }
        let index = usize::try_from(object / PER_BYTE).ok()?;
        Some((index, (PER_BYTE - 1 - object % PER_BYTE) * 2))
    }

    /// What is known of an object; `None` if the map does not have it.
    #[must_use]
    pub fn state(&self, object: u64) -> Option<ObjectState> {
        let (index, shift) = self.place(object)?;
        ObjectState::from_number(self.bits.get(index)? >> shift & 3)
    }

    /// Whether the map has the object; then its state is that from now on.
    pub fn set(&mut self, object: u64, state: ObjectState) -> bool {
        let Some((index, shift)) = self.place(object) else { return false };
        let Some(byte) = self.bits.get_mut(index) else { return false };
        *byte = *byte & !(3 << shift) | (state as u8) << shift;
        true
    }

    /// Whether the map of a snapshot says that an object changed since the one before; it says so of objects behind its end.
    #[must_use]
    pub fn has_changed(&self, object: u64) -> bool {
        matches!(self.state(object), None | Some(ObjectState::Exists))
    }

    /// Takes over what changed since the snapshot before an older one, which is removed.
    pub fn merge(&mut self, older: &Self) {
        for object in 0..self.objects() {
            if self.state(object) == Some(ObjectState::ExistsClean) && older.has_changed(object) {
                self.set(object, ObjectState::Exists);
            }
        }
    }

    /// All states, in order.
    pub fn states(&self) -> impl Iterator<Item = ObjectState> + '_ {
        (0..self.objects).map_while(|object| self.state(object))
    }

    /// Cuts or grows it; objects that are new have the state.
    ///
    /// # Errors
    /// There would be more than [`MAX_OBJECTS`].
    pub fn resize(&mut self, objects: u64, state: ObjectState) -> Result<()> {
        check_count(objects)?;
        let old = std::mem::replace(&mut self.objects, objects);
        self.bits.resize(bytes_for(objects), 0);
        for object in old..objects {
            self.set(object, state);
        }
        // What is behind the end is zero, so that maps with the same states are the same bytes.
        for unused in objects..bytes_for(objects) as u64 * PER_BYTE {
            self.objects = unused + 1;
            self.set(unused, ObjectState::Nonexistent);
        }
        self.objects = objects;
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut header = Writer::new();
        header.versioned(1, 1, |w| w.u64(self.objects));
        header.into_bytes()
    }

    /// Appends it without checksums, as methods give it.
    pub fn encode_without_checksums(&self, writer: &mut Writer) {
        writer.bytes(&self.header());
        writer.raw(&self.bits);
        writer.bytes(&[]);
    }
}

fn check_count(objects: u64) -> Result<()> {
    if objects > MAX_OBJECTS {
        return Err(Error::bad(format!(
            "an object map has at most {MAX_OBJECTS} objects, not {objects}"
        )));
    }
    Ok(())
}

impl Encode for ObjectMap {
    fn encode(&self, writer: &mut Writer) {
        let header = self.header();
        writer.bytes(&header);
        writer.raw(&self.bits);
        let mut footer = Writer::new();
        footer.u32(crc(&header));
        let blocks: Vec<&[u8]> = self.bits.chunks(BLOCK).collect();
        footer.vec(&blocks, |w, block| w.u32(crc(block)));
        writer.bytes(footer.as_slice());
    }
}

impl ObjectMap {
    /// Reads a map, with or without checksums.
    ///
    /// # Errors
    /// It is cut, a checksum is wrong, or it has more than [`MAX_OBJECTS`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("reading an object map", bytes);
        let header = reader.bytes()?;
        let objects = Reader::new("reading an object map", header).versioned(1)?.fields.u64()?;
        check_count(objects)?;
        let bits = reader.raw(bytes_for(objects))?;
        let footer = reader.bytes()?;
        if !footer.is_empty() {
            let mut footer = Reader::new("reading the checksums of an object map", footer);
            let of_header = footer.u32()?;
            let of_blocks = footer.vec(4, Reader::u32)?;
            if of_header != crc(header) || !bits.chunks(BLOCK).map(crc).eq(of_blocks) {
                return Err(Error::damaged(
                    "the object map does not match its checksums; rebuild it",
                ));
            }
        }
        Ok(Self { objects, bits: bits.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rados::encoding::encoded;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = ObjectState> {
        (0_u8..4).prop_map(|number| ObjectState::from_number(number).unwrap())
    }

    /// `bit_vector.hpp`, `encode`: 5 objects, of which the second is there and the fifth is clean.
    #[test]
    fn golden_map() {
        let mut map = ObjectMap::new(5).unwrap();
        assert!(map.set(1, ObjectState::Exists) && map.set(4, ObjectState::ExistsClean));
        assert!(!map.set(5, ObjectState::Exists));
        let bytes = encoded(&map);
        assert_eq!(bytes[..20], *b"\x0e\0\0\0\x01\x01\x08\0\0\0\x05\0\0\0\0\0\0\0\x10\xc0");
        assert_eq!(bytes[20..24], [12, 0, 0, 0]);
        assert_eq!(bytes[24..28], crc(&bytes[4..18]).to_le_bytes());
        assert_eq!(bytes[28..32], [1, 0, 0, 0]);
        assert_eq!(bytes[32..], crc(&[0x10, 0xc0]).to_le_bytes());
        assert_eq!(ObjectMap::parse(&bytes).unwrap(), map);
    }

    #[test]
    fn a_map_without_checksums_is_read_and_a_wrong_bit_is_seen() {
        let mut map = ObjectMap::new(20_000).unwrap();
        map.set(19_999, ObjectState::Pending);
        let mut writer = Writer::new();
        map.encode_without_checksums(&mut writer);
        assert_eq!(ObjectMap::parse(&writer.into_bytes()).unwrap(), map);
        let bytes = encoded(&map);
        for at in [4, 12, 18, 18 + 4999, bytes.len() - 1] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x40;
            assert!(ObjectMap::parse(&wrong).is_err(), "{at}");
        }
        for cut in [0, 3, 17, 18, 5000, bytes.len() - 1] {
            assert!(ObjectMap::parse(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_map_that_says_it_is_large_takes_no_memory() {
        let mut header = Writer::new();
        header.versioned(1, 1, |w| w.u64(u64::MAX));
        let mut writer = Writer::new();
        writer.bytes(header.as_slice());
        let error = ObjectMap::parse(writer.as_slice()).unwrap_err();
        assert!(error.to_string().contains("at most 256000000"), "{error}");
    }

    proptest! {
        #[test]
        fn states_are_read_as_they_were_set_whatever_the_size(
            steps in prop::collection::vec((0_u64..40, state(), any::<bool>()), 0..60),
        ) {
            let (mut map, mut model) = (ObjectMap::default(), Vec::new());
            for (number, state, is_resize) in steps {
                if is_resize {
                    map.resize(number, state).unwrap();
                    model.resize(usize::try_from(number).unwrap(), state);
                } else {
                    let known = model.get_mut(usize::try_from(number).unwrap());
                    prop_assert_eq!(map.set(number, state), known.is_some());
                    known.into_iter().for_each(|known| *known = state);
                }
                prop_assert!(map.states().eq(model.iter().copied()));
            }
            prop_assert_eq!(ObjectMap::parse(&encoded(&map)).unwrap(), map);
        }
    }
}
