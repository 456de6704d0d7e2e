//! The one shape of errors: what is wrong, where, and what to do about it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// The kind of error, to match on.
    pub kind: ErrorKind,
    /// What is wrong.
    pub what: String,
    /// Of what: a field of the body, a parameter, or the path that was asked for.
    pub r#where: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Why it is wrong, from the outside in.
    pub causes: Vec<String>,
}

/// A problem, and the status that it is answered with.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    problem: Problem,
}

pub(super) type Answer<T> = Result<T, Refusal>;

impl Refusal {
    /// An error, at a place.
    pub(super) fn new(place: impl Into<String>, err: &Error) -> Self {
        let status = match err.kind() {
            ErrorKind::Usage => StatusCode::BAD_REQUEST,
            ErrorKind::Failed | ErrorKind::NoCommand | ErrorKind::NotExecutable => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            ErrorKind::Unavailable => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Busy => StatusCode::CONFLICT,
            ErrorKind::NotPermitted => StatusCode::FORBIDDEN,
        };
        Self { status, problem: Problem::of(err, place) }
    }

    pub(super) fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What was asked for cannot be.
    pub(super) fn usage(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(place, &Error::usage(what))
    }

    /// There is no such thing.
    pub(super) fn not_found(place: impl Into<String>, err: &Error) -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::new(place, err) }
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

/// What remedies begin with that are said in one sentence with what is wrong, as parsers do it: "invalid size "x"; use bytes".
const LEADS: &[&str] = &[
    "add ",
    "choose ",
    "correct ",
    "create ",
    "did you mean ",
    "remove ",
    "set ",
    "shorten ",
    "start ",
    "stop ",
    "supported: ",
    "use ",
    "write ",
];

/// Takes the remedy from the end of a sentence, if it has one. What is quoted is somebody else's.
fn take_remedy(what: &mut String) -> Option<String> {
    let (mut is_quoted, mut is_escaped, mut at) = (false, false, None);
    for (index, byte) in what.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b';' if !is_quoted => {
                let rest = what.get(index + 1..).unwrap_or_default().trim_start();
                if LEADS.iter().any(|lead| rest.starts_with(lead)) {
                    at = at.or(Some(index));
                }
            }
            _ => {}
        }
    }
    let remedy = what.split_off(at?);
    Some(remedy.trim_start_matches([';', ' ']).to_owned())
}

impl Problem {
    /// An error, at a place.
    pub(super) fn of(err: &Error, place: impl Into<String>) -> Self {
        let (mut causes, remedies) = err.told();
        let (kind, mut what) = (err.kind(), err.to_string());
        let remedy = if remedies.is_empty() {
            // The innermost knows best.
            causes.iter_mut().rev().chain([&mut what]).find_map(take_remedy)
        } else {
            Some(remedies.join("; "))
        };
        Self { kind, what, r#where: place.into(), remedy, causes }
    }

    /// The error that another process has told of.
    #[must_use]
    pub fn into_error(self) -> Error {
        let Self { kind, what, remedy, causes, .. } = self;
        let inner = causes.into_iter().rev().fold(None, |inner: Option<Error>, cause| {
            Some(Error::new(kind, cause).perhaps_caused_by(inner))
        });
        let error = Error::new(kind, what).perhaps_caused_by(inner);
        match remedy {
            Some(remedy) => error.help(remedy),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::describe;

    #[test]
    fn a_remedy_has_a_place_of_its_own() {
        let told = |what: &str| {
            let Problem { what, remedy, .. } = Problem::of(&Error::usage(what), "body");
            (what, remedy)
        };
        for (said, what, remedy) in [
            (
                r#"size: invalid size "x"; use bytes"#,
                r#"size: invalid size "x""#,
                Some("use bytes"),
            ),
            (r#"unknown "a"; did you mean "b"?"#, r#"unknown "a""#, Some(r#"did you mean "b"?"#)),
            // Of somebody else's words nothing is taken.
            (r#"no "a; use b""#, r#"no "a; use b""#, None),
            (r#"no "\"; use b""#, r#"no "\"; use b""#, None),
            ("failed; more is lost", "failed; more is lost", None),
            ("a; write b; add c", "a", Some("write b; add c")),
        ] {
            assert_eq!(told(said), (what.to_owned(), remedy.map(str::to_owned)), "{said}");
        }
        let inner = Error::usage("no such directory; create it");
        let problem = Problem::of(&Error::failed("cannot listen").caused_by(inner), "body");
        assert_eq!(
            (&*problem.causes[0], problem.remedy.as_deref()),
            ("no such directory", Some("create it"))
        );
        // One that is told by itself stays.
        let told = Problem::of(&Error::usage("a; use b").help("run c"), "body");
        assert_eq!((&*told.what, told.remedy.as_deref()), ("a; use b", Some("run c")));
    }

    #[test]
    fn an_error_of_another_process_is_told_in_the_same_lines() {
        let inner = Error::failed("inner").help("first");
        let outer = Error::new(ErrorKind::Busy, "outer").caused_by(inner).help("second");
        let Refusal { status, problem } = Refusal::new("/v1/disks/a", &outer);
        assert_eq!(status, StatusCode::CONFLICT);
        let text = serde_json::to_string(&problem).unwrap();
        let expected = r#"{"kind":"busy","what":"outer","where":"/v1/disks/a","remedy":"second; first","causes":["inner"]}"#;
        assert_eq!(text, expected);
        let mut told = String::new();
        describe(&problem.into_error(), &mut told).unwrap();
        assert_eq!(told, "outer\n  because: inner\n  help: second; first");
    }
}
