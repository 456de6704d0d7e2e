//! The root of a guest, which lives in memory.

use super::Error;
use super::cpio::Archive;
use super::places::Places;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const INIT: &str = include_str!("init.sh");
const LIBRARY: &str = include_str!("lab.sh");
/// Where administration programs are, which the search path of a user may lack.
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The archive that the kernel unpacks.
#[derive(Debug)]
pub(super) struct Initramfs<'a> {
    places: &'a Places,
    archive: Archive,
}

impl<'a> Initramfs<'a> {
    /// A root with busybox and the script.
    pub(super) fn new(places: &'a Places, script: &str) -> Result<Self, Error> {
        let mut this = Self { places, archive: Archive::default() };
        for directory in ["dev", "etc", "mnt", "modules", "proc", "run", "sys", "tmp", "var"] {
            this.archive.directory(directory);
        }
        this.add_file("bin/busybox", &places.busybox())?;
        this.archive.symlink("bin/sh", "busybox");
        this.archive.file("init", 0o755, INIT.as_bytes());
        this.archive.file("lab.sh", 0o644, LIBRARY.as_bytes());
        this.archive.file("script", 0o644, script.as_bytes());
        Ok(this)
    }

    /// A file of the host.
    pub(super) fn add_file(&mut self, guest_path: &str, host_path: &Path) -> Result<(), Error> {
        let content = fs::read(host_path).map_err(Error::reading(host_path))?;
        let metadata = fs::metadata(host_path).map_err(Error::reading(host_path))?;
        self.archive.file(guest_path, metadata.permissions().mode(), &content);
        Ok(())
    }

    /// A program, and the libraries that it names.
    pub(super) fn add_program(&mut self, program: &str) -> Result<(), Error> {
        let path = find_program(program)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.add_file(&format!("bin/{name}"), &path)?;
        // It says "not a dynamic executable", and fails, when there is nothing to say.
        let said = output(Command::new("ldd").arg(&path))?;
        for library in libraries(&String::from_utf8_lossy(&said.stdout)) {
            if !self.archive.has(library) {
                self.add_file(library, Path::new(library))?;
            }
        }
        Ok(())
    }

    /// Modules of the kernel in the order in which they are loaded, each after those that it needs.
    pub(super) fn add_modules(&mut self, names: &[String]) -> Result<(), Error> {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            for file in self.load_order(name)? {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        for (index, file) in files.iter().enumerate() {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let name = name.strip_suffix(".xz").unwrap_or(&name);
            let content = module_bytes(file)?;
            self.archive.file(&format!("modules/{index:03}-{name}"), 0o644, &content);
        }
        Ok(())
    }

    /// The bytes of the archive.
    pub(super) fn finish(self) -> Vec<u8> {
        self.archive.finish()
    }

    /// What modprobe would load for a module; nothing if it is built in.
    fn load_order(&self, name: &str) -> Result<Vec<PathBuf>, Error> {
        let mut modprobe = Command::new("modprobe");
        modprobe.env("PATH", search_path()).arg("-d").arg(&self.places.kernel_root);
        let said = output(modprobe.args(["-S", &self.places.version, "--show-depends", name]))?;
        if !said.status.success() {
            let reason = String::from_utf8_lossy(&said.stderr).trim().to_owned();
            return Err(Error::Missing {
                what: format!("there is no module {name}: {reason}"),
                remedy: "name one of the kernel's, without its suffix",
            });
        }
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let files = text.lines().filter_map(|line| line.strip_prefix("insmod ")?.split(' ').next());
        Ok(files.map(PathBuf::from).collect())
    }
}

fn search_path() -> String {
    format!("{}:{SYSTEM_PATH}", std::env::var("PATH").unwrap_or_default())
}

fn find_program(program: &str) -> Result<PathBuf, Error> {
    let path = search_path();
    let found = if program.contains('/') {
        Some(PathBuf::from(program)).filter(|path| path.is_file())
    } else {
        path.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
    };
    found.ok_or_else(|| Error::no_lab(format!("the program {program} is missing")))
}

fn module_bytes(file: &Path) -> Result<Vec<u8>, Error> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).map_err(Error::reading(file));
    }
    let said = output(Command::new("xz").arg("-dc").arg(file))?;
    if !said.status.success() {
        return Err(Error::no_lab(format!("{} is damaged", file.display())));
    }
    Ok(said.stdout)
}

/// The paths in what ldd says: `name => /path (address)`, or `/path (address)` for the loader.
fn libraries(said: &str) -> Vec<&str> {
    said.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .collect()
}

fn output(command: &mut Command) -> Result<Output, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.output().map_err(Error::host(format!("cannot start {program}; run: cargo xtask setup")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_a_program() {
        let said = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(said),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = find_program("blockyard-none").unwrap_err().to_string();
        assert!(error.contains("blockyard-none") && error.contains("cargo xtask setup"), "{error}");
        assert!(find_program("/nowhere/blockyard-none").is_err());
        assert!(find_program("sh").is_ok());
    }
}
