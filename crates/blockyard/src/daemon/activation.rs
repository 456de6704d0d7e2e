//! Sockets that systemd made and passed (`sd_listen_fds(3)`).

use std::os::fd::OwnedFd;

use blockyard_export_nbd::Listener;
use listenfd::ListenFd;

use crate::error::{Error, Result};

/// Families of sockets that can listen, as `sys/socket.h` numbers them: unix, inet (inet6 too), vsock.
const FAMILIES: [i32; 3] = [1, 2, 40];
/// `SOCK_STREAM`.
const STREAM: i32 = 1;

/// What was passed to this process. Take it before there are threads: it takes the variables out of the
/// environment.
pub struct Passed(ListenFd);

impl Passed {
    /// Takes what was passed.
    #[must_use]
    pub fn take() -> Self {
        Self(ListenFd::from_env())
    }

    /// Nothing, whatever was passed.
    #[must_use]
    pub fn none() -> Self {
        Self(ListenFd::empty())
    }

    /// How many sockets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub(crate) fn listeners(mut self) -> Result<Vec<Listener>> {
        if self.is_empty() {
            let help = "start the daemon from a socket unit (systemd.socket(5))";
            return Err(
                Error::usage("no sockets passed by systemd (LISTEN_FDS is not set)").help(help)
            );
        }
        (0..self.0.len()).map(|index| self.listener(index)).collect()
    }

    fn listener(&mut self, index: usize) -> Result<Listener> {
        let mut problem = None;
        for family in FAMILIES {
            match self.0.take_custom::<OwnedFd>(index, family, STREAM, "stream socket") {
                Ok(Some(fd)) => {
                    return Listener::from_fd(fd).map_err(|err| {
                        Error::failed("cannot use a socket passed by systemd").caused_by(err)
                    });
                }
                Ok(None) => {}
                Err(err) => problem = Some(err),
            }
        }
        let error =
            Error::failed(format!("socket {index} passed by systemd is not a stream socket"))
                .help("use ListenStream= in the .socket unit");
        Err(match problem {
            Some(problem) => error.caused_by(problem),
            None => error,
        })
    }
}
