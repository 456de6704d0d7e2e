//! A client and a server of ours in memory, in all combinations; and a client against servers that lie.

mod common;

use std::collections::VecDeque;

use blockyard_nbd::client::{self, TlsMode};
use blockyard_nbd::server::{self, TlsPolicy};
use blockyard_nbd::wire::{HeaderStyle, Opt, ReplyType, TransmissionFlags};
use blockyard_nbd::{BlockSizes, ErrorKind};
use common::{OFFERS, STYLES, exports, reply};
use proptest::prelude::*;

const MODES: [TlsMode; 3] = [TlsMode::Off, TlsMode::Allow, TlsMode::Require];

/// How a conversation ended.
#[derive(Debug, Default)]
struct Outcome {
    events: Vec<client::Event>,
    client: Option<client::Negotiated>,
    server: Option<server::Negotiated>,
    error: Option<blockyard_nbd::Error>,
    closed: bool,
}

impl Outcome {
    fn refusals(&self) -> Vec<ReplyType> {
        let refused = self.events.iter().filter_map(|event| match event {
            client::Event::Refused(error) => match error.kind() {
                ErrorKind::Refused { reply, .. } => Some(*reply),
                _ => None,
            },
            _ => None,
        });
        refused.collect()
    }
}

/// Carries bytes both ways, `step` at a time, until nothing moves.
fn converse(mut client: client::Handshake, config: server::Config, step: usize) -> Outcome {
    let exports = exports();
    let mut server = server::Handshake::new(config);
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let (mut client_tls, mut server_tls) = (false, false);
    let mut outcome = Outcome::default();
    loop {
        let mut moved = server.poll_transmit(&mut to_client);
        moved |= client.poll_transmit(&mut to_server);
        let piece = to_server.len().min(step);
        match server.receive(exports.as_slice(), &to_server[..piece]) {
            Ok(consumed) => {
                to_server.drain(..consumed);
                moved |= consumed > 0;
            }
            Err(error) => {
                outcome.error = Some(error);
                return outcome;
            }
        }
        moved |= server.poll_transmit(&mut to_client);
        match server.poll_event() {
            Some(server::Event::StartTls) => server_tls = true,
            Some(server::Event::Done(negotiated)) => outcome.server = Some(*negotiated),
            Some(server::Event::Aborted) => outcome.closed = true,
            None => {}
        }
        let piece = to_client.len().min(step);
        match client.receive(&to_client[..piece]) {
            Ok(consumed) => {
                to_client.drain(..consumed);
                moved |= consumed > 0;
            }
            Err(error) => {
                outcome.error = Some(error);
                return outcome;
            }
        }
        while let Some(event) = client.poll_event() {
            moved = true;
            match event {
                client::Event::StartTls => client_tls = true,
                client::Event::Done(negotiated) => outcome.client = Some(*negotiated),
                event => outcome.events.push(event),
            }
        }
        if client_tls && server_tls && to_client.is_empty() {
            assert!(to_server.is_empty(), "nothing crosses from outside into TLS");
            client.tls_started();
            server.tls_started();
            (client_tls, server_tls, moved) = (false, false, true);
        }
        if !moved {
            assert_eq!(to_client.len() + to_server.len(), 0);
            return outcome;
        }
    }
}

fn client(tls: TlsMode, best_style: HeaderStyle) -> client::Handshake {
    client::Handshake::new(client::Config { tls, best_style })
}

#[test]
fn all_combinations_of_tls_and_headers_meet_at_the_best_they_share() {
    for offer in OFFERS {
        for mode in MODES {
            for theirs in STYLES {
                for ours in STYLES {
                    let mut client = client(mode, ours);
                    client.set_contexts("disk", &["base:allocation"]).unwrap();
                    client.go("disk").unwrap();
                    let config = server::Config { tls: offer, best_style: theirs };
                    let outcome = converse(client, config, 11);
                    let case = format!("{offer:?} {mode:?} {theirs:?} {ours:?}");
                    match (offer, mode) {
                        (TlsPolicy::Off, TlsMode::Require) => {
                            let error = outcome.error.expect(&case);
                            let expected = ErrorKind::Refused {
                                option: Opt::STARTTLS,
                                reply: ReplyType::ERR_POLICY,
                                message: "this server does not speak TLS".into(),
                            };
                            assert_eq!(*error.kind(), expected, "{case}");
                        }
                        (TlsPolicy::Require, TlsMode::Off) => {
                            let last = outcome.refusals().last().copied();
                            assert_eq!(last, Some(ReplyType::ERR_TLS_REQD), "{case}");
                            assert_eq!(outcome.client, None);
                        }
                        _ => {
                            let (client, server) =
                                (outcome.client.expect(&case), outcome.server.expect(&case));
                            let rank = |style| STYLES.iter().position(|&s| s == style);
                            let best = if rank(ours) < rank(theirs) { ours } else { theirs };
                            assert_eq!(client.style, best, "{case}");
                            assert_eq!(server.style, best, "{case}");
                            assert_eq!(client.contexts, server.contexts, "{case}");
                            assert_eq!(!client.contexts.is_empty(), best.has_chunks(), "{case}");
                            assert_eq!(client.export.flags, server.flags, "{case}");
                            assert_eq!(client.export.size, 1 << 20);
                            assert_eq!(client.export.description, "the disk disk");
                            let tls = offer != TlsPolicy::Off && mode != TlsMode::Off;
                            assert_eq!((client.tls, server.tls), (tls, tls), "{case}");
                            assert!(server.block_sizes_agreed);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn list_info_contexts_and_goodbye() {
    let mut client = client(TlsMode::Off, HeaderStyle::Extended);
    client.list();
    client.info("strict").unwrap();
    client.info("none").unwrap();
    client.info("secret").unwrap();
    client.list_contexts("", &[]).unwrap();
    client.set_contexts("", &["base:allocation", "x-no:such"]).unwrap();
    client.abort();
    let outcome = converse(client, common::config(TlsPolicy::Allow), usize::MAX);
    assert_eq!(outcome.refusals(), [ReplyType::ERR_TLS_REQD, ReplyType::ERR_TLS_REQD]);
    assert!(outcome.closed);
    let [exports, strict, .., contexts, set, aborted] = outcome.events.as_slice() else {
        panic!("{outcome:?}")
    };
    let client::Event::Exports(exports) = exports else { panic!("{exports:?}") };
    let names: Vec<_> = exports.iter().map(|export| export.name.as_str()).collect();
    assert_eq!(names, ["disk", "strict"]);
    let client::Event::Info(info) = strict else { panic!("{strict:?}") };
    assert_eq!(info.block_sizes, Some(BlockSizes::new(512, 4096, 1 << 25).unwrap()));
    let names = ["base:allocation", "qemu:allocation-depth"].map(String::from).to_vec();
    assert_eq!(*contexts, client::Event::Contexts(names));
    let client::Event::ContextsSet(set) = set else { panic!("{set:?}") };
    assert_eq!((set.len(), set[0].id, set[0].name.as_str()), (1, 0, "base:allocation"));
    assert_eq!(*aborted, client::Event::Aborted);
}

#[test]
fn a_refused_go_leaves_the_session_open() {
    let mut client = client(TlsMode::Off, HeaderStyle::Structured);
    client.go("none").unwrap();
    client.go("").unwrap();
    let outcome = converse(client, common::config(TlsPolicy::Off), usize::MAX);
    assert_eq!(outcome.refusals(), [ReplyType::ERR_UNKNOWN]);
    assert_eq!(outcome.client.unwrap().export.name, "disk", "the canonical name");
}

/// Beside what it wants to know of blocks. Other servers find nothing of that name.
#[test]
fn a_client_that_wants_to_hear_of_the_end_says_so_and_selects_nothing_by_that() {
    for (queries, hears) in [
        (&[&["base:allocation", "x-blockyard:shutdown"][..]][..], true),
        (&[&["base:allocation"]], false),
        (&[&["base:allocation", "x-blockyard:shutdown"], &["base:allocation"]], false),
    ] {
        let mut client = client(TlsMode::Off, HeaderStyle::Structured);
        for queries in queries {
            client.set_contexts("disk", queries).unwrap();
        }
        client.go("disk").unwrap();
        let outcome = converse(client, common::config(TlsPolicy::Off), 5);
        assert_eq!(outcome.client.unwrap().contexts.len(), 1);
        let server = outcome.server.unwrap();
        assert_eq!((server.contexts.len(), server.hears_shutdown), (1, hears), "{queries:?}");
    }
}

#[test]
fn contexts_of_another_export_do_not_count() {
    let mut client = client(TlsMode::Off, HeaderStyle::Structured);
    client.set_contexts("strict", &["base:allocation"]).unwrap();
    client.go("disk").unwrap();
    let outcome = converse(client, common::config(TlsPolicy::Off), 5);
    assert_eq!(outcome.client.unwrap().contexts, []);
    assert_eq!(outcome.server.unwrap().contexts, []);
}

#[test]
fn names_that_the_protocol_cannot_carry_are_refused_here() {
    let mut client = client(TlsMode::Off, HeaderStyle::Simple);
    assert!(client.go(&"x".repeat(4097)).is_err());
    assert!(client.info("a\0b").is_err());
    assert!(client.list_contexts("", &["a\0b"]).is_err());
}

/// Plays a scripted server: what it says, in one go. Returns what the client sent, its events, and its error.
fn script(
    mut client: client::Handshake,
    says: &[u8],
) -> (Vec<u8>, Vec<client::Event>, Option<blockyard_nbd::Error>) {
    let (mut sent, mut events) = (Vec::new(), Vec::new());
    let mut rest = VecDeque::from(says.to_vec());
    loop {
        let consumed = match client.receive(rest.make_contiguous()) {
            Ok(consumed) => consumed,
            Err(error) => return (sent, events, Some(error)),
        };
        rest.drain(..consumed);
        let mut moved = consumed > 0;
        moved |= client.poll_transmit(&mut sent);
        while let Some(event) = client.poll_event() {
            moved = true;
            events.push(event);
        }
        if !moved {
            return (sent, events, None);
        }
    }
}

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

// "For backwards compatibility, clients SHOULD be prepared to also handle NBD_REP_ERR_UNSUP by falling back to
// using NBD_OPT_EXPORT_NAME."
#[test]
fn golden_fallback_to_export_name() {
    let mut client = client(TlsMode::Off, HeaderStyle::Simple);
    client.go("disk").unwrap();
    let says = [GREETING, &reply(7, (1 << 31) + 1, b""), b"\0\0\0\0\0\x10\0\0\0\x05"].concat();
    let (sent, events, error) = script(client, &says);
    assert_eq!(error, None);
    let go = b"IHAVEOPT\0\0\0\x07\0\0\0\x10\0\0\0\x04disk\0\x03\0\x01\0\x02\0\x03";
    assert_eq!(sent, [b"\0\0\0\x03", &go[..], b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk"].concat());
    let [client::Event::Done(negotiated)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((negotiated.export.size, negotiated.export.block_sizes), (1 << 20, None));
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    assert_eq!(negotiated.export.flags, flags);
}

#[test]
fn a_server_without_fixed_newstyle_gets_only_export_name() {
    let mut client = client(TlsMode::Allow, HeaderStyle::Extended);
    client.list();
    client.go("disk").unwrap();
    let answer = [b"\0\0\0\0\0\x10\0\0\0\x01", &[0; 124][..]].concat();
    let says = [b"NBDMAGICIHAVEOPT\0\0", &answer[..]].concat();
    let (sent, events, error) = script(client, &says);
    assert_eq!(error, None);
    assert_eq!(sent, b"\0\0\0\0IHAVEOPT\0\0\0\x01\0\0\0\x04disk");
    assert!(matches!(events.as_slice(), [client::Event::Refused(_), client::Event::Done(_)]));
    let strict = client::Config { tls: TlsMode::Require, ..client::Config::default() };
    let error = script(client::Handshake::new(strict), &says).2.unwrap();
    assert!(matches!(error.kind(), ErrorKind::Policy(_)));
}

#[test]
fn servers_that_are_none_or_lie_are_found_out() {
    let info = reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\0\x05");
    let ack = reply(7, 1, b"");
    let meta = |id: u8| reply(10, 4, &[&[0, 0, 0, id], &b"base:allocation"[..]].concat());
    let structured = reply(8, 1, b"");
    for (says, what) in [
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "another protocol"),
        (
            [b"NBDMAGIC", &0x0000_4202_8186_1253_u64.to_be_bytes()[..], &[0; 136]].concat(),
            "oldstyle",
        ),
        ([GREETING, &structured, &reply(10, 1, b""), &ack].concat(), "no NBD_INFO_EXPORT"),
        ([GREETING, &reply(7, 1, b"")].concat(), "an answer to another option"),
        ([GREETING, &structured, &reply(10, 2, b"\0\0\0\0")].concat(), "an export for a context"),
        ([GREETING, &structured, &meta(1), &meta(1)].concat(), "a context twice"),
        ([GREETING, &structured, &meta(1), &meta(2)].concat(), "more contexts than asked for"),
        ([GREETING, &reply(8, 1, b"")[..16], &[0xff; 4]].concat(), "a reply of 4 GiB"),
        ([GREETING, &b"\0".repeat(20)].concat(), "no reply magic"),
    ] {
        let mut client = client(TlsMode::Off, HeaderStyle::Structured);
        client.set_contexts("disk", &["base:allocation"]).unwrap();
        client.go("disk").unwrap();
        let (_, events, error) = script(client, &says);
        assert!(error.is_some(), "{what}: {events:?}");
    }
    let client = client(TlsMode::Off, HeaderStyle::Simple);
    let error = script(client, &[GREETING, &info].concat()).2;
    assert!(error.is_some(), "bytes that nobody asked for");
}

#[test]
fn an_endless_list_is_cut_off() {
    let mut client = client(TlsMode::Off, HeaderStyle::Simple);
    client.list();
    let entry = reply(3, 2, &[b"\0\0\x0f\0", &b"x".repeat(3840)[..]].concat());
    let says = [GREETING, &entry.repeat(5000)].concat();
    let error = script(client, &says).2.unwrap();
    assert!(matches!(error.kind(), ErrorKind::TooBig { .. }));
}

proptest! {
    #[test]
    fn any_split_of_the_streams_gives_the_same(
        mode in 0_usize..3,
        style in 0_usize..3,
        step in 1_usize..64,
        name in prop_oneof![Just("disk"), Just("secret"), Just("none")],
    ) {
        let run = |step| {
            let mut client = client(MODES[mode], STYLES[style]);
            client.list();
            client.set_contexts(name, &["base:allocation"]).unwrap();
            client.go(name).unwrap();
            let outcome = converse(client, common::config(TlsPolicy::Allow), step);
            (outcome.events, outcome.client, outcome.server, outcome.error)
        };
        prop_assert_eq!(run(step), run(usize::MAX));
    }

    #[test]
    fn any_bytes_from_a_server_end_in_bounds(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        options in prop::collection::vec((1_u32..12, 0_u32..6, any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)), 0..8),
    ) {
        let mut client = client(TlsMode::Off, HeaderStyle::Extended);
        client.list();
        client.set_contexts("disk", &["base:allocation"]).unwrap();
        client.go("disk").unwrap();
        let replies = options.iter().flat_map(|(option, kind, error, data)| {
            reply(*option, kind | u32::from(*error) << 31, data)
        });
        let says: Vec<u8> = GREETING.iter().copied().chain(replies).chain(bytes).collect();
        let (sent, _, _) = script(client, &says);
        prop_assert!(sent.len() < 400);
    }
}
