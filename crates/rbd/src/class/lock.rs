//! The class `lock`: locks on objects, which are attributes of theirs.

use super::{Call, Caller, Method, NOTHING};
use crate::error::Result;
use crate::format::lock::{
    AssertOp, BreakOp, GetInfoOp, LockInfo, LockOp, LockType, LockerId, LockerInfo, MAY_RENEW,
    MUST_RENEW, PREFIX, SetCookieOp, UnlockOp,
};
use crate::store::Mutation;
use blockyard_rados::encoding::{Reader, Utime, Writer, encoded};
use rustix::io::Errno;

pub(super) const METHODS: &[(&str, Method)] = &[
    ("lock", Method::writing(lock)),
    ("unlock", Method::writing(unlock)),
    ("break_lock", Method::writing(break_lock)),
    ("get_info", Method::reading(get_info)),
    ("list_locks", Method::reading(list_locks)),
    ("assert_locked", Method::reading(assert_locked)),
    ("set_cookie", Method::writing(set_cookie)),
];

fn attribute(name: &str) -> String {
    format!("{PREFIX}{name}")
}

impl Call<'_> {
    /// A lock without those whose time is over.
    fn read_lock(&mut self, name: &str) -> Result<LockInfo> {
        let Some(stored) = self.object.xattr(&attribute(name))? else {
            return Ok(LockInfo::default());
        };
        let lock = Reader::new("reading a lock", &stored).get();
        let mut lock: LockInfo = lock.map_err(|_| Errno::IO)?;
        let now = self.object.now();
        lock.lockers
            .retain(|_, info| info.expiration == Utime::default() || info.expiration >= now);
        Ok(lock)
    }

    fn write_lock(&mut self, name: &str, lock: &LockInfo) -> Result<()> {
        self.object.apply(Mutation::SetXattr(attribute(name), encoded(lock).into()))
    }

    fn remove_locker(&mut self, name: &str, id: &LockerId) -> Result<Vec<u8>> {
        let mut lock = self.read_lock(name)?;
        lock.lockers.remove(id).ok_or(Errno::NOENT)?;
        if lock.kind == LockType::EXCLUSIVE_EPHEMERAL {
            self.object.apply(Mutation::Remove)?;
        } else {
            self.write_lock(name, &lock)?;
        }
        Ok(NOTHING)
    }

    fn me(&self, cookie: String) -> LockerId {
        LockerId { client: self.object.caller().client, cookie }
    }

    /// The lock, if the caller has it in that way; else EBUSY.
    fn own_lock(&mut self, op: &AssertOp) -> Result<(LockInfo, LockerId)> {
        if !op.kind.is_valid() || op.name.is_empty() {
            return Err(Errno::INVAL.into());
        }
        let lock = self.read_lock(&op.name)?;
        let me = self.me(op.cookie.clone());
        let is_own = lock.kind == op.kind && lock.tag == op.tag && lock.lockers.contains_key(&me);
        if is_own { Ok((lock, me)) } else { Err(Errno::BUSY.into()) }
    }
}

fn lock(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let op: LockOp = call.input()?;
    let (may_renew, must_renew) = (op.flags & MAY_RENEW != 0, op.flags & MUST_RENEW != 0);
    if !op.kind.is_valid() || op.name.is_empty() || may_renew && must_renew {
        return Err(Errno::INVAL.into());
    }
    let mut lock = match call.read_lock(&op.name) {
        Err(error) if error.is_not_found() => LockInfo::default(),
        read => read?,
    };
    let Caller { client, addr } = call.object.caller();
    let id = LockerId { client, cookie: op.cookie };
    if !lock.lockers.is_empty() && op.tag != lock.tag {
        return Err(Errno::BUSY.into());
    }
    match lock.lockers.remove(&id) {
        Some(_) if !may_renew && !must_renew => return Err(Errno::EXIST.into()),
        None if must_renew => return Err(Errno::NOENT.into()),
        _ => {}
    }
    let shares = op.kind == LockType::SHARED && lock.kind == op.kind;
    if !lock.lockers.is_empty() && !shares {
        return Err(Errno::BUSY.into());
    }
    let mut expiration = Utime::default();
    if op.duration != Utime::default() {
        expiration = (call.object.now().duration() + op.duration.duration()).into();
    }
    (lock.kind, lock.tag) = (op.kind, op.tag);
    lock.lockers.insert(id, LockerInfo { expiration, addr, description: op.description });
    call.write_lock(&op.name, &lock)?;
    Ok(NOTHING)
}

fn unlock(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let op: UnlockOp = call.input()?;
    let me = call.me(op.cookie);
    call.remove_locker(&op.name, &me)
}

fn break_lock(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let op: BreakOp = call.input()?;
    call.remove_locker(&op.name, &LockerId { client: op.locker, cookie: op.cookie })
}

fn get_info(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let op: GetInfoOp = call.input()?;
    Ok(encoded(&call.read_lock(&op.name)?))
}

fn list_locks(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let names = call.object.xattr_names()?;
    let locks: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(PREFIX)).collect();
    let mut out = Writer::new();
    out.versioned(1, 1, |w| w.vec(&locks, |w, name| w.string(name)));
    Ok(out.into_bytes())
}

fn assert_locked(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let op = call.input()?;
    call.own_lock(&op)?;
    Ok(NOTHING)
}

fn set_cookie(call: &mut Call<'_>) -> Result<Vec<u8>> {
    let op: SetCookieOp = call.input()?;
    let SetCookieOp { name, kind, cookie, tag, new_cookie } = op;
    let (mut lock, me) = call.own_lock(&AssertOp { name: name.clone(), kind, cookie, tag })?;
    let renamed = LockerId { cookie: new_cookie, ..me.clone() };
    if lock.lockers.contains_key(&renamed) {
        return Err(Errno::BUSY.into());
    }
    let info = lock.lockers.remove(&me).ok_or(Errno::BUSY)?;
    lock.lockers.insert(renamed, info);
    call.write_lock(&name, &lock)?;
    Ok(NOTHING)
}
