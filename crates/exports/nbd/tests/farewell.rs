//! The end, as clients see it that have something to flush, or do not know of each other's flushes, and how long it takes.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Features, Limits, Op, Status};
use blockyard_export_nbd::{Config, HeaderStyle};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode};
use common::{Client, DEADLINE, HeldDisk, MIB, Paused, Yard, eventually, ram, request, tags};

const NONE: CommandFlags = CommandFlags::empty();
/// A grace that is over soon.
const SHORT: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

/// A disk that keeps its flushes.
fn slow_to_flush() -> HeldDisk {
    let limits = Limits { features: Features::WRITE_CACHE, ..Limits::default() };
    HeldDisk::keeping(|op| op == Op::Flush, tags(), MIB, limits)
}

/// What it has is written back in any case, and who counts it as lost has lost nothing.
#[test]
fn a_flush_at_a_slow_disk_is_answered_though_the_time_is_over() {
    let held = slow_to_flush();
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let [mut client, mut other] = [(); 2].map(|()| yard.client());
    client.write(0, &[1; 512]);
    other.write(512, &[1; 512]);
    let flush = client.send(request(Command::Flush, NONE, 0, 0), &[]);
    held.wait_for(1);
    yard.shutdown(SHORT);
    assert!(other.is_closed(), "who asks for nothing is not waited for");
    held.release(Status::Ok);
    let (cookie, outcome) = client.next_reply().unwrap();
    assert_eq!((cookie, outcome.error), (flush, None));
    assert!(client.is_closed());
    drop((client, other));
    yard.until_all_left();
}

#[test]
fn a_flush_that_a_disk_never_answers_is_given_up_when_nobody_waits_for_the_disk() {
    let held = slow_to_flush();
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    let mut client = yard.hearing_client();
    client.write(0, &[1; 512]);
    client.send(request(Command::Flush, NONE, 0, 0), &[]);
    held.wait_for(1);
    yard.shutdown(SHORT);
    assert_eq!(yard.server.clients().len(), 1);
    let server = Arc::clone(&yard.server);
    yard.block_on(async move { server.finish(SHORT).await });
    assert!(client.is_closed(), "without an answer");
    yard.until_all_left();
    held.release(Status::Ok);
}

/// Also while another is waited for, whose queue thread does not answer.
#[test]
fn who_leaves_with_the_answer_to_its_flush_was_not_cut_off() {
    let held = slow_to_flush();
    let yard = Yard::with(held.disk.clone(), |_, _| {});
    // One on each thread, and one that is hung up on when the time is over.
    let [mut client, mut other] = [(); 2].map(|()| yard.client());
    client.write(0, &[1; 512]);
    other.write(512, &[1; 512]);
    let mut silent = yard.connect();
    let flush = client.send(request(Command::Flush, NONE, 0, 0), &[]);
    held.wait_for(1);
    let (go_on, stands) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    yard.threads[1].handle.spawn(async move {
        tell.send(()).unwrap();
        stands.recv()
    });
    told.recv_timeout(DEADLINE).unwrap();
    let server = Arc::clone(&yard.server);
    let cut_off = std::thread::scope(|scope| {
        let end = scope.spawn(|| yard.block_on(async move { server.shutdown(SHORT).await }));
        std::io::copy(&mut silent, &mut std::io::sink()).unwrap();
        held.release(Status::Ok);
        let (cookie, outcome) = client.next_reply().unwrap();
        assert_eq!((cookie, outcome.error), (flush, None));
        assert!(client.is_closed());
        drop(client);
        eventually("its end", || yard.server.clients().len() == 1);
        drop(go_on);
        end.join().unwrap()
    });
    assert_eq!(cut_off, 1, "the other");
    drop(other);
    yard.until_all_left();
}

/// An I/O error of the guest, where it would have asked the next server for the same.
#[test]
fn whoever_flushes_all_that_it_writes_is_let_go_without_a_word() {
    let hasty = |config: &mut Config, _: &Arc<_>| {
        config.limits.flush_grace = Duration::from_millis(20);
    };
    let yard = Yard::with(ram(MIB), hasty);
    let mut client = yard.client();
    client.write(0, &[1; 512]);
    client.command(Command::Flush, 0, 0).ok();
    std::thread::scope(|scope| {
        let end = scope.spawn(|| yard.shutdown(DEADLINE));
        let error = until_the_end(|| {
            for (command, len) in [(Command::Write, 512), (Command::Flush, 0)] {
                let payload = vec![1; if command == Command::Write { 512 } else { 0 }];
                let (_, bytes) = client.encode(request(command, NONE, 0, len), &payload);
                client.stream.write_all(&bytes).ok()?;
                if let Some(error) = client.next_reply().ok()?.1.error {
                    return Some(Some(error));
                }
            }
            Some(None)
        });
        assert_eq!(error, None);
        drop(client);
        end.join().unwrap();
    });
}

/// Until it fails, or is hung up on.
fn until_the_end(mut asks: impl FnMut() -> Option<Option<ErrorCode>>) -> Option<ErrorCode> {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < DEADLINE, "it is served for ever");
        match asks() {
            Some(None) => {}
            Some(error) => return error,
            None => return None,
        }
    }
}

fn flush_grace(grace: Duration) -> impl FnOnce(&mut Config) {
    move |config| config.limits.flush_grace = grace
}

/// What a client may tell another thread.
type Told = std::sync::mpsc::Sender<()>;

/// Where all of the time is for flushes, too.
#[test]
fn who_is_busy_hears_of_the_end_before_it_is_cut_off() {
    for seconds in [1, 5, 8] {
        let grace = Duration::from_secs(seconds);
        Paused::run(&ram(MIB), flush_grace(grace), |paused| async move {
            // Several at a time, so that nobody spins for the next one.
            let busy = paused.client(true, |mut client| {
                until_the_end(|| {
                    let writes = [(); 4].map(|()| {
                        client.encode(request(Command::Write, NONE, 0, 512), &[1; 512]).1
                    });
                    client.stream.write_all(&writes.concat()).ok()?;
                    for _ in 0..4 {
                        if let Some(error) = client.next_reply().ok()?.1.error {
                            return Some(Some(error));
                        }
                    }
                    Some(None)
                })
            });
            Paused::until("no load", || paused.requests() > 8).await;
            let end = paused.shut_down(grace);
            while !busy.is_finished() {
                let before = paused.requests();
                let moved = || busy.is_finished() || paused.requests() > before + 4;
                Paused::until("it is not served", moved).await;
                tokio::time::advance(Duration::from_millis(50)).await;
            }
            assert_eq!(busy.join().unwrap(), Some(ErrorCode::ESHUTDOWN), "{grace:?}");
            while !end.is_finished() {
                tokio::time::advance(Duration::from_millis(50)).await;
            }
        });
    }
}

/// The default of the daemon is half of ten seconds.
#[test]
fn who_neither_flushes_nor_hangs_up_is_let_go_in_time() {
    // Who has been told of it has a while more.
    for (hears, asks, seconds) in
        [(false, false, 5), (false, true, 5), (true, false, 5), (true, true, 6)]
    {
        let grace = Duration::from_secs(seconds);
        let limits = Config::default().limits;
        Paused::run(&ram(MIB), flush_grace(limits.flush_grace), |paused| async move {
            let (tell, go_on): (Told, _) = std::sync::mpsc::channel();
            let (told, is_told) = std::sync::mpsc::channel();
            let silent = paused.client(hears, move |mut client| {
                client.write(0, &[1; 512]);
                if asks {
                    go_on.recv_timeout(DEADLINE).unwrap();
                    client.read(0, 512);
                }
                told.send(client).unwrap();
            });
            Paused::until("it writes", || paused.requests() > 0).await;
            let end = paused.shut_down(grace);
            tokio::task::yield_now().await;
            let _ = tell.send(());
            Paused::until("it asks", || silent.is_finished()).await;
            silent.join().unwrap();
            // It is there as long as this.
            let _client: Client = is_told.recv().unwrap();
            while !end.is_finished() {
                tokio::time::advance(Duration::from_millis(50)).await;
            }
            let took = end.await.unwrap();
            assert!(took < grace, "hears {hears}, asks {asks}: {took:?}");
        });
    }
}

/// Reads of which the socket has no room for the replies, and a flush.
fn ask_for_much_and_flush(client: &mut Client) {
    let read = request(Command::Read, NONE, 0, MIB);
    let flush = request(Command::Flush, NONE, 0, 0);
    let bytes = [read, read, flush].map(|request| client.encode(request, &[]).1).concat();
    client.stream.write_all(&bytes).unwrap();
}

/// A machine that is suspended, say.
#[test]
fn who_takes_nothing_of_the_answer_to_its_flush_keeps_nobody_from_the_disk() {
    let held = slow_to_flush();
    let config = |config: &mut Config| config.limits.stall_timeout = 900 * SECOND;
    let disk = Arc::clone(&held.disk);
    Paused::run(&disk, config, |paused| async move {
        let stream = Box::new(paused.connect());
        let (told, is_told) = std::sync::mpsc::channel();
        let asks = std::thread::spawn(move || {
            let mut client = Client::open(stream, "", HeaderStyle::Extended).unwrap();
            ask_for_much_and_flush(&mut client);
            told.send(client).unwrap();
        });
        let in_flight =
            || -> usize { paused.server.clients().iter().map(|client| client.in_flight).sum() };
        Paused::until("the flush", || held.held() == 1 && in_flight() == 3).await;
        asks.join().unwrap();
        // It is there as long as this.
        let _client: Client = is_told.recv().unwrap();
        let server = Arc::clone(&paused.server);
        let grace = Duration::from_millis(50);
        let removal = tokio::spawn(async move { server.remove_export("disk", grace).await });
        while !removal.is_finished() {
            tokio::time::advance(grace).await;
        }
        let removed = removal.await.unwrap().unwrap();
        assert_eq!(paused.server.in_flight_of(removed), 1, "the disk has the flush");
        assert_eq!(held.disk.openers(), 1);
        held.release(Status::Ok);
        let released = tokio::time::Instant::now();
        while held.disk.openers() > 0 && released.elapsed() < 60 * SECOND {
            tokio::time::advance(grace).await;
        }
        assert!(released.elapsed() < 3 * SECOND, "{:?}", released.elapsed());
    });
}

/// A slow network is no reason to lose the answer.
#[test]
fn who_takes_the_answer_to_its_flush_slowly_gets_all_of_it() {
    const STEP: usize = 256 << 10;
    let replies = 2 * (16 + (1 << 20)) + 16;
    let held = slow_to_flush();
    let disk = Arc::clone(&held.disk);
    Paused::run(
        &disk,
        |_| {},
        |paused| async move {
            let stream = Box::new(paused.connect());
            let (tell, go_on): (Told, _) = std::sync::mpsc::channel();
            let (told, is_told) = std::sync::mpsc::channel();
            let takes = std::thread::spawn(move || {
                let mut client = Client::open(stream, "", HeaderStyle::Simple).unwrap();
                ask_for_much_and_flush(&mut client);
                let mut took = Vec::new();
                while go_on.recv_timeout(DEADLINE).is_ok() {
                    let len = Read::take(&mut *client.stream, STEP as u64)
                        .read_to_end(&mut took)
                        .unwrap();
                    told.send(len).unwrap();
                    if len < STEP {
                        break;
                    }
                }
                took
            });
            Paused::until("the flush", || held.held() == 1).await;
            let end = paused.shut_down(Duration::ZERO);
            while !end.is_finished() {
                tokio::time::advance(Duration::from_millis(50)).await;
            }
            held.release(Status::Ok);
            loop {
                tell.send(()).unwrap();
                let mut len = None;
                Paused::until("it takes some", || {
                    len = is_told.try_recv().ok();
                    len.is_some()
                })
                .await;
                if len != Some(STEP) {
                    break;
                }
                for _ in 0..12 {
                    tokio::time::advance(Duration::from_millis(50)).await;
                }
            }
            let took = takes.join().unwrap();
            assert_eq!(took.len(), replies);
            assert_eq!(took[replies - 12..replies - 8], [0; 4], "the flush is done");
        },
    );
}
