//! The server's handshake, byte by byte, as `doc/proto.md` describes it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use blockyard_nbd::server::{
    Config, Event, Export, Exports, Handshake, MAX_OPTION_LEN, MAX_OPTIONS, MAX_SKIPPED_LEN,
    Refusal, TlsPolicy,
};
use blockyard_nbd::wire::{HeaderStyle, TransmissionFlags};
use blockyard_nbd::{Blame, ErrorKind};
use common::{Served, config, contexts, export, info, option, reply, serve};
use proptest::prelude::*;

const FIXED: [u8; 4] = [0, 0, 0, 1];
const FIXED_NO_ZEROES: [u8; 4] = [0, 0, 0, 3];
const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const LIST_META: u32 = 9;
const SET_META: u32 = 10;
const EXTENDED: u32 = 11;

const ACK: u32 = 1;
const ERR: u32 = 1 << 31;
const UNSUP: u32 = ERR + 1;
const POLICY: u32 = ERR + 2;
const INVALID: u32 = ERR + 3;
const TLS_REQD: u32 = ERR + 5;
const UNKNOWN: u32 = ERR + 6;
const BLOCK_SIZE_REQD: u32 = ERR + 8;
const TOO_BIG: u32 = ERR + 9;
const EXT_HEADER_REQD: u32 = ERR + 10;

/// A client that sends these options.
fn talk(config: Config, options: &[Vec<u8>]) -> Served {
    let bytes = [&FIXED_NO_ZEROES[..], &options.concat()].concat();
    serve(config, &bytes, usize::MAX)
}

/// The types of the replies, with the option that each answers.
fn kinds(mut sent: &[u8]) -> Vec<(u32, u32)> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let mut kinds = Vec::new();
    while !sent.is_empty() {
        assert_eq!(sent[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        kinds.push((number(&sent[8..12]), number(&sent[12..16])));
        sent = &sent[20 + number(&sent[16..20]) as usize..];
    }
    kinds
}

/// The replies to options of a client with all features allowed.
fn replies(options: &[Vec<u8>]) -> Vec<(u32, u32)> {
    let served = talk(config(TlsPolicy::Off), options);
    assert_eq!(served.result, Ok(()));
    kinds(&served.sent)
}

fn go(name: &str) -> Vec<u8> {
    option(GO, &info(name, &[]))
}

// "Newstyle negotiation", NBD_OPT_EXPORT_NAME.
#[test]
fn golden_export_name_with_and_without_zeroes() {
    let config = config(TlsPolicy::Off);
    let name = option(EXPORT_NAME, b"disk");
    // All flags but READ_ONLY, and those that need structured replies or extended headers.
    let answer = b"\0\0\0\0\0\x10\0\0\x0f\x7d";
    let served = serve(config, &[&FIXED_NO_ZEROES[..], &name, b"next"].concat(), 1);
    assert_eq!(served.sent, answer);
    let negotiated = served.done.unwrap();
    assert_eq!(negotiated.export, export("disk"));
    assert_eq!(negotiated.style, HeaderStyle::Simple);
    assert!(negotiated.no_zeroes && !negotiated.block_sizes_agreed && !negotiated.tls);

    let served = serve(config, &[&FIXED[..], &name, b"next"].concat(), usize::MAX);
    assert_eq!(served.sent, [&answer[..], &[0; 124]].concat());
    assert_eq!(served.rest, b"next", "the rest is for the transmission phase");
    // "This is the only valid option in nonfixed newstyle negotiation."
    let served = serve(config, &[&[0; 4][..], &name].concat(), usize::MAX);
    assert!(served.done.is_some());
    let served = serve(config, &[&[0; 4][..], &option(LIST, b"")].concat(), usize::MAX);
    assert!(served.result.is_err());
}

#[test]
fn unknown_client_flags_close() {
    let served = serve(config(TlsPolicy::Off), &[0, 0, 0, 4], usize::MAX);
    let error = served.result.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Violation { got: 4, .. }));
    assert_eq!(error.blame(), Blame::Peer);
}

// NBD_OPT_GO: NBD_INFO_EXPORT always, the others if asked for.
#[test]
fn golden_go() {
    let asked = option(GO, &info("disk", &[1, 2, 3, 0x7777]));
    let served = talk(config(TlsPolicy::Off), &[asked]);
    let expected = [
        reply(GO, 3, b"\0\0\0\0\0\0\0\x10\0\0\x0f\x7d"),
        reply(GO, 3, b"\0\x01disk"),
        reply(GO, 3, b"\0\x02the disk disk"),
        reply(GO, 3, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0"),
        reply(GO, ACK, b""),
    ];
    assert_eq!(served.sent, expected.concat());
    assert!(served.done.unwrap().block_sizes_agreed);
    assert_eq!(replies(&[go("")]), [(GO, 3), (GO, 3), (GO, ACK)], "the default export");
    let info_only = option(INFO, &info("disk", &[]));
    assert_eq!(
        replies(&[info_only, go("disk")]),
        [(INFO, 3), (INFO, 3), (INFO, ACK), (GO, 3), (GO, 3), (GO, ACK)]
    );
}

#[test]
fn golden_list() {
    let served = talk(config(TlsPolicy::Off), &[option(LIST, b""), option(LIST, b"x")]);
    let expected = [
        reply(LIST, 2, b"\0\0\0\x04diskthe disk disk"),
        reply(LIST, 2, b"\0\0\0\x06strictthe disk strict"),
        reply(LIST, ACK, b""),
        reply(LIST, INVALID, b"this option takes no data"),
    ];
    assert_eq!(served.sent, expected.concat());
}

#[test]
fn abort_is_acknowledged_whatever_its_data() {
    for data in [&b""[..], b"bye", &[0; MAX_OPTION_LEN as usize + 1]] {
        let served = talk(config(TlsPolicy::Require), &[option(ABORT, data), go("disk")]);
        assert_eq!(kinds(&served.sent), [(ABORT, ACK)]);
        assert!(served.aborted);
    }
}

#[test]
fn unknown_options_are_unsupported_and_their_data_is_skipped() {
    let unknown = [option(4, b"peek"), option(99, b"data"), option(u32::MAX, &[0; 100_000])];
    let mut expected = vec![(4, UNSUP), (99, UNSUP), (u32::MAX, UNSUP)];
    expected.extend([(GO, 3), (GO, 3), (GO, ACK)]);
    assert_eq!(replies(&[unknown.concat(), go("disk")]), expected);
}

#[test]
fn long_options_are_refused_and_very_long_ones_close() {
    let mut data = info("disk", &[]);
    data.resize(MAX_OPTION_LEN as usize + 1, 0);
    assert_eq!(
        replies(&[option(INFO, &data), go("disk")]),
        [(INFO, TOO_BIG), (GO, 3), (GO, 3), (GO, ACK)]
    );
    for len in [MAX_SKIPPED_LEN + 1, u32::MAX] {
        let header = [&b"IHAVEOPT"[..], &INFO.to_be_bytes(), &len.to_be_bytes()].concat();
        let error = talk(config(TlsPolicy::Off), &[header]).result.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooBig { got, .. } if *got == len.into()));
    }
    let header = [&b"IHAVEOPT"[..], &EXPORT_NAME.to_be_bytes(), &4097_u32.to_be_bytes()].concat();
    assert!(talk(config(TlsPolicy::Off), &[header]).result.is_err());
}

#[test]
fn too_many_options_close() {
    let mut many = vec![option(LIST, b""); MAX_OPTIONS as usize];
    assert_eq!(talk(config(TlsPolicy::Off), &many).result, Ok(()));
    many.push(option(LIST, b""));
    let error = talk(config(TlsPolicy::Off), &many).result.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooBig { limit: 1024, .. }));
}

#[test]
fn a_wrong_option_magic_closes() {
    let error = talk(config(TlsPolicy::Off), &[b"IHAVEOPTIHAVEOPT".repeat(2)]).result;
    assert!(error.is_err());
    let error = talk(config(TlsPolicy::Off), &[b"GET / HTTP/1.1\r\n".to_vec()]).result.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::BadMagic { got: 0x4745_5420_2f20_4854, .. }));
}

#[test]
fn names_are_text_of_at_most_4096_bytes() {
    let long = "x".repeat(4097);
    assert_eq!(replies(&[go(&long)]), [(GO, TOO_BIG)]);
    assert_eq!(replies(&[go(&long[1..])]), [(GO, UNKNOWN)]);
    assert_eq!(replies(&[option(GO, b"\0\0\0\x01\xff\0\0")]), [(GO, INVALID)]);
    assert_eq!(replies(&[option(GO, b"\0\0\0\x02d")]), [(GO, INVALID)]);
    for name in [&b"\xff"[..], b"none"] {
        assert!(talk(config(TlsPolicy::Off), &[option(EXPORT_NAME, name)]).result.is_err());
    }
}

#[test]
fn an_export_may_insist_on_block_sizes() {
    let served = talk(config(TlsPolicy::Off), &[go("strict")]);
    assert_eq!(kinds(&served.sent), [(GO, 3), (GO, BLOCK_SIZE_REQD)]);
    let sizes = reply(GO, 3, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0");
    assert!(served.sent.starts_with(&sizes), "they come first, to save a round trip");
    assert!(served.done.is_none());
    let asked = option(GO, &info("strict", &[3]));
    assert!(talk(config(TlsPolicy::Off), &[asked]).done.is_some());
    let name = option(EXPORT_NAME, b"strict");
    assert!(talk(config(TlsPolicy::Off), &[name]).result.is_err());
}

#[test]
fn headers_are_agreed_on_once_and_the_best_one_wins() {
    let (structured, extended) = (option(STRUCTURED, b""), option(EXTENDED, b""));
    let style = |best_style, options: &[Vec<u8>]| {
        let config = Config { tls: TlsPolicy::Off, best_style };
        let served = talk(config, &[options.concat(), go("disk")]);
        let mut kinds = kinds(&served.sent);
        kinds.truncate(kinds.len() - 3);
        (served.done.unwrap().style, kinds)
    };
    use HeaderStyle as Style;
    for (best, options, expected, replies) in [
        (Style::Extended, vec![structured.clone()], Style::Structured, vec![(STRUCTURED, ACK)]),
        (Style::Extended, vec![extended.clone()], Style::Extended, vec![(EXTENDED, ACK)]),
        (
            Style::Extended,
            vec![structured.clone(), extended.clone()],
            Style::Extended,
            vec![(STRUCTURED, ACK), (EXTENDED, ACK)],
        ),
        (
            Style::Extended,
            vec![extended.clone(), structured.clone()],
            Style::Extended,
            vec![(EXTENDED, ACK), (STRUCTURED, EXT_HEADER_REQD)],
        ),
        (
            Style::Structured,
            vec![extended.clone(), structured.clone()],
            Style::Structured,
            vec![(EXTENDED, UNSUP), (STRUCTURED, ACK)],
        ),
        (Style::Simple, vec![structured], Style::Simple, vec![(STRUCTURED, UNSUP)]),
    ] {
        assert_eq!(style(best, &options), (expected, replies));
    }
    let with_data = option(EXTENDED, b"x");
    assert_eq!(replies(&[with_data]), [(EXTENDED, INVALID)]);
    let forbidden = [extended, option(EXPORT_NAME, b"disk")];
    assert!(talk(config(TlsPolicy::Off), &forbidden).result.is_err());
}

/// The flags that a client is given depend on what it negotiated ("Transmission flags").
#[test]
fn flags_follow_the_headers() {
    let flags = |options: &[Vec<u8>]| {
        let served = talk(config(TlsPolicy::Off), &[options.concat(), go("disk")]);
        let flags = served.done.unwrap().flags;
        let df = flags.contains(TransmissionFlags::SEND_DF);
        (df, flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD))
    };
    let set = option(SET_META, &contexts("disk", &["base:allocation"]));
    assert_eq!(flags(&[]), (false, false));
    assert_eq!(flags(&[option(STRUCTURED, b""), set.clone()]), (true, false));
    assert_eq!(flags(&[option(EXTENDED, b"")]), (true, false));
    assert_eq!(flags(&[option(EXTENDED, b""), set]), (true, true));
}

// NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT.
#[test]
fn golden_meta_contexts() {
    let options = [
        option(LIST_META, &contexts("disk", &["base:", "x-none:"])),
        option(STRUCTURED, b""),
        option(SET_META, &contexts("disk", &["qemu:allocation-depth", "qemu:", "x-none:y"])),
        go("disk"),
    ];
    let served = talk(config(TlsPolicy::Off), &options);
    let expected = [
        reply(LIST_META, 4, b"\0\0\0\0base:allocation"),
        reply(LIST_META, ACK, b""),
        reply(STRUCTURED, ACK, b""),
        reply(SET_META, 4, b"\0\0\0\x01qemu:allocation-depth"),
        reply(SET_META, ACK, b""),
    ];
    assert!(served.sent.starts_with(&expected.concat()));
    let chosen = served.done.unwrap().contexts;
    assert_eq!((chosen.len(), chosen[0].id), (1, 1));
}

#[test]
fn contexts_are_those_of_the_last_set_for_the_export_of_go() {
    let structured = option(STRUCTURED, b"");
    let set = |name: &str| option(SET_META, &contexts(name, &["base:allocation"]));
    let chosen = |options: &[Vec<u8>]| {
        let served =
            talk(config(TlsPolicy::Off), &[structured.clone(), options.concat(), go("disk")]);
        served.done.unwrap().contexts.len()
    };
    assert_eq!(chosen(&[set("disk")]), 1);
    assert_eq!(chosen(&[set("")]), 1, "the default export is the same one");
    assert_eq!(chosen(&[set("disk"), option(EXTENDED, b"")]), 1);
    assert_eq!(chosen(&[set("disk"), option(SET_META, &contexts("disk", &[]))]), 0);
    assert_eq!(chosen(&[set("disk"), set("none")]), 0, "a failing one clears too");
    assert_eq!(chosen(&[set("disk"), option(SET_META, b"junk")]), 0);
    let too_long = option(SET_META, &[0; MAX_OPTION_LEN as usize + 1]);
    assert_eq!(chosen(&[set("disk"), too_long]), 0);
    let strict = talk(
        config(TlsPolicy::Off),
        &[structured.clone(), set("disk"), option(GO, &info("strict", &[3]))],
    );
    assert_eq!(strict.done.unwrap().contexts, []);
    assert_eq!(replies(&[set("disk")]), [(SET_META, INVALID)], "not without structured replies");
    assert_eq!(
        replies(&[structured.clone(), set("none")]),
        [(STRUCTURED, ACK), (SET_META, UNKNOWN)]
    );
}

// "FORCEDTLS mode".
#[test]
fn required_tls_comes_before_all_else() {
    let mut options = Vec::new();
    let mut expected = Vec::new();
    for number in [LIST, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED, 99] {
        options.push(option(number, &info("disk", &[])));
        expected.push((number, TLS_REQD));
    }
    options.extend([option(STARTTLS, b"x"), option(STARTTLS, b""), option(STARTTLS, b"")]);
    expected.extend([(STARTTLS, INVALID), (STARTTLS, ACK), (STARTTLS, INVALID)]);
    options.push(go("secret"));
    expected.extend([(GO, 3), (GO, 3), (GO, ACK)]);
    let served = talk(config(TlsPolicy::Require), &options);
    assert_eq!(kinds(&served.sent), expected);
    assert!(served.done.unwrap().tls);
    let name = option(EXPORT_NAME, b"disk");
    assert!(talk(config(TlsPolicy::Require), &[name]).result.is_err());
}

// "SELECTIVETLS mode", "NOTLS mode".
#[test]
fn exports_for_tls_only_stay_hidden_without_it() {
    let (list, tls) = (option(LIST, b""), option(STARTTLS, b""));
    let served = talk(config(TlsPolicy::Allow), &[list.clone(), go("secret"), tls.clone(), list]);
    let two = [(LIST, 2), (LIST, 2), (LIST, ACK)];
    let mut expected = two.to_vec();
    expected.extend([(GO, TLS_REQD), (STARTTLS, ACK), (LIST, 2)]);
    expected.extend(two);
    assert_eq!(kinds(&served.sent), expected);
    let name = option(EXPORT_NAME, b"secret");
    assert!(talk(config(TlsPolicy::Allow), &[name]).result.is_err());
    assert_eq!(replies(&[tls, go("secret")]), [(STARTTLS, POLICY), (GO, POLICY)]);
}

// "MAY reply with NBD_REP_ERR_TLS_REQD if that export is non-existent", and MUST NOT in reply to options other than INFO, GO
// and EXPORT_NAME.
#[test]
fn a_hidden_name_is_not_told_from_one_that_there_is_not() {
    for number in [INFO, GO, LIST_META, SET_META] {
        let ask = |name| {
            let data = match number {
                INFO | GO => info(name, &[]),
                _ => contexts(name, &["base:allocation"]),
            };
            let options = [option(STRUCTURED, b""), option(number, &data)];
            talk(config(TlsPolicy::Allow), &options).sent
        };
        let hidden = ask("secret");
        assert_eq!(hidden, ask("no such name"), "{number}");
        let error = if matches!(number, INFO | GO) { TLS_REQD } else { UNKNOWN };
        assert_eq!(kinds(&hidden), [(STRUCTURED, ACK), (number, error)]);
    }
    // Where nothing is hidden, a name that is wrong is called wrong.
    let mut server = Handshake::new(config(TlsPolicy::Allow));
    let bytes = [&FIXED[..], &go("none")].concat();
    assert_eq!(kinds(&feed(&mut server, &[export("disk")][..], &bytes)), [(GO, UNKNOWN)]);
}

#[test]
fn starttls_forgets_what_was_negotiated() {
    let options = [
        option(EXTENDED, b""),
        option(SET_META, &contexts("disk", &["base:allocation"])),
        option(STARTTLS, b""),
        go("disk"),
    ];
    let negotiated = talk(config(TlsPolicy::Allow), &options).done.unwrap();
    assert_eq!((negotiated.style, negotiated.tls), (HeaderStyle::Simple, true));
    assert_eq!(negotiated.contexts, []);
}

/// A table that refuses everyone, for this reason.
struct Refusing(Refusal);

impl Exports for Refusing {
    fn list(&self, _: bool, _: &mut dyn FnMut(&str, &str)) {}
    fn find(&self, _: &str) -> Result<Export, Refusal> {
        Err(self.0)
    }
}

/// Feeds all of `bytes` to a server, starting TLS whenever it is agreed on.
fn feed<E: Exports + ?Sized>(server: &mut Handshake, exports: &E, mut bytes: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    server.poll_transmit(&mut Vec::new());
    while !bytes.is_empty() {
        bytes = &bytes[server.receive(exports, bytes).unwrap()..];
        server.poll_transmit(&mut sent);
        if server.poll_event() == Some(Event::StartTls) {
            server.tls_started();
        }
    }
    sent
}

// "The server MUST NOT send NBD_REP_ERR_TLS_REQD in reply to any option if TLS has already been negotiated", nor in
// NOTLS mode.
#[test]
fn refusals_have_their_reply() {
    const SHUTDOWN: u32 = ERR + 7;
    let refused = |tls, refusal, options: &[u8]| {
        let bytes = [&FIXED[..], options, &go("disk")].concat();
        kinds(&feed(&mut Handshake::new(config(tls)), &Refusing(refusal), &bytes))
    };
    let starttls = option(STARTTLS, b"");
    assert_eq!(refused(TlsPolicy::Off, Refusal::Unknown, b""), [(GO, UNKNOWN)]);
    assert_eq!(refused(TlsPolicy::Off, Refusal::Policy, b""), [(GO, POLICY)]);
    assert_eq!(refused(TlsPolicy::Off, Refusal::Shutdown, b""), [(GO, SHUTDOWN)]);
    assert_eq!(refused(TlsPolicy::Off, Refusal::TlsRequired, b""), [(GO, POLICY)]);
    assert_eq!(refused(TlsPolicy::Allow, Refusal::TlsRequired, b""), [(GO, TLS_REQD)]);
    let within_tls = refused(TlsPolicy::Allow, Refusal::TlsRequired, &starttls);
    assert_eq!(within_tls, [(STARTTLS, ACK), (GO, POLICY)]);
}

// "FAST_ZERO: the server MUST set this transmission flag to 0 if NBD_FLAG_SEND_WRITE_ZEROES is not set."
#[test]
fn fast_zero_is_not_offered_without_write_zeroes() {
    let mut exports = [export("disk")];
    exports[0].info.flags = TransmissionFlags::SEND_FAST_ZERO;
    let bytes = [&FIXED[..], &go("disk")].concat();
    let sent = feed(&mut Handshake::new(Config::default()), &exports[..], &bytes);
    let info = reply(GO, 3, b"\0\0\0\0\0\0\0\x10\0\0\0\x01");
    // Block sizes are told unasked: what is enforced must be known.
    let sizes = reply(GO, 3, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0");
    assert_eq!(sent, [info, sizes, reply(GO, ACK, b"")].concat());
}

// "Termination of the session during option haggling".
#[test]
fn a_server_going_down_refuses_all_but_abort() {
    let exports = [export("disk")];
    let mut server = Handshake::new(Config::default());
    server.shut_down();
    let options = [option(LIST, b""), go("disk"), option(99, b""), option(ABORT, b"")].concat();
    let sent = feed(&mut server, &exports[..], &[&FIXED[..], &options].concat());
    let shutdown = ERR + 7;
    assert_eq!(kinds(&sent), [(LIST, shutdown), (GO, shutdown), (99, shutdown), (ABORT, ACK)]);
}

/// Well-formed options of all kinds, and junk.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("disk"), Just(""), Just("secret"), Just("none")];
    let query = prop_oneof![Just("base:allocation"), Just("base:"), Just("bad"), Just("qemu:")];
    let queries = prop::collection::vec(query, 0..4);
    prop_oneof![
        (0_u32..14, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(n, d)| option(n, &d)),
        (3_u32..12).prop_map(|number| option(number, b"")),
        (6_u32..8, name.clone(), prop::collection::vec(0_u16..6, 0..4))
            .prop_map(|(number, name, wanted)| option(number, &info(name, &wanted))),
        (9_u32..11, name, queries)
            .prop_map(|(number, name, queries)| option(number, &contexts(name, &queries))),
        prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn any_split_of_the_stream_gives_the_same(
        tls in prop_oneof![Just(TlsPolicy::Off), Just(TlsPolicy::Allow), Just(TlsPolicy::Require)],
        options in prop::collection::vec(any_option(), 0..12),
        step in 1_usize..50,
    ) {
        let bytes = [&FIXED[..], &options.concat()].concat();
        let config = config(tls);
        prop_assert_eq!(serve(config, &bytes, step), serve(config, &bytes, usize::MAX));
    }

    #[test]
    fn any_bytes_end_in_bounds(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let served = serve(config(TlsPolicy::Allow), &bytes, 7);
        prop_assert!(served.sent.len() < 100 * (bytes.len() + 1));
    }
}
