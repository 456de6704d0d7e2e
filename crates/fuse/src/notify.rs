//! Notifications: what a server tells without being asked.

use crate::error::{Error, ErrorKind, Message, Result};
use crate::request::{List, Name, Payload};
use crate::wire::*;

/// What a server tells its client.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notification<'a> {
    /// The file of the POLL with this handle is worth polling again.
    Poll {
        /// The handle.
        kh: u64,
    },
    /// Attributes, or data too, of a node have changed.
    InvalInode(NotifyInvalInode),
    /// A name has changed.
    InvalEntry {
        /// The directory.
        parent: u64,
        /// The name.
        name: Name<'a>,
        /// How.
        flags: InvalEntryFlags,
    },
    /// A name was removed.
    Delete {
        /// The directory.
        parent: u64,
        /// The node that had it.
        child: u64,
        /// The name.
        name: Name<'a>,
    },
    /// Data for the client's cache.
    Store {
        /// The node.
        nodeid: u64,
        /// Where.
        offset: u64,
        /// What.
        data: Payload<'a>,
    },
    /// Asks for data of the client's cache, which come as a NOTIFY_REPLY.
    Retrieve(NotifyRetrieveOut),
    /// Asks for all requests again that have no reply yet.
    Resend,
    /// All entries are to be looked up again.
    IncEpoch,
    /// Asks to forget these nodes if nobody uses them.
    Prune(List<'a, u64>),
}

impl<'a> Notification<'a> {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> NotifyCode {
        match self {
            Self::Poll { .. } => NotifyCode::Poll,
            Self::InvalInode(_) => NotifyCode::InvalInode,
            Self::InvalEntry { .. } => NotifyCode::InvalEntry,
            Self::Delete { .. } => NotifyCode::Delete,
            Self::Store { .. } => NotifyCode::Store,
            Self::Retrieve(_) => NotifyCode::Retrieve,
            Self::Resend => NotifyCode::Resend,
            Self::IncEpoch => NotifyCode::IncEpoch,
            Self::Prune(_) => NotifyCode::Prune,
        }
    }

    /// Appends it, but for data that lie elsewhere.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        OutHeader { len: 0, error: self.code() as i32, unique: 0 }.write(out);
        let mut elsewhere = 0;
        match self {
            Self::Poll { kh } => kh.write(out),
            Self::InvalInode(args) => args.write(out),
            Self::InvalEntry { parent, name, flags } => {
                let namelen = len32(name.bytes().len());
                NotifyInvalEntryOut { parent: *parent, namelen, flags: *flags }.write(out);
                out.extend_from_slice(name.bytes());
                out.push(0);
            }
            Self::Delete { parent, child, name } => {
                let namelen = len32(name.bytes().len());
                NotifyDeleteOut { parent: *parent, child: *child, namelen }.write(out);
                out.extend_from_slice(name.bytes());
                out.push(0);
            }
            Self::Store { nodeid, offset, data } => {
                let size = len32(data.len());
                NotifyStoreOut { nodeid: *nodeid, offset: *offset, size }.write(out);
                out.extend_from_slice(data.here);
                elsewhere = data.elsewhere;
            }
            Self::Retrieve(args) => args.write(out),
            Self::Resend | Self::IncEpoch => {}
            Self::Prune(nodes) => {
                NotifyPruneOut { count: len32(nodes.len()) }.write(out);
                nodes.iter().for_each(|node| node.write(out));
            }
        }
        let len = len32(out.len() - start + elsewhere);
        if let Some(place) = out.get_mut(start..start + size_of::<u32>()) {
            place.copy_from_slice(&len.to_le_bytes());
        }
    }

    /// Parses a message whose header was found to have the `unique` 0.
    ///
    /// # Errors
    /// An unknown code, or what is wrong with it.
    pub fn parse(bytes: &'a [u8], elsewhere: usize) -> Result<Self> {
        let header = crate::Reply::header(bytes, elsewhere)?;
        let code = NotifyCode::new(header.error).filter(|_| header.unique == 0);
        let Some(code) = code else {
            let which = Message::Notification(header.error);
            return Err(Error::new(which, ErrorKind::UnknownOpcode));
        };
        let reader = Reader::new(bytes.get(OutHeader::LEN..).unwrap_or(&[]));
        let mut body = Body { code, reader, elsewhere };
        let notification = body.notification()?;
        match body.reader.len() + body.elsewhere {
            0 => Ok(notification),
            left => Err(body.error(ErrorKind::Trailing(left))),
        }
    }
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

struct Body<'a> {
    code: NotifyCode,
    reader: Reader<'a>,
    elsewhere: usize,
}

impl<'a> Body<'a> {
    fn notification(&mut self) -> Result<Notification<'a>> {
        Ok(match self.code {
            NotifyCode::Poll => Notification::Poll { kh: self.value()? },
            NotifyCode::InvalInode => Notification::InvalInode(self.value()?),
            NotifyCode::InvalEntry => {
                let NotifyInvalEntryOut { parent, namelen, flags } = self.value()?;
                Notification::InvalEntry { parent, name: self.name(namelen)?, flags }
            }
            NotifyCode::Delete => {
                let NotifyDeleteOut { parent, child, namelen } = self.value()?;
                Notification::Delete { parent, child, name: self.name(namelen)? }
            }
            NotifyCode::Store => {
                let NotifyStoreOut { nodeid, offset, size } = self.value()?;
                let elsewhere = std::mem::take(&mut self.elsewhere);
                let data = Payload { here: self.reader.take_rest(), elsewhere };
                if data.len() as u64 != u64::from(size) {
                    let expected = data.len() as u64;
                    let what = "data in bytes";
                    return Err(self.error(ErrorKind::Length { what, got: size.into(), expected }));
                }
                Notification::Store { nodeid, offset, data }
            }
            NotifyCode::Retrieve => Notification::Retrieve(self.value()?),
            NotifyCode::Resend => Notification::Resend,
            NotifyCode::IncEpoch => Notification::IncEpoch,
            NotifyCode::Prune => {
                let NotifyPruneOut { count } = self.value()?;
                let nodes = self.reader.take_rest();
                let list = List::new(nodes).filter(|list| len32(list.len()) == count);
                let wrong = || {
                    let expected = (nodes.len() / size_of::<u64>()) as u64;
                    self.error(ErrorKind::Length { what: "count", got: count.into(), expected })
                };
                Notification::Prune(list.ok_or_else(wrong)?)
            }
        })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(Message::Notification(self.code as i32), kind)
    }

    fn value<T: Wire>(&mut self) -> Result<T> {
        let value = T::read(&mut self.reader);
        value.ok_or_else(|| self.error(ErrorKind::Truncated("arguments")))
    }

    /// A name of this length, and the NUL behind it.
    fn name(&mut self, len: u32) -> Result<Name<'a>> {
        let string = self.reader.string().filter(|string| len32(string.bytes().len()) == len);
        let string = string.ok_or_else(|| self.error(ErrorKind::Truncated("name")))?;
        Name::new(string.bytes()).map_err(|kind| self.error(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notification_comes_back_as_it_went_and_never_cut() {
        let name = Name::new(b"gone").unwrap();
        let nodes = [1u64, 2, 3].map(u64::to_le_bytes).concat();
        let data = Payload { here: b"data", elsewhere: 0 };
        let all = [
            Notification::Poll { kh: 1 },
            Notification::InvalInode(NotifyInvalInode { ino: 1, off: -1, len: 0 }),
            Notification::InvalEntry { parent: 1, name, flags: InvalEntryFlags::EXPIRE_ONLY },
            Notification::Delete { parent: 1, child: 2, name },
            Notification::Store { nodeid: 1, offset: 2, data },
            Notification::Retrieve(NotifyRetrieveOut {
                notify_unique: 1,
                nodeid: 2,
                offset: 3,
                size: 4,
            }),
            Notification::Resend,
            Notification::IncEpoch,
            Notification::Prune(List::new(&nodes).unwrap()),
        ];
        for notification in &all {
            let mut bytes = Vec::new();
            notification.encode(&mut bytes);
            assert_eq!(crate::Reply::header(&bytes, 0).unwrap().unique, 0);
            assert_eq!(Notification::parse(&bytes, 0).unwrap(), *notification);
            for len in 16..bytes.len() {
                let mut cut = bytes[..len].to_vec();
                cut[0] = u8::try_from(len).unwrap();
                assert!(Notification::parse(&cut, 0).is_err(), "{notification:?} at {len}");
            }
        }
        let codes: Vec<_> = all.iter().map(Notification::code).collect();
        assert!(NotifyCode::ALL.iter().all(|code| codes.contains(code)));
    }

    #[test]
    fn a_name_may_be_as_long_as_a_path() {
        let (longest, long) = ([b'n'; 4095], [b'n'; 4096]);
        assert!(Name::new(&long).is_err());
        let name = Name::new(&longest).unwrap();
        let notification = Notification::Delete { parent: 1, child: 2, name };
        let mut bytes = Vec::new();
        notification.encode(&mut bytes);
        assert_eq!(Notification::parse(&bytes, 0).unwrap(), notification);
    }

    #[test]
    fn a_removed_name_is_laid_out_as_in_the_header() {
        let name = Name::new(b"ab").unwrap();
        let mut bytes = Vec::new();
        Notification::Delete { parent: 1, child: 2, name }.encode(&mut bytes);
        // struct fuse_out_header with the code 6; struct fuse_notify_delete_out; the name and its NUL.
        let golden = [
            &[43, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            b"ab\0",
        ]
        .concat();
        assert_eq!(bytes, golden);
    }

    #[test]
    fn hostile_names_and_unknown_codes_are_refused() {
        let mut bytes = Vec::new();
        let name = Name::new(b"ab").unwrap();
        let flags = InvalEntryFlags::empty();
        Notification::InvalEntry { parent: 1, name, flags }.encode(&mut bytes);
        let mut slash = bytes.clone();
        slash[32] = b'/';
        assert!(Notification::parse(&slash, 0).unwrap_err().to_string().contains("slash"));
        let mut long = bytes.clone();
        long[24..28].copy_from_slice(&4096u32.to_le_bytes());
        assert!(Notification::parse(&long, 0).is_err());
        bytes[4] = 10;
        assert!(Notification::parse(&bytes, 0).is_err());
    }
}
