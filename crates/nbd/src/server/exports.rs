//! What a server has to offer.

use crate::export::{BlockSizes, ExportInfo};
use crate::wire::ReplyType;

/// An export on offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Whatever the owner of the exports recognises this one by; the protocol does not look at it.
    pub id: u64,
    /// What the client is told. `flags` are the abilities of the disk and of the server's code for it; those
    /// that depend on what a client negotiated are masked for each client.
    pub info: ExportInfo,
    /// Names of the metadata contexts that BLOCK_STATUS can answer for. The position of a context in this
    /// list is its id on the wire.
    pub contexts: Vec<String>,
    /// Hidden from clients that have not started TLS.
    pub tls_only: bool,
    /// Refuse clients that do not promise to keep to the block sizes (`NBD_REP_ERR_BLOCK_SIZE_REQD`).
    /// Few exports want that: the kernel's client of Linux never asks for block sizes.
    pub block_sizes_required: bool,
}

impl Export {
    /// The units of requests that this export keeps to.
    #[must_use]
    pub fn block_sizes(&self) -> BlockSizes {
        self.info.block_sizes.unwrap_or_default()
    }
}

/// Why a client does not get an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no export of that name.
    Unknown,
    /// The configuration forbids it to this client.
    Policy,
    /// Not before TLS.
    TlsRequired,
    /// The server is going down.
    Shutdown,
}

impl Refusal {
    pub(crate) const fn reply(self) -> (ReplyType, &'static str) {
        match self {
            Self::Unknown => (ReplyType::ERR_UNKNOWN, "no export of this name"),
            Self::Policy => (ReplyType::ERR_POLICY, "this export is not for this client"),
            // Said of exports that there are not, too.
            Self::TlsRequired => (ReplyType::ERR_TLS_REQD, "before TLS no export of this name"),
            Self::Shutdown => (ReplyType::ERR_SHUTDOWN, "the server is shutting down"),
        }
    }
}

/// The exports of a server, looked up once for each option that names one.
pub trait Exports {
    /// Calls `visit` with name and description of each export that may be listed; `tls` says whether the
    /// client has started it. Exports that are TLS-only stay out of the list of those who have not.
    fn list(&self, tls: bool, visit: &mut dyn FnMut(&str, &str));

    /// The export that `name` stands for; the empty name is that of the default export.
    ///
    /// # Errors
    ///
    /// Why the client does not get it. [`Export::tls_only`] is checked by the caller.
    fn find(&self, name: &str) -> Result<Export, Refusal>;
}

/// A fixed list. The first export is the default one, unless one has the empty name itself.
impl Exports for [Export] {
    fn list(&self, tls: bool, visit: &mut dyn FnMut(&str, &str)) {
        for export in self.iter().filter(|export| tls || !export.tls_only) {
            visit(&export.info.name, &export.info.description);
        }
    }

    fn find(&self, name: &str) -> Result<Export, Refusal> {
        let exact = self.iter().find(|export| export.info.name == name);
        let default = || self.first().filter(|_| name.is_empty());
        exact.or_else(default).cloned().ok_or(Refusal::Unknown)
    }
}
