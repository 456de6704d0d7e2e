//! The server's side of a session, and of messages.

use blockyard_rados::encoding::{
    Encode, EntityAddr, EntityAddrs, EntityType, Eversion, Fsid, ObjectLocator, PgShard, Reader,
    RequestId, Utime, Writer, encoded,
};
use blockyard_rados::features;
use blockyard_rados::msgr::{
    AuthBadMethod, AuthDone, AuthMethod, BANNER_LEN, Banner, ConnectionMode, Decoder, Encoder,
    Frame, Hello, Message, ServerIdent, Tag, Transmit,
};
use blockyard_rados::osd::OpCode;
use bytes::Bytes;
use std::collections::BTreeMap;

const MAX: u64 = 1 << 24;

/// A daemon's end of a connection.
pub(crate) struct Server {
    kind: EntityType,
    addr: EntityAddr,
    global_id: u64,
    banner: Vec<u8>,
    decoder: Decoder,
    encoder: Encoder,
    out: Transmit,
    sent: u64,
    /// It lets nobody in: with this error number.
    pub(crate) refuses: Option<i32>,
}

impl Server {
    pub(crate) fn new(kind: EntityType, addr: EntityAddr, global_id: u64) -> Self {
        let mut server = Self {
            kind,
            addr,
            global_id,
            banner: Vec::new(),
            decoder: Decoder::new(MAX),
            encoder: Encoder::new(),
            out: Transmit::default(),
            sent: 0,
            refuses: None,
        };
        server.out.copy(&Banner::OURS.encode());
        let receiver = EntityAddr::msgr2(([10, 9, 9, 9], 4444).into(), 0);
        server.control(Tag::HELLO, &Hello { kind, receiver });
        server
    }

    fn control(&mut self, tag: Tag, payload: &impl Encode) {
        self.encoder.encode(&Frame::control(tag, encoded(payload)), &mut self.out);
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.sent += 1;
        self.encoder.encode(&message.into_frame(self.sent, 0), &mut self.out);
    }

    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut pieces = Vec::new();
        self.out.drain(&mut pieces);
        pieces.concat()
    }

    pub(crate) fn receive(&mut self, mut bytes: &[u8]) -> Vec<Message> {
        let (banner, rest) = bytes.split_at((BANNER_LEN - self.banner.len()).min(bytes.len()));
        self.banner.extend_from_slice(banner);
        bytes = rest;
        let mut messages = Vec::new();
        while let Some(frame) = self.decoder.decode(&mut bytes).unwrap() {
            match frame.tag {
                Tag::AUTH_REQUEST if self.refuses.is_some() => {
                    let method = AuthMethod::NONE;
                    let (methods, modes) = (vec![method], vec![ConnectionMode::CRC]);
                    let result = self.refuses.unwrap_or_default();
                    let refusal = AuthBadMethod { method, result, methods, modes };
                    self.control(Tag::AUTH_BAD_METHOD, &refusal);
                }
                Tag::AUTH_REQUEST => {
                    let (global_id, mode) = (self.global_id, ConnectionMode::CRC);
                    let done = AuthDone { global_id, mode, payload: vec![] };
                    self.control(Tag::AUTH_DONE, &done);
                    let signature = Frame::control(Tag::AUTH_SIGNATURE, vec![0; 32]);
                    self.encoder.encode(&signature, &mut self.out);
                }
                Tag::CLIENT_IDENT => {
                    let ident = ServerIdent {
                        addrs: EntityAddrs(vec![self.addr]),
                        global_id: 0,
                        global_seq: 1,
                        supported: features::SUPPORTED,
                        required: features::REQUIRED,
                        flags: 1,
                        cookie: 0,
                    };
                    self.control(Tag::SERVER_IDENT, &ident);
                }
                Tag::MESSAGE => messages.push(Message::from_frame(frame).unwrap().0),
                Tag::KEEPALIVE2 => {
                    let ack = Frame::control(Tag::KEEPALIVE2_ACK, frame.segments[0].to_vec());
                    self.encoder.encode(&ack, &mut self.out);
                }
                Tag::HELLO | Tag::AUTH_SIGNATURE => assert_ne!(self.kind, EntityType::CLIENT),
                other => panic!("a client sent a frame {other:?}"),
            }
        }
        messages
    }
}

/// One operation of a request.
#[derive(Clone, Debug)]
pub(crate) struct WireOp {
    pub(crate) code: OpCode,
    pub(crate) args: [u8; 28],
    pub(crate) data: Bytes,
}

/// A request, read from the message.
#[derive(Clone, Debug)]
pub(crate) struct WireRequest {
    pub(crate) tid: u64,
    pub(crate) pg: PgShard,
    pub(crate) hash: u32,
    pub(crate) epoch: u32,
    pub(crate) flags: u32,
    pub(crate) locator: ObjectLocator,
    pub(crate) object: String,
    pub(crate) ops: Vec<WireOp>,
    pub(crate) attempt: i32,
}

impl WireRequest {
    pub(crate) fn parse(message: &Message) -> Self {
        assert_eq!((message.kind, message.version), (42, 8));
        let mut r = message.reader("reading a request");
        let pg = r.get().unwrap();
        let (hash, epoch, flags) = (r.u32().unwrap(), r.u32().unwrap(), r.u32().unwrap());
        r.get::<RequestId>().unwrap();
        r.raw(24 + 4).unwrap();
        r.get::<Utime>().unwrap();
        let locator = r.get().unwrap();
        let object = r.string().unwrap();
        let mut data = message.data.clone();
        let ops = (0..r.u16().unwrap())
            .map(|_| {
                let code = OpCode(r.u16().unwrap());
                r.u32().unwrap();
                let args = r.array().unwrap();
                let len = r.u32().unwrap() as usize;
                WireOp { code, args, data: data.split_to(len) }
            })
            .collect();
        assert!(data.is_empty());
        r.raw(8 + 8).unwrap();
        r.vec(8, Reader::u64).unwrap();
        let attempt = r.i32().unwrap();
        let tid = message.tid;
        Self { tid, pg, hash, epoch, flags, locator, object, ops, attempt }
    }

    pub(crate) fn reply(
        &self,
        epoch: u32,
        result: i32,
        data: &[u8],
        redirect: Option<&str>,
    ) -> Message {
        let mut w = Writer::new();
        w.string(&self.object);
        w.put(&self.pg.pg);
        w.u64(self.flags.into());
        w.i32(result);
        w.put(&Eversion::default());
        w.u32(epoch);
        w.u32(u32::try_from(self.ops.len()).unwrap());
        for (index, op) in self.ops.iter().enumerate() {
            w.u16(op.code.0);
            w.u32(0);
            w.raw(&op.args);
            w.u32(if index == 0 { u32::try_from(data.len()).unwrap() } else { 0 });
        }
        w.i32(self.attempt);
        self.ops.iter().for_each(|_| w.i32(result));
        w.put(&Eversion::default());
        w.u64(0);
        w.bool(redirect.is_some());
        if let Some(object) = redirect {
            w.versioned(1, 1, |w| {
                w.put(&self.locator);
                w.string(object);
                w.u32(0);
            });
        }
        w.raw(&[0; 24]);
        let data = data.to_vec().into();
        Message { tid: self.tid, data, ..Message::new(43, 8, 2, w.into_bytes()) }
    }
}

/// `MMonSubscribe`: from which epoch on OSD maps are wanted, if they are.
pub(crate) fn wanted_osdmaps(message: &Message) -> Option<u64> {
    let mut r = message.reader("reading a subscription");
    let wanted = r.map(4 + 9, |r| Ok((r.string()?, (r.u64()?, r.bool()?)))).unwrap();
    wanted.get("osdmap").map(|&(start, _)| start)
}

/// `MMonGetVersionReply`.
pub(crate) fn version_reply(request: &Message, newest: u32) -> Message {
    let tid = request.reader("reading a question").u64().unwrap();
    let mut w = Writer::new();
    w.u64(tid);
    w.u64(newest.into());
    w.u64(1);
    Message::new(20, 2, 1, w.into_bytes())
}

/// `MOSDMap`.
pub(crate) fn maps_message(
    fsid: Fsid,
    changes: &BTreeMap<u32, Bytes>,
    whole: &BTreeMap<u32, Bytes>,
) -> Message {
    let mut w = Writer::new();
    w.put(&fsid);
    for maps in [changes, whole] {
        w.u32(u32::try_from(maps.len()).unwrap());
        for (&epoch, bytes) in maps {
            w.u32(epoch);
            w.bytes(bytes);
        }
    }
    w.u32(0);
    w.u32(0);
    Message::new(41, 4, 3, w.into_bytes())
}
