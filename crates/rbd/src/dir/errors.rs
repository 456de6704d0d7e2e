//! Errors of files and of the database.

use crate::error::{Error, ErrorKind};
use std::io;

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| ErrorKind::Io { doing, source }.into()
    }

    /// Whether the disk has failed the database, now or before: it has to be opened again.
    pub(crate) fn has_failed_database(&self) -> bool {
        matches!(self.kind(), ErrorKind::Database(error) if matches!(**error, redb::Error::Io(_) | redb::Error::PreviousIo))
    }

    pub(crate) fn database(error: impl Into<redb::Error>) -> Self {
        ErrorKind::Database(Box::new(error.into())).into()
    }
}
