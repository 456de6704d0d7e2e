//! Replies and notifications of a hostile server: the first bytes say which request was sent.
#![no_main]

use blockyard_fuse::{Expected, Limits, Notification, Operation, Protocol, Reply, Request, dirent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&len, rest)) = data.split_first() else { return };
    let Some((request, reply)) = rest.split_at_checked(len.into()) else { return };
    if let Ok(notification) = Notification::parse(reply, 0) {
        let mut bytes = Vec::new();
        notification.encode(&mut bytes);
        assert_eq!(Notification::parse(&bytes, 0).unwrap(), notification);
    }
    let limits = Limits { max_write: 1 << 20, max_read: 1 << 20, head: Limits::HEAD };
    let protocol = Protocol { limits, ..Protocol::NONE };
    let Ok(request) = Request::parse(request, 0, &protocol) else { return };
    let Some(expected) = Expected::of(&request.operation) else { return };
    let Ok(parsed) = Reply::parse(expected, reply, 0) else { return };
    let mut bytes = Vec::new();
    parsed.encode(2, &mut bytes);
    assert_eq!(Reply::parse(expected, &bytes, 0).unwrap(), parsed);
    if let Reply::Data(payload) = parsed {
        let is_plus = matches!(request.operation, Operation::Readdirplus(_));
        let parse = if is_plus { dirent::parse_plus } else { dirent::parse };
        let listed: Vec<_> = parse(payload.here).map_while(Result::ok).collect();
        assert!(listed.len() <= payload.here.len() / 24 + 1);
        let mut bytes = Vec::new();
        let room = 2 * u32::try_from(payload.here.len()).unwrap() + 64;
        if is_plus {
            let mut entries = dirent::Entries::plus(&mut bytes, room);
            assert!(listed.iter().all(|one| entries.add_plus(&one.found.unwrap(), &one.entry)));
        } else {
            let mut entries = dirent::Entries::new(&mut bytes, room);
            assert!(listed.iter().all(|one| entries.add(&one.entry)));
        }
        let again = parse(&bytes).map(Result::unwrap);
        assert!(
            again
                .zip(&listed)
                .all(|(again, one)| again.entry == one.entry && again.counts == one.counts)
        );
    }
});
