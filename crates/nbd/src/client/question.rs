//! The questions that a client puts to a server, one option each.

use super::options::{
    Collected, DOING, ListedExport, MAX_OPTION_REPLIES_LEN, contexts_data, info_data,
};
use crate::error::{Error, ErrorKind};
use crate::export::MetaContext;
use crate::wire::{HeaderStyle, Opt, text};

/// A question; exports are named as the caller names them.
#[derive(Clone, Debug)]
pub(super) enum Question {
    StartTls,
    Style(HeaderStyle),
    List,
    Info(String),
    Go(String),
    ExportName(String),
    ListContexts(String, Vec<String>),
    SetContexts(String, Vec<String>),
    Abort,
}

impl Question {
    pub(super) const fn option(&self) -> Opt {
        match self {
            Self::StartTls => Opt::STARTTLS,
            Self::Style(HeaderStyle::Extended) => Opt::EXTENDED_HEADERS,
            Self::Style(_) => Opt::STRUCTURED_REPLY,
            Self::List => Opt::LIST,
            Self::Info(_) => Opt::INFO,
            Self::Go(_) => Opt::GO,
            Self::ExportName(_) => Opt::EXPORT_NAME,
            Self::ListContexts(..) => Opt::LIST_META_CONTEXT,
            Self::SetContexts(..) => Opt::SET_META_CONTEXT,
            Self::Abort => Opt::ABORT,
        }
    }

    pub(super) fn data(&self) -> Vec<u8> {
        match self {
            Self::Info(name) | Self::Go(name) => info_data(name),
            Self::ExportName(name) => name.as_bytes().to_vec(),
            Self::ListContexts(name, queries) | Self::SetContexts(name, queries) => {
                contexts_data(name, queries)
            }
            Self::StartTls | Self::Style(_) | Self::List | Self::Abort => Vec::new(),
        }
    }
}

/// What came so far of an answer in several replies.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) info: Collected,
    pub(super) exports: Vec<ListedExport>,
    pub(super) contexts: Vec<MetaContext>,
    /// Bytes that the server may still send.
    pub(super) budget: usize,
}

impl Answer {
    /// Nothing yet, about an export of this name.
    pub(super) const fn new(name: String) -> Self {
        Self {
            info: Collected::new(name),
            exports: Vec::new(),
            contexts: Vec::new(),
            budget: MAX_OPTION_REPLIES_LEN,
        }
    }
}

/// A name or a query as the protocol can carry it.
pub(super) fn checked(name: &str) -> Result<String, Error> {
    match text(name.as_bytes()) {
        Ok(name) => Ok(name.to_owned()),
        Err(bad) => {
            let text = name.chars().take(80).collect();
            Err(Error::new(DOING, ErrorKind::BadParameter { problem: bad.rule(), text }))
        }
    }
}
