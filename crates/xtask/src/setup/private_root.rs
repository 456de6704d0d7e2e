//! Debian packages in a root of their own under the build directory.
//!
//! The system stays as it is: apt works out with lists of its own which packages are needed beyond what is
//! installed, downloads them, and they are unpacked. Small scripts run their programs with their libraries.

use super::apt;
use crate::run::{capture, run};
use anyhow::{Context, Result, bail};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A private root: `root/` holds the packages, `bin/` the scripts that run their programs.
#[derive(Debug)]
pub(super) struct PrivateRoot {
    dir: PathBuf,
    /// The suite that newer packages come from, `bookworm-backports` for one.
    backports: String,
}

impl PrivateRoot {
    /// An empty root in `dir`, whatever was there, and with lists of packages that are up to date: those of the running
    /// release and its backports.
    ///
    /// # Errors
    /// The release or its archive is not known, the archive is out of reach, the disk is full.
    pub(super) fn create(dir: &Path) -> Result<Self> {
        let (source, release) = apt::archive()?;
        let backports = format!("{release}-backports");
        Self::with_suites(dir, &source, &[&release, &backports])
    }

    /// As [`PrivateRoot::create`], with the backports of another release alone, from the same archive.
    ///
    /// # Errors
    /// As there.
    pub(super) fn create_of(dir: &Path, release: &str) -> Result<Self> {
        let (source, _) = apt::archive()?;
        Self::with_suites(dir, &source, &[&format!("{release}-backports")])
    }

    /// The last of the suites is where newer packages come from.
    fn with_suites(dir: &Path, source: &apt::Source, suites: &[&str]) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        for part in ["lists/partial", "cache/archives/partial", "bin", "root"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let lines: String = suites.iter().map(|suite| source.line(suite) + "\n").collect();
        fs::write(dir.join("sources.list"), lines)?;
        let backports = suites.last().map(|&suite| suite.to_owned()).unwrap_or_default();
        let this = Self { dir: dir.to_owned(), backports };
        run(this.apt("apt-get").args(["update", "-qq"]))?;
        Ok(this)
    }

    /// Where the packages are unpacked.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Fetches packages, those of `newer` from the backports, and what they need that the system does not have.
    ///
    /// # Errors
    /// A package does not exist, or cannot be fetched.
    pub(super) fn fetch(&self, newer: &[&str], stable: &[&str]) -> Result<()> {
        let mut command = self.apt("apt-get");
        command.args(["install", "--download-only", "--reinstall", "--no-install-recommends"]);
        command.args(["-y", "-qq"]).args(newer.iter().map(|name| self.newer(name)));
        run(command.args(stable))?;
        self.unpack(&self.dir.join("cache/archives"))
    }

    /// Fetches the kernel that a package of the backports stands for, and nothing that it needs.
    ///
    /// # Errors
    /// It stands for none, or that cannot be fetched.
    pub(super) fn fetch_kernel(&self, name: &str) -> Result<()> {
        const IMAGE: &str = "linux-image-";
        let behind = self.depends(&self.newer(name))?;
        let Some(image) = behind.iter().find(|package| package.starts_with(IMAGE)) else {
            bail!("{name} stands for no kernel, but for {}", behind.join(", "));
        };
        let version = &image[IMAGE.len()..];
        // Of newer ones, the image and the modules are packages of their own.
        let mut packages = self.depends(image)?;
        packages.retain(|package| package.starts_with("linux-") && package.ends_with(version));
        packages.push(image.clone());
        let archives = self.dir.join("cache/archives");
        let mut download = self.apt("apt-get");
        run(download.args(["download", "-qq"]).args(&packages).current_dir(&archives))?;
        self.unpack(&archives)?;
        self.place_kernel(version)
    }

    /// Newer ones have all below `usr/lib/modules/VERSION`.
    fn place_kernel(&self, version: &str) -> Result<()> {
        let root = self.root();
        let (boot, modules) = (root.join("boot"), root.join("lib/modules"));
        let newer = root.join("usr/lib/modules");
        if !modules.exists() {
            fs::create_dir_all(root.join("lib"))?;
            fs::rename(newer, &modules).context("there are no modules of the kernel")?;
        }
        let image = boot.join(format!("vmlinuz-{version}"));
        if !image.exists() {
            fs::create_dir_all(boot)?;
            fs::rename(modules.join(version).join("vmlinuz"), image)
                .context("there is no image of the kernel")?;
        }
        Ok(())
    }

    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let said = capture(self.apt("apt-cache").args(["depends", "-i", package]))?;
        let names = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    /// A script in `bin/` that runs a program of the root with the root's libraries.
    ///
    /// # Errors
    /// The script cannot be written.
    pub(super) fn write_wrapper(&self, program: &str, args: &[String]) -> Result<()> {
        let root = self.root();
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        let libraries = [root.join("usr/lib").join(&triplet), root.join("lib").join(&triplet)];
        let libraries: Vec<_> = libraries.iter().map(|path| path.display().to_string()).collect();
        let args: String = args.iter().map(|arg| format!(" '{arg}'")).collect();
        let script = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}'{args} \"$@\"\n",
            libraries.join(":"),
            root.join("usr/bin").join(program).display()
        );
        let path = self.dir.join("bin").join(program);
        fs::write(&path, script)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot set up {}", path.display()))
    }

    /// Removes what only fetching needs.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub(super) fn finish(self) -> Result<()> {
        fs::remove_dir_all(self.dir.join("cache"))?;
        Ok(fs::remove_dir_all(self.dir.join("lists"))?)
    }

    fn newer(&self, name: &str) -> String {
        format!("{name}/{}", self.backports)
    }

    /// Unpacks the packages of a folder into the root, and removes them.
    fn unpack(&self, archives: &Path) -> Result<()> {
        for entry in fs::read_dir(archives)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg").arg("-x").args([&file, &self.root()]))?;
                fs::remove_file(&file)?;
            }
        }
        Ok(())
    }

    /// A program of apt with sources, lists and cache of its own, but the system's list of what is installed.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.dir.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::State::Lists", self.dir.join("lists")),
            ("Dir::Cache", self.dir.join("cache")),
            ("Debug::NoLocking", PathBuf::from("true")),
            ("APT::Sandbox::User", PathBuf::from("root")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}
