//! Errors of files and of the database.

use crate::error::{Error, ErrorKind};
use std::io;

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| ErrorKind::Io { doing, source }.into()
    }

    pub(crate) fn database(error: impl Into<redb::Error>) -> Self {
        ErrorKind::Database(Box::new(error.into())).into()
    }
}
