//! The exclusive lock of an image: a lock of the class `lock` on its header (ceph: `src/librbd/managed_lock`). Its cookie
//! names a watch of its owner's on that object: an owner without his watch is dead.

use crate::class::Caller;
use crate::error::{Error, Result};
use crate::format::lock::{BreakOp, GetInfoOp, LockInfo, LockOp, LockType, SetCookieOp, UnlockOp};
use crate::format::names;
use crate::store::{Answer, ObjectName, ObjectStore, Op, Query, Request, Watcher};
use blockyard_rados::encoding::{Encode, Reader, Utime, encoded};
use bytes::Bytes;
use rustix::io::Errno;

/// Who has the lock of an image. Whoever writes this down knows his own dead self by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The client, and where it is or was.
    pub client: Caller,
    /// What it calls the lock.
    pub cookie: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client.{} at {}", self.client.client.number, self.client.addr)
    }
}

impl Owner {
    /// The watch that shows that he lives.
    fn watch(&self) -> Option<u64> {
        watch_of(&self.cookie)
    }
}

/// What a lock is called whose owner has a watch.
pub(super) fn cookie(watch: u64) -> String {
    format!("{}{watch}", names::LOCK_COOKIE)
}

/// The watch in what a lock is called.
fn watch_of(cookie: &str) -> Option<u64> {
    cookie.strip_prefix(names::LOCK_COOKIE).and_then(|number| number.parse().ok())
}

fn call(method: &'static str, input: &impl Encode) -> Op {
    Op::exec("lock", method, encoded(input))
}

/// Does something to a header that is there: a lock that is taken would make one of an image that was removed.
async fn tell<S: ObjectStore>(store: &S, header: &ObjectName, op: Op) -> Result<()> {
    store.operate(header, Request::write(vec![Op::assert_exists(), op])).await.map(|_| ())
}

/// Takes the lock, if nobody else has it.
pub(super) async fn take<S: ObjectStore>(
    store: &S,
    header: &ObjectName,
    cookie: &str,
) -> Result<bool> {
    let op = LockOp {
        name: names::LOCK.to_owned(),
        kind: LockType::EXCLUSIVE,
        cookie: cookie.to_owned(),
        tag: names::LOCK_TAG.to_owned(),
        description: String::new(),
        duration: Utime::default(),
        flags: 0,
    };
    match tell(store, header, call("lock", &op)).await {
        Ok(()) => Ok(true),
        Err(error) => match error.errno() {
            // An answer was lost: it was taken before.
            Some(Errno::EXIST) => Ok(true),
            Some(Errno::BUSY) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Who has the lock; `None` if nobody has.
///
/// # Errors
/// EBUSY if somebody has locked the image by hand; there is no such image; those of the store.
pub async fn owner<S: ObjectStore>(store: &S, header: &ObjectName) -> Result<Option<Owner>> {
    parse_owner(store.operate(header, get_info()).await?)
}

/// Asks who has the lock.
pub(super) fn get_info() -> Request {
    Request::read(vec![call("get_info", &GetInfoOp { name: names::LOCK.to_owned() })])
}

/// Reads who has the lock.
pub(super) fn parse_owner(answers: Vec<Answer>) -> Result<Option<Owner>> {
    let answer = answers.into_iter().next().map(Answer::into_data).unwrap_or_default();
    let lock: LockInfo = Reader::new("reading the lock of an image", &answer).get()?;
    let Some((id, info)) = lock.lockers.into_iter().next() else { return Ok(None) };
    let client = Caller { client: id.client, addr: info.addr };
    let owner = Owner { client, cookie: id.cookie };
    let is_managed = lock.kind == LockType::EXCLUSIVE && lock.tag == names::LOCK_TAG;
    if !is_managed || owner.watch().is_none() {
        let place =
            format!("{owner} has locked the image by hand; that lock is to be removed first");
        return Err(Error::answer(Errno::BUSY).at(place));
    }
    Ok(Some(owner))
}

/// Gives the lock back; that it is not there is what is wanted.
pub(super) async fn give_back<S: ObjectStore>(
    store: &S,
    header: &ObjectName,
    cookie: &str,
) -> Result<()> {
    let op = UnlockOp { name: names::LOCK.to_owned(), cookie: cookie.to_owned() };
    may_be_gone(tell(store, header, call("unlock", &op)).await)
}

/// Takes the lock from somebody who is dead, and kept out.
pub(super) async fn break_it<S: ObjectStore>(
    store: &S,
    header: &ObjectName,
    owner: &Owner,
) -> Result<()> {
    let op = BreakOp {
        name: names::LOCK.to_owned(),
        locker: owner.client.client,
        cookie: owner.cookie.clone(),
    };
    may_be_gone(tell(store, header, call("break_lock", &op)).await)
}

/// Calls a lock of one's own after another watch: whether it was there.
pub(super) async fn rename<S: ObjectStore>(
    store: &S,
    header: &ObjectName,
    from: &str,
    to: &str,
) -> Result<bool> {
    let op = SetCookieOp {
        name: names::LOCK.to_owned(),
        kind: LockType::EXCLUSIVE,
        cookie: from.to_owned(),
        tag: names::LOCK_TAG.to_owned(),
        new_cookie: to.to_owned(),
    };
    match tell(store, header, call("set_cookie", &op)).await {
        Ok(()) => Ok(true),
        Err(error) if [Some(Errno::BUSY), Some(Errno::NOENT)].contains(&error.errno()) => {
            // An answer was lost: it has its new name already.
            is_own(store, header, to).await
        }
        Err(error) => Err(error),
    }
}

/// Whether the lock is this client's, and is called so.
pub(super) async fn is_own<S: ObjectStore>(
    store: &S,
    header: &ObjectName,
    cookie: &str,
) -> Result<bool> {
    let owner = match owner(store, header).await {
        // Somebody has it by hand.
        Err(error) if error.errno() == Some(Errno::BUSY) => return Ok(false),
        owner => owner?,
    };
    let me = store.caller().client;
    Ok(owner.is_some_and(|owner| owner.client.client == me && owner.cookie == cookie))
}

/// Who watches an image.
///
/// # Errors
/// There is no such image; those of the store.
pub async fn watchers<S: ObjectStore>(store: &S, header: &ObjectName) -> Result<Vec<Watcher>> {
    let answers = store.operate(header, Request::read(vec![Query::Watchers.into()])).await?;
    match answers.into_iter().next() {
        Some(Answer::Watchers(watchers)) => Ok(watchers),
        _ => Err(Error::damaged("the store gives no watchers")),
    }
}

/// Whether an owner's watch is there.
pub(super) async fn is_alive<S: ObjectStore>(
    store: &S,
    header: &ObjectName,
    owner: &Owner,
) -> Result<bool> {
    let his = |watcher: &Watcher| {
        watcher.client == owner.client.client && Some(watcher.cookie) == owner.watch()
    };
    Ok(watchers(store, header).await?.iter().any(his))
}

fn may_be_gone(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.is_not_found() => Ok(()),
        done => done,
    }
}

/// The answers to a notification that are not empty.
pub(super) fn answers(of: &crate::store::NotifyAnswers) -> impl Iterator<Item = &Bytes> {
    of.answered.iter().map(|(_, answer)| answer).filter(|answer| !answer.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ceph: `src/librbd/managed_lock/Utils.cc`.
    #[test]
    fn a_cookie_names_a_watch() {
        assert_eq!(cookie(94_081_216), "auto 94081216");
        assert_eq!(watch_of("auto 94081216"), Some(94_081_216));
        for by_hand in ["mine", "auto", "auto ", "auto x", "94081216", "auto 99999999999999999999"]
        {
            assert_eq!(watch_of(by_hand), None, "{by_hand}");
        }
    }
}
