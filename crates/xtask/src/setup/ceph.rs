//! Ceph of another Debian suite, in a root of its own under the build directory: clusters of a newer release on the
//! same machine.

use super::apt;
use crate::paths;
use crate::run::{capture, run};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: &str = "ceph-mon,ceph-osd,ceph-mgr,ceph-common";
/// The programs that clusters and their tests start.
const PROGRAMS: &[&str] = &[
    "ceph",
    "ceph-authtool",
    "ceph-mon",
    "ceph-mgr",
    "ceph-osd",
    "crushtool",
    "monmaptool",
    "osdmaptool",
    "rados",
    "rbd",
];

/// The directory of Ceph's programs from a suite (`trixie`, `sid`), which are fetched if they are not there.
///
/// # Errors
/// The suite does not exist, its packages cannot be fetched, or its Ceph does not start.
pub(crate) fn ensure_from(suite: &str) -> Result<PathBuf> {
    ensure!(
        !suite.is_empty() && suite.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
        "unknown Debian suite `{suite}`; try `trixie` or `sid`"
    );
    let dir = paths::tools().join("ceph").join(suite);
    let programs = dir.join("bin");
    let version = || capture(Command::new(programs.join("ceph")).arg("--version"));
    if version().is_err() {
        eprintln!("setup: fetching Ceph of {suite}, some 700 MB");
        fetch(suite, &dir).with_context(|| format!("cannot fetch Ceph of {suite}"))?;
    }
    match version() {
        Ok(version) => eprintln!("setup: {}", version.trim_end()),
        Err(error) => bail!("remove {} and try again: {error:#}", dir.display()),
    }
    Ok(programs)
}

fn fetch(suite: &str, dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let root = dir.join("root");
    let programs = dir.join("bin");
    fs::create_dir_all(&programs)?;
    let (source, _) = apt::archive()?;
    apt::install(&["mmdebstrap"])?;
    let mut command = Command::new("mmdebstrap");
    // A mirror of the moving suites may stand still for weeks; its signatures are checked all the same.
    command.args(["--quiet", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until \"false\""]);
    command.arg(format!("--include={PACKAGES}")).arg(suite).arg(&root).arg(&source.uri);
    run(&mut command)?;
    for program in PROGRAMS {
        let path = programs.join(program);
        fs::write(&path, wrapper(&root, program))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A script that runs a program in the root, with this machine's devices, processes and temporary files. The mounts are
/// seen by the program alone, and go with it.
fn wrapper(root: &Path, program: &str) -> String {
    // Packages of newer releases name a directory that depends on where the daemon was started.
    let classes = format!("/usr/lib/{}-linux-gnu/rados-classes", std::env::consts::ARCH);
    let args =
        if program == "ceph-osd" { format!(" --osd-class-dir={classes}") } else { String::new() };
    format!(
        "#!/bin/sh\nexport temporary=\"${{TMPDIR:-/tmp}}\"\nexec unshare --mount sh -ec '\n\
         root=$0\nmkdir -p \"$root$temporary\"\n\
         for part in /dev /proc \"$temporary\"; do mount --rbind \"$part\" \"$root$part\"; done\n\
         exec chroot \"$root\" \"$@\"' '{}' {program}{args} \"$@\"\n",
        root.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_suite_is_refused() {
        for suite in ["", "../x", "Sid", "a b"] {
            let error = ensure_from(suite).unwrap_err().to_string();
            assert!(error.contains("trixie"), "{error}");
        }
    }

    #[test]
    fn a_program_of_a_root_sees_this_machine_s_files_and_leaves_no_mount() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for part in ["bin", "dev", "proc"] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        let shell = paths::tools().join("lab/root/bin/busybox");
        fs::copy(&shell, root.join("bin/cat")).unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo xtask setup` fetches it", shell.display())
        });
        let script = dir.path().join("cat");
        fs::write(&script, wrapper(&root, "cat")).unwrap();
        fs::write(dir.path().join("text"), "seen").unwrap();
        let text = dir.path().join("text").display().to_string();
        let seen =
            capture(Command::new("sh").arg(&script).args([&text, "/proc/self/comm"])).unwrap();
        assert_eq!(seen, "seencat\n");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&root.display().to_string()), "{mounts}");
    }
}
