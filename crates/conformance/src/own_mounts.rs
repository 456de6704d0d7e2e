//! Tests that mount: each in a process and a mount namespace of its own, so that its mounts go with it, however it ends.

use std::process::{Command, Stdio};

/// Set for a test that is in a namespace of its own already.
const INSIDE: &str = "BLOCKYARD_TEST_OWN_MOUNTS";

/// At the start of a test that mounts anything: the rest of it runs in a mount namespace that nobody else is in. When the test
/// binary is killed, so is that process, and the kernel takes the mounts away with the namespace.
#[macro_export]
macro_rules! in_own_mounts {
    () => {
        fn here() {}
        if $crate::ran_in_own_mounts(std::any::type_name_of_val(&here)) {
            return;
        }
    };
}

/// Runs the test around the function of that name, unless this is the process for it; says whether it did.
///
/// # Panics
/// If the test has failed there.
#[must_use]
#[track_caller]
pub fn ran_in_own_mounts(function: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    // CRATE::MODULE::TEST::here.
    let test = function.split_once("::").and_then(|(_, rest)| rest.rsplit_once("::"));
    let test = test.map_or(function, |(test, _)| test);
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("setpriv");
    // What it has mounted below this directory is gone when it has ended, and only then can the directory be removed.
    let dir = tempfile::tempdir().unwrap();
    command.env("TMPDIR", dir.path());
    // The signal comes when the thread ends that has started it, which waits for it here.
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--"]);
    command.arg(program).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|err| panic!("setpriv: {err}; run: cargo xtask setup"));
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    let ran = output.status.success() && said.contains("test result: ok. 1 passed");
    assert!(ran, "{test}, in mounts of its own: {}\n{said}\n{told}", output.status);
    // A seed, say.
    print!("{said}");
    dir.close().unwrap_or_else(|err| panic!("{test} has left something behind: {err}"));
    true
}
