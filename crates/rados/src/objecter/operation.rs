//! An operation in flight.

use super::admission::ShareId;
use super::event::ConnectionId;
use super::routes::{Aim, Hold};
use crate::encoding::{Hobject, NOSNAP, ObjectLocator, ObjectName};
use crate::osd::{OpFlags, OsdRequest};
use std::time::Instant;

/// Whose an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The caller's.
    Caller,
    /// The caller's, which tells watchers, and ends when they answered. The OSD's number of it is known after the reply.
    Notify(Option<u64>),
    /// Sets a watch.
    Watch(u64),
    /// Carries it over to another session.
    Reconnect(u64),
    /// Keeps it, as of a time.
    Ping(u64, Instant),
    /// Ends a watch. The caller is told.
    Unwatch,
    /// The same, of which nobody waits to be told.
    UnwatchAlone,
    /// Answers a notification.
    Acknowledge,
}

impl Purpose {
    /// Whether the caller is told of its end.
    pub(super) const fn is_callers(self) -> bool {
        matches!(self, Self::Caller | Self::Notify(_) | Self::Unwatch)
    }

    /// The watch that it sets or carries over to a session.
    pub(super) const fn connects(self) -> Option<u64> {
        match self {
            Self::Watch(cookie) | Self::Reconnect(cookie) => Some(cookie),
            _ => None,
        }
    }

    /// Whether it counts against the bounds.
    pub(super) const fn is_bounded(self) -> bool {
        matches!(self, Self::Caller | Self::Notify(_))
    }
}

/// An operation in flight.
#[derive(Debug)]
pub(super) struct Operation {
    pub request: OsdRequest,
    pub purpose: Purpose,
    pub deadline: Option<Instant>,
    /// Whose part of what may be in flight it takes.
    pub share: ShareId,
    /// Bytes that it may have in flight.
    pub budget: u64,
    /// What the operations say of reading and writing.
    pub flags: OpFlags,
    /// Where it is to go.
    pub aim: Aim,
    /// Why it may not go there now.
    pub hold: Hold,
    /// The OSD whose session has it.
    pub osd: Option<i32>,
    /// On which stream it was sent last; none if that broke.
    pub sent: Option<ConnectionId>,
    /// It is to be sent again, as soon as nothing is in the way: an answer to what was sent before still counts.
    pub is_due: bool,
    /// How often it was sent.
    pub attempts: u32,
    /// A replica could not answer: only the primary may.
    pub primary_only: bool,
    /// The object that the caller named, if the OSD said that it is another one.
    pub redirected_from: Option<Box<(ObjectLocator, ObjectName)>>,
    /// The pool was seen in a map: if it is not there now, it was deleted.
    pub pool_seen: bool,
    /// A map at least this new has to lack the pool before it is said to be missing.
    pub pool_missing_until: Option<u32>,
}

impl Operation {
    pub(super) fn new(request: OsdRequest, purpose: Purpose, deadline: Option<Instant>) -> Self {
        Self {
            budget: request.ops.iter().map(crate::osd::Op::budget).sum(),
            flags: request.all_flags(0),
            request,
            purpose,
            deadline,
            share: ShareId::default(),
            aim: Aim::default(),
            hold: Hold::default(),
            osd: None,
            sent: None,
            is_due: false,
            attempts: 0,
            primary_only: false,
            redirected_from: None,
            pool_seen: false,
            pool_missing_until: None,
        }
    }

    /// Whether it has not been sent, or has to be sent again when that is possible.
    pub(super) const fn is_unsent(&self) -> bool {
        self.sent.is_none() || self.is_due
    }

    /// The request as the caller gave it.
    pub(super) fn into_request(mut self) -> OsdRequest {
        if let Some(original) = self.redirected_from {
            (self.request.locator, self.request.object) = *original;
        }
        self.request
    }

    /// The object's place in its group.
    pub(super) fn position(&self) -> Hobject {
        let locator = &self.request.locator;
        let key = if locator.key == self.request.object { &[][..] } else { &locator.key };
        Hobject {
            key: key.into(),
            name: self.request.object.clone(),
            snap: NOSNAP,
            hash: self.aim.hash,
            max: false,
            namespace: locator.namespace.clone(),
            pool: self.aim.pg.pg.pool,
        }
    }

    /// What it waits for, for errors.
    pub(super) fn waits_for(&self) -> &'static str {
        if self.sent.is_some() {
            "waiting for the OSD's reply"
        } else if self.hold.paused {
            "waiting while the cluster is paused or full"
        } else if self.osd.is_some() {
            "waiting for the OSD"
        } else if self.aim.placed.is_some() {
            "waiting for an OSD to serve the placement group"
        } else {
            "waiting for the map of the cluster"
        }
    }
}
