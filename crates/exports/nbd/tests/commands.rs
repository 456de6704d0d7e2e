//! Every command in every style of headers.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use blockyard_blkmq::{BlockSize, Features, Limits, OpenMode, Sector, Status};
use blockyard_driver_ram::Ram;
use blockyard_export_nbd::{Export, HeaderStyle};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, TransmissionFlags};
use common::{Client, MIB, STYLES, Yard, disk_of, held_disk, pattern, ram, request};

const NONE: CommandFlags = CommandFlags::empty();
const HOLE: u64 = 3;

#[test]
fn what_is_written_is_read_back_in_every_style_and_size() {
    let yard = Yard::new(64 * MIB);
    for (seed, style) in STYLES.into_iter().enumerate() {
        let mut client = yard.client_of(style);
        let seed = seed as u64 * 100;
        // Around the sizes at which the server treats payloads differently: in the batch, in place, larger than
        // its buffer.
        for (n, len) in [512, 4096, 15872, 16384, 16896, 65536, 262_144, 263_168, 4 << 20, 32 << 20]
            .into_iter()
            .enumerate()
        {
            let data = pattern(seed + n as u64, len);
            let offset = 512 * (n as u64);
            client.write(offset, &data);
            assert!(client.read(offset, len as u64) == data, "{style:?} {len}");
        }
        client.disconnect();
    }
}

#[test]
fn many_requests_at_a_time_are_each_answered_with_their_own_data() {
    let yard = Yard::new(64 * MIB);
    for style in STYLES {
        let stream = yard.connect();
        let sender = stream.try_clone().unwrap();
        let mut client = Client::open(Box::new(stream), "", style).unwrap();
        // More than may be in flight, cut into pieces anywhere, reads and writes of many sizes mixed.
        let mut bytes = Vec::new();
        let mut expected = std::collections::HashMap::new();
        let mut at = 0;
        for n in 0..600_u64 {
            let len = [512, 4096, 20_480, 131_072][n as usize % 4];
            let data = pattern(n, len);
            let write = request(Command::Write, NONE, at, len as u64);
            bytes.extend(client.encode(write, &data).1);
            let read = request(Command::Read, NONE, at, len as u64);
            let (cookie, head) = client.encode(read, &[]);
            bytes.extend(head);
            expected.insert(cookie, data);
            at += len as u64;
        }
        // The server stops reading while replies wait, so that both directions have to move.
        let mut sender = sender;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                use std::io::Write;
                for piece in bytes.chunks(100_003) {
                    sender.write_all(piece).unwrap();
                }
            });
            for _ in 0..1200 {
                let (cookie, outcome) = client.next_reply().unwrap();
                assert_eq!(outcome.error, None);
                if let Some(data) = expected.remove(&cookie) {
                    assert!(outcome.data == data, "{style:?} {cookie}");
                }
            }
        });
        assert!(expected.is_empty());
    }
}

#[test]
fn zeroes_come_as_holes_where_chunks_can_say_so() {
    let yard = Yard::new(MIB);
    let data = pattern(1, 4096);
    for style in STYLES {
        let mut client = yard.client_of(style);
        client.write(8192, &data);
        let expected = [vec![0; 8192], data.clone(), vec![0; 20_480]].concat();
        let outcome = client.command(Command::Read, 0, 32_768).ok();
        assert!(outcome.data == expected);
        assert_eq!(outcome.holes, if style == HeaderStyle::Simple { 0 } else { 28_672 });
        if style != HeaderStyle::Simple {
            let whole = request(Command::Read, CommandFlags::DF, 0, 32_768);
            let outcome = client.ask(whole, &[]).ok();
            assert!(outcome.data == expected);
            assert_eq!(outcome.holes, 0, "not to be fragmented");
        }
    }
}

#[test]
fn trim_and_write_zeroes_make_holes_and_no_hole_does_not() {
    for style in STYLES {
        let yard = Yard::new(MIB);
        let mut client = yard.client_of(style);
        let zeroes = |client: &mut Client, flags| {
            client.write(0, &pattern(2, 65_536));
            client.ask(request(Command::WriteZeroes, flags, 4096, 8192), &[]).ok();
            assert_eq!(client.read(4096, 8192), vec![0; 8192]);
        };
        zeroes(&mut client, NONE);
        zeroes(&mut client, CommandFlags::FUA | CommandFlags::FAST_ZERO);
        if style != HeaderStyle::Simple {
            let extents = client.command(Command::BlockStatus, 0, 65_536).ok().extents;
            assert_eq!(extents, [(4096, 0), (8192, HOLE), (53_248, 0)]);
        }
        zeroes(&mut client, CommandFlags::NO_HOLE);
        if style != HeaderStyle::Simple {
            let extents = client.command(Command::BlockStatus, 0, 65_536).ok().extents;
            assert_eq!(extents, [(65_536, 0)]);
        }
        client.ask(request(Command::Trim, CommandFlags::FUA, 0, MIB), &[]).ok();
        assert_eq!(client.read(0, 65_536), vec![0; 65_536]);
    }
}

#[test]
fn fast_zero_is_refused_by_a_disk_that_would_have_to_write_them() {
    let limits = Limits { max_write_zeroes_sectors: 0, ..Ram::limits() };
    let yard = Yard::with(disk_of(Ram::new(), (), MIB, limits), |_, _| {});
    let mut client = yard.client();
    client.write(0, &pattern(3, 8192));
    let fast = request(Command::WriteZeroes, CommandFlags::FAST_ZERO, 0, 4096);
    assert_eq!(client.ask(fast, &[]).error, Some(ErrorCode::ENOTSUP));
    client.command(Command::WriteZeroes, 0, 4096).ok();
    assert_eq!(client.read(0, 4096), vec![0; 4096]);
}

#[test]
fn block_status_in_both_widths_with_one_extent_and_with_a_payload() {
    let yard = Yard::new(64 * MIB);
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let mut client = yard.client_of(style);
        client.write(MIB, &pattern(4, 4096));
        let all = client.command(Command::BlockStatus, 0, 64 * MIB).ok().extents;
        assert_eq!(all, [(MIB, HOLE), (4096, 0), (63 * MIB - 4096, HOLE)]);
        let one = request(Command::BlockStatus, CommandFlags::REQ_ONE, 0, 64 * MIB);
        assert_eq!(client.ask(one, &[]).ok().extents, [(MIB, HOLE)]);
    }
    let mut client = yard.client();
    assert!(client.negotiated.export.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    let cookie = client.send_query(MIB, MIB);
    let (got, outcome) = client.next_reply().unwrap();
    assert_eq!((got, outcome.ok().extents), (cookie, vec![(4096, 0), (MIB - 4096, HOLE)]));
}

#[test]
fn extended_headers_concern_more_than_four_gib_at_once() {
    let size = 1 << 40;
    let yard = Yard::new(size);
    let mut client = yard.client();
    client.write(size - 4096, &pattern(5, 4096));
    let extents = client.command(Command::BlockStatus, 0, size).ok().extents;
    assert_eq!(extents.iter().map(|extent| extent.0).sum::<u64>(), size);
    for command in [Command::Cache, Command::WriteZeroes, Command::Trim] {
        client.command(command, 0, size).ok();
    }
    assert_eq!(client.read(size - 4096, 4096), vec![0; 4096]);
}

/// The longest that 32 bits say in whole blocks.
#[test]
fn compact_headers_concern_nearly_four_gib_at_once() {
    const LONGEST: u64 = (1 << 32) - 4096;
    let yard = Yard::new(1 << 33);
    for style in STYLES {
        let mut client = yard.client_of(style);
        for command in [Command::Trim, Command::WriteZeroes, Command::Cache] {
            for start in [0, 4096, (1 << 33) - LONGEST] {
                let inside = [start, start + LONGEST - 4096];
                let around = [start.checked_sub(4096), Some(start + LONGEST)];
                let around = around.into_iter().flatten().filter(|at| *at < 1 << 33);
                let around: Vec<u64> = around.collect();
                for (at, seed) in inside.iter().chain(&around).zip(1..) {
                    client.write(*at, &pattern(seed, 4096));
                }
                client.command(command, start, LONGEST).ok();
                for (at, seed) in inside.iter().chain(&around).zip(1..) {
                    let is_zero = command != Command::Cache && inside.contains(at);
                    let left = if is_zero { vec![0; 4096] } else { pattern(seed, 4096) };
                    assert!(client.read(*at, 4096) == left, "{style:?} {command:?} {start} {at}");
                }
            }
        }
        client.disconnect();
    }
}

#[test]
fn flush_cache_and_fua_succeed() {
    for style in STYLES {
        let yard = Yard::new(MIB);
        let mut client = yard.client_of(style);
        client.ask(request(Command::Write, CommandFlags::FUA, 0, 512), &[9; 512]).ok();
        client.command(Command::Flush, 0, 0).ok();
        client.command(Command::Cache, 0, MIB).ok();
        assert_eq!(client.read(0, 512), [9; 512]);
    }
}

#[test]
fn an_export_says_what_its_disk_can_do() {
    use TransmissionFlags as F;
    let yard = Yard::with(ram(MIB + 512), |config, bdev| {
        config.exports[0].preferred_block_size = Some(65_536);
        let read_only = Export { read_only: true, ..Export::new("read-only", bdev.clone()) };
        config.exports.push(read_only);
        let limits = Limits {
            logical_block_size: BlockSize::B4096,
            max_hw_discard_sectors: 0,
            io_opt: 96 << 10,
            ..Ram::limits()
        };
        let big = disk_of(Ram::new(), (), MIB + 512, limits);
        let bdev = big.open(None, OpenMode::ReadOnly).unwrap();
        config.exports.push(Export::new("big-blocks", std::sync::Arc::new(bdev)));
        config.default_export = Some("disk".into());
    });
    let open = |name| {
        let client = Client::open(Box::new(yard.connect()), name, HeaderStyle::Extended).unwrap();
        client.negotiated.export
    };
    let disk = open("");
    assert_eq!((disk.name.as_str(), disk.size), ("disk", MIB + 512));
    assert_eq!(disk.description, "a disk to try");
    let always = F::HAS_FLAGS
        | F::SEND_FLUSH
        | F::SEND_FUA
        | F::SEND_DF
        | F::SEND_CACHE
        | F::CAN_MULTI_CONN
        | F::BLOCK_STATUS_PAYLOAD;
    assert_eq!(disk.flags, always | F::SEND_TRIM | F::SEND_WRITE_ZEROES | F::SEND_FAST_ZERO);
    let sizes = disk.block_sizes.unwrap();
    assert_eq!((sizes.minimum(), sizes.preferred(), sizes.max_payload()), (1, 65_536, 32 << 20));
    assert_eq!(open("read-only").flags, always | F::READ_ONLY);
    let big = open("big-blocks");
    assert_eq!((big.size, big.flags), (MIB, always | F::READ_ONLY), "whole blocks");
    let sizes = big.block_sizes.unwrap();
    assert_eq!((sizes.minimum(), sizes.preferred()), (1, 65_536), "a power of two");
}

#[test]
fn a_disk_that_cannot_flush_promises_nothing() {
    use TransmissionFlags as F;
    for (features, flags) in [
        (Features::NO_FLUSH, F::empty()),
        (Features::NO_FLUSH | Features::FUA, F::SEND_FUA),
        (Features::WRITE_CACHE, F::SEND_FLUSH | F::SEND_FUA | F::CAN_MULTI_CONN),
    ] {
        let mut limits = Ram::limits();
        limits.features |= features;
        let yard = Yard::with(disk_of(Ram::new(), (), MIB, limits), |_, _| {});
        let mut client = yard.client();
        let promises = F::SEND_FLUSH | F::SEND_FUA | F::CAN_MULTI_CONN;
        assert_eq!(client.negotiated.export.flags & promises, flags, "{features:?}");
        let error = client.command(Command::Flush, 0, 0).error;
        assert_eq!(error.is_some(), !flags.contains(F::SEND_FLUSH), "{features:?}");
        let durable = request(Command::Write, CommandFlags::FUA, 0, 512);
        let error = client.ask(durable, &[1; 512]).error;
        assert_eq!(error.is_some(), !flags.contains(F::SEND_FUA), "{features:?}");
    }
}

#[test]
fn bytes_are_served_and_blocks_are_enforced_where_that_is_asked_for() {
    let yard = Yard::with(ram(MIB), |config, bdev| {
        let blocks =
            Export { minimum_block_size: Some(4096), ..Export::new("blocks", bdev.clone()) };
        config.exports.push(blocks);
        config.default_export = Some("disk".into());
    });
    // 5 bytes of the last sector are there.
    yard.disk.set_size(Sector::from_bytes_floor(MIB), 507).unwrap();
    let size = MIB - 507;
    for style in STYLES {
        let mut client = yard.client_of(style);
        assert_eq!(client.negotiated.export.size, size);
        let mut model = client.read(0, size);
        let ranges = [(3, 5), (511, 2), (4095, 8194), (size - 1, 1), (size - 600, 600)];
        for (offset, len) in ranges {
            let data = pattern(offset, len);
            client.write(offset, &data);
            model[offset as usize..][..len].copy_from_slice(&data);
            assert!(client.read(offset, len as u64) == data, "{style:?} {len} at {offset}");
        }
        client.command(Command::WriteZeroes, 7, 1000).ok();
        model[7..1007].fill(0);
        assert!(client.read(0, size) == model, "{style:?}");
        assert_eq!(client.try_write(size, &[1]).error, Some(ErrorCode::ENOSPC));
        assert_eq!(client.command(Command::Read, size, 1).error, Some(ErrorCode::EINVAL));
    }
    let mut client =
        Client::open(Box::new(yard.connect()), "blocks", HeaderStyle::Extended).unwrap();
    assert_eq!(client.negotiated.export.size, MIB, "the last block is padded");
    assert_eq!(client.negotiated.export.block_sizes.unwrap().minimum(), 4096);
    assert_eq!(client.command(Command::Read, 512, 512).error, Some(ErrorCode::EINVAL));
    let tail = client.read(MIB - 4096, 4096);
    assert_eq!(tail[4096 - 507..], [0; 507]);
}

#[test]
fn a_read_only_export_is_not_changed() {
    let yard = Yard::with(ram(MIB), |config, _| config.exports[0].read_only = true);
    for style in STYLES {
        let mut client = yard.client_of(style);
        assert_eq!(client.try_write(0, &[1; 512]).error, Some(ErrorCode::EPERM));
        assert_eq!(client.command(Command::Trim, 0, 512).error, Some(ErrorCode::EPERM));
        assert_eq!(client.command(Command::WriteZeroes, 0, 512).error, Some(ErrorCode::EPERM));
        assert_eq!(client.read(0, 512), [0; 512]);
    }
}

#[test]
fn what_is_out_of_bounds_or_unknown_gets_the_error_of_the_specification() {
    let yard = Yard::new(MIB);
    for style in STYLES {
        let mut client = yard.client_of(style);
        let mut error = |command, flags, offset, length, payload: &[u8]| {
            client.ask(request(command, flags, offset, length), payload).error.unwrap()
        };
        use Command as C;
        use ErrorCode as E;
        assert_eq!(error(C::Write, NONE, MIB, 512, &[0; 512]), E::ENOSPC);
        assert_eq!(error(C::WriteZeroes, NONE, MIB - 512, 1024, &[]), E::ENOSPC);
        assert_eq!(error(C::Read, NONE, MIB - 512, 1024, &[]), E::EINVAL);
        assert_eq!(error(C::Read, NONE, u64::MAX - 511, 512, &[]), E::EINVAL);
        assert_eq!(error(C::Trim, NONE, MIB, 512, &[]), E::EINVAL);
        assert_eq!(error(C::Read, NONE, 0, 0, &[]), E::EINVAL);
        assert_eq!(error(C::Write, NONE, 0, 0, &[]), E::EINVAL);
        assert_eq!(error(C::Unknown(99), NONE, 0, 512, &[]), E::EINVAL);
        assert_eq!(error(C::Read, CommandFlags::from_bits_retain(1 << 14), 0, 512, &[]), E::EINVAL);
        let too_long = if style == HeaderStyle::Simple { E::EINVAL } else { E::EOVERFLOW };
        assert_eq!(error(C::Read, NONE, 0, u64::from(u32::MAX), &[]), too_long);
        assert_eq!(client.read(0, 512), [0; 512], "the stream is in step");
    }
}

#[test]
fn errors_of_the_disk_reach_the_client_in_every_style() {
    let held = held_disk(MIB, Limits::default());
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    for style in STYLES {
        let mut client = yard.client_of(style);
        for (status, error) in [
            (Status::Medium, ErrorCode::EIO),
            (Status::NoSpace, ErrorCode::ENOSPC),
            (Status::Resource, ErrorCode::ENOMEM),
        ] {
            for (command, payload) in [(Command::Read, &[][..]), (Command::Write, &[1; 512])] {
                client.send(request(command, NONE, 0, 512), payload);
                common::eventually("a request", || held.held() == 1);
                held.release(status);
                assert_eq!(client.next_reply().unwrap().1.error, Some(error));
            }
        }
        client.send(request(Command::Read, NONE, 0, 512), &[]);
        common::eventually("a request", || held.held() == 1);
        held.release(Status::Ok);
        assert_eq!(client.next_reply().unwrap().1.ok().data, [7; 512]);
    }
}

#[test]
fn a_resized_disk_is_checked_against_its_new_size() {
    let yard = Yard::new(MIB);
    let mut client = yard.client();
    assert_eq!(client.try_write(MIB, &[1; 512]).error, Some(ErrorCode::ENOSPC));
    yard.disk.set_capacity(Sector::from_bytes_floor(2 * MIB)).unwrap();
    client.write(MIB, &[1; 512]);
    yard.disk.set_capacity(Sector::from_bytes_floor(MIB / 2)).unwrap();
    assert_eq!(client.command(Command::Read, MIB / 2, 512).error, Some(ErrorCode::EINVAL));
    assert_eq!(client.read(0, 512), [0; 512]);
    assert_eq!(yard.client().negotiated.export.size, MIB / 2);
}

#[test]
fn a_header_behind_a_payload_is_checked_against_the_size_that_the_disk_has_then() {
    /// Comes last, into the payload's own memory, and with it the next header.
    const REST: usize = 20 << 10;
    let yard = Yard::new(MIB);
    let mut client = yard.client();
    let (long, bytes) =
        client.encode(request(Command::Write, NONE, 0, MIB), &pattern(1, MIB as usize));
    let (first, rest) = bytes.split_at(bytes.len() - REST);
    client.stream.write_all(first).unwrap();
    common::eventually("the header", || yard.server.memory_in_use() > 0);
    yard.disk.set_capacity(Sector::from_bytes_floor(2 * MIB)).unwrap();
    let (past, next) = client.encode(request(Command::Write, NONE, MIB, 512), &[1; 512]);
    client.stream.write_all(&[rest, &next].concat()).unwrap();
    for _ in 0..2 {
        let (cookie, outcome) = client.next_reply().unwrap();
        assert!(cookie == long || cookie == past);
        outcome.ok();
    }
    assert_eq!(client.read(MIB, 512), [1; 512]);
}

#[test]
fn a_flush_on_one_connection_covers_writes_on_another() {
    let held = held_disk(MIB, {
        let mut limits = Limits::default();
        limits.features |= Features::WRITE_CACHE;
        limits
    });
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let (mut one, mut other) = (yard.client(), yard.client());
    assert!(one.negotiated.export.flags.contains(TransmissionFlags::CAN_MULTI_CONN));
    one.send(request(Command::Write, NONE, 0, 512), &[1; 512]);
    common::eventually("the write", || held.held() == 1);
    held.release(Status::Ok);
    one.next_reply().unwrap().1.ok();
    // The disk sees the flush as a request of its own, after the write that was acknowledged.
    other.send(request(Command::Flush, NONE, 0, 0), &[]);
    common::eventually("the flush", || held.held() == 1);
    held.release(Status::Ok);
    other.next_reply().unwrap().1.ok();
}

#[test]
fn clients_are_listed_with_what_they_do() {
    let yard = Yard::new(MIB);
    let mut client = yard.client_of(HeaderStyle::Structured);
    client.write(0, &[1; 4096]);
    client.read(0, 512);
    let listed = yard.server.clients();
    let [info] = &listed[..] else { panic!("{listed:?}") };
    assert!(info.peer.starts_with("unix:pid="), "{info:?}");
    let session = info.session.as_ref().unwrap();
    assert_eq!(
        (session.export.as_str(), session.style, session.tls),
        ("disk", HeaderStyle::Structured, false)
    );
    assert_eq!((info.requests, info.bytes_read, info.bytes_written), (2, 512, 4096));
    client.disconnect();
    common::eventually("leaving", || yard.server.clients().is_empty());
}

#[test]
fn an_empty_disk_is_served() {
    let yard = Yard::new(0);
    for style in STYLES {
        let mut client = yard.client_of(style);
        assert_eq!(client.command(Command::Flush, 0, 0).error, None);
        for (command, error) in
            [(Command::Read, ErrorCode::EINVAL), (Command::WriteZeroes, ErrorCode::ENOSPC)]
        {
            assert_eq!(client.command(command, 0, 512).error, Some(error));
        }
        assert_eq!(client.try_write(0, &[1; 512]).error, Some(ErrorCode::ENOSPC));
        client.disconnect();
    }
}
