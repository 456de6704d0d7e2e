//! What a daemon is to do, checked: names are given and unique, every export has its disk.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use blockyard_export_nbd::{Address, ServerLimits, TlsIdentity};

use crate::disks::{DiskPlan, throttle};
use crate::error::{Error, Result};
use crate::exports::ExportPlan;
use crate::yard::queue_threads::QueueThreads;

/// The most queue threads.
pub const MAX_THREADS: usize = 256;

/// When TLS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsUse {
    /// Never.
    #[default]
    Off,
    /// If the client asks for it.
    Allow,
    /// By all.
    Require,
}

/// Where and how NBD is spoken.
#[derive(Clone, Debug, Default)]
pub struct NbdPlan {
    /// Addresses to listen at.
    pub listen: Vec<Listen>,
    /// Take the sockets that systemd passes.
    pub systemd: bool,
    /// The permissions of socket files.
    pub socket_mode: Option<u32>,
    /// When TLS is spoken, and the files for it.
    pub tls: Option<(TlsUse, TlsIdentity)>,
    /// What clients may cost.
    pub limits: ServerLimits,
    /// The export of clients that name none.
    pub default_export: Option<String>,
}

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub address: Address,
    /// Take another free port if this one is in use.
    pub or_another_port: bool,
}

impl From<Address> for Listen {
    fn from(address: Address) -> Self {
        Self { address, or_another_port: false }
    }
}

/// What a daemon is to do.
#[derive(Clone, Debug)]
pub struct YardPlan {
    /// The disks, each with a name of its own.
    pub disks: Vec<DiskPlan>,
    /// What is done with them, each with a name that no other of its kind has.
    pub exports: Vec<ExportPlan>,
    /// Where and how NBD is spoken.
    pub nbd: NbdPlan,
    /// Where metrics are served over TCP.
    pub metrics: Vec<SocketAddr>,
    /// Queue threads.
    pub threads: usize,
    /// How long the end may take.
    pub grace: Duration,
    /// The file that says all this.
    pub file: Option<PathBuf>,
}

impl YardPlan {
    /// How long the end may take, unless told otherwise.
    pub const GRACE: Duration = Duration::from_secs(10);

    /// Those disks, nothing on offer yet.
    ///
    /// # Errors
    /// Two disks have the same name, or say different limits of their group, or there are none.
    pub fn new(mut disks: Vec<DiskPlan>) -> Result<Self> {
        if disks.is_empty() {
            return Err(Error::usage("no disk given").help("name one, e.g. ram:1G"));
        }
        name_disks(&mut disks)?;
        if let Some((_, what)) = throttle::conflict(&disks) {
            return Err(Error::usage(what).help(throttle::CONFLICT_REMEDY));
        }
        Ok(Self::of(disks))
    }

    fn of(disks: Vec<DiskPlan>) -> Self {
        Self {
            disks,
            exports: Vec::new(),
            nbd: NbdPlan::default(),
            metrics: Vec::new(),
            threads: QueueThreads::default_count(),
            grace: Self::GRACE,
            file: None,
        }
    }

    /// An export that serves no disk, and nothing else.
    #[must_use]
    pub fn alone(export: ExportPlan) -> Self {
        // No servers of disks need their half of the time.
        let grace = 2 * Self::GRACE;
        Self { exports: vec![export], threads: 1, grace, ..Self::of(Vec::new()) }
    }

    /// The disk of that name.
    #[must_use]
    pub fn disk(&self, name: &str) -> Option<&DiskPlan> {
        self.disks.iter().find(|disk| disk.options.name.as_deref() == Some(name))
    }

    /// The name of the `index`-th disk.
    #[must_use]
    pub fn disk_name(&self, index: usize) -> &str {
        self.disks.get(index).and_then(|disk| disk.options.name.as_deref()).unwrap_or("")
    }
}

/// Gives a name to each disk that has none, different from all others.
///
/// # Errors
/// Two were given the same name.
pub fn name_disks(disks: &mut [DiskPlan]) -> Result<()> {
    let mut taken = BTreeSet::new();
    for disk in disks.iter() {
        if let Some(name) = &disk.options.name
            && !taken.insert(name.clone())
        {
            return Err(Error::usage(format!("two disks are named {name:?}"))
                .help("choose another name, e.g. ram:1G?name=scratch"));
        }
    }
    for disk in disks.iter_mut().filter(|disk| disk.options.name.is_none()) {
        let wanted = disk.default_name(0);
        let stem = wanted.strip_suffix('0').unwrap_or(&wanted).to_owned();
        let numbered = (0..).map(|index: usize| format!("{stem}{index}"));
        let name = std::iter::once(wanted).chain(numbered).find(|name| !taken.contains(name));
        taken.extend(name.clone());
        disk.options.name = name;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(uris: &[&str]) -> Vec<DiskPlan> {
        uris.iter().map(|uri| uri.parse().unwrap()).collect()
    }

    #[test]
    fn every_disk_gets_a_name_of_its_own() {
        let uris = ["ram:1M", "ram:1M", "ram:1M?name=ram1", "/a/disk.img", "/b/disk.img"];
        let plan = YardPlan::new(disks(&uris)).unwrap();
        let names: Vec<_> = (0..5).map(|index| plan.disk_name(index)).collect();
        assert_eq!(names, ["ram0", "ram2", "ram1", "disk", "disk0"]);
        let twice = YardPlan::new(disks(&["ram:1M?name=a", "null:1M?name=a"])).unwrap_err();
        assert!(twice.to_string().contains("two disks are named \"a\""));
        let limits = disks(&["ram:1M?throttle_group=g&iops=1", "ram:1M?throttle_group=g&iops=2"]);
        let two = YardPlan::new(limits).unwrap_err();
        assert!(two.to_string().contains("say different iops"), "{two}");
        assert!(YardPlan::new(Vec::new()).is_err());
    }
}
