//! Disk URIs as arguments: paths are bytes, and URIs are text.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::builder::{OsStringValueParser, TypedValueParser};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode};

/// What a path has in a URI as it is.
const IN_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_').remove(b'~');
/// Of what was meant as a URI, only what is no text is encoded.
const IN_URI: &AsciiSet = CONTROLS;

/// Takes any argument for a disk.
pub(super) fn uri() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(text)
}

fn text(arg: OsString) -> String {
    arg.into_string().unwrap_or_else(|arg| {
        let bytes = arg.as_bytes();
        if bytes.starts_with(b"/") {
            return format!("file://{}", percent_encode(bytes, IN_PATH));
        }
        let is_relative = [&b"./"[..], b"../"].iter().any(|start| bytes.starts_with(start));
        if is_relative || !bytes.contains(&b':') {
            return format!("file:{}", percent_encode(bytes, IN_PATH));
        }
        percent_encode(bytes, IN_URI).to_string()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;

    use super::*;
    use crate::disks::DiskPlan;

    #[test]
    fn a_path_is_any_bytes_and_what_is_text_stays_as_it_is() {
        for uri in ["ram:1G", "./a%20b.img", "nbd://host/ä", ""] {
            assert_eq!(text(uri.into()), uri);
        }
        let here = std::env::current_dir().unwrap();
        for (arg, path) in [
            (&b"/a \xff?%41.img"[..], &b"/a \xff?%41.img"[..]),
            (b"//a\xff", b"//a\xff"),
            (b"./a:\xff", b"./a:\xff"),
            (b"x\xff", b"x\xff"),
            (b"file:/a\xff?ro=1", b"/a\xff"),
        ] {
            let uri = text(OsString::from_vec(arg.to_vec()));
            let plan: DiskPlan = uri.parse().unwrap_or_else(|err| panic!("{uri}: {err}"));
            let wanted = here.join(Path::new(std::ffi::OsStr::from_bytes(path)));
            assert_eq!(plan.source.file().unwrap(), std::path::absolute(wanted).unwrap(), "{uri}");
        }
    }
}
