//! Extents of block status, kept within what the client asked for.

/// Most extents that one reply carries. The specification's own limit is 2^20, 16 MiB of reply.
pub const MAX_EXTENTS: usize = 1 << 15;
const _: () = assert!(MAX_EXTENTS <= crate::wire::MAX_STATUS_DESCRIPTORS);

/// A run of bytes with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Status flags as the context defines them, such as [`AllocationFlags`](crate::wire::AllocationFlags).
    pub status: u64,
}

/// The extents of one context in reply to one request.
///
/// Neighbours of equal status are joined, and the sum never exceeds the length of the request. That keeps the
/// rules of REQ_ONE, and those of 32-bit block status, since a compact request cannot ask for more.
#[derive(Clone, Debug)]
pub struct ExtentList {
    extents: Vec<Extent>,
    /// Bytes of the request that are not described yet.
    left: u64,
    most: usize,
}

impl ExtentList {
    /// For a request of `length` bytes, with REQ_ONE or not, on an export with this maximum payload in bytes.
    #[must_use]
    pub fn new(length: u64, one: bool, max_payload: u32) -> Self {
        let fits = usize::try_from(max_payload).unwrap_or(usize::MAX) / size_of::<Extent>();
        let most = if one { 1 } else { fits.clamp(1, MAX_EXTENTS) };
        Self { extents: Vec::new(), left: length, most }
    }

    /// Appends what lies behind the extents so far, and says whether more is wanted.
    pub fn push(&mut self, length: u64, status: u64) -> bool {
        let length = length.min(self.left);
        if length == 0 {
            return self.wants_more();
        }
        let full = self.extents.len() == self.most;
        match self.extents.last_mut() {
            Some(last) if last.status == status => last.length += length,
            // The next status does not fit, so the list ends here.
            _ if full => {
                self.left = 0;
                return false;
            }
            _ => self.extents.push(Extent { length, status }),
        }
        self.left -= length;
        self.wants_more()
    }

    /// Whether some of the request is not described yet, and there is room to.
    #[must_use]
    pub const fn wants_more(&self) -> bool {
        self.left > 0
    }

    /// The extents so far.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn joins_neighbours_and_ends_with_the_request() {
        let mut list = ExtentList::new(100, false, u32::MAX);
        assert!(list.push(10, 3));
        assert!(list.push(20, 3));
        assert!(list.push(0, 1));
        assert!(list.push(30, 0));
        assert!(!list.push(u64::MAX, 3));
        let expected =
            [(30, 3), (30, 0), (40, 3)].map(|(length, status)| Extent { length, status });
        assert_eq!(list.extents(), expected);
    }

    #[test]
    fn req_one_gives_one() {
        let mut list = ExtentList::new(100, true, u32::MAX);
        assert!(list.push(10, 3), "the next may be joined to it");
        assert!(list.push(10, 3));
        assert!(!list.push(10, 0));
        assert!(!list.push(10, 3), "not behind a gap");
        assert_eq!(list.extents(), [Extent { length: 20, status: 3 }]);
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_bytes(
            asked in 1_u64..200,
            one: bool,
            runs in prop::collection::vec((0_u64..50, 0_u64..3), 0..40),
            payload in 0_u32..200,
        ) {
            let mut list = ExtentList::new(asked, one, payload);
            let mut bytes = Vec::new();
            for &(length, status) in &runs {
                bytes.extend((0..length).map(|_| status));
                list.push(length, status);
            }
            let described: Vec<u64> = list.extents().iter()
                .flat_map(|extent| (0..extent.length).map(|_| extent.status)).collect();
            prop_assert!(described.len() as u64 <= asked);
            prop_assert!(bytes.starts_with(&described));
            prop_assert!(list.extents().windows(2).all(|pair| pair[0].status != pair[1].status));
            let most = if one { 1 } else { (payload as usize / 16).max(1) };
            prop_assert!(list.extents().len() <= most);
            if list.extents().len() < most {
                prop_assert_eq!(described.len(), bytes.len().min(usize::try_from(asked).unwrap()), "nothing is left out");
            }
        }
    }
}
