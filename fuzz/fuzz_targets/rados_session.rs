//! A hostile monitor or OSD: everything that it sends, from the banner on. First byte: how the stream is cut.
#![no_main]

use blockyard_rados::auth::{Credentials, CryptoKey, Identity, MonitorAuth, Random};
use blockyard_rados::encoding::{EntityAddr, EntityType};
use blockyard_rados::features;
use blockyard_rados::msgr::{AuthMethod, Config, Connection, ConnectionMode};
use libfuzzer_sys::fuzz_target;
use std::time::{Duration, Instant};

fuzz_target!(|data: &[u8]| {
    let Some((&how, input)) = data.split_first() else { return };
    let key = CryptoKey::from_base64("AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==").expect("a key");
    let credentials = Credentials {
        identity: Identity::default(),
        key: (how & 1 == 1).then_some(key).ok_or(None),
        methods: vec![AuthMethod::CEPHX, AuthMethod::NONE],
    };
    let modes = vec![ConnectionMode::SECURE, ConnectionMode::CRC];
    let random = Random::new(|bytes| bytes.fill(3));
    let auth = MonitorAuth::new(credentials, modes, vec![EntityType::OSD], random);
    let config = Config {
        peer_kind: EntityType::MON,
        peer: EntityAddr::default(),
        own: None,
        nonce: 1,
        global_id: None,
        global_seq: 1,
        supported: features::SUPPORTED,
        handshake_timeout: Duration::from_secs(1),
        keepalive: None,
    };
    let now = Instant::now();
    let mut connection = Connection::new(config, auth, now);
    let step = usize::from(how >> 1) + 1;
    let mut sent = Vec::new();
    for piece in input.chunks(step) {
        if connection.receive(now, piece).is_err() {
            break;
        }
        connection.poll_transmit(&mut sent);
        while connection.poll_event().is_some() {}
        let bytes = sent.iter().map(|piece| piece.len()).sum::<usize>();
        assert!(bytes <= 4096 + 2 * input.len(), "more is sent than was asked for");
    }
});
