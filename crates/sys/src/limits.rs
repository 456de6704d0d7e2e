//! Limits of processes (getrlimit(2)) that a command starts with, whatever ours are.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Has a command start with a limit of its own. If that may not be set, it does not start.
pub fn start_with(command: &mut Command, resource: Resource, limit: Rlimit) {
    let set = move || Ok(setrlimit(resource, limit)?);
    // SAFETY: between fork and exec there is one thread, which may hold a lock that nobody lets go of any more: `set` takes
    // none, and allocates nothing. It is a system call.
    unsafe { command.pre_exec(set) };
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    #[test]
    fn a_command_has_its_own_limit() {
        let ours = getrlimit(Resource::Nofile);
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -Sn"]);
        start_with(&mut command, Resource::Nofile, Rlimit { current: Some(77), ..ours });
        let said = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "77\n");
        assert_eq!(getrlimit(Resource::Nofile), ours);
    }
}
