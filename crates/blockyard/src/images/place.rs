//! Where images are: a directory, or a pool of a cluster.

use std::path::PathBuf;

use blockyard_rbd::store::rados::{Client, RadosStore};

use super::{Store, open_directory, rbd_error, wait};
use crate::error::Result;

/// A store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a directory.
    Directory(PathBuf),
    /// A pool of a cluster.
    Pool {
        /// Its name.
        pool: String,
        /// What leads to the cluster, as Ceph's programs take it.
        arguments: Vec<String>,
    },
}

impl Place {
    /// Opens it. A directory gets a store, and is made, if `make` and it is not there.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn open(&self, namespace: &str, make: bool) -> Result<Store> {
        match self {
            Self::Directory(directory) => open_directory(directory, namespace, make),
            Self::Pool { pool, arguments } => {
                let opened = wait(async {
                    let client = Client::shared(arguments).await?;
                    RadosStore::open(&client, pool, namespace).await
                })?;
                let cannot = |err| {
                    rbd_error(format!("cannot open the pool {pool}"), err)
                        .help("check conf, id, keyring and mon_host; for images in a directory use --dir DIR")
                };
                opened.map(|store| Store::Rados(Box::new(store))).map_err(cannot)
            }
        }
    }

    /// The pool's name; none of a directory, which has one without a name.
    #[cfg(test)]
    pub(crate) fn pool(&self) -> &str {
        match self {
            Self::Directory(_) => "",
            Self::Pool { pool, .. } => pool,
        }
    }
}
