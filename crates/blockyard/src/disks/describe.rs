//! What a server says of its disks, without one being opened.

use serde::Serialize;

/// What a server says of a disk.
pub struct Described {
    /// Bytes.
    pub size: u64,
    /// Nobody may change it.
    pub read_only: bool,
    /// Seeking costs time.
    pub rotational: bool,
    /// The connection is encrypted.
    pub tls: bool,
    /// What it can do.
    pub can: Vec<&'static str>,
    /// All of it, as lines of a name and a value.
    pub rows: Vec<(&'static str, String)>,
    /// All of it, as JSON.
    pub json: String,
}

/// What a server has on offer.
#[derive(Debug, Serialize)]
pub struct Offers {
    /// The server.
    pub uri: String,
    /// Its disks.
    pub exports: Vec<Offered>,
}

/// A disk that a server has on offer.
#[derive(Debug, Serialize)]
pub struct Offered {
    /// Its name there.
    pub name: String,
    /// A text for people.
    pub description: String,
    /// Bytes, if the server tells without its being opened.
    pub size: Option<u64>,
    /// Nobody may change it.
    pub read_only: Option<bool>,
    /// What leads to it.
    pub uri: String,
}
