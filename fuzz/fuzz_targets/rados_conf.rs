//! Texts that users write: a keyring, a configuration file, a list of monitors. First byte: which one.
#![no_main]

use blockyard_rados::auth::Keyring;
use blockyard_rados::conf::{Arguments, ConfFile, Settings, Surroundings, mon_hosts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match which % 4 {
        0 => {
            let _ = Keyring::parse(text);
        }
        1 => {
            let Ok(file) = ConfFile::parse(text) else { return };
            let settings =
                Settings::new(&Arguments::default(), Surroundings::default()).with_file(file);
            for option in ["a", "mon host", "keyring"] {
                let _ = settings.get(option);
            }
        }
        2 => {
            if let Ok(hosts) = mon_hosts(text) {
                assert!(!hosts.is_empty());
            }
        }
        _ => {
            let _ = Arguments::parse(text.split(' '));
        }
    }
});
