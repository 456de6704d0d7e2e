//! The NBD protocol, both roles, without I/O: bytes in, bytes and events out.
//!
//! The specification is `doc/proto.md` and `doc/uri.md` of <https://github.com/NetworkBlockDevice/nbd>, with the
//! branch `extension-ext-header` for 64-bit headers. Quoted names of sections are theirs.
//!
//! A connection has two phases. In the first, [`server::Handshake`] and [`client::Handshake`] take bytes with
//! `receive`, give bytes with `poll_transmit`, and tell with `poll_event` what has to happen: TLS, the transmission
//! phase, the end. In the second there is no machine, since order is up to the server: a server parses a
//! [`Request`](wire::Request), checks it against its [`RequestRules`](server::RequestRules), and answers with a
//! [`ReplyEncoder`](server::ReplyEncoder); a client keeps what it [expects](client::Expected) and gives the bytes it
//! gets to a [`ReplyParser`](client::ReplyParser). Payloads pass by: this crate never copies or stores them.
//!
//! # A server
//!
//! ```
//! use blockyard_nbd::server::{Config, Event, Export, Handshake, ReplyEncoder, ReplyTo, RequestRules, Then};
//! use blockyard_nbd::wire::{Command, Request, TransmissionFlags};
//! use blockyard_nbd::{Error, ExportInfo};
//!
//! fn serve(disk: &[u8], from_client: &[u8], to_client: &mut Vec<u8>) -> Result<(), Error> {
//!     let info = ExportInfo {
//!         name: "disk".into(),
//!         description: String::new(),
//!         size: disk.len() as u64,
//!         flags: TransmissionFlags::READ_ONLY,
//!         block_sizes: None,
//!     };
//!     let exports =
//!         [Export { id: 0, info, contexts: vec![], tls_only: false, block_sizes_required: false }];
//!     let mut handshake = Handshake::new(Config::default());
//!     let mut rest = from_client;
//!     let negotiated = loop {
//!         handshake.poll_transmit(to_client);
//!         let taken = handshake.receive(&exports[..], rest)?;
//!         rest = &rest[taken..];
//!         let answered = handshake.poll_transmit(to_client);
//!         match handshake.poll_event() {
//!             Some(Event::Done(negotiated)) => break negotiated,
//!             Some(Event::StartTls) => unreachable!("the configuration has no TLS"),
//!             Some(Event::Aborted) => return Ok(()),
//!             None if !answered && taken == 0 => return Ok(()), // here a server would wait for more bytes
//!             None => {}
//!         }
//!     };
//!     let (rules, replies) = (RequestRules::new(&negotiated), ReplyEncoder::new(negotiated.style));
//!     while let Some(request) = Request::parse(negotiated.style, rest)? {
//!         rest = &rest[negotiated.style.request_len()..];
//!         let to = ReplyTo::from(&request);
//!         match rules.check(&request) {
//!             Ok(()) if request.command == Command::Read => {
//!                 let data = &disk[request.offset as usize..][..request.length as usize];
//!                 let head = replies.data(to, request.offset, data.len() as u32, true);
//!                 to_client.extend_from_slice(&head);
//!                 to_client.extend_from_slice(data);
//!             }
//!             Ok(()) => return Ok(()), // DISC: a read-only disk without other abilities has no more commands
//!             Err(rejection) => match rejection.then {
//!                 Then::Skip(payload) => {
//!                     rest = &rest[payload as usize..];
//!                     replies.error_message(to_client, to, rejection.error, rejection.reason);
//!                 }
//!                 Then::Close => return Ok(()),
//!             },
//!         }
//!     }
//!     Ok(())
//! }
//!
//! // NBD_OPT_GO for the default export, a READ of 4 bytes at 2, and DISC.
//! let client = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0\
//!     \x25\x60\x95\x13\0\0\0\0cookie!!\0\0\0\0\0\0\0\x02\0\0\0\x04\
//!     \x25\x60\x95\x13\0\0\0\x02cookie!!\0\0\0\0\0\0\0\0\0\0\0\0";
//! let mut sent = Vec::new();
//! serve(b"0123456789", client, &mut sent)?;
//! assert!(sent.starts_with(b"NBDMAGICIHAVEOPT\0\x03"));
//! assert!(sent.ends_with(b"\x67\x44\x66\x98\0\0\0\0cookie!!2345"));
//! # Ok::<(), Error>(())
//! ```
//!
//! # A client
//!
//! ```
//! use std::collections::HashMap;
//!
//! use blockyard_nbd::Error;
//! use blockyard_nbd::client::{Chunk, Config, Event, Expected, Handshake, Negotiated, Parsed, ReplyParser};
//! use blockyard_nbd::wire::{Command, CommandFlags, Request};
//!
//! /// `exchange` sends the bytes in its first argument, and appends to its second what came back.
//! fn open(exchange: &mut impl FnMut(&[u8], &mut Vec<u8>)) -> Result<Box<Negotiated>, Error> {
//!     let mut handshake = Handshake::new(Config::default());
//!     handshake.set_contexts("disk", &["base:allocation"])?;
//!     handshake.go("disk")?;
//!     let (mut input, mut output) = (Vec::new(), Vec::new());
//!     loop {
//!         let taken = handshake.receive(&input)?;
//!         input.drain(..taken);
//!         match handshake.poll_event() {
//!             Some(Event::Done(negotiated)) => return Ok(negotiated),
//!             Some(Event::Refused(error)) => eprintln!("{error}"), // the contexts, or the export
//!             Some(_) => {}
//!             None => {
//!                 output.clear();
//!                 handshake.poll_transmit(&mut output);
//!                 exchange(&output, &mut input);
//!             }
//!         }
//!     }
//! }
//!
//! fn read(
//!     negotiated: &Negotiated,
//!     offset: u64,
//!     data: &mut [u8],
//!     exchange: &mut impl FnMut(&[u8], &mut Vec<u8>),
//! ) -> Result<(), Error> {
//!     let flags = CommandFlags::empty();
//!     let length = data.len() as u64;
//!     let request = Request { command: Command::Read, flags, cookie: 1, offset, length };
//!     let mut in_flight = HashMap::from([(1, Expected::new(request))]);
//!     let parser = ReplyParser::new(negotiated.style);
//!     let mut input = Vec::new();
//!     exchange(&request.encode(negotiated.style)?, &mut input);
//!     loop {
//!         let (chunk, done, consumed) = match parser.parse(&input, &mut in_flight)? {
//!             Parsed::NeedMore(_) => {
//!                 exchange(&[], &mut input);
//!                 continue;
//!             }
//!             Parsed::Reply { reply, consumed } => (reply.chunk, reply.done, consumed),
//!         };
//!         let mut follows = 0;
//!         match chunk {
//!             Chunk::Data { offset: at, length } => {
//!                 follows = length as usize; // all there in this example; else read the rest into place
//!                 let from = &input[consumed..consumed + follows];
//!                 data[(at - offset) as usize..][..follows].copy_from_slice(from);
//!             }
//!             Chunk::Hole { offset: at, length } => {
//!                 data[(at - offset) as usize..][..length as usize].fill(0);
//!             }
//!             Chunk::Error { error, .. } => eprintln!("{error}"),
//!             Chunk::Status { .. } | Chunk::None => {}
//!         }
//!         input.drain(..consumed + follows);
//!         if done {
//!             return Ok(()); // or in_flight[&1].result()
//!         }
//!     }
//! }
//! # use blockyard_nbd::{ExportInfo, server::{self, Export, ReplyEncoder, ReplyTo}, wire::{HeaderStyle, TransmissionFlags}};
//! # let info = ExportInfo { name: "disk".into(), description: String::new(), size: 10,
//! #     flags: TransmissionFlags::empty(), block_sizes: None };
//! # let exports = [Export { id: 0, info, contexts: vec![], tls_only: false, block_sizes_required: false }];
//! # let mut server = server::Handshake::new(server::Config::default());
//! # let negotiated = open(&mut |mut sent: &[u8], answer: &mut Vec<u8>| loop {
//! #     server.poll_transmit(answer);
//! #     let taken = server.receive(&exports[..], sent).unwrap();
//! #     sent = &sent[taken..];
//! #     if !server.poll_transmit(answer) { break }
//! # })?;
//! # assert_eq!((negotiated.export.size, negotiated.style), (10, HeaderStyle::Extended));
//! # let mut data = [1; 8];
//! # read(&negotiated, 2, &mut data, &mut |_, answer: &mut Vec<u8>| {
//! #     let (replies, to) = (ReplyEncoder::new(negotiated.style), ReplyTo { cookie: 1, offset: 2 });
//! #     answer.extend_from_slice(&replies.data(to, 2, 4, false));
//! #     answer.extend_from_slice(b"2345");
//! #     answer.extend_from_slice(&replies.hole(to, 6, 4, true));
//! # })?;
//! # assert_eq!(&data, b"2345\0\0\0\0");
//! # Ok::<(), Error>(())
//! ```
//!
//! # Bounds
//!
//! Nothing that a peer says makes this crate store more than [`server::MAX_OPTION_LEN`] bytes of an option,
//! [`client::MAX_OPTION_REPLIES_LEN`] of replies to one, or [`client::MAX_READ_FRAGMENTS`] pieces of a read; a client
//! may send [`server::MAX_OPTIONS`] options. Deadlines are the caller's, which has the clock.
#![forbid(unsafe_code)]

#[cfg(feature = "certificates")]
pub mod certificates;
pub mod client;
pub mod error;
pub mod export;
pub mod psk;
pub mod server;
pub mod uri;
pub mod wire;

pub use error::{Blame, Error, ErrorKind};
pub use export::{BlockSizes, ExportInfo, MetaContext};
