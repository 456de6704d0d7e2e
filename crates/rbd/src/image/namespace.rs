//! Namespaces of a pool: images of the same name in each.

use super::{ask, method, tell};
use crate::error::{Error, Result};
use crate::format::names;
use crate::store::ObjectStore;
use blockyard_rados::encoding::Reader;
use rustix::io::Errno;

/// Names that are read at a time.
const PAGE: u64 = 1024;

/// All namespaces but the default one. The store is the pool's default namespace; so it is with the others.
///
/// # Errors
/// Those of the store.
pub async fn list<S: ObjectStore>(store: &S) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    let object = names::NAMESPACE.into();
    loop {
        let after = all.last().cloned().unwrap_or_default();
        let page = ask(store, &object, "namespace_list", |w| {
            w.string(&after);
            w.u64(PAGE);
        });
        let page = match page.await {
            Err(error) if error.is_not_found() => return Ok(all),
            page => page?,
        };
        let page = Reader::new("reading the namespaces", &page).vec(4, Reader::string)?;
        let is_last = (page.len() as u64) < PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// Makes one.
///
/// # Errors
/// EEXIST if there is one of that name; a name that cannot be.
pub async fn create<S: ObjectStore>(store: &S, name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '@']) {
        return Err(Error::bad(
            "the name of a namespace is not empty, and has neither / nor @ in it",
        ));
    }
    let add = method("namespace_add", |w| w.string(name));
    tell(store, &names::NAMESPACE.into(), vec![add]).await
}

/// Removes one that has no images, nor any in its trash.
///
/// # Errors
/// ENOENT if there is none of that name, EBUSY if it has images.
pub async fn remove<S: ObjectStore>(store: &S, name: &str) -> Result<()> {
    let inside = store.in_pool(store.pool(), name).await?;
    let has_images = !super::list(&inside).await?.is_empty();
    if has_images || !super::trash::list(&inside).await?.is_empty() {
        return Err(Errno::BUSY.into());
    }
    let remove = method("namespace_remove", |w| w.string(name));
    tell(store, &names::NAMESPACE.into(), vec![remove]).await
}
