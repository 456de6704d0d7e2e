//! Any text either is no NBD URI, or prints as one that means the same.
#![no_main]

use blockyard_nbd::uri::Uri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(uri) = text.parse::<Uri>() {
        let printed = uri.to_string();
        assert_eq!(printed.parse::<Uri>().as_ref(), Ok(&uri), "{printed}");
    }
});
