//! Listing the objects of a pool.

use super::pool::{Pool, first};
use crate::encoding::{Hobject, ObjectName};
use crate::error::{Error, Result};
use crate::osd::{Listed, Op, OpFlags, OsdRequest, Page, begin_of_pool};
use std::collections::VecDeque;

/// Objects of one answer.
const PAGE: u64 = 1000;

/// The objects of a pool, one after the other. Those that are made or removed meanwhile may be in it or not; all others
/// are in it once, also when groups are split or OSDs come and go.
#[derive(Debug)]
pub struct Listing {
    pool: Pool,
    ready: VecDeque<Listed>,
    next: Hobject,
}

impl Pool {
    /// Lists the objects of the namespace, or of all with [`ALL_NAMESPACES`](crate::osd::ALL_NAMESPACES).
    #[must_use]
    pub fn list(&self) -> Listing {
        Listing { pool: self.clone(), ready: VecDeque::new(), next: begin_of_pool() }
    }

    /// At most `max` objects from a place on, and the next place; a group that has none left gives none, and the next
    /// group's place. The first is [`begin_of_pool`], the last one has [`Hobject::max`].
    ///
    /// # Errors
    /// As all operations.
    pub async fn list_page(&self, from: &Hobject, max: u64) -> Result<Page> {
        let mut locator = self.locator.clone();
        locator.key = ObjectName::new();
        locator.hash = from.hash.into();
        let mut request = OsdRequest::new(locator, "", vec![Op::list(max, from)]);
        request.flags |= OpFlags::PG_OP;
        let page = Page::parse(&first(self.submit(request).await?)?.data)?;
        if !page.next.max && page.next <= *from {
            let rule = "a list goes on behind where it was";
            return Err(Error::violation("listing objects", rule, page.next.hash.into()));
        }
        Ok(page)
    }
}

impl Listing {
    /// The next object; none at the end.
    ///
    /// # Errors
    /// As all operations. It may be called again.
    pub async fn next(&mut self) -> Result<Option<Listed>> {
        loop {
            if let Some(object) = self.ready.pop_front() {
                return Ok(Some(object));
            }
            if self.next.max {
                return Ok(None);
            }
            let page = self.pool.list_page(&self.next, PAGE).await?;
            self.ready = page.objects.into();
            self.next = page.next;
        }
    }
}
