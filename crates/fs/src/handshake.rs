//! How a connection begins.

use blockyard_fuse::init::{Answer, InitIn, ServerConfig};
use blockyard_fuse::wire::InitFlags;
use blockyard_fuse::{Error, Protocol, Reply};

/// Bytes of data in a request, at most: Linux takes no more.
const MAX_WRITE: u32 = 1 << 20;
/// How far clients may read ahead.
const MAX_READAHEAD: u32 = 1 << 20;
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
    let config = ServerConfig {
        flags: InitFlags::ASYNC_READ
            | InitFlags::BIG_WRITES
            | InitFlags::ASYNC_DIO
            | InitFlags::MAX_PAGES
            | InitFlags::PARALLEL_DIROPS
            | flags,
        max_readahead: MAX_READAHEAD,
        max_background: BACKGROUND,
        congestion_threshold: BACKGROUND - BACKGROUND / 4,
        max_write: MAX_WRITE,
        map_alignment: 0,
        max_stack_depth: 0,
        request_timeout: 0,
    };
    let answer = config.answer(client, page);
    let reply = match &answer {
        Ok(Answer::Agreed(out, _) | Answer::Again(out)) => Reply::Init(*out),
        Err(err) => Reply::Error(err.errno()),
    };
    reply.encode(unique, out);
    match answer? {
        Answer::Agreed(_, protocol) => Ok(Some(protocol)),
        Answer::Again(_) => Ok(None),
    }
}
