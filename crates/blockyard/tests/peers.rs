//! Real clients on our server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Daemon, nbdsh, noise, peer, try_peer};

const MIB: usize = 1 << 20;

/// A RAM disk and a file of 64 MiB.
fn yard() -> Daemon {
    Daemon::serve(&["ram:64M", "file:disk.img?create=64M"])
}

#[test]
fn nbdinfo_sees_what_an_export_is() {
    let daemon = yard();
    for export in ["ram0", "disk"] {
        let uri = daemon.uri(export);
        let info: serde_json::Value =
            serde_json::from_str(&peer("nbdinfo", &["--json", &uri])).unwrap();
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], 64 * MIB);
        assert_eq!(info["structured"], true);
        for ability in [
            "can_flush",
            "can_fua",
            "can_trim",
            "can_zero",
            "can_multi_conn",
            "can_df",
            "can_cache",
        ] {
            assert_eq!(export[ability], true, "{ability} of {uri}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(
            export["block_minimum"].as_u64().or(export["block_size_minimum"].as_u64()),
            Some(1)
        );
        peer("nbdinfo", &["--can", "fua", &uri]);
        assert_eq!(try_peer("nbdinfo", &["--is", "read-only", &uri]).code, 2);
        assert!(peer("nbdinfo", &["--map", &uri]).contains("hole,zero"));
    }
    let list = peer("nbdinfo", &["--list", &daemon.uri("")]);
    assert!(list.contains("export=\"ram0\"") && list.contains("export=\"disk\""), "{list}");
}

#[test]
fn nbdcopy_writes_and_reads_back_the_same_bytes() {
    let daemon = yard();
    let (input, output) = (daemon.path("in"), daemon.path("out"));
    // Data, a hole, data: nbdcopy makes zeroes of the hole.
    let mut bytes = noise(24 * MIB, 1);
    bytes.resize(40 * MIB, 0);
    bytes.extend(noise(24 * MIB, 2));
    std::fs::write(&input, &bytes).unwrap();
    for export in ["ram0", "disk"] {
        let uri = daemon.uri(export);
        peer("nbdcopy", &["--flush", input.to_str().unwrap(), &uri]);
        peer("nbdcopy", &[&uri, output.to_str().unwrap()]);
        assert!(std::fs::read(&output).unwrap() == bytes, "{export}");
        std::fs::remove_file(&output).unwrap();
    }
    assert!(
        std::fs::read(daemon.path("disk.img")).unwrap() == bytes,
        "what is in the file is what was written"
    );
    // From one export to the other, by several connections.
    peer(
        "nbdcopy",
        &["--connections=4", "--requests=32", &daemon.uri("ram0"), &daemon.uri("disk")],
    );
    assert!(std::fs::read(daemon.path("disk.img")).unwrap() == bytes);
}

#[test]
fn nbdsh_gets_the_answer_that_the_specification_names() {
    let daemon = yard();
    let script = r#"
import errno
assert h.get_protocol() == "newstyle-fixed" and h.get_structured_replies_negotiated()
buf = bytes(range(256)) * 16
h.pwrite(buf, 4096)
assert h.pread(4096, 4096) == buf
assert h.pread(8192, 0) == bytes(4096) + buf
chunks = []
def chunk(data, offset, status, err):
    chunks.append((bytes(data), offset, status))
h.pread_structured(8192, 0, chunk)
assert sum(len(data) for data, _, _ in chunks) in (4096, 8192), chunks
chunks.clear()
h.pread_structured(8192, 0, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(bytes(4096) + buf, 0, nbd.READ_DATA)], chunks
h.pwrite(buf, 8192, nbd.CMD_FLAG_FUA)
h.flush()
h.cache(4096, 0)
h.zero(4096, 4096)
assert h.pread(4096, 4096) == bytes(4096)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
h.pwrite(buf, 1 << 20)
h.trim(4096, 1 << 20)
h.trim(4096, 1 << 20, nbd.CMD_FLAG_FUA)
size = h.get_size()
h.set_strict_mode(0)
def fails(what, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == what, (e.errnum, what, str(e))
        return
    raise AssertionError("it did not fail")
fails(errno.EINVAL, lambda: h.pread(4096, size))
fails(errno.EINVAL, lambda: h.pread(1, size))
fails(errno.ENOSPC, lambda: h.pwrite(buf, size))
# Any bytes are served.
before = h.pread(1536, 1024)
h.pwrite(b"x" * 512, 1025)
assert h.pread(511, 1025) == b"x" * 511
assert h.pread(1536, 1024) == before[:1] + b"x" * 512 + before[513:]
fails(errno.EINVAL, lambda: h.pread(512, 0, 1 << 14))
fails(errno.EINVAL, lambda: h.trim(4096, size))
fails(errno.ENOSPC, lambda: h.zero(4096, size))
# The connection lives on.
assert h.pread(512, 0) == bytes(512)
"#;
    for export in ["ram0", "disk"] {
        nbdsh(&daemon.uri(export), script);
    }
}

#[test]
fn nbdsh_is_told_the_block_status() {
    let daemon = yard();
    let script = r#"
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.pwrite(b"x" * 65536, 1 << 20)
h.flush()
got = []
def extents(context, offset, entries, err):
    got.append((context, offset, entries))
h.block_status(4 << 20, 0, extents)
assert got == [("base:allocation", 0, [1 << 20, 3, 65536, 0, (3 << 20) - 65536, 3])], got
got.clear()
h.block_status(4 << 20, 0, extents, nbd.CMD_FLAG_REQ_ONE)
assert got == [("base:allocation", 0, [1 << 20, 3])], got
"#;
    for export in ["ram0", "disk"] {
        let script = format!("uri = {:?}\n{script}", daemon.uri(export));
        peer("nbdsh", &["-c", &script]);
    }
}

#[test]
fn nbdsh_without_structured_replies_is_served_as_well() {
    let daemon = yard();
    let script = format!(
        "h.set_request_structured_replies(False)\nh.connect_uri({:?})\n\
         assert not h.get_structured_replies_negotiated()\n\
         h.pwrite(b'y' * 4096, 512)\nassert h.pread(4608, 0) == bytes(512) + b'y' * 4096",
        daemon.uri("ram0")
    );
    peer("nbdsh", &["-c", &script]);
}

#[test]
fn fio_finds_every_block_as_it_wrote_it() {
    let daemon = yard();
    for (export, jobs) in [("ram0", "1"), ("ram0", "4"), ("disk", "2")] {
        let uri = format!("--uri={}", daemon.uri(export));
        let numjobs = format!("--numjobs={jobs}");
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bs=4k",
            "--iodepth=32",
            "--size=8M",
            "--offset_increment=8M",
            &numjobs,
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--output-format=json",
        ];
        let said = peer("fio", &args);
        let json = &said[said.find('{').unwrap()..];
        let report: serde_json::Value = serde_json::from_str(json).unwrap();
        for job in report["jobs"].as_array().unwrap() {
            assert_eq!(job["error"], 0, "{export} x {jobs}");
            assert!(job["write"]["total_ios"].as_u64().unwrap() > 0);
        }
    }
    // Large requests, which span several buffers.
    let uri = format!("--uri={}", daemon.uri("ram0"));
    peer(
        "fio",
        &[
            "--name=large",
            "--ioengine=nbd",
            &uri,
            "--rw=write",
            "--bs=1m",
            "--iodepth=8",
            "--size=32M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ],
    );
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let daemon = yard();
    let image = daemon.path("image");
    let mut bytes = noise(3 * MIB, 3);
    bytes.resize(64 * MIB, 0);
    bytes[40 * MIB..41 * MIB].copy_from_slice(&noise(MIB, 4));
    std::fs::write(&image, &bytes).unwrap();
    let image = image.to_str().unwrap();
    for export in ["ram0", "disk"] {
        let uri = daemon.uri(export);
        peer("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri]);
        peer("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
        let map = peer("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        let data: Vec<_> =
            map.as_array().unwrap().iter().filter(|extent| extent["data"] == true).collect();
        let starts: Vec<_> =
            data.iter().map(|extent| extent["start"].as_u64().unwrap() / MIB as u64).collect();
        assert_eq!(starts, [0, 40], "{map}");
        let back = daemon.path("back.qcow2");
        peer("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, back.to_str().unwrap()]);
        peer("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", back.to_str().unwrap(), image]);
    }
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    let daemon = yard();
    for export in ["ram0", "disk"] {
        let args = [
            "-f",
            "raw",
            "-t",
            "none",
            "--discard=unmap",
            "-c",
            "write -P 0xab 0 1M",
            "-c",
            "read -P 0xab 0 1M",
            "-c",
            "write -f -P 0xcd 1M 64k",
            "-c",
            "read -P 0xcd 1M 64k",
            "-c",
            "write -z 0 64k",
            "-c",
            "read -P 0 0 64k",
            "-c",
            "write -z -u 64k 64k",
            "-c",
            "read -P 0 64k 64k",
            "-c",
            "discard 128k 64k",
            "-c",
            "flush",
            "-c",
            "read -P 0xab 192k 64k",
        ];
        let uri = daemon.uri(export);
        let said = peer("qemu-io", &[&args[..], &[&uri]].concat());
        assert!(!said.contains("failed"), "{said}");
    }
}

#[test]
fn nbdkit_passes_our_disk_on() {
    let daemon = yard();
    let uri = daemon.uri("ram0");
    let input = daemon.path("in");
    std::fs::write(&input, noise(64 * MIB, 5)).unwrap();
    peer("nbdcopy", &[input.to_str().unwrap(), &uri]);
    // nbdkit is our client, and nbdcopy its.
    let out = daemon.path("out");
    let command = format!("nbdcopy \"$uri\" {}", out.display());
    peer("nbdkit", &["--unix", "-", "nbd", &format!("uri={uri}"), "--run", &command]);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&input).unwrap());
    let styles = daemon.report();
    assert_eq!(styles["nbd"]["clients"].as_array().unwrap().len(), 0, "all have left: {styles}");
}
