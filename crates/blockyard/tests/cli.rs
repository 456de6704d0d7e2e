//! The command line: what it prints, what it says when something is wrong, and its exit codes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use blockyard_conformance::{LoopDevice, in_own_mounts};
use common::{Daemon, Said, blockyard, run};
use tempfile::TempDir;

#[test]
fn usage_errors_exit_64_and_help_0() {
    run(&["--help"]).code(0).contains(&["serve", "nbd://HOST/EXPORT", "Exit status"]);
    run(&["--version"]).code(0).contains(&["blockyard", "features:"]);
    run(&["--help"]).code(0).contains(&["BLOCKYARD_RUNTIME_DIR", "NO_COLOR", "CEPH_CONF"]);
    run(&["stop"]).code(64).contains(&["help: send SIGTERM", "blockyard list"]);
    let said = run(&["serve", "ram:1M", "--port", "10809"]);
    assert!(!said.code(64).contains(&["help: use --nbd tcp:"]).err.contains("as a value"));
    for args in [&["frobnicate"][..], &["serve"], &["bench", "ram:1G", "--rwmixread", "101"], &[]] {
        run(args).code(64);
    }
    run(&["serv"]).code(64).contains(&["serve"]);
}

#[test]
fn a_bad_uri_says_what_where_and_what_to_do() {
    for (uri, parts) in [
        ("ram:1GB", &["at \"1GB\" (column 5)", "write G or GiB"][..]),
        ("rma:1G", &["did you mean \"ram\"?"]),
        ("1G", &["no scheme", "ram:1G"]),
        ("ram:1G?szie=4", &["did you mean \"size\"?"]),
        ("nbd:///x", &["host missing"]),
        ("nbd:localhost:10809", &["did you mean nbd://localhost:10809?"]),
        ("nbd:unix:/s:exportname=a", &["did you mean nbd+unix:///a?socket=/s?"]),
    ] {
        run(&["info", uri]).code(64).contains(parts);
        run(&["serve", uri, "--nbd", "unix:s"]).code(64).contains(parts);
        run(&["bench", uri]).code(64).contains(parts);
    }
    run(&["serve", "ram:1M", "--nbd", "s"]).code(64).contains(&["unix:/path", "tcp:host:port"]);
    for (address, meant) in [("/tmp/s", "unix:/tmp/s"), ("10809", "tcp::10809")] {
        run(&["serve", "ram:1M", "--nbd", address])
            .code(64)
            .contains(&[&format!("help: did you mean {meant}?")]);
    }
    run(&["serve", "ram:1M"]).code(64).contains(&["--nbd unix:"]);
    run(&["serve", "ram:1M", "--nbd", "unix:s", "--nbd", "unix:s"])
        .code(64)
        .contains(&["--nbd unix:s is given twice"]);
    let dir = TempDir::new().unwrap();
    let output = blockyard(dir.path()).env("BLOCKYARD_LOG", "verbose").arg("list").output();
    Said::of(&output.unwrap()).code(64).contains(&["BLOCKYARD_LOG", "\"verbose\"", "TARGET=LEVEL"]);
    run(&["serve", "ram:1M?name=a", "ram:1M?name=a", "--nbd", "unix:s"])
        .code(64)
        .contains(&["two disks are named"]);
    run(&["serve", "ram:1M", "--nbd", "unix:s", "--tls", "require"])
        .code(64)
        .contains(&["--tls-certificate"]);
}

#[test]
fn an_option_has_one_spelling_and_is_given_once() {
    let dir = TempDir::new().unwrap();
    let up = |disk: &str, rest: &str| {
        let yard = format!("[[disk]]\n{disk}\n[nbd]\nlisten = \"unix:s\"\n{rest}");
        std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
        let mut command = blockyard(&dir.path().join("run"));
        common::Said::of(&command.current_dir(dir.path()).args(["up", "--check"]).output().unwrap())
    };
    let beside = [
        ("ro=1", "ro = false"),
        ("read_only", "read-only = 0"),
        ("block=512", "block = 4096"),
        ("name=a", "name = \"b\""),
        ("depth=7", "depth = 8"),
        ("queues=1", "queues = 2"),
    ];
    for (in_uri, beside) in beside {
        let key = beside.split(' ').next().unwrap();
        up(&format!("uri = \"ram:1M?{in_uri}\"\n{beside}"), "").code(64).contains(&["given twice"]);
        up(&format!("uri = \"ram:1M\"\n{beside}\nname2 = 1"), "").code(64).contains(&["name2"]);
        for one in [format!("uri = \"ram:1M?{in_uri}\""), format!("uri = \"ram:1M\"\n{beside}")] {
            up(&one, "").code(0);
        }
        assert!(!key.is_empty());
    }
    up("uri = \"ram:1M\"\nsize = \"2M\"", "").code(64).contains(&["given twice"]);
    up("uri = \"ram:\"\nsize = \"2M\"", "").code(0);
    let twice = "[[export]]\ndisk = \"ram0\"\nread_only = true\nro = false\n";
    up("uri = \"ram:1M\"", twice).code(64).contains(&["given twice"]);
    for spelling in ["ro", "read_only", "read-only", "readonly"] {
        run(&["info", &format!("ram:1M?{spelling}=1"), "--is", "read-only"]).code(0);
        run(&["info", &format!("ram:1M?{spelling}=0"), "--is", "read-only"]).code(2);
        run(&["info", &format!("ram:1M?ro&{spelling}=0")]).code(64).contains(&["given twice"]);
        up(&format!("uri = \"ram:1M\"\n{spelling} = true"), "").code(0);
    }
    for (flag, value, code) in [
        ("--dead-timeout", "0", 64),
        ("--dead-conn-timeout", "1ms", 64),
        ("--timeout", "2000m", 64),
    ] {
        run(&["attach", "ram:1M", flag, value]).code(code).contains(&["write 30, 30s or 5m"]);
    }
}

#[test]
fn a_path_with_options_is_a_uri() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("there?ro=1"), vec![0; 4096]).unwrap();
    std::fs::write(dir.path().join("source"), vec![0; 4096]).unwrap();
    let run = |args: &[&str]| {
        let mut command = blockyard(&dir.path().join("run"));
        common::Said::of(&command.current_dir(dir.path()).args(args).output().unwrap())
    };
    run(&["info", "./there?ro=1"]).code(0);
    for args in [
        &["info", "./source?ro=1"][..],
        &["copy", "./source", "./new?create=1M"],
        &["copy", "./source", "./new?direct"],
    ] {
        run(args).code(64).contains(&["write file:./"]);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "something was made");
    run(&["copy", "./source", "./new?"]).code(0);
}

#[test]
fn a_bare_name_is_a_file() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("disk.img"), vec![1; 4096]).unwrap();
    let run = |args: &[&str]| {
        let mut command = blockyard(&dir.path().join("run"));
        common::Said::of(&command.current_dir(dir.path()).args(args).output().unwrap())
    };
    run(&["info", "disk.img", "--size"]).code(0).contains(&["4096"]);
    run(&["copy", "disk.img", "copy.img"]).code(0);
    run(&["compare", "disk.img", "./copy.img"]).code(0);
    run(&["info", "disk.img?ro"]).code(64).contains(&["write file:disk.img?ro"]);
    run(&["info", "gone.img"]).code(1).contains(&["gone.img"]);
    std::fs::write(dir.path().join("ram"), vec![1; 4096]).unwrap();
    run(&["info", "ram"]).code(64).contains(&["./ram"]);
}

#[test]
fn files_for_tls_are_not_for_nothing() {
    let ca = ["--tls-ca", "ca.pem"];
    for (args, help) in [
        (&["copy", "nbd://h/x", "ram:1M"][..], "nbds://h/x"),
        (&["compare", "ram:1M", "ram:1M"], "NBD servers"),
        (&["info", "nbd+unix:///x?socket=/s"], "nbds+unix:///x?socket=/s"),
        (&["map", "./file"], "NBD servers"),
        (&["check", "nbd://h"], "nbds://h"),
        (&["bench", "nbd://h"], "nbds://h"),
        (&["list", "nbd://h"], "nbds://h"),
        (&["list"], "NBD-URI"),
    ] {
        run(&[args, &ca].concat()).code(64).contains(&[help]);
    }
    let keys = "nbds://u@h/x?tls-psk-file=/k";
    run(&["info", keys, "--tls-ca", "ca.pem"]).code(64).contains(&["pre-shared keys"]);
    for (uri, secure) in [
        ("nbd://h/x?tls-hostname=h", "nbds://"),
        ("NBD+UNIX:///x?socket=/s&tls-certificates=/c", "nbds+unix://"),
    ] {
        run(&["info", uri]).code(64).contains(&["no TLS", secure]);
    }
}

#[test]
fn looking_does_not_write() {
    // What waits for the end of writing (udev) is not woken.
    let script = "import ctypes, os, subprocess, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        fd = libc.inotify_init1(os.O_NONBLOCK)\n\
        assert fd >= 0 and libc.inotify_add_watch(fd, sys.argv[1].encode(), 8) >= 0\n\
        subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL)\n\
        try:\n  os.read(fd, 4096)\n  sys.exit('closed after writing')\n\
        except BlockingIOError: pass\n";
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file").to_str().unwrap().to_owned();
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let held = LoopDevice::attach(&[&file]);
    let device = held.path().to_owned();
    let binary = env!("CARGO_BIN_EXE_blockyard");
    for disk in [&file, &device] {
        for args in
            [&["map", disk][..], &["check", disk], &["compare", disk, disk], &["info", &device]]
        {
            common::peer("python3", &[&["-c", script, disk, binary], args].concat());
        }
    }
    run(&["info", &device, "--can", "write"]).code(0);
    run(&["info", &device, "--can", "trim"]).code(0);
    run(&["info", &file, "--can", "trim"]).code(0);
    common::peer("blockdev", &["--setro", &device]);
    run(&["info", &device, "--is", "read-only"]).code(0);
    common::peer("blockdev", &["--setrw", &device]);
}

#[test]
fn a_file_that_cannot_be_a_disk_says_why() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, len: u64| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let missing = dir.path().join("missing").to_str().unwrap().to_owned();
    let said = run(&["info", &format!("file:{missing}?create=1G")]);
    assert!(!said.code(1).err.contains("help: run: "), "advises what was typed: {}", said.err);
    run(&["run", &missing, "--", "true"])
        .code(1)
        .contains(&["truncate -s 1G", &format!("file:{missing}?create=1G")]);
    let said = run(&["info", "/dev/no-such-device"]);
    assert!(!said.code(1).err.contains("truncate") && said.err.contains("lsblk"), "{}", said.err);
    let odd = file("odd", 1000);
    assert_eq!(run(&["info", &odd, "--size"]).code(0).out.trim(), "1000");
    let empty = file("empty", 0);
    assert_eq!(run(&["info", &empty, "--size"]).code(0).out.trim(), "0");
    let small = file("small", 4096);
    run(&["info", &format!("file:{small}?size=1M")])
        .code(1)
        .contains(&["less than size=", "truncate -s 1048576"]);
    run(&["info", dir.path().to_str().unwrap()]).code(1).contains(&["a directory"]);
    run(&["info", &format!("file:{missing}?create=4K")]).code(1).contains(&["does not exist"]);
    assert!(!std::path::Path::new(&missing).exists(), "looking makes nothing");
}

#[test]
fn a_file_has_one_writer() {
    let daemon = Daemon::serve(&["file:disk.img?create=1M"]);
    let path = daemon.path("disk.img").to_str().unwrap().to_owned();
    let said =
        daemon.run(&["serve", &path, "--nbd", &format!("unix:{}", daemon.path("t").display())]);
    said.code(75).contains(&["in use by a writer", "fuser"]);
    daemon.run(&["info", &path]).code(0);
}

#[test]
fn a_full_disk_is_an_error_of_the_write_and_nothing_else() {
    in_own_mounts!();
    let dir = TempDir::new().unwrap();
    let mount = dir.path().join("tmpfs");
    std::fs::create_dir(&mount).unwrap();
    common::peer("mount", &["-t", "tmpfs", "-o", "size=4M", "tmpfs", mount.to_str().unwrap()]);
    let unmount = common::Cleanup::with(&["umount", mount.to_str().unwrap()]);
    let daemon = Daemon::serve(&[format!("file:{}/disk.img?create=64M", mount.display())]);
    let script = "import errno\n\
        h.pwrite(b'a' * 1048576, 0)\nh.flush()\n\
        try:\n  [h.pwrite(b'b' * 1048576, i << 20) for i in range(1, 8)]\n  raise SystemExit('written')\n\
        except nbd.Error as e:\n  assert e.errnum == errno.ENOSPC, e.errnum\n\
        assert h.pread(1048576, 0) == b'a' * 1048576";
    common::nbdsh(&daemon.uri(""), script);
    daemon.stop();
    unmount.now();
}

#[test]
fn info_tells_what_a_disk_is() {
    run(&["info", "ram:4M?block=4096"]).code(0).contains(&[
        "4 MiB (4194304 bytes)",
        "4096 logical",
        "trim",
    ]);
    let info = run(&["info", "ram:4M", "--json"]).code(0).json();
    assert_eq!((&info["kind"], &info["size"]), (&"disk".into(), &4_194_304.into()));
    assert_eq!(info["map"]["hole"], 4_194_304);
    run(&["info", "ram:4M", "--size"]).code(0).contains(&["4194304"]);
    run(&["info", "ram:4M", "--can", "trim"]).code(0);
    run(&["info", "ram:4M?ro=1", "--can", "trim"]).code(2);
    run(&["info", "ram:4M?ro=1", "--is", "read-only"]).code(0);
    run(&["info", "ram:4M", "--can", "trmi"]).code(64).contains(&["did you mean \"trim\"?"]);
    let daemon = Daemon::serve(&["ram:4M", "--description", "four"]);
    let info = daemon.run(&["info", &daemon.uri(""), "--json"]).code(0).json();
    assert_eq!((&info["kind"], &info["export"]), (&"nbd".into(), &"ram0".into()));
    assert_eq!((&info["description"], &info["style"]), (&"four".into(), &"extended".into()));
    assert_eq!(info["block_size"]["minimum"], 1);
    assert_eq!(info["contexts"][0], "base:allocation");
    let gone = format!("nbd+unix:///?socket={}/none", daemon.dir().display());
    run(&["info", &gone]).code(1).contains(&["start the server"]);
}

#[test]
fn info_shows_partitions() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let script = format!(
        "printf 'label: gpt\\nsize=4096, name=boot\\nsize=8192\\n' | sfdisk -q {}",
        path.display()
    );
    common::peer("sh", &["-c", &script]);
    run(&["info", path.to_str().unwrap()]).code(0).contains(&[
        "partitions",
        "boot",
        "2 MiB",
        "4 MiB",
    ]);
    let info = run(&["info", path.to_str().unwrap(), "--json"]).json();
    assert_eq!(info["partitions"][0]["size"], 4096 * 512);
}

#[test]
fn bench_measures_disks_and_servers() {
    let daemon = Daemon::serve(&["ram:8M", "ram:8M?ro=1"]);
    let remote = daemon.uri("ram0");
    for uri in ["ram:8M", "null:8M?latency=10us", &remote] {
        for rw in ["read", "write", "randread", "randwrite", "rw", "randrw"] {
            let args = [
                "bench", uri, "--rw", rw, "--count", "1000", "--queues", "2", "--depth", "8",
                "--json",
            ];
            let report = run(&args).code(0).json();
            assert_eq!(
                (&report["ops"], &report["errors"]),
                (&1000.into(), &0.into()),
                "{uri} {rw}"
            );
            for field in ["iops", "bytes_per_second", "client_cpu_ns_per_op"] {
                assert!(report[field].as_f64().unwrap() > 0.0, "{field}");
            }
            for field in ["p50", "p99", "p999", "max", "mean"] {
                assert!(report["lat_ns"][field].as_f64().unwrap() > 0.0, "{field}");
            }
        }
    }
    run(&["bench", "ram:8M", "--time", "10ms"]).code(0).contains(&["IOPS", "p99.9"]);
    run(&["bench", &remote, "--bs", "1m", "--rw", "rw", "--count", "100", "--depth", "8"]).code(0);
    run(&["bench", "ram:8M", "--bs", "100"]).code(64).contains(&["not a multiple"]);
    run(&["bench", "ram:8M", "--bs", "16M"]).code(64).contains(&["make --bs smaller"]);
    run(&["bench", "ram:8M", "--size", "9M"]).code(64).contains(&["--size or --offset"]);
    run(&["bench", "ram:8M?ro=1", "--rw", "write", "--count", "1"]).code(77);
    run(&["bench", &daemon.uri("ram1"), "--rw", "write", "--count", "1"]).code(77);
}

/// From what the kinds of disks say of themselves, for every command that takes a disk.
#[test]
fn what_a_uri_can_say_is_in_the_help_and_the_man_pages() {
    let options =
        ["ram:SIZE", "create=SIZE", "dead_conn_timeout=TIME", "scheduler=none|mq-deadline"];
    for command in [
        "serve",
        "attach",
        "vhost-user-blk",
        "list",
        "info",
        "bench",
        "copy",
        "compare",
        "map",
        "check",
        "run",
    ] {
        run(&[command, "--help"]).code(0).contains(&options);
    }
    run(&["set", "--help"]).code(0).contains(&["size=SIZE", "read_only=0|1"]);
    run(&["completions", "bash"]).contains(&["size= read_only="]);
    let dir = TempDir::new().unwrap();
    let pages = dir.path().join("pages");
    run(&["man", pages.to_str().unwrap()]).code(0);
    let page = std::fs::read_to_string(pages.join("blockyard-serve.1")).unwrap();
    assert!(page.contains("dead_conn_timeout=TIME"), "{page}");
}

#[test]
fn completions_and_man_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        run(&["completions", shell]).code(0).contains(&["serve", "blockyard"]);
    }
    run(&["man"]).code(0).contains(&[".TH blockyard"]);
    let dir = TempDir::new().unwrap();
    let output =
        blockyard(dir.path()).args(["man", "pages"]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success());
    for page in ["blockyard.1", "blockyard-serve.1", "blockyard-bench.1"] {
        assert!(dir.path().join("pages").join(page).exists(), "{page}");
    }
    let deeper = dir.path().join("no/pages");
    run(&["man", deeper.to_str().unwrap()]).code(1).contains(&["parent directory"]);
    assert!(!dir.path().join("no").exists());
}

#[test]
fn list_of_nothing_says_what_to_do() {
    run(&["list"]).code(0).contains(&[
        "no daemons of this user in",
        "for those of",
        "blockyard serve",
    ]);
    run(&["list", "ram:1G"]).code(64).contains(&["not a server"]);
}

#[test]
fn text_of_others_does_nothing_to_a_terminal() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let describe = "export_description=printf 'red\\033[31m\\nnext\\302\\23331m'";
    let list = "list_exports=echo NAMES+DESCRIPTIONS; printf 'na\\033[1mme\\ntext\\033[2J\\n'";
    let script = ["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", describe, list];
    let _server = common::nbdkit(&socket, &script);
    let uri = common::unix("", &socket);
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    let label = "label: gpt\\nsize=4096, name=\"bo\\033[31mot\"\\n";
    let sfdisk = format!("printf '{label}' | sfdisk -q {}", disk.display());
    common::peer("sh", &["-c", &sfdisk]);
    let missing = "./\x1b[31mmissing\nfile";
    let odd = dir.path().join("odd\x1b[2J\n");
    std::fs::copy(&disk, &odd).unwrap();
    let odd = odd.to_str().unwrap();
    let all: [&[&str]; 12] = [
        &["info", &uri],
        &["info", &uri, "--json"],
        &["list", &uri],
        &["list", &uri, "--json"],
        &["check", odd],
        &["info", odd],
        &["compare", odd, odd],
        &["map", odd],
        &["info", missing],
        &["copy", odd, missing, "--resume", odd],
        &["-vvv", "check", odd],
        &["serve", missing, "--nbd", "unix:\x1bs"],
    ];
    for args in all {
        let said = run(args);
        for text in [&said.out, &said.err] {
            let acts = |c: char| c.is_control() && c != '\n';
            assert!(!text.contains(acts), "{args:?}: {text:?}");
            assert!(!text.contains("\nnext") && !text.contains("\nfile"), "{args:?}: {text:?}");
        }
    }
    run(&["info", &uri]).code(0).contains(&["red\\u{1b}[31m\\nnext\\u{9b}31m"]);
    run(&["info", odd]).code(0).contains(&["bo\\u{1b}[31mot"]);
    run(&["info", missing]).code(1).contains(&["\\u{1b}[31mmissing\\nfile does not exist"]);
}

/// `proto.md`, "Newstyle negotiation": a server that refuses whatever it is asked, with words of its own.
fn refuse(mut stream: UnixStream, words: &[u8]) -> std::io::Result<()> {
    const REPLY_MAGIC: &[u8] = &[0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9];
    const ERR_POLICY: &[u8] = &[0x80, 0, 0, 2];
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let len = u32::from_be_bytes(header[12..].try_into().unwrap());
        stream.read_exact(&mut vec![0; len as usize])?;
        let said = u32::try_from(words.len()).unwrap().to_be_bytes();
        stream.write_all(&[REPLY_MAGIC, &header[8..12], ERR_POLICY, &said, words].concat())?;
    }
}

#[test]
fn words_of_a_server_that_refuses_do_nothing_to_a_terminal() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Who has read enough of it leaves.
            let _ = refuse(stream.unwrap(), b"\x1b[31mno\nerror: next\xc2\x9b2J");
        }
    });
    let uri = common::unix("x", &socket);
    for args in [&["info", &uri][..], &["list", &uri], &["-vvv", "copy", &uri, "./copy"]] {
        let said = run(args);
        assert_ne!(said.code, 0, "{args:?}");
        let acts = |c: char| c.is_control() && c != '\n';
        assert!(!said.err.contains(acts) && !said.err.contains("\nerror: next"), "{:?}", said.err);
        said.contains(&["\\u{1b}[31mno\\nerror: next"]);
    }
}

#[test]
fn options_that_would_have_no_effect_are_refused() {
    let machine = ["serve", "ram:1M", "ram:1M", "--vhost-user-blk", "s"];
    for (args, parts) in [
        (&["--serial", "a", "--serial", "b"][..], &["--serial", "2 times", "1 times"][..]),
        (&["--name", "a"], &["--name is for NBD", "add --nbd"]),
        (&["--description", "a"], &["--description is for NBD"]),
        (&["--max-clients", "1"], &["--max-clients is for NBD"]),
        (&["--max-in-flight", "1"], &["--max-in-flight is for NBD"]),
        (&["--max-memory", "1G"], &["--max-memory is for NBD"]),
        (&["--tls", "require", "--tls-psk", "keys"], &["--tls is for NBD"]),
        (&["--run", "true"], &["--run is for NBD"]),
    ] {
        run(&[&machine[..], args].concat()).code(64).contains(parts);
    }
}

#[test]
fn sockets_that_are_passed_are_served_or_refused() {
    for args in
        ["serve ram:1M --nbd unix:s", "serve ram:1M --vhost-user-blk s", "run ram:1M -- true"]
    {
        let dir = TempDir::new().unwrap();
        let script =
            format!("exec 3</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" {args}");
        let mut command = std::process::Command::new("timeout");
        command.args(["60", "bash", "-c", &script, env!("CARGO_BIN_EXE_blockyard")]);
        command.env("BLOCKYARD_RUNTIME_DIR", dir.path().join("run")).current_dir(dir.path());
        let said = Said::of(&command.output().unwrap());
        said.code(64).contains(&["sockets passed by systemd (1)", "--nbd systemd"]);
    }
}

#[test]
fn set_changes_no_disk_but_the_one_that_is_named() {
    let daemon = Daemon::serve(&["ram:1M?name=root", "ram:1M?name=vm:root"]);
    let sizes = || {
        let disks = daemon.report()["disks"].clone();
        [0, 1].map(|index| disks[index]["size"].as_u64().unwrap() >> 20)
    };
    daemon.run(&["set", "vm:root", "size=2M"]).code(0);
    assert_eq!(sizes(), [1, 2]);
    daemon.run(&["set", "other:root", "size=3M"]).code(1).contains(&["no daemon has a disk"]);
    daemon.run(&["set", &format!("{}:root", daemon.pid()), "size=4M"]).code(0);
    daemon.run(&["set", &format!("{}:vm:root", daemon.pid()), "size=5M"]).code(0);
    assert_eq!(sizes(), [4, 5]);
    daemon.stop();
}

#[test]
fn a_comparison_that_cannot_be_told_is_no_difference() {
    let dir = TempDir::new().unwrap();
    for json in [&[][..], &["--json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = blockyard(&dir.path().join("run"));
        command.args(["compare", "ram:1M", "ram:1M"]).args(json).stdout(full);
        Said::of(&command.output().unwrap()).code(2).contains(&["cannot write to standard output"]);
    }
}

/// Names of files are bytes, as they are given and as they are shown.
#[test]
fn a_disk_in_a_file_whose_name_is_not_text_is_given_by_that() {
    use std::os::unix::ffi::OsStrExt;

    let dir = TempDir::new().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"./x\xff?ro=1");
    std::fs::File::create(dir.path().join(name)).unwrap().set_len(1 << 20).unwrap();
    let run = |args: &[&std::ffi::OsStr]| {
        let mut command = blockyard(&dir.path().join("run"));
        Said::of(&command.current_dir(dir.path()).args(args).output().unwrap())
    };
    run(&["info".as_ref(), name, "--size".as_ref()]).code(0).contains(&["1048576"]);
    let copy = std::ffi::OsStr::from_bytes(b"copy\xfe");
    run(&["copy".as_ref(), name, copy]).code(0);
    assert_eq!(std::fs::metadata(dir.path().join(copy)).unwrap().len(), 1 << 20);
    run(&["compare".as_ref(), name, copy]).code(0);
    let missing = std::ffi::OsStr::from_bytes(b"/dev/s\xffda");
    run(&["info".as_ref(), missing]).code(1).contains(&["lsblk -p"]);
}

/// No file is made there by following what is said.
#[test]
fn a_missing_device_is_not_advised_to_be_made() {
    let said = run(&["info", "/dev/none-such"]);
    said.code(1).contains(&["/dev/none-such does not exist", "lsblk -p"]);
    assert!(!said.err.contains("truncate") && !said.err.contains("create="), "{}", said.err);
}

/// As those of other servers may be: one of them keeps nobody from the others.
#[test]
fn exports_whose_names_are_not_text_are_listed_escaped() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let names = r"list_exports=printf 'NAMES\nplain\nodd\377name\n'";
    let _server =
        common::nbdkit(&socket, &["eval", "get_size=echo 1048576", "pread=exit 1", names]);
    let said = run(&["list", &common::unix("", &socket)]);
    said.code(0).contains(&["\"plain\"", "xffname"]);
}
