//! Watches and notifications, among us and with Ceph's own tool.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

mod common;

use blockyard_rados::ErrorKind;
use blockyard_rados::net::{Told, Watch};
use common::{ENOENT, POOL, connect, errno, pool, rados, run, shared};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Answers the next notification: what it said.
async fn answer(watch: &mut Watch, with: &[u8]) -> Vec<u8> {
    loop {
        match watch.next().await.unwrap() {
            Told::Notified(told) => {
                watch.acknowledge(&told, with);
                return told.payload.to_vec();
            }
            Told::Missed => {}
            Told::Lost(error) => panic!("{error}"),
        }
    }
}

#[test]
fn watchers_are_told_and_their_answers_come_back() {
    let lab = shared();
    run(async {
        let (mine, yours) = (pool(&lab).await, pool(&lab).await);
        assert_eq!(errno(&mine.watch("told", None).await.unwrap_err()), ENOENT);
        mine.create("told", true).await.unwrap();
        let mut one = mine.watch("told", None).await.unwrap();
        let mut two = yours.watch("told", Some(TIMEOUT)).await.unwrap();
        let told = yours.notify("told", b"news", TIMEOUT);
        let (answers, first, second) =
            tokio::join!(told, answer(&mut one, b"1"), answer(&mut two, b"2"));
        assert_eq!((first, second), (b"news".to_vec(), b"news".to_vec()));
        let mut answers = answers.unwrap();
        assert!(answers.silent.is_empty());
        let id = |pool: &blockyard_rados::net::Pool| pool.cluster().global_id();
        answers.answered.sort_by(|a, b| a.1.cmp(&b.1));
        let expected =
            [((id(&mine), one.cookie()), "1".into()), ((id(&yours), two.cookie()), "2".into())];
        assert_eq!(answers.answered, expected);

        let watchers = mine.watchers("told").await.unwrap();
        assert_eq!(watchers.len(), 2);
        let own = watchers.iter().find(|watcher| watcher.cookie == one.cookie()).unwrap();
        assert_eq!(
            (own.timeout, own.addr.nonce),
            (TIMEOUT, mine.cluster().address().unwrap().nonce)
        );
        assert!(one.age().unwrap() < TIMEOUT);

        one.close().await.unwrap();
        let silent = yours.notify("told", b"more", Duration::from_secs(1)).await.unwrap();
        assert_eq!(silent.silent, [(id(&yours), two.cookie())], "it did not answer");
        two.close().await.unwrap();
        assert!(mine.watchers("told").await.unwrap().is_empty());
    });
}

#[test]
fn a_watch_that_is_dropped_ends() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        pool.create("dropped", true).await.unwrap();
        drop(pool.watch("dropped", None).await.unwrap());
        // Operations on an object are done in order.
        assert!(pool.watchers("dropped").await.unwrap().is_empty());
    });
}

#[test]
fn the_tool_tells_us() {
    let lab = shared();
    let said = run(async {
        let pool = pool(&lab).await;
        pool.create("from the tool", true).await.unwrap();
        let mut watch = pool.watch("from the tool", None).await.unwrap();
        let mut tool = lab.tool("rados");
        tool.args(["-p", POOL, "notify", "from the tool", "hello"]);
        let child = tool.stdout(Stdio::piped()).spawn().unwrap();
        let told = answer(&mut watch, b"heard").await;
        // The tool sends its text as an encoded string.
        assert_eq!(told, b"\x05\0\0\0hello");
        // The answer is sent by this thread.
        let output =
            tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    });
    assert!(said.contains("reply client."), "{said}");
}

#[test]
fn we_tell_the_tool() {
    let lab = shared();
    rados(&lab, &["create", "to the tool"]);
    let rados = lab.tool("rados");
    let mut tool = Command::new("stdbuf");
    tool.arg("-oL").arg(rados.get_program()).args(["-p", POOL, "watch", "to the tool"]);
    tool.env("CEPH_CONF", lab.conf());
    let mut child = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It says "press enter to exit..." without an end of the line.
    run(async {
        let pool = pool(&lab).await;
        while pool.watchers("to the tool").await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        // The tool reads its payload as an encoded string.
        let answers = pool.notify("to the tool", b"\x02\0\0\0hi", TIMEOUT).await.unwrap();
        assert_eq!((answers.answered.len(), answers.silent.len()), (1, 0));
    });
    let told = lines.find(|line| line.as_ref().unwrap().contains("NOTIFY")).unwrap().unwrap();
    drop(child.stdin.take());
    let _ended_by_the_end_of_its_input = child.kill();
    child.wait().unwrap();
    assert!(told.contains("notify_id"), "{told}");
}

#[test]
fn a_watcher_whose_object_is_removed_or_who_is_kept_out_is_told() {
    let lab = shared();
    run(async {
        let mine = pool(&lab).await;
        mine.create("removed", true).await.unwrap();
        let mut watch = mine.watch("removed", None).await.unwrap();
        mine.remove("removed").await.unwrap();
        match watch.next().await.unwrap() {
            Told::Lost(error) => {
                assert!(matches!(error.kind(), ErrorKind::WatchLost { .. }), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(watch.next().await, None);

        mine.create("kept out", true).await.unwrap();
        let mut watch = mine.watch("kept out", None).await.unwrap();
        let other = connect(&lab).await;
        let address = mine.watchers("kept out").await.unwrap()[0].addr;
        other.blocklist(&address, Duration::from_secs(60)).await.unwrap();
        // EBLOCKLISTED: whoever holds a lock no more can write no more.
        let error = mine.write_full("kept out", b"x".as_slice()).await.unwrap_err();
        assert_eq!(errno(&error), 108, "{error}");
        assert!(other.map(|map| map.blocklisted(&address)).is_some());
        let mut watchers = other.pool(POOL).await.unwrap().watchers("kept out").await.unwrap();
        watchers.retain(|watcher| watcher.addr == address);
        assert!(watchers.is_empty());
        loop {
            match watch.next().await.unwrap() {
                Told::Lost(_) => break,
                Told::Notified(_) | Told::Missed => {}
            }
        }
    });
}
