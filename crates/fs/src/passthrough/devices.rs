//! Numbers of files: the client sees one device, and what is below the directory may be of several.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Where the number of a device begins in that of a file: few file systems use those bits.
const SHIFT: u32 = 48;
/// The number of all devices for which there is none of their own.
const LAST: u64 = u64::MAX >> SHIFT;

/// Devices, with numbers in the order in which they are seen.
pub(super) struct Devices {
    own: (u32, u32),
    others: Mutex<HashMap<(u32, u32), u64>>,
}

impl Devices {
    /// With that of the directory, whose files keep their numbers.
    pub(super) fn new(own: (u32, u32)) -> Self {
        Self { own, others: Mutex::default() }
    }

    /// The number of a file for the client.
    pub(super) fn ino(&self, device: (u32, u32), ino: u64) -> u64 {
        if device == self.own {
            return ino;
        }
        let mut others = self.others.lock();
        let next = (others.len() as u64 + 1).min(LAST);
        let known = others.get(&device).copied();
        let number = known.unwrap_or_else(|| {
            if next < LAST {
                others.insert(device, next);
            }
            next
        });
        drop(others);
        ino ^ (number << SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_several_devices_have_numbers_of_their_own() {
        let devices = Devices::new((8, 1));
        assert_eq!(devices.ino((8, 1), 2), 2);
        for _ in 0..2 {
            assert_eq!(devices.ino((0, 40), 2), 1 << 48 | 2);
            assert_eq!(devices.ino((0, 41), 2), 2 << 48 | 2);
        }
        for minor in 0..70_000 {
            devices.ino((9, minor), 2);
        }
        assert_eq!(
            devices.ino((9, 69_999), 2),
            0xffff << 48 | 2,
            "one number for all that are more"
        );
        assert_eq!(devices.ino((0, 40), 2), 1 << 48 | 2);
    }
}
