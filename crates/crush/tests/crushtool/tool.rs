//! Ceph's crushtool, the judge of our mappings.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What to map.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) rules: u32,
    /// How many devices are wanted.
    pub(crate) wanted: usize,
    /// The highest input.
    pub(crate) max_x: u32,
    /// Devices whose weight is not 1.0, 16.16.
    pub(crate) reweights: Vec<(i32, u32)>,
    /// The pool that inputs are hashed with.
    pub(crate) pool: Option<u32>,
}

/// The crushtool to ask: `BLOCKYARD_CRUSHTOOL`, or the one on the path.
fn program() -> String {
    std::env::var("BLOCKYARD_CRUSHTOOL").unwrap_or_else(|_| "crushtool".to_owned())
}

/// A file of ours, which is removed in the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(contents: &[u8]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("blockyard-crush-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::File::create(&path).unwrap().write_all(contents).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn output(command: &mut Command) -> Result<String, String> {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|error| {
        panic!("{}: {error}; what to do: apt install ceph-base, or `cargo xtask setup`", program())
    });
    let text = String::from_utf8(out.stdout).unwrap();
    if out.status.success() {
        return Ok(text);
    }
    Err(format!("{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)))
}

/// Every mapping, in the order of rules and of inputs.
pub(crate) fn mappings(map: &[u8], run: &Run) -> Vec<Vec<i32>> {
    let map = Temporary::new(map);
    let mut command = Command::new(program());
    command.arg("-i").arg(&map.0).args([
        "--test",
        "--show-mappings",
        "--min-x",
        "0",
        "--min-rule",
        "0",
    ]);
    command.args(["--max-x", &run.max_x.to_string(), "--max-rule", &(run.rules - 1).to_string()]);
    command.args(["--num-rep", &run.wanted.to_string()]);
    if let Some(pool) = run.pool {
        command.args(["--pool-id", &pool.to_string()]);
    }
    for (device, weight) in &run.reweights {
        let weight = f64::from(*weight) / 65_536.0;
        command.args(["--weight", &device.to_string(), &format!("{weight:.16}")]);
    }
    let lines = output(&mut command).unwrap();
    lines.lines().filter_map(mapping).collect()
}

/// `CRUSH rule 0 x 17 [1,2,3]`.
pub(crate) fn mapping(line: &str) -> Option<Vec<i32>> {
    let list = line.strip_prefix("CRUSH rule ")?.split_once('[')?.1.strip_suffix(']')?;
    let items = list.split(',').filter(|item| !item.is_empty());
    Some(items.map(|item| item.parse().unwrap()).collect())
}

/// Runs it with a file to read and one to write, and gives back what it wrote.
fn convert(contents: &[u8], arguments: &[&str]) -> Result<Vec<u8>, String> {
    let (input, written) = (Temporary::new(contents), Temporary::new(b""));
    let mut command = Command::new(program());
    let replace = |argument: &&str| match *argument {
        "IN" => input.0.clone().into_os_string(),
        "OUT" => written.0.clone().into_os_string(),
        other => other.into(),
    };
    output(command.args(arguments.iter().map(replace)))?;
    Ok(fs::read(&written.0).unwrap())
}

/// Compiles a map from its text.
pub(crate) fn compile(text: &str) -> Result<Vec<u8>, String> {
    convert(text.as_bytes(), &["-c", "IN", "-o", "OUT", "--enable-unsafe-tunables"])
}

/// Builds a map in layers: name, algorithm, size (0: one bucket for all).
pub(crate) fn build(devices: u32, layers: &[(&str, &str, u32)]) -> Vec<u8> {
    let devices = devices.to_string();
    let sizes: Vec<String> = layers.iter().map(|layer| layer.2.to_string()).collect();
    let mut arguments = vec!["--build", "--num_osds", &devices, "-o", "OUT"];
    for ((name, algorithm, _), size) in layers.iter().zip(&sizes) {
        arguments.extend([name, algorithm, size.as_str()]);
    }
    convert(b"", &arguments).unwrap()
}

/// Reads a map and writes it again.
pub(crate) fn rewrite(map: &[u8], arguments: &[&str]) -> Vec<u8> {
    convert(map, &[&["-i", "IN", "-o", "OUT"], arguments].concat()).unwrap()
}

/// The buckets around a device, as `--show-location` says.
pub(crate) fn location(map: &[u8], device: i32) -> Vec<String> {
    let map = Temporary::new(map);
    let mut command = Command::new(program());
    command.arg("-i").arg(&map.0).args(["--show-location", &device.to_string()]);
    output(&mut command).unwrap().lines().map(str::to_owned).collect()
}
