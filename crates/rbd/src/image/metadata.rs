//! What users note down about an image.

use super::{Image, ask, method, tell};
use crate::error::Result;
use crate::store::ObjectStore;
use blockyard_rados::encoding::Reader;
use rustix::io::Errno;

/// Notes that are read at a time.
const PAGE: u64 = 64;

impl<S: ObjectStore> Image<S> {
    /// All notes, by key.
    ///
    /// # Errors
    /// Those of the store; a note that is not UTF-8.
    pub async fn metadata(&self) -> Result<Vec<(String, String)>> {
        let mut notes: Vec<(String, String)> = Vec::new();
        let header = self.header_object();
        loop {
            let after = notes.last().map(|(key, _)| key.clone()).unwrap_or_default();
            let page = ask(&self.store, &header, "metadata_list", |w| {
                w.string(&after);
                w.u64(PAGE);
            });
            let page = page.await?;
            let mut reader = Reader::new("reading the notes of an image", &page);
            let page = reader.vec(8, |r| Ok((r.string()?, r.string()?)))?;
            let is_last = (page.len() as u64) < PAGE;
            notes.extend(page);
            if is_last {
                return Ok(notes);
            }
        }
    }

    /// A note.
    ///
    /// # Errors
    /// ENOENT if there is none of that key.
    pub async fn metadata_value(&self, key: &str) -> Result<String> {
        let header = self.header_object();
        let value = ask(&self.store, &header, "metadata_get", |w| w.string(key)).await?;
        Ok(Reader::new("reading a note of an image", &value).string()?)
    }

    /// Notes something down.
    ///
    /// # Errors
    /// EINVAL for an empty key; those of the store.
    pub async fn set_metadata(&self, key: &str, value: &str) -> Result<()> {
        if key.is_empty() {
            return Err(Errno::INVAL.into());
        }
        let set = method("metadata_set", |w| {
            w.u32(1);
            w.string(key);
            w.string(value);
        });
        tell(&self.store, &self.header_object(), vec![set]).await
    }

    /// Removes a note.
    ///
    /// # Errors
    /// ENOENT if there is none of that key.
    pub async fn remove_metadata(&self, key: &str) -> Result<()> {
        self.metadata_value(key).await?;
        let remove = method("metadata_remove", |w| w.string(key));
        tell(&self.store, &self.header_object(), vec![remove]).await
    }
}
