//! What the help says of the whole command.

/// What the exit status says.
pub(super) const EXIT_CODES: &str = "\
Exit status: 0 success, 1 failure (compare: different), 2 no (info --is, --can; compare: unknown; check: errors), \
64 usage error, 69 unavailable, 75 in use, 77 permission denied.";

/// The variables that are read.
pub(super) const ENVIRONMENT: &str = "\
Environment: BLOCKYARD_LOG log levels, e.g. warn,blockyard_export_nbd=trace; BLOCKYARD_RUNTIME_DIR directory of \
control sockets [default: $XDG_RUNTIME_DIR/blockyard, /run/blockyard for root]; NO_COLOR no colours; CEPH_CONF \
Ceph configuration file.";

/// The version, with the features of this build.
#[cfg(feature = "psk")]
pub(super) const LONG_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (features: psk)");
#[cfg(not(feature = "psk"))]
pub(super) const LONG_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (features: none)");

/// Whether a command takes the URI of a disk: the name of such a value says so.
pub(super) fn takes_uri(command: &clap::Command) -> bool {
    let is_uri = |arg: &clap::Arg| {
        arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains("URI")))
    };
    command.get_arguments().any(is_uri)
}

#[cfg(test)]
mod tests;
