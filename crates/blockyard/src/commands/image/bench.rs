//! Load on an image: `blockyard bench`, with the words of `rbd bench`.

use super::place::Context;
use crate::cli::{BenchArgs, ClientTlsArgs, ImageBenchArgs, IoPattern, IoType, Rw};
use crate::commands::size;
use crate::error::{Error, Result};

pub(super) fn run(context: &Context<'_>, args: &ImageBenchArgs) -> Result<u8> {
    let target = context.target(&args.image)?;
    let (total, each) = (size("--io-total", &args.io_total)?, size("--io-size", &args.io_size)?);
    let count = total.checked_div(each).filter(|count| *count > 0);
    let count = count.ok_or_else(|| Error::usage("--io-total must be at least --io-size"))?;
    let rw = match (args.io_type, args.io_pattern) {
        (IoType::Read, IoPattern::Seq) => Rw::Read,
        (IoType::Read, IoPattern::Rand) => Rw::Randread,
        (IoType::Write, IoPattern::Seq) => Rw::Write,
        (IoType::Write, IoPattern::Rand) => Rw::Randwrite,
        (IoType::Readwrite, IoPattern::Seq) => Rw::Rw,
        (IoType::Readwrite, IoPattern::Rand) => Rw::Randrw,
    };
    crate::commands::bench::run(BenchArgs {
        uri: target.uri(),
        rw,
        rwmixread: args.rw_mix_read,
        bs: args.io_size.clone(),
        depth: args.io_threads,
        queues: 1,
        time: None,
        count: Some(count),
        size: None,
        offset: "0".into(),
        seed: 1,
        json: context.json,
        tls: ClientTlsArgs { tls_ca: None, tls_certificate: None, tls_key: None },
    })
}
