//! The device as the guest's driver sees it: features and configuration space (virtio 1.3, section 5.11).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use blockyard_fs::FileSystem;
use blockyard_vhost_user::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use blockyard_vhost_user::wire::{F_PROTOCOL_FEATURES, MAX_CONFIG, ProtocolFeatures};
use blockyard_vhost_user_backend::{self as vhost_user, Backend, Error, ErrorKind, MAX_QUEUES};

use crate::connection::Connection;
use crate::queue::FsQueue;

/// Bytes of a tag (section 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;
/// Queues before those of requests: the one of high priority (section 5.11.2).
const OTHER_QUEUES: u16 = 1;
/// The most request queues.
pub const MAX_REQUEST_QUEUES: u16 = MAX_QUEUES - OTHER_QUEUES;
/// Where the number of request queues is in the configuration space.
const QUEUES_AT: usize = MAX_TAG_BYTES;

/// A file system on offer.
#[derive(Clone)]
pub struct Export {
    /// What is in it.
    pub fs: Arc<dyn FileSystem>,
    /// What guests mount it by. Without one, front-ends say that, as QEMU's does.
    pub tag: Option<String>,
    /// Request queues that a front-end may use, up to [`MAX_REQUEST_QUEUES`].
    pub queues: u16,
    /// Requests of each that are carried out at a time.
    pub threads: u16,
    /// How long a front-end that stops queues waits for requests that hang: so long it may do nothing else. `None`: as long
    /// as they take. Memory that the kernel has pinned for direct I/O (a directory on FUSE, 9P or SMB) cannot be taken from
    /// it: there, a request that is given up may still read or write the memory of a guest that was reset.
    pub stop_patience: Option<Duration>,
}

impl Export {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let config = |what| Err(Error::new(ErrorKind::Config, what));
        if !(1..=MAX_REQUEST_QUEUES).contains(&self.queues) {
            return config(format!("{} queues; use 1 to {MAX_REQUEST_QUEUES}", self.queues));
        }
        if self.threads == 0 {
            return config("no threads; use 1 or more".into());
        }
        let is_tag = |tag: &str| (1..=MAX_TAG_BYTES).contains(&tag.len()) && !tag.contains('\0');
        match &self.tag {
            Some(tag) if !is_tag(tag) => config(format!(
                "invalid tag {tag:?}: it has 1 to {MAX_TAG_BYTES} bytes, none of them NUL"
            )),
            _ => Ok(()),
        }
    }
}

/// The file system, with what its sessions and queues share.
pub(crate) struct Device {
    export: Export,
    pub(crate) backend: Arc<Backend>,
    pub(crate) connection: Connection,
}

impl Device {
    pub(crate) fn new(export: Export, backend: Arc<Backend>) -> Self {
        let connection = Connection::new(Arc::clone(&export.fs));
        Self { export, backend, connection }
    }
}

impl vhost_user::Device for Device {
    type Queue = FsQueue;

    fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    fn queues(&self) -> u16 {
        self.export.queues.saturating_add(OTHER_QUEUES)
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_PROTOCOL_FEATURES
    }

    /// No in-flight region: what a guest has asked for is not to be done twice, and a file that is open is not in there.
    fn protocol_features(&self) -> ProtocolFeatures {
        let features = ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::RESET_DEVICE
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if self.export.tag.is_some() { features | ProtocolFeatures::CONFIG } else { features }
    }

    /// `struct virtio_fs_config` (section 5.11.4).
    fn config(&self) -> [u8; MAX_CONFIG] {
        let mut space = [0; MAX_CONFIG];
        let tag = self.export.tag.as_deref().unwrap_or_default();
        let (tag_place, rest) = space.split_at_mut(QUEUES_AT);
        tag_place.iter_mut().zip(tag.bytes()).for_each(|(place, byte)| *place = byte);
        let queues = u32::from(self.export.queues).to_le_bytes();
        rest.iter_mut().zip(queues).for_each(|(place, byte)| *place = byte);
        space
    }

    fn make_queue(self: &Arc<Self>, index: u32) -> io::Result<FsQueue> {
        // FORGETs take no time.
        let threads = if index < OTHER_QUEUES.into() { 1 } else { self.export.threads };
        FsQueue::spawn(Arc::clone(self), index, threads)
    }

    fn stop_patience(&self) -> Option<Duration> {
        self.export.stop_patience
    }

    fn front_end_left(&self) {
        self.connection.reset();
    }
}

#[cfg(test)]
mod tests {
    use blockyard_fs::{Options, Passthrough};
    use vhost_user::{Device as _, Listener};

    use super::*;

    fn export(tag: Option<&str>, queues: u16) -> Export {
        let fs = Passthrough::new(std::path::Path::new("/"), Options::default()).unwrap();
        let tag = tag.map(str::to_owned);
        Export { fs: Arc::new(fs), tag, queues, threads: 1, stop_patience: None }
    }

    #[test]
    fn the_configuration_space_is_as_the_specification_has_it() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let backend = Backend::new(&Listener::from_fd(socket.into()).unwrap()).unwrap();
        let device = Device::new(export(Some("tree"), 3), Arc::clone(&backend));
        let space = device.config();
        assert_eq!(&space[..4], b"tree");
        assert_eq!(&space[4..36], [0; 32]);
        assert_eq!(&space[36..44], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(device.queues(), 4);
        assert!(device.protocol_features().contains(ProtocolFeatures::CONFIG));
        // QEMU has the tag itself then.
        let device = Device::new(export(None, 1), backend);
        assert!(!device.protocol_features().contains(ProtocolFeatures::CONFIG));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (tag, queues) in [(None, 1), (Some("t"), 255), (Some(&*"x".repeat(36)), 1)] {
            export(tag, queues).check().unwrap();
        }
        for (tag, queues) in
            [(None, 0), (None, 256), (Some(""), 1), (Some("a\0b"), 1), (Some(&*"x".repeat(37)), 1)]
        {
            assert_eq!(export(tag, queues).check().unwrap_err().kind(), ErrorKind::Config);
        }
    }
}
