//! Watching objects, and telling those who watch (ceph: `src/messages/MWatchNotify.h`, `src/include/rados.h`,
//! `CEPH_OSD_WATCH_OP_*`, `CEPH_WATCH_EVENT_*`).

use super::code::OpCode;
use super::op::Op;
use crate::encoding::{EntityAddr, EntityName, Reader, Writer};
use crate::error::{Error, Result};
use crate::msgr::Message;
use bytes::Bytes;
use std::time::Duration;

/// The message's kind and version.
pub(crate) const WATCH_NOTIFY: u16 = 44;
const VERSION: u16 = 3;
const DOING: &str = "reading what a watched object says";
/// The version of what a notification carries.
const NOTIFY_VERSION: u32 = 1;

/// What a watch operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchOp {
    /// Ends a watch.
    Unwatch,
    /// Begins one.
    Watch,
    /// Goes on with one on another session.
    Reconnect,
    /// Says that the watcher lives.
    Ping,
}

impl WatchOp {
    const fn code(self) -> u8 {
        match self {
            Self::Unwatch => 0,
            Self::Watch => 3,
            Self::Reconnect => 5,
            Self::Ping => 7,
        }
    }
}

/// A time as the wire has it, rounded up: 0 stands for a default, and is never what a part of a second becomes.
pub(crate) fn whole_seconds(time: Duration) -> u32 {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

impl Op {
    /// Does something about the watch `cookie`. `generation` counts its reconnects; a watcher that is silent for the
    /// timeout, in whole seconds or the next one, is dropped; 0 stands for the OSD's default.
    #[must_use]
    pub fn watch(cookie: u64, op: WatchOp, generation: u32, timeout: Duration) -> Self {
        let mut args = Writer::new();
        args.u64(cookie);
        // A version, which is gone.
        args.u64(0);
        args.u8(op.code());
        args.u32(generation);
        args.u32(whole_seconds(timeout));
        Self::with_args(OpCode::WATCH, args.as_slice(), Bytes::new())
    }

    /// Tells all watchers, and waits for their answers for so long. The answers come in a message with this cookie.
    #[must_use]
    pub fn notify(cookie: u64, payload: &[u8], timeout: Duration) -> Self {
        let mut data = Writer::new();
        data.u32(NOTIFY_VERSION);
        data.u32(whole_seconds(timeout));
        data.bytes(payload);
        Self::with_args(OpCode::NOTIFY, &cookie.to_le_bytes(), data.into_bytes().into())
    }

    /// Answers a notification that the watch `cookie` got.
    #[must_use]
    pub fn notify_ack(notify_id: u64, cookie: u64, payload: &[u8]) -> Self {
        let mut data = Writer::new();
        data.u64(notify_id);
        data.u64(cookie);
        data.bytes(payload);
        Self::with_args(OpCode::NOTIFY_ACK, &[], data.into_bytes().into())
    }
}

impl Op {
    /// Asks who watches the object: see [`watchers`].
    #[must_use]
    pub fn list_watchers() -> Self {
        Self::with_args(OpCode::LIST_WATCHERS, &[], Bytes::new())
    }
}

/// Somebody who watches an object (ceph: `src/osd/osd_types.h`, `watch_item_t`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// The client.
    pub client: EntityName,
    /// The client's number of the watch.
    pub cookie: u64,
    /// A watcher that is silent for this time is dropped.
    pub timeout: Duration,
    /// Where the client is. It is by this address that a client is put on the blocklist.
    pub addr: EntityAddr,
}

/// What [`Op::list_watchers`] gives.
///
/// # Errors
/// It is cut, or has addresses of a form that is not known.
pub fn watchers(data: &[u8]) -> Result<Vec<Watcher>> {
    let mut r = Reader::new("reading the watchers of an object", data).versioned(1)?.fields;
    // A watcher has a header of 6 bytes and three numbers in front of its address.
    r.vec(6 + 9 + 8 + 4, |r| {
        let mut r = r.versioned(2)?.fields;
        let (client, cookie, seconds) = (r.get()?, r.u64()?, r.u32()?);
        let timeout = Duration::from_secs(seconds.into());
        Ok(Watcher { client, cookie, timeout, addr: r.get()? })
    })
}

/// What came of a notification (ceph: `src/osd/Watch.cc`, `Notify::maybe_complete_notify`). Watchers are named by the
/// numbers of client and watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyAnswers {
    /// Those who answered, and what.
    pub answered: Vec<((u64, u64), Bytes)>,
    /// Those who did not.
    pub silent: Vec<(u64, u64)>,
}

impl NotifyAnswers {
    /// Reads the data of the operation's result.
    ///
    /// # Errors
    /// It is cut.
    pub fn parse(data: &Bytes) -> Result<Self> {
        let mut r = Reader::new("reading the answers of watchers", data);
        let who = |r: &mut Reader<'_>| Ok((r.u64()?, r.u64()?));
        let answered = r.vec(16 + 4, |r| Ok((who(r)?, data.slice_ref(r.bytes()?))))?;
        Ok(Self { answered, silent: r.vec(16, who)? })
    }
}

/// What happened to a watched object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Somebody told the watchers something.
    Notify,
    /// To who told: all watchers answered, or time is up.
    NotifyComplete,
    /// The watch is over.
    Disconnect,
}

/// The message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchNotify {
    /// What happened.
    pub event: WatchEvent,
    /// The watch, or the notification that is complete.
    pub cookie: u64,
    /// The OSD's number of the notification.
    pub notify_id: u64,
    /// What was told, or all answers.
    pub payload: Bytes,
    /// Of a complete notification: 0, or a negative error number.
    pub result: i32,
    /// Who told.
    pub notifier: u64,
}

impl WatchNotify {
    /// Reads the message.
    ///
    /// # Errors
    /// Another message, one that is cut, or one that says something unknown.
    pub fn parse(message: &Message) -> Result<Self> {
        if message.kind != WATCH_NOTIFY {
            return Err(Error::violation(
                DOING,
                "a notification has another type",
                message.kind.into(),
            ));
        }
        let mut r = message.reader(DOING);
        let inner = r.u8()?;
        let event = match r.u8()? {
            1 => WatchEvent::Notify,
            2 => WatchEvent::NotifyComplete,
            3 => WatchEvent::Disconnect,
            other => {
                return Err(r.violation("a watched object tells one of three things", other.into()));
            }
        };
        let cookie = r.u64()?;
        r.u64()?;
        let notify_id = r.u64()?;
        let payload = if inner >= 1 {
            let bytes = r.bytes()?;
            let at = message.front.len() - r.rest().len();
            message.front.slice(at - bytes.len()..at)
        } else {
            Bytes::new()
        };
        // The answers of all are the message's data (ceph: `src/osd/Watch.cc`, `Notify::maybe_complete_notify`).
        let payload =
            if event == WatchEvent::NotifyComplete { message.data.clone() } else { payload };
        let result = if message.version >= 2 { r.i32()? } else { 0 };
        let notifier = if message.version >= 3 { r.u64()? } else { 0 };
        Ok(Self { event, cookie, notify_id, payload, result, notifier })
    }

    /// The message, as an OSD sends it.
    #[must_use]
    pub fn message(&self) -> Message {
        let mut w = Writer::new();
        w.u8(1);
        w.u8(match self.event {
            WatchEvent::Notify => 1,
            WatchEvent::NotifyComplete => 2,
            WatchEvent::Disconnect => 3,
        });
        w.u64(self.cookie);
        w.u64(0);
        w.u64(self.notify_id);
        let complete = self.event == WatchEvent::NotifyComplete;
        let (payload, data) =
            if complete { (&[][..], &*self.payload) } else { (&*self.payload, &[][..]) };
        w.bytes(payload);
        w.i32(self.result);
        w.u64(self.notifier);
        let data = Bytes::copy_from_slice(data);
        Message { data, ..Message::new(WATCH_NOTIFY, VERSION, 1, w.into_bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_watchers_are_data_of_the_message() {
        let told = WatchNotify {
            event: WatchEvent::NotifyComplete,
            cookie: 1,
            notify_id: 9,
            payload: b"answers"[..].into(),
            result: -110,
            notifier: 4107,
        };
        assert_eq!(told.message().data, b"answers"[..]);
        assert_eq!(WatchNotify::parse(&told.message()).unwrap(), told);
    }

    #[test]
    fn a_notification_comes_back() {
        let told = WatchNotify {
            event: WatchEvent::Notify,
            cookie: 0x1122,
            notify_id: 9,
            payload: b"changed"[..].into(),
            result: 0,
            notifier: 4107,
        };
        let message = told.message();
        assert_eq!(WatchNotify::parse(&message).unwrap(), told);
        let old = Message {
            version: 1,
            front: message.front.slice(..message.front.len() - 12),
            ..message
        };
        let parsed = WatchNotify::parse(&old).unwrap();
        assert_eq!((parsed.payload, parsed.notifier), (told.payload, 0));
        for len in 0..old.front.len() {
            let cut = Message { front: old.front.slice(..len), ..old.clone() };
            assert!(WatchNotify::parse(&cut).is_err());
        }
    }

    #[test]
    fn a_part_of_a_second_is_a_second() {
        let seconds = |millis| whole_seconds(Duration::from_millis(millis));
        assert_eq!([0, 1, 999, 1000, 1001].map(seconds), [0, 1, 1, 1, 2]);
        assert_eq!(whole_seconds(Duration::MAX), u32::MAX);
    }

    /// The layout of `struct ceph_osd_op` of `src/include/rados.h`.
    #[test]
    fn a_watch_is_a_cookie_a_kind_a_generation_and_a_timeout() {
        let op = Op::watch(7, WatchOp::Reconnect, 3, Duration::from_secs(30));
        let mut args = [0; 28];
        args[0] = 7;
        args[16..25].copy_from_slice(&[5, 3, 0, 0, 0, 30, 0, 0, 0]);
        assert_eq!((op.code, op.args), (OpCode::WATCH, args));
        assert_eq!(
            &Op::notify(1, b"x", Duration::from_secs(5)).data[..],
            b"\x01\0\0\0\x05\0\0\0\x01\0\0\0x"
        );
        assert_eq!(Op::notify_ack(1, 2, b"").data.len(), 20);
    }
}
