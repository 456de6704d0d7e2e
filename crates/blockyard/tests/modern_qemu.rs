//! 64-bit headers with a peer that has them: QEMU 8.2 or newer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Daemon, peer};
use std::process::{Command, Stdio};

/// The path of a QEMU program that is new enough.
fn modern(program: &str) -> String {
    if let Some(directory) = std::env::var_os("BLOCKYARD_QEMU_MODERN") {
        return std::path::Path::new(&directory).join(program).to_str().unwrap().to_owned();
    }
    let said = peer(program, &["--version"]);
    let version = said
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    assert!(
        version >= (8, 2),
        "{program} is {version:?}; run: cargo xtask setup, or set BLOCKYARD_QEMU_MODERN to a directory with 8.2 or newer"
    );
    program.to_owned()
}

#[test]
fn extended_headers_carry_more_than_4_gib_at_once() {
    let daemon = Daemon::serve(&["ram:6G", "file:sparse.img?create=6G"]);
    let (image, io) = (modern("qemu-img"), modern("qemu-io"));
    for export in ["ram0", "sparse"] {
        let uri = daemon.uri(export);
        peer(&io, &["-f", "raw", "-c", "write -P 1 5G 1M", &uri]);
        peer(&io, &["-f", "raw", "-c", "read -P 1 5G 1M", "-c", "read -P 0 4G 1M", &uri]);
        let map: serde_json::Value =
            serde_json::from_str(&peer(&image, &["map", "--output=json", "-f", "raw", &uri]))
                .unwrap();
        let extents: Vec<_> = map
            .as_array()
            .unwrap()
            .iter()
            .map(|extent| (extent["start"].as_u64().unwrap(), extent["data"] == true))
            .collect();
        assert_eq!(extents, [(0, false), (5 << 30, true), ((5 << 30) + (1 << 20), false)], "{map}");
        let out = daemon.path("out.img");
        peer(&image, &["convert", "-f", "raw", "-O", "raw", &uri, out.to_str().unwrap()]);
        peer(&image, &["compare", "-f", "raw", "-F", "raw", out.to_str().unwrap(), &uri]);
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn the_style_of_each_client_is_shown() {
    let daemon = Daemon::serve(&["ram:6G"]);
    // A client that stays, until its standard input ends.
    let mut command = Command::new(modern("qemu-io"));
    command.args(["-f", "raw", &daemon.uri("")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = common::Guard(command.spawn().unwrap());
    let mut input = client.0.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"read 5G 4k\n").unwrap();
    std::io::Write::flush(&mut input).unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(client.0.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("read 4096/4096")));
    let report = daemon.report();
    assert_eq!(report["nbd"]["clients"][0]["style"], "extended", "{report}");
    drop(input);
    common::nbdsh(&daemon.uri(""), "pass");
}
