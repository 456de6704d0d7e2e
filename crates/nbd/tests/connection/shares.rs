//! Who gets how much of what is short.

use std::collections::VecDeque;

use blockyard_nbd::server::{ConnectionLimits, Data};
use blockyard_nbd::wire::{Command, HeaderStyle};

use super::clocks::hogs;
use super::pair::{Answer, Budget, MIB, Pair, budget, head, reply};

/// A client that always has so many READs of one length under way.
struct Greedy {
    pair: Pair,
    length: u64,
    depth: usize,
    sent: usize,
    served: u64,
}

impl Greedy {
    /// Asks for more, as far as it is let.
    fn top_up(&mut self, name: usize, at_disk: &mut VecDeque<(usize, usize)>) {
        while self.sent < self.depth {
            if self.pair.send(&head(Command::Read, 0, self.length)) == 0 {
                break;
            }
            self.sent += 1;
        }
        if self.pair.connection.may_receive() {
            self.pair.send(&[]);
        }
        while let Some(request) = self.pair.asked() {
            at_disk.push_back((name, request.token));
        }
    }
}

#[test]
fn while_memory_is_short_all_get_as_many_bytes() {
    let budget = Budget::new(8 * MIB, 32);
    let client =
        |length: u64, depth| Greedy { pair: Pair::new(&budget), length, depth, sent: 0, served: 0 };
    let mut clients =
        [client(4 << 20, 4), client(4 << 20, 4), client(512 << 10, 16), client(256 << 10, 16)];
    let mut at_disk = VecDeque::new();
    for _ in 0..4000 {
        for (name, client) in clients.iter_mut().enumerate() {
            client.top_up(name, &mut at_disk);
            client.pair.connection.deadline(client.pair.now);
        }
        let (name, token) = at_disk.pop_front().unwrap();
        let client = &mut clients[name];
        let data = vec![vec![7; client.length as usize]];
        client.pair.end(Answer { token, data, ..Answer::default() });
        client.pair.take_replies();
        client.sent -= 1;
        client.served += client.length;
    }
    let served: Vec<_> = clients.iter().map(|client| client.served >> 20).collect();
    let (most, least) = (served.iter().max().unwrap(), served.iter().min().unwrap());
    assert!(*most <= 3 * least, "{served:?} MiB");
}

#[test]
fn what_changes_many_bytes_counts_for_them() {
    let budget = Budget::new(256 * MIB, 1024);
    for command in [Command::WriteZeroes, Command::Trim, Command::Cache] {
        let limit = |limits: &mut ConnectionLimits| limits.memory = 64 * MIB;
        let mut pair = Pair::limited(&budget, HeaderStyle::Simple, 512, limit);
        // Each is more than the client may have under way: one at a time.
        let mut bytes = Vec::new();
        (0..3).for_each(|_| bytes.extend(head(command, 0, 1 << 30)));
        let mut at = pair.send(&bytes);
        for _ in 0..3 {
            let token = pair.asked().unwrap().token;
            assert!(pair.asked().is_none(), "one {command:?} at a time");
            assert_eq!(budget.taken(), 0, "it takes no memory");
            pair.end(Answer { token, ..Answer::default() });
            pair.replies();
            at += pair.send(&bytes[at..]);
        }
        assert_eq!(at, bytes.len());
        // Short ones go together.
        (0..16).for_each(|_| assert_eq!(pair.send(&head(command, 0, 1 << 20)), 28));
        assert_eq!(std::iter::from_fn(|| pair.asked()).count(), 16);
    }
}

/// What a write keeps of a receive buffer is not given to others in the moment before the owner has counted it.
#[test]
fn a_payload_that_is_left_where_it_was_received_counts_at_once() {
    const WINDOW: usize = 256 << 10;
    let budget = budget();
    let mut pair = Pair::new(&budget);
    pair.send(&head(Command::Read, 0, 1 << 20).repeat(2));
    let [first, second] = [(); 2].map(|()| pair.asked().unwrap().token);
    let read = |token| Answer { token, data: vec![vec![7; MIB]], ..Answer::default() };
    pair.end(read(first));
    pair.take_replies();
    let leased = budget.taken();
    let _hogs = hogs(&budget);
    let of_hogs = budget.taken() - leased;
    // A packet in which a small write is, when the reply to the read goes.
    pair.end(read(second));
    let write = [head(Command::Write, 512, 512), vec![1; 512]].concat();
    assert_eq!(pair.send(&write), write.len());
    let asked = pair.asked().unwrap();
    assert!(matches!(asked.data, Data::Here(_)), "{:?}", asked.data);
    pair.take_replies();
    assert!(budget.taken() >= of_hogs + WINDOW - budget.own(), "the buffer is given to others");
    // Another one of the same packet takes no other buffer.
    assert_eq!(pair.send(&write), write.len());
    let other = pair.asked().unwrap();
    assert!(matches!(other.data, Data::Here(_)), "{:?}", other.data);
    pair.connection.set_pinned(WINDOW);
    for token in [asked.token, other.token] {
        pair.end(Answer { token, ..Answer::default() });
        assert_eq!(pair.replies(), reply(0, 512));
        assert!(budget.taken() >= of_hogs + WINDOW - budget.own());
    }
    pair.connection.set_pinned(0);
    pair.send(&head(Command::Read, 0, 512));
    let token = pair.asked().unwrap().token;
    pair.end(Answer { token, data: vec![vec![7; 512]], ..Answer::default() });
    pair.take_replies();
    assert_eq!(budget.taken(), of_hogs);
}
