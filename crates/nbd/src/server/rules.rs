//! Which requests a connection may make (`doc/proto.md`, "Command flags", "Request types", "Error values").

use super::handshake::Negotiated;
use crate::export::MetaContext;
use crate::wire::{
    Command, CommandFlags, ErrorCode, HeaderStyle, Reader, Request, TransmissionFlags,
};

/// Payloads up to this many bytes are never taken for an attack ("Size constraints").
const TOLERATED_PAYLOAD: u64 = 32 << 20;

/// What each request of a connection is checked against, before anything is done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// Size of the export in bytes. Set it when the export was resized.
    pub size: u64,
    flags: TransmissionFlags,
    /// Minimum block size minus 1.
    unaligned: u64,
    max_payload: u64,
    style: HeaderStyle,
    /// How many metadata contexts were chosen.
    contexts: u64,
}

/// A request that must not be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What to reply, unless the connection is closed.
    pub error: ErrorCode,
    /// Why, for the reply or the log.
    pub reason: &'static str,
    /// What to do with the bytes behind the header.
    pub then: Then,
}

/// How to go on after a [`Rejection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Drop this many bytes of payload, reply, and take the next request.
    Skip(u64),
    /// Close the connection: the payload is too large to be read only to be dropped.
    Close,
}

/// A BLOCK_STATUS request with a payload that names some of the contexts (branch `extension-ext-header`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusQuery {
    /// How much of the export the client asks for, in bytes.
    pub length: u64,
    /// The ids of the contexts to answer for, each once.
    pub contexts: Vec<u32>,
}

impl RequestRules {
    /// The rules of a connection.
    #[must_use]
    pub fn new(negotiated: &Negotiated) -> Self {
        let sizes = negotiated.export.block_sizes();
        Self {
            size: negotiated.export.info.size,
            flags: negotiated.flags,
            unaligned: u64::from(sizes.minimum() - 1),
            max_payload: sizes.max_payload().into(),
            style: negotiated.style,
            contexts: negotiated.contexts.len().try_into().unwrap_or(0),
        }
    }

    /// Checks a request by its header. Of a BLOCK_STATUS with a payload the range is checked later, by
    /// [`status_query`](Self::status_query).
    ///
    /// Requests of length 0, which the specification leaves open, are invalid here.
    ///
    /// # Errors
    ///
    /// The error that the specification names for it, and what to do with the payload.
    #[inline]
    pub fn check(&self, request: &Request) -> Result<(), Rejection> {
        let payload = request.payload_len(self.style);
        if payload > self.max_payload {
            return Err(self.oversize(payload));
        }
        self.check_command(request)
            .and_then(|()| self.check_flags(request))
            .and_then(|()| self.check_extent(request))
            .map_err(|(error, reason)| Rejection { error, reason, then: Then::Skip(payload) })
    }

    #[cold]
    fn oversize(&self, payload: u64) -> Rejection {
        Rejection {
            error: ErrorCode::EINVAL,
            reason: "the payload is longer than the export's maximum",
            then: if payload <= self.max_payload.max(TOLERATED_PAYLOAD) {
                Then::Skip(payload)
            } else {
                Then::Close
            },
        }
    }

    #[inline]
    fn check_command(&self, request: &Request) -> Result<(), (ErrorCode, &'static str)> {
        let read_only = self.flags.contains(TransmissionFlags::READ_ONLY);
        let needed = match request.command {
            Command::Read | Command::Disc => return Ok(()),
            Command::Write | Command::Trim | Command::WriteZeroes if read_only => {
                return Err((ErrorCode::EPERM, "the export is read-only"));
            }
            Command::Write => return Ok(()),
            Command::BlockStatus if self.contexts > 0 => return Ok(()),
            Command::BlockStatus => {
                return Err((ErrorCode::EINVAL, "no metadata context was negotiated"));
            }
            Command::Flush => TransmissionFlags::SEND_FLUSH,
            Command::Trim => TransmissionFlags::SEND_TRIM,
            Command::Cache => TransmissionFlags::SEND_CACHE,
            Command::WriteZeroes => TransmissionFlags::SEND_WRITE_ZEROES,
            Command::Resize | Command::Unknown(_) => {
                return Err((ErrorCode::EINVAL, "unknown command"));
            }
        };
        if self.flags.contains(needed) {
            Ok(())
        } else {
            Err((ErrorCode::EINVAL, "the export does not offer this command"))
        }
    }

    /// "Command flags": each flag has the commands it is valid for, and most have to be offered first.
    #[inline]
    fn check_flags(&self, request: &Request) -> Result<(), (ErrorCode, &'static str)> {
        let offered = |offer, flag| {
            if self.flags.contains(offer) { flag } else { CommandFlags::empty() }
        };
        // FUA "is valid for all commands", as clients are known to set it on others than writes.
        let mut valid = offered(TransmissionFlags::SEND_FUA, CommandFlags::FUA);
        match request.command {
            Command::Read => valid |= offered(TransmissionFlags::SEND_DF, CommandFlags::DF),
            Command::Write if self.style == HeaderStyle::Extended => {
                valid |= CommandFlags::PAYLOAD_LEN;
            }
            Command::WriteZeroes => {
                valid |= CommandFlags::NO_HOLE;
                valid |= offered(TransmissionFlags::SEND_FAST_ZERO, CommandFlags::FAST_ZERO);
            }
            Command::BlockStatus => {
                let payload = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
                valid |= CommandFlags::REQ_ONE | offered(payload, CommandFlags::PAYLOAD_LEN);
            }
            _ => {}
        }
        if valid.contains(request.flags) {
            Ok(())
        } else {
            Err((ErrorCode::EINVAL, "a flag is unknown, or not valid for this command"))
        }
    }

    #[inline]
    fn check_extent(&self, request: &Request) -> Result<(), (ErrorCode, &'static str)> {
        match request.command {
            // "The client MUST send" no offset and no length with a FLUSH, but some do (wnbd), and mean no harm.
            Command::Disc | Command::Flush => Ok(()),
            Command::BlockStatus if request.flags.contains(CommandFlags::PAYLOAD_LEN) => {
                self.check_query_len(request.length)
            }
            Command::Read if request.length > self.max_payload => Err(self.read_too_long()),
            command => self.check_range(command, request.offset, request.length),
        }
    }

    #[inline]
    fn check_range(
        &self,
        command: Command,
        offset: u64,
        length: u64,
    ) -> Result<(), (ErrorCode, &'static str)> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let writes = matches!(command, Command::Write | Command::WriteZeroes);
            let error = if writes { ErrorCode::ENOSPC } else { ErrorCode::EINVAL };
            Err((error, "the range is past the end of the export"))
        } else if length == 0 {
            Err((ErrorCode::EINVAL, "the length is zero"))
        } else if (offset | length) & self.unaligned != 0 {
            Err((ErrorCode::EINVAL, "the range is not aligned to the minimum block size"))
        } else {
            Ok(())
        }
    }

    /// With chunks "the server is also permitted to reject large read requests up front with `NBD_EOVERFLOW`";
    /// without, that error is not defined for READ.
    #[cold]
    fn read_too_long(&self) -> (ErrorCode, &'static str) {
        let error = if self.style.has_chunks() { ErrorCode::EOVERFLOW } else { ErrorCode::EINVAL };
        (error, "the read is longer than the export's maximum payload")
    }

    /// "The payload form MUST occupy 8 + n*4 bytes." Without duplicates, n is at most the number of contexts.
    fn check_query_len(&self, payload: u64) -> Result<(), (ErrorCode, &'static str)> {
        if payload > 8 && payload.is_multiple_of(4) && (payload - 8) / 4 <= self.contexts {
            Ok(())
        } else {
            Err((ErrorCode::EINVAL, "the payload is not an effect length and a list of contexts"))
        }
    }

    /// Reads the payload of a BLOCK_STATUS, which [`check`](Self::check) let pass, and checks its range and
    /// that it names contexts out of `negotiated`.
    ///
    /// # Errors
    ///
    /// What to reply. There is nothing left to skip.
    pub fn status_query(
        &self,
        request: &Request,
        payload: &[u8],
        negotiated: &[MetaContext],
    ) -> Result<StatusQuery, Rejection> {
        self.parse_query(request, payload, negotiated).map_err(|(error, reason)| Rejection {
            error,
            reason,
            then: Then::Skip(0),
        })
    }

    fn parse_query(
        &self,
        request: &Request,
        payload: &[u8],
        negotiated: &[MetaContext],
    ) -> Result<StatusQuery, (ErrorCode, &'static str)> {
        self.check_query_len(payload.len().try_into().unwrap_or(u64::MAX))?;
        let mut r = Reader::new(payload);
        let length = r.u64().unwrap_or(0);
        self.check_range(request.command, request.offset, length)?;
        let mut contexts = Vec::new();
        while let Some(id) = r.u32() {
            if contexts.contains(&id) || negotiated.iter().all(|context| context.id != id) {
                return Err((ErrorCode::EINVAL, "a context is unknown or named twice"));
            }
            contexts.push(id);
        }
        Ok(StatusQuery { length, contexts })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn rules(style: HeaderStyle) -> RequestRules {
        RequestRules {
            size: 64 * MIB,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            unaligned: 511,
            max_payload: MIB,
            style,
            contexts: 2,
        }
    }

    fn request(command: Command, flags: CommandFlags, offset: u64, length: u64) -> Request {
        Request { command, flags, cookie: 7, offset, length }
    }

    /// The error of a request, and how to go on.
    fn refused(rules: &RequestRules, request: Request) -> Option<(ErrorCode, Then)> {
        rules.check(&request).err().map(|rejection| (rejection.error, rejection.then))
    }

    const NONE: CommandFlags = CommandFlags::empty();
    const PAYLOAD: CommandFlags = CommandFlags::PAYLOAD_LEN;
    use Command::{BlockStatus, Cache, Disc, Flush, Read, Trim, Write, WriteZeroes};
    use ErrorCode as E;
    use HeaderStyle::{Extended, Simple, Structured};

    #[test]
    fn what_is_in_bounds_passes() {
        for style in [Simple, Structured, Extended] {
            let rules = rules(style);
            let write = if style == Extended { PAYLOAD } else { NONE };
            for (command, flags, offset, length) in [
                (Read, NONE, 0, 512),
                (Read, CommandFlags::DF | CommandFlags::FUA, 63 * MIB, MIB),
                (Write, write | CommandFlags::FUA, 0, MIB),
                (Trim, NONE, 0, 64 * MIB),
                (Cache, NONE, 0, 64 * MIB),
                (WriteZeroes, CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO, 512, 2 * MIB),
                (BlockStatus, CommandFlags::REQ_ONE, 0, 64 * MIB),
                (Flush, NONE, 0, 0),
                (Disc, NONE, 0, 0),
            ] {
                assert_eq!(refused(&rules, request(command, flags, offset, length)), None);
            }
        }
    }

    // "Error values": what to return for which mistake.
    #[test]
    fn past_the_end_is_enospc_for_writes_and_einval_for_others() {
        let rules = rules(Structured);
        for (command, error, payload) in [
            (Write, E::ENOSPC, 1024),
            (WriteZeroes, E::ENOSPC, 0),
            (Read, E::EINVAL, 0),
            (Trim, E::EINVAL, 0),
            (Cache, E::EINVAL, 0),
            (BlockStatus, E::EINVAL, 0),
        ] {
            for offset in [64 * MIB - 512, 64 * MIB, u64::MAX - 511, u64::MAX] {
                let got = refused(&rules, request(command, NONE, offset, 1024));
                assert_eq!(got, Some((error, Then::Skip(payload))), "{command:?} at {offset}");
            }
        }
    }

    #[test]
    fn writing_to_a_read_only_export_is_eperm_and_the_payload_is_skipped() {
        let mut rules = rules(Simple);
        rules.flags |= TransmissionFlags::READ_ONLY;
        for (command, payload) in [(Write, 512), (Trim, 0), (WriteZeroes, 0)] {
            let got = refused(&rules, request(command, NONE, 0, 512));
            assert_eq!(got, Some((E::EPERM, Then::Skip(payload))));
        }
        assert_eq!(refused(&rules, request(Read, NONE, 0, 512)), None);
    }

    #[test]
    fn commands_and_flags_not_offered_are_einval() {
        let mut bare = rules(Structured);
        bare.flags = TransmissionFlags::HAS_FLAGS;
        bare.contexts = 0;
        let einval = Some((E::EINVAL, Then::Skip(0)));
        for (command, length) in
            [(Flush, 0), (Trim, 512), (Cache, 512), (WriteZeroes, 512), (BlockStatus, 512)]
        {
            assert_eq!(refused(&bare, request(command, NONE, 0, length)), einval, "{command:?}");
        }
        for flag in [CommandFlags::DF, CommandFlags::FUA] {
            assert_eq!(refused(&bare, request(Read, flag, 0, 512)), einval, "{flag:?}");
        }
        let all = rules(Structured);
        for (command, flag) in [
            (Read, CommandFlags::NO_HOLE),
            (Read, CommandFlags::REQ_ONE),
            (Read, CommandFlags::FAST_ZERO),
            (Read, PAYLOAD),
            (Trim, CommandFlags::DF),
            (WriteZeroes, CommandFlags::REQ_ONE),
            (BlockStatus, CommandFlags::NO_HOLE),
            (Read, CommandFlags::from_bits_retain(1 << 15)),
            (Command::Resize, NONE),
            (Command::Unknown(9), NONE),
        ] {
            let got = refused(&all, request(command, flag, 0, 512));
            assert_eq!(got, einval, "{command:?} {flag:?}");
        }
        let skipped = refused(&all, request(Write, PAYLOAD, 0, 512));
        assert_eq!(
            skipped,
            Some((E::EINVAL, Then::Skip(512))),
            "compact headers have no PAYLOAD_LEN"
        );
    }

    // "Request message", extended: "a server SHOULD gracefully consume length bytes of payload".
    #[test]
    fn a_payload_is_consumed_whatever_the_command() {
        let rules = rules(Extended);
        for command in [Read, Flush, Trim, Command::Unknown(77)] {
            let got = refused(&rules, request(command, PAYLOAD, 0, 4096));
            assert_eq!(got, Some((E::EINVAL, Then::Skip(4096))), "{command:?}");
        }
    }

    // Against the letter of the specification, but as QEMU's client does it.
    #[test]
    fn an_extended_write_may_lack_payload_len() {
        let bare = request(Write, NONE, 0, 512);
        assert_eq!(bare.payload_len(Extended), 512);
        assert_eq!(refused(&rules(Extended), bare), None);
        let read_only = RequestRules { flags: TransmissionFlags::READ_ONLY, ..rules(Extended) };
        assert_eq!(refused(&read_only, bare), Some((E::EPERM, Then::Skip(512))));
    }

    // "Size constraints": up to 32 MiB is no attack, even if the export takes less.
    #[test]
    fn an_oversize_payload_is_skipped_up_to_32_mib_and_then_closes() {
        for (style, flags) in [(Simple, NONE), (Extended, PAYLOAD)] {
            let rules = rules(style);
            for (length, then) in [
                (MIB + 512, Then::Skip(MIB + 512)),
                (32 * MIB, Then::Skip(32 * MIB)),
                (32 * MIB + 1, Then::Close),
                (u64::from(u32::MAX), Then::Close),
            ] {
                let got = refused(&rules, request(Write, flags, 0, length));
                assert_eq!(got, Some((E::EINVAL, then)));
            }
        }
        let got = refused(&rules(Extended), request(Read, PAYLOAD, 0, u64::MAX));
        assert_eq!(got, Some((E::EINVAL, Then::Close)));
    }

    #[test]
    fn reads_over_the_maximum_payload_are_refused_up_front() {
        let too_long = request(Read, NONE, 0, MIB + 512);
        assert_eq!(refused(&rules(Simple), too_long), Some((E::EINVAL, Then::Skip(0))));
        for style in [Structured, Extended] {
            assert_eq!(refused(&rules(style), too_long), Some((E::EOVERFLOW, Then::Skip(0))));
        }
    }

    #[test]
    fn unaligned_and_empty_ranges_are_einval() {
        let rules = rules(Structured);
        for (offset, length) in [(1, 512), (512, 511), (0, 0), (256, 256)] {
            let got = refused(&rules, request(Read, NONE, offset, length));
            assert_eq!(got, Some((E::EINVAL, Then::Skip(0))), "{offset} {length}");
        }
        assert_eq!(refused(&rules, request(Flush, NONE, u64::MAX, 1)), None, "as wnbd does it");
    }

    // "Request types", NBD_CMD_BLOCK_STATUS with a payload (extension-ext-header).
    #[test]
    fn golden_status_query() {
        let rules = rules(Extended);
        let contexts = [3, 5].map(|id| MetaContext { id, name: format!("x-test:{id}") });
        let ask = |payload: &[u8]| {
            let length = payload.len().try_into().unwrap();
            let request = request(BlockStatus, PAYLOAD, 512, length);
            rules.check(&request)?;
            rules.status_query(&request, payload, &contexts)
        };
        let good = b"\0\0\0\0\0\0\x10\0\0\0\0\x05\0\0\0\x03";
        assert_eq!(ask(good), Ok(StatusQuery { length: 4096, contexts: vec![5, 3] }));
        assert_eq!(ask(&good[..12]), Ok(StatusQuery { length: 4096, contexts: vec![5] }));
        for bad in [
            &good[..8],
            &good[..11],
            b"\0\0\0\0\0\0\x10\0\0\0\0\x05\0\0\0\x05",
            b"\0\0\0\0\0\0\x10\0\0\0\0\x04",
            b"\0\0\0\0\0\0\x10\0\0\0\0\x05\0\0\0\x03\0\0\0\x01",
            b"\xff\xff\xff\xff\xff\xff\xfe\0\0\0\0\x05",
            b"\0\0\0\0\0\0\0\0\0\0\0\x05",
        ] {
            assert_eq!(ask(bad).unwrap_err().error, E::EINVAL, "{bad:?}");
        }
    }

    proptest! {
        /// Whatever passes is safe to carry out: in range, aligned, within the payload limit.
        #[test]
        fn whatever_passes_is_in_bounds(
            style in prop_oneof![Just(Simple), Just(Structured), Just(Extended)],
            flags in 0_u16..64,
            command in 0_u16..10,
            offset in prop_oneof![0..(65 * MIB), any::<u64>()],
            length in prop_oneof![0..(2 * MIB), any::<u64>()],
        ) {
            let rules = rules(style);
            let flags = CommandFlags::from_bits_retain(flags);
            let request = request(command.into(), flags, offset & !255, length & !255);
            match rules.check(&request) {
                Ok(()) => {
                    prop_assert!(request.payload_len(style) <= rules.max_payload);
                    let queried = command == 7 && flags.contains(PAYLOAD);
                    if !queried && !matches!(request.command, Disc | Flush) {
                        prop_assert!(request.length > 0);
                        prop_assert!(request.offset + request.length <= rules.size);
                        prop_assert_eq!((request.offset | request.length) % 512, 0);
                    }
                    if request.command == Read {
                        prop_assert!(request.length <= rules.max_payload);
                    }
                }
                Err(Rejection { then: Then::Skip(skip), .. }) => {
                    prop_assert_eq!(skip, request.payload_len(style));
                    prop_assert!(skip <= TOLERATED_PAYLOAD);
                }
                Err(_) => prop_assert!(request.payload_len(style) > TOLERATED_PAYLOAD),
            }
        }
    }
}
