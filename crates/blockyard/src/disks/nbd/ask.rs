//! What an NBD server says of its exports.

use std::time::Duration;

use blockyard_driver_nbd::{Description, Offer, Server, TlsFiles};
use blockyard_nbd::ExportInfo;
use blockyard_nbd::uri::Uri;
use blockyard_nbd::wire::TransmissionFlags;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};

use super::server::explained;
use crate::disks::describe::{Described, Offered, Offers};
use crate::error::{Error, Result};
use crate::text::term::{exact_size, yes_no};
use crate::yard::report::style_name;

/// How long a server may take to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a server has on offer.
pub(super) fn offers(uri: &Uri, tls: &TlsFiles) -> Result<Offers> {
    let failed = |err| explained(err, uri);
    let server = Server::new(uri.clone(), tls.clone(), ANSWER_LIMIT);
    let offers = runtime()?.block_on(server.offers()).map_err(failed)?;
    let offered = |offer: Offer| {
        // One that needs TLS, say, is on the list all the same.
        let info = offer.info;
        let flags = info.as_ref().map(|info| info.flags);
        Offered {
            uri: Uri { export: offer.name.clone(), ..uri.clone() }.to_string(),
            name: offer.name,
            description: offer.description,
            size: info.as_ref().map(|info| info.size),
            read_only: flags.map(|flags| flags.contains(TransmissionFlags::READ_ONLY)),
        }
    };
    Ok(Offers { uri: uri.to_string(), exports: offers.into_iter().map(offered).collect() })
}

/// What the export of a URI is.
pub(super) fn describe(uri: &Uri, tls: &TlsFiles) -> Result<Described> {
    let failed = |err| explained(err, uri);
    let server = Server::new(uri.clone(), tls.clone(), ANSWER_LIMIT);
    let described = runtime()?.block_on(server.describe()).map_err(failed)?;
    let info = Info::of(uri, described);
    let json = serde_json::to_string_pretty(&info)
        .map_err(|err| Error::failed("cannot write JSON").caused_by(err))?;
    Ok(Described {
        size: info.size,
        read_only: info.read_only,
        rotational: info.rotational,
        tls: info.tls,
        can: info.can.clone(),
        rows: info.rows(),
        json,
    })
}

fn runtime() -> Result<Runtime> {
    let made = Builder::new_current_thread().enable_all().build();
    made.map_err(|err| Error::failed("cannot start a loop for sockets").caused_by(err))
}

/// What a server says of an export.
#[derive(Serialize)]
struct Info {
    kind: &'static str,
    uri: String,
    export: String,
    description: String,
    size: u64,
    read_only: bool,
    rotational: bool,
    can: Vec<&'static str>,
    block_size: Option<BlockSizes>,
    contexts: Vec<String>,
    tls: bool,
    style: &'static str,
}

#[derive(Serialize)]
struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl Info {
    fn of(uri: &Uri, described: Description) -> Self {
        let Description { negotiated, contexts } = described;
        let info = &negotiated.export;
        Self {
            kind: "nbd",
            uri: uri.to_string(),
            export: info.name.clone(),
            description: info.description.clone(),
            size: info.size,
            read_only: info.flags.contains(TransmissionFlags::READ_ONLY),
            rotational: info.flags.contains(TransmissionFlags::ROTATIONAL),
            can: abilities(info, &contexts),
            block_size: info.block_sizes.map(|sizes| BlockSizes {
                minimum: sizes.minimum(),
                preferred: sizes.preferred(),
                maximum: sizes.max_payload(),
            }),
            contexts,
            tls: negotiated.tls,
            style: style_name(negotiated.style),
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let info = self;
        let mut rows = vec![
            ("uri", info.uri.clone()),
            ("export", format!("{:?}", info.export)),
            ("description", info.description.clone()),
            ("size", exact_size(info.size)),
            ("read-only", yes_no(info.read_only).into()),
            ("can", info.can.join(", ")),
            (
                "contexts",
                if info.contexts.is_empty() { "none".into() } else { info.contexts.join(", ") },
            ),
            ("headers", info.style.into()),
            ("TLS", yes_no(info.tls).into()),
        ];
        if let Some(sizes) = &info.block_size {
            let text = format!(
                "{} at least, {} preferred, {} at most",
                sizes.minimum, sizes.preferred, sizes.maximum
            );
            rows.push(("block size", text));
        }
        if info.rotational {
            rows.push(("rotational", "yes".into()));
        }
        rows.retain(|(_, value)| !value.is_empty());
        rows
    }
}

fn abilities(info: &ExportInfo, contexts: &[String]) -> Vec<&'static str> {
    use TransmissionFlags as F;
    let writable = !info.flags.contains(F::READ_ONLY);
    let of_flag = [
        ("flush", F::SEND_FLUSH, true),
        ("fua", F::SEND_FUA, true),
        ("trim", F::SEND_TRIM, writable),
        ("zero", F::SEND_WRITE_ZEROES, writable),
        ("fast-zero", F::SEND_FAST_ZERO, writable),
        ("cache", F::SEND_CACHE, true),
        ("df", F::SEND_DF, true),
        ("multi-conn", F::CAN_MULTI_CONN, true),
    ];
    let mut can: Vec<_> = of_flag
        .into_iter()
        .filter(|(_, flag, also)| *also && info.flags.contains(*flag))
        .map(|(name, ..)| name)
        .collect();
    if !contexts.is_empty() {
        can.push("block-status");
    }
    if writable {
        can.push("write");
    }
    can
}
