//! Calls that signals interrupt.

use std::io;

/// So often a call is made that is interrupted each time. No signals come so fast: who says so is the server of a file (FUSE),
/// which may never say anything else.
const MOST_CALLS: usize = 100;

/// Makes a call until it is not interrupted.
///
/// # Errors
/// Those of the call; [`io::ErrorKind::Interrupted`] only if it says that each time.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..MOST_CALLS {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_made_again_if_it_was_interrupted_but_not_for_ever() {
        let call = |interrupted: usize, end: fn() -> io::Result<u8>| {
            let mut calls = 0;
            let result = uninterrupted(|| {
                calls += 1;
                if calls > interrupted { end() } else { Err(io::ErrorKind::Interrupted.into()) }
            });
            (result.map_err(|err| err.kind()), calls)
        };
        assert_eq!(call(0, || Ok(1)), (Ok(1), 1));
        assert_eq!(call(5, || Ok(1)), (Ok(1), 6));
        let refuse = || Err(io::ErrorKind::StorageFull.into());
        assert_eq!(call(2, refuse), (Err(io::ErrorKind::StorageFull), 3));
        let end = (Err(io::ErrorKind::Interrupted), MOST_CALLS);
        assert_eq!(call(usize::MAX, || Ok(1)), end);
    }
}
