//! What OSDs send.

use super::event::{Completion, ConnectionId, Event};
use super::machine::Objecter;
use super::operation::Purpose;
use super::routes::Sensitivity;
use crate::error::{Error, Result};
use crate::mon::OsdMaps;
use crate::msgr::Message;
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
            OP_REPLY => self.take_reply(now, connection, message),
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

    fn take_reply(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: &Message,
    ) -> Result<()> {
        let tid = message.tid;
        // One that was given up, or is on its way on another stream, is answered for nobody.
        let Some(op) = self.ops.get_mut(&tid).filter(|op| op.sent == Some(connection)) else {
            return Ok(());
        };
        let mut reply = Reply::parse(message)?;
        if reply.attempt.wrapping_add(1) != op.attempts {
            return Ok(());
        }
        if let Some(redirect) = reply.redirect.take() {
            self.follow(now, tid, *redirect);
            return Ok(());
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
            return Ok(());
        }
        if reply.ops.len() != op.request.ops.len() {
            let (rule, got) = ("a reply has an answer to each operation", reply.ops.len() as u64);
            self.fail(now, tid, Error::violation("reading an OSD's reply", rule, got));
            return Ok(());
        }
        // An OSD's reply is its number of the notification, whichever attempt it answers; what watchers say comes later.
        if let Purpose::Notify(id) = &mut op.purpose
            && reply.result >= 0
            && let Some(number) = reply.ops.first().and_then(|op| op.data.first_chunk::<8>())
        {
            *id = Some(u64::from_le_bytes(*number));
            return Ok(());
        }
        self.complete(now, tid, reply);
        Ok(())
    }

    fn complete(&mut self, now: Instant, tid: u64, reply: Reply) {
        let Some(op) = self.remove(now, tid) else { return };
        match op.purpose {
            purpose if purpose.is_callers() => {
                let completion = Completion { tid, request: op.into_request(), result: Ok(reply) };
                self.events.push_back(Event::Completed(Box::new(completion)));
            }
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
                    self.send_all(osd, |op| {
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
