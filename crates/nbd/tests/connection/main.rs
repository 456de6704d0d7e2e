//! A connection in its transmission phase, byte by byte and in time that is told to it.
#![allow(unreachable_pub, reason = "its modules are its own")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod clocks;
mod pair;
mod shares;

use std::time::Duration;

use blockyard_nbd::server::{ConnectionLimits, Data, Ending, Expired, HalfWay, PRESSED_TIMEOUT};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, HeaderStyle, Request};
use pair::{Answer, Budget, MIB, NONE, Pair, STALL, budget, head, memory, reply};

#[test]
fn an_idle_hour_before_a_message_does_not_shorten_it() {
    let mut pair = Pair::new(&budget());
    pair.send(&head(Command::Read, 0, 512));
    let token = pair.asked().unwrap().token;
    pair.end(Answer { token, data: vec![vec![7; 512]], ..Answer::default() });
    pair.replies();
    assert_eq!(pair.pass(Duration::from_secs(3600)), None);
    let write = [head(Command::Write, 0, 1 << 20), vec![1; MIB]].concat();
    assert_eq!(pair.send(&write[..65_536]), 65_536);
    assert_eq!(pair.pass(STALL - Duration::from_secs(1)), None, "its clock has just begun");
    assert_eq!(pair.send(&write[65_536..]), write.len() - 65_536);
    assert_eq!(pair.asked().unwrap().length, 1 << 20);
}

#[test]
fn a_peer_that_is_slow_and_steady_lives_and_one_that_stands_still_does_not() {
    let mut pair = Pair::new(&budget());
    let write = [head(Command::Write, 0, 65_536), vec![1; 65_536]].concat();
    // A byte in 50 seconds at first, then more: by receive and by place.
    for at in 0..40 {
        assert_eq!(pair.send(&write[at..=at]), 1);
        assert_eq!(pair.pass(Duration::from_secs(50)), None, "byte {at}");
    }
    for (at, &byte) in write.iter().enumerate().take(60).skip(40) {
        let place = pair.connection.place(&mut memory).unwrap();
        assert!(place.is_last);
        place.bytes[0] = byte;
        pair.connection.placed(1);
        assert_eq!(pair.pass(Duration::from_secs(50)), None, "byte {at}");
    }
    assert_eq!(pair.send(&write[60..]), write.len() - 60);
    let request = pair.asked().unwrap();
    let Data::Chunks(chunks) = request.data else { panic!("it came in pieces") };
    assert!(chunks[0].memory.0[..65_536] == write[28..]);
    // The disk may take its time, and so may the client with its reply, as long as it takes some.
    assert_eq!(pair.pass(Duration::from_secs(3600)), None);
    pair.end(Answer { token: request.token, ..Answer::default() });
    for _ in 0..15 {
        assert_eq!(pair.pass(Duration::from_secs(50)), None);
        pair.connection.sent(1);
    }
    assert_eq!(pair.pass(STALL), Some(Expired::Stalled(HalfWay::Replies, STALL)));
    for half in [1, 27, 28, 29, 1000] {
        let mut pair = Pair::new(&budget());
        pair.send(&write[..half]);
        let what = match half {
            ..28 => HalfWay::Header,
            _ => HalfWay::Payload((write.len() - half) as u64),
        };
        assert_eq!(pair.pass(2 * STALL), Some(Expired::Stalled(what, STALL)), "{half}");
    }
}

#[test]
fn a_payload_takes_memory_as_it_comes() {
    let budget = budget();
    let mut pair = Pair::new(&budget);
    pair.send(&head(Command::Write, 0, 32 << 20));
    assert_eq!(budget.taken(), 0, "nothing has come");
    let mut came = 0;
    while let Some(place) = pair.connection.place(&mut memory) {
        let len = place.bytes.len();
        place.bytes.fill(3);
        came += len;
        pair.connection.placed(len);
        assert!(budget.taken() <= (2 * came).max(512 << 10), "{} for {came}", budget.taken());
    }
    let request = pair.asked().unwrap();
    assert_eq!((came, request.length), (32 * MIB, 32 << 20));
}

#[test]
fn a_write_that_finds_no_memory_goes_on_in_pieces_and_gets_one_answer() {
    for error in [None, Some(ErrorCode::ENOSPC)] {
        let budget = budget();
        let mut hog = Pair::new(&budget);
        let mut others: Vec<_> = (0..4).map(|_| Pair::new(&budget)).collect();
        for other in others.iter_mut().chain([&mut hog]) {
            other.send(&head(Command::Read, 0, 32 << 20));
            other.send(&head(Command::Read, 0, 32 << 20));
        }
        assert!(budget.is_pressed() && budget.taken() > 160 * MIB);
        let mut pair = Pair::new(&budget);
        let payload: Vec<u8> = (0..MIB).map(|at| (at / 512) as u8).collect();
        let bytes = [head(Command::Write, 4096, MIB as u64), payload.clone()].concat();
        let (mut at, mut written, mut pieces) = (0, Vec::new(), 0);
        while at < bytes.len() {
            at += pair.send(&bytes[at..]);
            while let Some(piece) = pair.asked() {
                assert_eq!((piece.offset, piece.offset % 4096), (4096 + written.len() as u64, 0));
                let Data::Chunks(chunks) = piece.data else { panic!("there is no window") };
                for chunk in chunks {
                    assert!(chunk.len <= budget.own());
                    written.extend_from_slice(&chunk.memory.0[..chunk.len]);
                }
                pieces += 1;
                assert_eq!(pair.replies(), []);
                let error = error.filter(|_| pieces == 3);
                pair.end(Answer { token: piece.token, error, ..Answer::default() });
            }
        }
        assert!(written == payload && pieces > 10);
        assert_eq!(pair.replies(), reply(error.map_or(0, |error| error.0), 4096));
        assert_eq!(pair.connection.outstanding(), 0);
    }
}

#[test]
fn of_a_client_that_takes_no_answers_what_changes_the_disk_is_done_up_to_its_goodbye() {
    let one = |limits: &mut ConnectionLimits| limits.in_flight = 1;
    let mut pair = Pair::limited(&budget(), HeaderStyle::Simple, 512, one);
    let mut bytes = Vec::new();
    for (command, offset) in
        [(Command::Write, 0), (Command::Read, 512), (Command::Trim, 1024), (Command::Write, 1536)]
    {
        bytes.extend(head(command, offset, 512));
        bytes.resize(bytes.len() + if command == Command::Write { 512 } else { 0 }, 7);
    }
    bytes.extend(head(Command::Disc, 0, 0));
    let mut at = pair.send(&bytes);
    let mut token = pair.asked().unwrap().token;
    assert!(at < bytes.len() && pair.asked().is_none());
    pair.connection.desert();
    for offset in [1024, 1536] {
        pair.end(Answer { token, ..Answer::default() });
        assert!(pair.connection.poll_free().is_some() && !pair.connection.wants_transmit());
        at += pair.send(&bytes[at..]);
        let next = pair.asked().unwrap();
        assert_eq!(next.offset, offset, "a read is not begun");
        token = next.token;
    }
    pair.end(Answer { token, error: Some(ErrorCode::EIO), ..Answer::default() });
    assert!(pair.connection.poll_free().is_some());
    at += pair.send(&bytes[at..]);
    assert_eq!((at, pair.connection.ending()), (bytes.len(), Some(Ending::Goodbye)));
    assert!(pair.connection.is_quiet());
}

#[test]
fn a_write_stays_whole_while_another_export_has_all_it_may_have() {
    let budget = Budget::new(256 * MIB, 256);
    let well = budget.another();
    let mut hung: Vec<_> = (0..8).map(|_| Pair::new(&budget)).collect();
    for client in &mut hung {
        client.send(&head(Command::Read, 0, 32 << 20));
    }
    assert!(budget.is_pressed());
    let mut pair = Pair::new(&well);
    for _ in 0..4 {
        pair.send(&[head(Command::Write, 0, MIB as u64), vec![1; MIB]].concat());
        let asked = pair.asked().unwrap();
        assert_eq!(asked.length, MIB as u64);
        pair.end(Answer { token: asked.token, ..Answer::default() });
        assert_eq!(pair.replies(), reply(0, 0));
    }
}

#[test]
fn small_requests_pass_when_memory_is_out_and_large_ones_wait_for_their_turn() {
    let budget = budget();
    let mut crowd: Vec<_> = (0..8).map(|_| Pair::new(&budget)).collect();
    for client in &mut crowd {
        client.send(&head(Command::Read, 0, 32 << 20));
        client.send(&head(Command::Read, 0, 32 << 20));
    }
    let mut pair = Pair::new(&budget);
    for _ in 0..100 {
        pair.send(&head(Command::Read, 0, 4096));
        let token = pair.asked().unwrap().token;
        pair.end(Answer { token, data: vec![vec![1; 4096]], ..Answer::default() });
        pair.replies();
        pair.send(&[head(Command::Write, 0, 4096), vec![1; 4096]].concat());
        let token = pair.asked().unwrap().token;
        pair.end(Answer { token, ..Answer::default() });
        assert_eq!(pair.replies(), reply(0, 0));
    }
    pair.send(&head(Command::Read, 0, 1 << 20));
    assert!(pair.asked().is_none() && !pair.connection.may_receive());
    drop(crowd);
    assert!(pair.connection.may_receive());
    pair.send(&[]);
    assert_eq!(pair.asked().unwrap().length, 1 << 20);
}

#[test]
fn who_keeps_memory_that_others_wait_for_has_less_time_to_take_its_replies() {
    let budget = budget();
    let mut crowd: Vec<_> = (0..8).map(|_| Pair::new(&budget)).collect();
    for client in &mut crowd {
        client.send(&head(Command::Read, 0, 32 << 20));
        if let Some(request) = client.asked() {
            let data = vec![vec![1; 32 << 20]];
            client.end(Answer { token: request.token, data, ..Answer::default() });
        }
    }
    assert!(budget.is_pressed());
    assert_eq!(crowd[0].pass(PRESSED_TIMEOUT - Duration::from_secs(1)), None);
    crowd[0].connection.sent(1);
    assert_eq!(crowd[0].pass(PRESSED_TIMEOUT - Duration::from_secs(1)), None, "it moves");
    let expired = Some(Expired::Pressed(HalfWay::Replies, PRESSED_TIMEOUT));
    assert_eq!(crowd[0].pass(2 * PRESSED_TIMEOUT), expired);
    crowd.truncate(2);
    assert!(!budget.is_pressed());
    assert_eq!(crowd[1].pass(STALL - Duration::from_secs(1)), None, "nobody waits");
    assert_eq!(crowd[1].pass(STALL), Some(Expired::Stalled(HalfWay::Replies, STALL)));
}

#[test]
fn a_server_that_ends_says_so_and_answers_what_it_has() {
    let mut pair = Pair::new(&budget());
    // As many as may be in flight, and two that wait.
    for n in 0..16 {
        pair.send(&head(Command::Read, n * 512, 512));
    }
    let tokens: Vec<_> = (0..16).map(|_| pair.asked().unwrap().token).collect();
    let waiting = [head(Command::Read, 0x8000, 512), head(Command::Flush, 0, 0)].concat();
    let taken = pair.send(&waiting);
    pair.connection.stash(&waiting[taken..]);
    assert!(pair.asked().is_none() && pair.connection.has_backlog());
    pair.connection.shut_down();
    pair.connection.refuse_requests();
    assert!(pair.connection.may_receive());
    let mut stash = vec![0; 8192];
    let len = pair.connection.take_backlog(&mut stash);
    assert_eq!(pair.send(&stash[..len]), len);
    let write = [head(Command::Write, 0x4000, 4096), vec![1; 4096]].concat();
    let taken = pair.send(&write);
    pair.connection.stash(&write[taken..]);
    let refused = ErrorCode::ESHUTDOWN.0;
    // The flush waits for its turn, and whoever has written may still make it durable.
    assert_eq!(pair.replies(), reply(refused, 0x8000));
    assert!(pair.asked().is_none() && !pair.connection.is_quiet());
    for token in tokens {
        pair.end(Answer { token, data: vec![vec![1; 512]], ..Answer::default() });
    }
    assert_eq!(pair.replies().len(), 16 * (16 + 512));
    assert!(pair.connection.has_backlog() && pair.connection.ending().is_none());
    let len = pair.connection.take_backlog(&mut stash);
    assert_eq!(pair.send(&stash[..len]), len);
    let flush = pair.asked().unwrap();
    pair.end(Answer { token: flush.token, ..Answer::default() });
    assert_eq!(pair.replies(), [reply(refused, 0x4000), reply(0, 0)].concat());
    assert!(pair.asked().is_none() && pair.connection.is_quiet());
    assert_eq!(pair.connection.ending(), Some(Ending::Shutdown));
}

#[test]
fn a_server_that_ends_carries_out_what_it_does_not_refuse() {
    let mut pair = Pair::new(&budget());
    pair.send(&head(Command::Read, 0, 512));
    let first = pair.asked().unwrap().token;
    pair.connection.shut_down();
    assert!(!pair.connection.is_quiet());
    pair.send(&head(Command::Read, 512, 512));
    let second = pair.asked().unwrap().token;
    for token in [first, second] {
        pair.end(Answer { token, data: vec![vec![1; 512]], ..Answer::default() });
    }
    assert_eq!(pair.replies().len(), 2 * (16 + 512));
    assert_eq!(pair.connection.ending(), Some(Ending::Shutdown));
    pair.connection.set_awaits_flush(true);
    assert_eq!(pair.connection.ending(), None);
}

#[test]
fn a_goodbye_is_one_whatever_flags_it_has() {
    let mut pair = Pair::new(&budget());
    let flags = CommandFlags::FUA | CommandFlags::from_bits_retain(1 << 12);
    let goodbye = Request { command: Command::Disc, flags, cookie: 0, offset: 5, length: 7 };
    pair.send(&goodbye.encode(HeaderStyle::Simple).unwrap());
    assert_eq!(pair.connection.ending(), Some(Ending::Goodbye));
    assert_eq!(pair.replies(), []);
}

#[test]
fn extents_are_told_in_whole_blocks() {
    let mut pair = Pair::with(&budget(), HeaderStyle::Structured, 4096);
    let request = Request {
        command: Command::BlockStatus,
        flags: NONE,
        cookie: 1,
        offset: 0,
        length: 32_768,
    };
    pair.send(&request.encode(HeaderStyle::Structured).unwrap());
    let token = pair.asked().unwrap().token;
    // A hole that ends inside a block, one that lies in one, and zeroes beside a hole.
    let extents = vec![(8704, 3), (3584, 0), (512, 3), (3584, 0), (6144, 3), (2048, 2), (8192, 0)];
    assert_eq!(extents.iter().map(|extent| extent.0).sum::<u64>(), 32_768);
    pair.end(Answer { token, extents, ..Answer::default() });
    let replies = pair.replies();
    let descriptors: Vec<(u32, u32)> = replies[24..]
        .chunks(8)
        .map(|it| {
            let number = |at: usize| u32::from_be_bytes(it[at..at + 4].try_into().unwrap());
            (number(0), number(4))
        })
        .collect();
    assert_eq!(descriptors, [(8192, 3), (8192, 0), (4096, 3), (4096, 2), (8192, 0)]);
}

#[test]
fn what_is_at_the_disk_counts_until_it_ends_after_the_connection_has() {
    let budget = budget();
    let mut pair = Pair::new(&budget);
    pair.send(&head(Command::Read, 0, 8 << 20));
    pair.send(&head(Command::Read, 4096, 1 << 20));
    let first = pair.asked().unwrap().token;
    // One has ended and is not sent, one is not asked for yet, one has come in part, and one waits.
    pair.end(Answer { token: first, data: vec![vec![1; 8 << 20]], ..Answer::default() });
    pair.send(&head(Command::Read, 8192, 1 << 20));
    let second = pair.asked().unwrap().token;
    pair.send(&[head(Command::Write, 0, 1 << 20), vec![1; 65_536]].concat());
    pair.connection.stash(&[0; 100]);
    assert!(pair.connection.outstanding() == 3 && budget.taken() > 10 * MIB);
    pair.connection.hang_up();
    assert_eq!(pair.connection.outstanding(), 1);
    assert_eq!(budget.taken(), 0, "nobody will read what the disk answers");
    assert!(!pair.connection.may_receive() && pair.asked().is_none());
    pair.end(Answer { token: second, data: vec![vec![1; MIB]], ..Answer::default() });
    pair.connection.hang_up();
    assert_eq!((pair.connection.outstanding(), budget.taken()), (0, 0));
    assert!(pair.replies().is_empty() && pair.connection.is_quiet());
}

#[test]
fn a_payload_at_the_disk_counts_until_it_ends_after_the_connection_has() {
    let budget = budget();
    let mut pair = Pair::new(&budget);
    let write = [head(Command::Write, 0, 8 << 20), vec![1; 8 << 20]].concat();
    assert_eq!(pair.send(&write[..100]) + pair.send(&write[100..]), write.len());
    let token = pair.asked().unwrap().token;
    pair.connection.hang_up();
    assert!(budget.taken() + budget.own() >= 8 * MIB);
    pair.end(Answer { token, ..Answer::default() });
    pair.connection.hang_up();
    assert_eq!((pair.connection.outstanding(), budget.taken()), (0, 0));
}

#[test]
fn what_came_before_a_message_that_is_none_is_answered() {
    for garbage in [&[0x5a; 40][..], &head(Command::Write, 0, 1 << 30)] {
        let mut pair = Pair::new(&budget());
        let bytes = [&head(Command::Read, 512, 512)[..], garbage].concat();
        assert_eq!(pair.send(&bytes), bytes.len());
        let token = pair.asked().unwrap().token;
        assert!(!pair.connection.may_receive() && !pair.connection.is_quiet());
        pair.end(Answer { token, data: vec![vec![7; 512]], ..Answer::default() });
        assert_eq!(pair.replies(), [reply(0, 512), vec![7; 512]].concat());
        assert_eq!(pair.connection.ending(), Some(Ending::Broken));
        assert!(pair.connection.is_quiet() && pair.connection.violation().is_some());
    }
    let mut pair = Pair::new(&budget());
    pair.send(&head(Command::Flush, 0, 0).repeat(2)[..28 + 5]);
    pair.connection.end_of_input();
    let token = pair.asked().unwrap().token;
    assert!(!pair.connection.is_quiet());
    pair.end(Answer { token, ..Answer::default() });
    assert_eq!(pair.replies(), reply(0, 0));
    assert_eq!(pair.connection.ending(), Some(Ending::Truncated));
}

#[test]
fn a_write_in_pieces_ends_with_its_connection() {
    for was_asked in [true, false] {
        let budget = budget();
        let mut crowd: Vec<_> = (0..8).map(|_| Pair::new(&budget)).collect();
        for client in &mut crowd {
            client.send(&head(Command::Read, 0, 32 << 20));
            client.send(&head(Command::Read, 0, 32 << 20));
        }
        let before = budget.taken();
        let mut pair = Pair::new(&budget);
        pair.send(&[head(Command::Write, 0, 1 << 20), vec![1; 200_000]].concat());
        let piece = if was_asked { pair.asked() } else { None };
        pair.connection.hang_up();
        if let Some(piece) = piece {
            assert_eq!(pair.connection.outstanding(), 2, "the piece, and the whole");
            pair.end(Answer { token: piece.token, ..Answer::default() });
            pair.connection.hang_up();
        }
        assert_eq!((pair.connection.outstanding(), budget.taken()), (0, before));
        assert!(pair.replies().is_empty());
    }
}

#[test]
fn what_counts_for_more_than_all_memory_has_its_turn() {
    let budget = Budget::new(128 << 10, 1);
    let mut pair = Pair::with(&budget, HeaderStyle::Structured, 512);
    let flags = CommandFlags::REQ_ONE;
    let status =
        Request { command: Command::BlockStatus, flags, cookie: 1, offset: 0, length: 512 };
    let status = status.encode(HeaderStyle::Structured).unwrap();
    // Nor does it matter what waits behind it.
    pair.connection.stash(&[0; 200_000]);
    for _ in 0..3 {
        assert_eq!(pair.send(&status), status.len());
        let token = pair.asked().unwrap().token;
        pair.end(Answer { token, extents: vec![(512, 0)], ..Answer::default() });
        assert!(!pair.replies().is_empty() && budget.taken() <= budget.largest_lease());
    }
}
