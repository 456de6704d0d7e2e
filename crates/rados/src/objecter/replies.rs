//! What OSDs send.

use super::event::ConnectionId;
use super::machine::Objecter;
use super::operation::{Operation, Purpose};
use super::routes::Sensitivity;
use crate::error::{Error, Result};
use crate::mon::OsdMaps;
use crate::msgr::{MAX_MESSAGE, Message};
use crate::osd::{
    BACKOFF, Backoff, BackoffOp, OP_REPLY, OpFlags, OpResult, Redirect, Reply, WATCH_NOTIFY,
    WatchEvent, WatchNotify,
};
use std::time::Instant;

/// A replica cannot answer now.
const EAGAIN: i32 = -11;

impl Objecter {
    pub(super) fn take_message(
        &mut self,
        now: Instant,
        osd: i32,
        connection: ConnectionId,
        message: &Message,
    ) -> Result<()> {
        match message.kind {
            OP_REPLY => {
                self.take_reply(now, connection, message);
                Ok(())
            }
            BACKOFF => self.take_backoff(osd, Backoff::parse(message)?),
            WATCH_NOTIFY => {
                let told = WatchNotify::parse(message)?;
                self.take_notification(now, osd, told);
                Ok(())
            }
            OsdMaps::KIND => {
                let maps = OsdMaps::parse(message)?;
                // It is the cluster's map, and not this OSD's fault: the monitors are asked for a whole one.
                let _asked_for = self.take_maps(now, &maps);
                Ok(())
            }
            // What is new to this side is no answer to anything.
            _ => Ok(()),
        }
    }

    fn take_reply(&mut self, now: Instant, connection: ConnectionId, message: &Message) {
        let tid = message.tid;
        // One that was given up, or is on its way on another stream, is answered for nobody.
        let Some(op) = self.ops.get_mut(&tid).filter(|op| op.sent == Some(connection)) else {
            return;
        };
        let mut reply = match Reply::parse(message) {
            Ok(reply) => reply,
            // It is the answer to this operation, however often it comes, and nobody else's affair.
            Err(error) => {
                self.fail(now, tid, error);
                return;
            }
        };
        if reply.attempt.wrapping_add(1) != op.attempts {
            return;
        }
        if let Some(redirect) = reply.redirect.take() {
            self.follow(now, tid, *redirect);
            return;
        }
        // Not only of an OSD that is a replica in the map of here: it may have become one in a newer map.
        let anywhere = OpFlags::BALANCE_READS | OpFlags::LOCALIZE_READS;
        let may_be_replica = op.flags.intersects(anywhere) && !op.flags.contains(OpFlags::WRITE);
        if reply.result == EAGAIN && may_be_replica {
            // It is answered: an answer that comes again is for nobody.
            (op.primary_only, op.sent) = (true, None);
            op.flags -= anywhere;
            op.request.flags -= anywhere;
            op.aim.placed = None;
            self.route(now, tid, Sensitivity::Primary, true);
            return;
        }
        // A request that is refused as a whole says so, whatever is said of its operations.
        if reply.result >= 0 && reply.ops.len() != op.request.ops.len() {
            let (rule, got) = ("a reply has an answer to each operation", reply.ops.len() as u64);
            self.fail(now, tid, Error::violation("reading an OSD's reply", rule, got));
            return;
        }
        // An OSD's reply is its number of the notification, whichever attempt it answers; what watchers say comes later.
        if let Purpose::Notify(id) = &mut op.purpose
            && reply.result >= 0
            && let Some(number) = reply.ops.first().and_then(|op| op.data.first_chunk::<8>())
        {
            *id = Some(u64::from_le_bytes(*number));
            return;
        }
        self.complete(now, tid, reply);
    }

    /// A message is larger than what is taken: if it is a reply, it is so each time.
    pub(super) fn too_big(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: &Message,
        bytes: u64,
    ) {
        let its = |op: &Operation| op.sent == Some(connection);
        if message.kind == OP_REPLY && self.ops.get(&message.tid).is_some_and(|op| its(op)) {
            let (what, limit) = ("bytes of a reply", MAX_MESSAGE);
            let error = Error::too_big("reading an OSD's reply", what, bytes, limit);
            self.fail(now, message.tid, error);
        }
    }

    fn complete(&mut self, now: Instant, tid: u64, reply: Reply) {
        let Some(op) = self.remove(now, tid) else { return };
        match op.purpose {
            purpose if purpose.is_callers() => self.completed(tid, op.into_request(), Ok(reply)),
            purpose if reply.result < 0 => {
                let error = self.refusal(&op.request, reply.result);
                self.own_ended(now, purpose, Err(error));
            }
            purpose => self.own_ended(now, purpose, Ok(())),
        }
    }

    /// The object is another one.
    fn follow(&mut self, now: Instant, tid: u64, redirect: Redirect) {
        let Some(op) = self.ops.get_mut(&tid) else { return };
        let locator = std::mem::replace(&mut op.request.locator, redirect.locator);
        let mut object = op.request.object.clone();
        if !redirect.object.is_empty() {
            object = std::mem::replace(&mut op.request.object, redirect.object);
        }
        op.redirected_from.get_or_insert_with(|| Box::new((locator, object)));
        let said = OpFlags::REDIRECTED | OpFlags::IGNORE_CACHE | OpFlags::IGNORE_OVERLAY;
        op.request.flags |= said;
        op.flags |= said;
        (op.pool_seen, op.sent) = (false, None);
        op.aim.placed = None;
        self.route(now, tid, Sensitivity::Primary, true);
    }

    fn take_backoff(&mut self, osd: i32, backoff: Backoff) -> Result<()> {
        let Some(session) = self.sessions.get_mut(&osd) else { return Ok(()) };
        match backoff.op {
            BackoffOp::Block => {
                let ack = Backoff { op: BackoffOp::AckBlock, ..backoff.clone() };
                session.block(backoff)?;
                if let Some((_, open)) = session.open() {
                    let _lost_with_the_session = open.send(ack.message());
                    self.mark(osd);
                }
            }
            BackoffOp::Unblock => {
                if let Some(ended) = session.unblock(backoff.id) {
                    self.send_dropped(osd, |op| {
                        op.aim.pg == ended.pg && ended.contains(&op.position())
                    });
                }
            }
            BackoffOp::AckBlock => {}
        }
        Ok(())
    }

    fn take_notification(&mut self, now: Instant, osd: i32, told: WatchNotify) {
        match told.event {
            WatchEvent::Notify | WatchEvent::Disconnect => self.take_watch_event(now, osd, told),
            WatchEvent::NotifyComplete => {
                let Some(op) = self.ops.get(&told.cookie).filter(|op| op.osd == Some(osd)) else {
                    return;
                };
                match op.purpose {
                    Purpose::Notify(id) if id.is_none_or(|id| id == told.notify_id) => {}
                    _ => return,
                }
                let reply = Reply {
                    tid: told.cookie,
                    object: op.request.object.clone(),
                    result: told.result,
                    epoch: self.routes.map.epoch(),
                    attempt: op.attempts.saturating_sub(1),
                    ops: vec![OpResult {
                        code: crate::osd::OpCode::NOTIFY,
                        result: told.result,
                        data: told.payload,
                    }],
                    version: crate::encoding::Eversion::default(),
                    user_version: 0,
                    redirect: None,
                };
                self.complete(now, told.cookie, reply);
            }
        }
    }
}
