use std::time::Duration;

use blockyard_blkmq::{BlockSize, sched};
use blockyard_nbd::uri::Transport;
use proptest::prelude::*;

use super::*;

fn plan(uri: &str) -> DiskPlan {
    uri.parse().unwrap_or_else(|err| panic!("{uri}: {err}"))
}

fn mistake(uri: &str) -> String {
    uri.parse::<DiskPlan>().expect_err(uri).to_string()
}

fn file(uri: &str) -> FilePlan {
    match plan(uri).driver {
        DriverPlan::File(file) => file,
        other => panic!("{uri}: {other:?}"),
    }
}

#[test]
fn every_driver_and_what_it_takes() {
    assert_eq!(plan("ram:1G").driver, DriverPlan::Ram { size: 1 << 30 });
    assert_eq!(plan("RAM:?size=4K").driver, DriverPlan::Ram { size: 4096 });
    let latency = Duration::from_micros(100);
    assert_eq!(plan("null:1T?latency=100us").driver, DriverPlan::Null { size: 1 << 40, latency });
    let expected = FilePlan {
        path: "/p".into(),
        direct: true,
        create: Some(1 << 30),
        lock: false,
        engine: Engine::Uring,
    };
    assert_eq!(file("file:/p?direct=1&create=1G&lock=0&engine=uring"), expected);
    let plain =
        FilePlan { direct: false, create: None, lock: true, engine: Engine::Auto, ..expected };
    for uri in ["/p", "file:/p", "file:///p", "file:/%70"] {
        assert_eq!(file(uri), plain, "{uri}");
    }
    let here = std::env::current_dir().unwrap();
    assert_eq!(file("./a?b%41").path, here.join("a?b%41"), "a bare path is taken as it is");
    assert_eq!(file("file:disk.img").path, here.join("disk.img"));
    assert_eq!(file("file:/%ff").path.as_os_str().as_encoded_bytes(), b"/\xff");
}

#[test]
fn paths_start_at_the_folder_where_they_were_written() {
    let parse = |uri: &str| DiskPlan::parse_in(uri, Path::new("/yard")).unwrap().driver;
    for (uri, path) in
        [("./a", "/yard/a"), ("../a", "/yard/../a"), ("file:b/c", "/yard/b/c"), ("/d", "/d")]
    {
        assert!(
            matches!(parse(uri), DriverPlan::File(file) if file.path == Path::new(path)),
            "{uri}"
        );
    }
    let uri = "nbds+unix:///x?socket=./s&tls-certificates=pki&tls-psk-file=../keys.psk";
    let DriverPlan::Nbd(nbd) = parse(uri) else { panic!("{uri}") };
    assert_eq!(
        nbd.uri.to_string(),
        "nbds+unix:///x?socket=/yard/s&tls-certificates=/yard/pki&tls-psk-file=/yard/../keys.psk"
    );
    let DriverPlan::Nbd(nbd) = parse("nbd+unix:///?socket=%00name") else { panic!() };
    assert!(
        matches!(&nbd.uri.transport, Transport::Unix { socket } if socket == Path::new("\0name"))
    );
    let bytes = "nbd+unix:///?socket=/%FF";
    let DriverPlan::Nbd(nbd) = parse(bytes) else { panic!() };
    assert_eq!(nbd.uri.to_string(), bytes);
}

fn nbd(uri: &str) -> NbdPlan {
    match plan(uri).driver {
        DriverPlan::Nbd(nbd) => *nbd,
        other => panic!("{uri}: {other:?}"),
    }
}

#[test]
fn our_options_stand_beside_the_parameters_of_the_nbd_uri() {
    let uri = "nbds+unix:///d/x?socket=/s&connections=3&timeout=5s&tls-hostname=h&dead_conn_timeout=0\
               &fence_timeout=1m&ro&name=up&x-new=1";
    let found = nbd(uri);
    assert_eq!(found.uri.to_string(), "nbds+unix:///d/x?socket=/s&tls-hostname=h");
    let seconds = Duration::from_secs;
    assert_eq!(found.connections, Some(3));
    assert_eq!(
        (found.timeout, found.dead_conn_timeout, found.fence_timeout),
        (seconds(5), seconds(0), seconds(60))
    );
    let options = plan(uri).options;
    assert_eq!((options.read_only, options.name.as_deref()), (true, Some("up")));
    let config = found.config(true);
    assert!(config.read_only && config.connections == Some(3) && config.timeout == seconds(5));
    assert!(!found.trust_server && nbd("nbd://h/?trust_server=1").config(false).trust_server);
    // As a URI that others read as well has them.
    let shared = nbd("nbd://h/?x-connections=2&x-timeout=9s&x-other=1");
    assert_eq!((shared.connections, shared.timeout), (Some(2), seconds(9)));
    assert_eq!(nbd("NBDS://h").connections, None);
    assert_eq!(plan("nbd://h/d/x").default_name(0), "x");
    assert_eq!(plan("nbd+vsock://1:99/").default_name(2), "nbd2");
}

#[test]
fn options_that_all_disks_have() {
    let options =
        plan("ram:1M?block=4096&ro&name=boot&queues=2&depth=7&scheduler=mq-deadline&minors=3")
            .options;
    let expected = DiskOptions {
        size: Some(1 << 20),
        block: Some(BlockSize::B4096),
        read_only: true,
        name: Some("boot".into()),
        queues: Some(2),
        depth: 7,
        scheduler: sched::Kind::MqDeadline,
        minors: 3,
    };
    assert_eq!(options, expected);
}

#[test]
fn a_mistake_says_what_and_where_and_what_would_be_right() {
    for (uri, parts) in [
        ("ram", &["no scheme", "./ram"][..]),
        ("", &["ram:1G"]),
        ("rma:1G", &["column 1", "no disks \"rma\"", "did you mean \"ram\"?"]),
        ("nbds+unx:///x", &["did you mean \"nbds+unix\"?"]),
        ("floppy:1", &["no disks", "file", "nbd"]),
        ("ram:", &["how large?", "ram:1G"]),
        ("ram:1GB", &["at \"1GB\" (column 5)", "write G or GiB"]),
        ("ram:1G?szie=2G", &["at \"szie=2G\" (column 8)", "did you mean \"size\"?"]),
        ("ram:1G?size=2G", &["given twice"]),
        ("ram:1G?latency=1us", &["an option of null: disks"]),
        ("ram:1000", &["no multiple of the block size 512", "take 512 or 1024"]),
        ("ram:512?block=4096", &["no multiple of the block size 4096"]),
        ("ram:1G?block=1024", &["there are 512 and 4096"]),
        ("ram:1G?ro=maybe", &["write 1 or 0"]),
        ("ram:1G?queues=0", &["from 1 to"]),
        ("ram:1G?depth=x", &["from 1 to 10240"]),
        ("ram:1G?minors=257", &["from 1 to 256"]),
        ("ram:1G?scheduler=mq-dedline", &["did you mean \"mq-deadline\"?"]),
        ("ram:1G?name=a/b", &["no slash"]),
        ("ram:1G?name=%zz", &["two hexadecimal digits"]),
        ("null:1G?latency=5", &["no time", "100us"]),
        ("null:1G?latency=61s", &["longer than a minute"]),
        ("file:", &["path is missing"]),
        ("file://host/p", &["not on \"host\""]),
        ("file:/p?engine=urign", &["did you mean \"uring\"?"]),
        ("file:/p?create=1M&ro=1", &["leave one out"]),
        ("nbd:///x", &["needs a host"]),
        ("nbd://h/x?sokcet=/s", &["at \"sokcet=/s\" (column 11)", "did you mean \"socket\"?"]),
        ("nbd://h/x?connection=2", &["did you mean \"connections\"?"]),
        ("nbd://h/x?connections=65", &["from 1 to 64"]),
        ("nbd://h/x?timeout=0", &["no time at all"]),
        ("nbd://h/x?timeout=5", &["no time", "100us"]),
        ("nbd://h/x?queues=2", &["no option \"queues\""]),
        ("ram:1G?connections=2", &["an option of nbd: disks"]),
    ] {
        let error = mistake(uri);
        for part in parts {
            assert!(error.contains(part), "{uri}: {error}");
        }
    }
}

#[test]
fn the_largest_size_is_rounded_to_blocks_by_hand() {
    assert!(mistake("ram:9223372036854775807").contains("take 9223372036854775296"));
    assert_eq!(plan("ram:9223372036854775296").driver, DriverPlan::Ram { size: (1 << 63) - 512 });
}

#[test]
fn names_are_made_from_files_or_numbers() {
    assert_eq!(plan("ram:1M").default_name(0), "ram0");
    assert_eq!(plan("/a/disk one.img").default_name(3), "disk_one");
}

proptest! {
    #[test]
    fn any_text_parses_or_says_why(text in "((ram|null|file|nbd):)?\\PC{0,40}") {
        if let Err(error) = text.parse::<DiskPlan>() {
            prop_assert!(!error.to_string().is_empty());
            prop_assert!(error.at().end <= text.len());
        }
    }
}
