//! How a connection begins.

use blockyard_fuse::init::{InitIn, ServerConfig};
use blockyard_fuse::wire::InitFlags;
use blockyard_fuse::{Error, Protocol};

/// Requests at a time that nobody waits for.
const BACKGROUND: u16 = 64;

/// Answers the INIT `unique` of a client whose pages have `page` bytes, for a file system that wants these flags: appends the
/// answer, and says what both agree on, if they do by now: a client of a newer major version sends another INIT.
///
/// # Errors
/// What the client wants cannot be. The answer says so.
pub fn greet(
    flags: InitFlags,
    unique: u64,
    client: &InitIn,
    page: u32,
    out: &mut Vec<u8>,
) -> Result<Option<Protocol>, Error> {
    ServerConfig::of_files(flags, BACKGROUND).greet(unique, client, page, out)
}
