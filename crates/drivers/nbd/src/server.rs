//! What a server tells of itself and its exports, without a disk being made.

use std::sync::Arc;
use std::time::Duration;

use blockyard_nbd::ExportInfo;
use blockyard_nbd::client::{Event, Negotiated};
use blockyard_nbd::uri::Uri;
use blockyard_nbd::wire::HeaderStyle;

use crate::config::TlsFiles;
use crate::connect::{Dialog, Sockets, Target};
use crate::error::{Error, ErrorKind};

/// An NBD server that answers questions. Each question takes a connection, and time and I/O of a runtime.
#[derive(Clone, Debug)]
pub struct Server {
    target: Target,
}

/// An export that is on offer.
#[derive(Clone, Debug)]
pub struct Offer {
    /// What to ask for.
    pub name: String,
    /// The server's words on it, mostly none.
    pub description: String,
    /// What it is, unless the server tells only those who have started TLS, say.
    pub info: Option<ExportInfo>,
}

/// What a server says of an export to whoever opens it.
#[derive(Clone, Debug)]
pub struct Description {
    /// What was agreed on.
    pub negotiated: Negotiated,
    /// The names of its metadata contexts.
    pub contexts: Vec<String>,
}

impl Server {
    /// The server of a URI, which is asked nothing yet. Each answer is waited for as long as `limit`.
    #[must_use]
    pub fn new(uri: Uri, tls_files: TlsFiles, limit: Duration) -> Self {
        let dialer = Arc::new(Sockets::default());
        Self { target: Target::new(dialer, uri, tls_files, HeaderStyle::Extended, limit) }
    }

    /// What is on offer.
    ///
    /// # Errors
    /// The server cannot be reached, or does not tell.
    pub async fn offers(&self) -> Result<Vec<Offer>, Error> {
        self.target.within_limit(self.ask_offers()).await
    }

    async fn ask_offers(&self) -> Result<Vec<Offer>, Error> {
        let mut dialog = self.target.dial().await?;
        match self.list(&mut dialog).await {
            Ok(offers) => {
                dialog.close().await;
                Ok(offers)
            }
            Err(err) => Err(dialog.fail(err).await),
        }
    }

    async fn list(&self, dialog: &mut Dialog<'_>) -> Result<Vec<Offer>, Error> {
        dialog.ask(|shake| {
            shake.list();
            Ok(())
        })?;
        let listed = match dialog.event().await? {
            Event::Exports(listed) => listed,
            other => return Err(self.unexpected("list the exports of", other)),
        };
        let mut offers = Vec::with_capacity(listed.len());
        for export in listed {
            dialog.ask(|shake| shake.info(&export.name))?;
            let info = match dialog.event().await? {
                Event::Info(info) => Some(*info),
                _ => None,
            };
            let described = info.as_ref().map(|info| info.description.clone());
            let description = described.filter(|text| !text.is_empty());
            let description = description.unwrap_or(export.description);
            offers.push(Offer { name: export.name, description, info });
        }
        Ok(offers)
    }

    /// What the export of the URI is.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such export.
    pub async fn describe(&self) -> Result<Description, Error> {
        self.target.within_limit(self.ask_description()).await
    }

    async fn ask_description(&self) -> Result<Description, Error> {
        let mut dialog = self.target.dial().await?;
        match self.go(&mut dialog).await {
            Ok(description) => {
                dialog.leave(description.negotiated.style).await;
                Ok(description)
            }
            Err(err) => Err(dialog.fail(err).await),
        }
    }

    async fn go(&self, dialog: &mut Dialog<'_>) -> Result<Description, Error> {
        let export = &self.target.uri.export;
        dialog.ask(|shake| shake.list_contexts(export, &[]))?;
        let contexts = match dialog.event().await? {
            Event::Contexts(names) => names,
            Event::Refused(_) => Vec::new(),
            other => return Err(self.unexpected("ask for the contexts of", other)),
        };
        dialog.ask(|shake| shake.go(export))?;
        match dialog.event().await? {
            Event::Done(negotiated) => Ok(Description { negotiated: *negotiated, contexts }),
            other => Err(self.unexpected("open", other)),
        }
    }

    fn unexpected(&self, doing: &str, event: Event) -> Error {
        match event {
            Event::Refused(err) => self.target.broken(err),
            other => {
                let what =
                    format!("cannot {doing} {}: the server answered {other:?}", self.target.uri);
                Error::new(ErrorKind::Protocol, what)
            }
        }
    }
}
