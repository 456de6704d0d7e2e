//! `blockyard image`, and disks in images of a store in a directory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod advice;
#[path = "../common/mod.rs"]
mod common;
mod disks;
mod images;
mod streams;
mod unfinished;

use std::path::{Path, PathBuf};

use common::{Said, blockyard};
use tempfile::TempDir;

/// A directory with a store.
struct Yard {
    dir: TempDir,
}

impl Yard {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// The URI of an image.
    fn uri(&self, image: &str) -> String {
        format!("rbd+dir:{}/{image}", self.store().display())
    }

    /// `blockyard image --dir STORE ...`.
    fn try_image(&self, args: &[&str]) -> Said {
        let mut command = blockyard(&self.path("run"));
        command.current_dir(self.dir.path()).arg("image").arg("--dir").arg(self.store());
        Said::of(&command.args(args).output().unwrap())
    }

    /// The same, which must succeed: what it prints.
    #[track_caller]
    fn image(&self, args: &[&str]) -> String {
        let said = self.try_image(args);
        said.code(0);
        said.out
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> serde_json::Value {
        let said = self.try_image(&[args, &["--json"]].concat());
        said.code(0).json()
    }

    /// `blockyard ...`.
    fn run(&self, args: &[&str]) -> Said {
        let mut command = blockyard(&self.path("run"));
        Said::of(&command.current_dir(self.dir.path()).args(args).output().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The bytes of an image or a snapshot, by `image export`.
    #[track_caller]
    fn bytes(&self, image: &str) -> Vec<u8> {
        let path = self.path("exported");
        self.image(&["export", image, path.to_str().unwrap()]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        bytes
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
