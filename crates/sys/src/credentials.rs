//! Making files for somebody else, and no more rights for that than it takes (setfsuid(2), credentials(7), capabilities(7)).

use std::io;
use std::marker::PhantomData;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
};

/// What serving files for others takes. Not `CAP_SYS_RESOURCE`: who has that is bound by no quota.
const SERVING: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

/// From now on the calling thread, and each that it starts, uses only those of its rights that serving files takes. Who may
/// access all files and act for others is of no further groups: they would count as those of whom it acts for.
///
/// # Errors
/// What the system says.
pub fn use_rights_to_files_only() -> io::Result<()> {
    let before = capabilities(None)?;
    let effective = before.effective.intersection(SERVING);
    if effective.contains(CapabilitySet::DAC_OVERRIDE | CapabilitySet::SETGID) {
        set_thread_groups(&[])?;
    }
    Ok(set_capabilities(None, CapabilitySets { effective, ..before })?)
}

/// As long as it lives, files that the calling thread makes belong to another user. What the thread may do stays what it is,
/// but for what [`act_for`] says.
#[derive(Debug)]
#[must_use]
pub struct ActingFor {
    user_before: u32,
    group_before: u32,
    before: CapabilitySets,
    /// It is of the thread that has made it.
    _thread: PhantomData<*const ()>,
}

/// Has the calling thread make files for that user and group. The kernel takes from who does so what root may do to files, which
/// is given back here: whether the user may is asked by others. Nobody else asks whether he is of the group whose set-group-ID bit
/// he wants, which may be that of the directory: so `CAP_FSETID` is given back for root only, as nobody else has it.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] without `CAP_SETUID` and `CAP_SETGID`.
pub fn act_for(user: u32, group: u32) -> io::Result<ActingFor> {
    let before = capabilities(None)?;
    let acting = ActingFor {
        group_before: set_group(group),
        user_before: set_user(user),
        before,
        _thread: PhantomData,
    };
    // What they return is what was before, also where nothing was changed.
    if set_user(user) != user || set_group(group) != group {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut effective = before.effective;
    if user != 0 {
        effective.remove(CapabilitySet::FSETID);
    }
    set_capabilities(None, CapabilitySets { effective, ..before })?;
    Ok(acting)
}

impl Drop for ActingFor {
    fn drop(&mut self) {
        // What a thread was, it may always be again.
        set_user(self.user_before);
        set_group(self.group_before);
        let _ = set_capabilities(None, self.before);
    }
}

fn set_user(user: u32) -> u32 {
    // SAFETY: no memory is involved, and only the calling thread changes.
    unsafe { libc::setfsuid(user) }.cast_unsigned()
}

fn set_group(group: u32) -> u32 {
    // SAFETY: as above.
    unsafe { libc::setfsgid(group) }.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_of_whom_they_are_made_for_and_the_thread_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        // One that nobody but its owner may write to.
        let made = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            let found = std::fs::metadata(&path).unwrap();
            (found.uid(), found.gid())
        };
        let (own, before) = (made("own"), capabilities(None).unwrap());
        if own.0 != 0 {
            let refused = act_for(own.0 + 1, own.1).map(drop).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        let acting = act_for(1234, 2345).unwrap();
        assert_eq!(made("his"), (1234, 2345));
        let acting_with = capabilities(None).unwrap().effective;
        assert_eq!(acting_with | CapabilitySet::FSETID, before.effective);
        assert!(!acting_with.contains(CapabilitySet::FSETID));
        let others = std::thread::scope(|scope| scope.spawn(|| made("other")).join().unwrap());
        assert_eq!(others, (1234, 2345), "a thread that it starts is as it is");
        drop(acting);
        assert_eq!(made("again"), own);
        assert_eq!(capabilities(None).unwrap(), before);
        let acting = act_for(0, 2345).unwrap();
        assert_eq!(capabilities(None).unwrap(), before, "root of a group");
        drop(acting);
    }
}
