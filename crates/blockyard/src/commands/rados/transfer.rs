//! Objects to files, and files to objects, in pieces.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use blockyard_rados::net::Pool;
use blockyard_rados::osd::{Op, Stat};
use bytes::Bytes;

use super::{cannot, shown};
use crate::error::{Error, Result};

/// Bytes of a piece.
const PIECE: usize = 4 << 20;
/// The name that stands for standard input and output.
const STANDARD: &str = "-";

/// Reads as much as there is, up to a piece.
fn piece(input: &mut dyn Read) -> io::Result<Bytes> {
    let mut data = Vec::new();
    input.take(PIECE as u64).read_to_end(&mut data)?;
    Ok(data.into())
}

/// Writes a file to an object: the first piece replaces what is there, the others follow.
pub(super) async fn put(pool: &Pool, object: &OsStr, file: &Path) -> Result<()> {
    let (object, name) = (object.as_bytes(), shown(object));
    let reading = || format!("cannot read {}", file.display());
    let mut input: Box<dyn Read> = if file.as_os_str() == STANDARD {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(file).map_err(|err| Error::failed(reading()).caused_by(err))?)
    };
    let mut offset = 0;
    loop {
        let data = piece(&mut *input).map_err(|err| Error::failed(reading()).caused_by(err))?;
        let len = data.len();
        let written = match (offset, len) {
            (0, _) => pool.write_full(object, data).await,
            (_, 0) => Ok(()),
            _ => pool.write(object, offset, data).await,
        };
        written.map_err(|err| cannot(&format!("write {name}"), err))?;
        if len < PIECE {
            return Ok(());
        }
        offset += len as u64;
    }
}

/// Writes an object to a file. All of it is of one version, or it fails.
pub(super) async fn get(pool: &Pool, object: &OsStr, file: &Path) -> Result<()> {
    let (object, name) = (object.as_bytes(), shown(object));
    let failed = |err| cannot(&format!("read {name}"), err);
    let reply = pool.query(object, vec![Op::stat()]).await.map_err(failed)?;
    let version = reply.user_version;
    let stat = reply.ops.first().map_or(&[][..], |op| &op.data);
    let size = Stat::parse(stat).map_err(failed)?.size;
    let writing = || format!("cannot write {}", file.display());
    let mut output: Box<dyn Write> = if file.as_os_str() == STANDARD {
        Box::new(io::stdout().lock())
    } else {
        Box::new(File::create(file).map_err(|err| Error::failed(writing()).caused_by(err))?)
    };
    let mut offset = 0;
    while offset < size {
        let ops = vec![Op::assert_version(version), Op::read(offset, PIECE as u64)];
        let reply = pool.query(object, ops).await.map_err(failed)?;
        let data = reply.ops.get(1).map(|op| op.data.clone()).unwrap_or_default();
        if data.is_empty() {
            return Err(Error::failed(format!("{name} was truncated at {offset} of {size} bytes")));
        }
        offset += data.len() as u64;
        match output.write_all(&data) {
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(err) => return Err(Error::failed(writing()).caused_by(err)),
            Ok(()) => {}
        }
    }
    match output.flush() {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::failed(writing()).caused_by(err))
        }
        _ => Ok(()),
    }
}
