//! The log: lines on standard error, warnings and worse unless told otherwise.

use std::io;

use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::error::{Error, Result};
use crate::term;

/// Starts it: as `BLOCKYARD_LOG` says, else as often as `-v` was given.
///
/// # Errors
/// `BLOCKYARD_LOG` is not understood.
pub fn start(verbose: u8) -> Result<()> {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let wanted = std::env::var("BLOCKYARD_LOG").ok().filter(|text| !text.is_empty());
    let targets = match wanted {
        None => Targets::new().with_default(level),
        Some(text) => text.parse::<Targets>().map_err(|err| {
            Error::usage(format!("BLOCKYARD_LOG={text} is not understood"))
                .caused_by(err)
                .help("write a level (error, warn, info, debug, trace) or target=level,...")
        })?,
    };
    // What peers say is in fields: it stays on its line, and does nothing to a terminal.
    let fields = debug_fn(|out, field, value| {
        let value = format!("{value:?}");
        let value = term::plain(&value);
        match field.name() {
            "message" => write!(out, "{value}"),
            name => write!(out, "{name}={value}"),
        }
    });
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(term::colored())
        .without_time()
        .fmt_fields(fields.delimited(" "));
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
    Ok(())
}
