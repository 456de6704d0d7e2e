//! Mappings per second of one core, ours and those of Ceph's `crushtool --test`, of the same map and rule, and whether
//! they reach the targets.
//!
//! Both take turns, and medians of the rounds are compared; the spread of the rounds' ratios is shown. Time is that of
//! the processor, ours by the kernel's account of this thread, theirs by that of the child, less what crushtool takes
//! to map a single input. An argument names the cases to run:
//! `cargo bench -p blockyard-crush --bench mappings -- 10,000`; the whole name of a case that one alone. `--json` prints
//! an object per case.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for the terminal that fails by panicking"
)]

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blockyard_crush::{CrushMap, MapData, Op, Release, Rule, RuleKind, Scratch, Step, hash32_2};

/// The placement groups of the largest pool that Ceph's defaults allow.
const POOL: u32 = 65_536;
const ONE: u32 = 0x1_0000;

/// How many times crushtool's rate is wanted.
const RATIO: f64 = 2.0;
/// How long the table of such a pool over 10,000 devices may take, in seconds.
const TABLE: f64 = 0.5;
const TABLE_DEVICES: u32 = 10_000;

/// A map and a rule to measure.
struct Case {
    name: &'static str,
    devices: u32,
    /// Name and size of each layer; 0 is one bucket for all.
    layers: &'static [(&'static str, u32)],
    algorithm: &'static str,
    rule: &'static [(Op, i32, i32)],
    wanted: usize,
}

const REPLICATED: &[(Op, i32, i32)] = &[(Op::ChooseleafFirstn, 0, 1)];
const ERASURE: &[(Op, i32, i32)] = &[(Op::SetChooseleafTries, 5, 0), (Op::ChooseleafIndep, 0, 1)];
const HOSTS: &[(&str, u32)] = &[("host", 10), ("rack", 10), ("root", 0)];
const LARGE: &[(&str, u32)] = &[("host", 20), ("rack", 20), ("root", 0)];
const FLAT: &[(&str, u32)] = &[("host", 20), ("root", 0)];

const fn case(
    name: &'static str,
    devices: u32,
    layers: &'static [(&'static str, u32)],
    algorithm: &'static str,
) -> Case {
    Case { name, devices, layers, algorithm, rule: REPLICATED, wanted: 3 }
}

const CASES: &[Case] = &[
    case("1,000 devices, straw2", 1_000, HOSTS, "straw2"),
    case("10,000 devices, straw2", 10_000, LARGE, "straw2"),
    case("10,000 devices, 500 hosts under the root", 10_000, FLAT, "straw2"),
    Case {
        rule: ERASURE,
        wanted: 11,
        ..case("10,000 devices, straw2, erasure 8+3", 10_000, LARGE, "straw2")
    },
    case("1,000 devices, straw", 1_000, HOSTS, "straw"),
    case("1,000 devices, list", 1_000, HOSTS, "list"),
    case("1,000 devices, tree", 1_000, HOSTS, "tree"),
    case("1,000 devices, uniform", 1_000, HOSTS, "uniform"),
];

/// The map of a case, with its rule as number 0.
fn map(case: &Case, file: &Path) -> CrushMap {
    let mut command = Command::new("crushtool");
    command.args(["--build", "--num_osds", &case.devices.to_string(), "-o"]).arg(file);
    for (name, size) in case.layers {
        command.args([name, case.algorithm, &size.to_string()]);
    }
    let status = command.stderr(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "crushtool failed; apt install ceph-base");
    let mut data = MapData::decode(&fs::read(file).unwrap()).unwrap();
    let root = CrushMap::new(data.clone()).unwrap().item("root").unwrap();
    let steps = case.rule.iter().map(|&(op, arg1, arg2)| Step { op, arg1, arg2 });
    let (take, emit) = (Step::new(Op::Take, root, 0), Step::new(Op::Emit, 0, 0));
    let steps = [take].into_iter().chain(steps).chain([emit]).collect();
    let kind = RuleKind::Erasure;
    data.rules = vec![Some(Rule { ruleset: 0, kind, min_size: 1, max_size: 20, steps })];
    fs::write(file, data.encode(Release::Luminous)).unwrap();
    CrushMap::new(data).unwrap()
}

/// The processor time of this thread in seconds, by `/proc/thread-self/schedstat`.
fn thread_time() -> f64 {
    let account = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    account.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// The processor time of all children so far in seconds: fields 16 and 17 of `/proc/self/stat`, in hundredths.
fn children_time() -> f64 {
    let account = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = account.rsplit(") ").next().unwrap().split(' ').collect();
    fields[13..15].iter().map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// Seconds that we take for so many inputs.
fn ours(map: &CrushMap, case: &Case, inputs: u32) -> f64 {
    let weights = vec![ONE; case.devices as usize];
    let (mut result, mut scratch) = (vec![0; case.wanted], Scratch::new());
    let started = thread_time();
    for x in 0..inputs {
        let len = map.do_rule(0, hash32_2(x, 1), &weights, None, &mut result, &mut scratch);
        black_box(&result[..len]);
    }
    thread_time() - started
}

/// Seconds that crushtool takes for so many inputs.
fn theirs(file: &Path, case: &Case, inputs: u32) -> f64 {
    let started = children_time();
    let mut command = Command::new("crushtool");
    command.arg("-i").arg(file).args(["--test", "--rule", "0", "--min-x", "0", "--pool-id", "1"]);
    command.args(["--num-rep", &case.wanted.to_string(), "--max-x", &(inputs - 1).to_string()]);
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(quiet.status().unwrap().success());
    children_time() - started
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Measures a case and prints its line.
fn report(case: &Case, file: &Path, measure: bool, json: bool) {
    // crushtool's time is counted in hundredths of a second, so small maps are given more inputs.
    let many = if case.devices < TABLE_DEVICES { 4 * POOL } else { POOL };
    let (rounds, inputs) = if measure { (5, many) } else { (1, 100) };
    let map = map(case, file);
    let (mut us, mut them, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let ours = ours(&map, case, inputs).max(1e-6);
        let theirs = (theirs(file, case, inputs) - theirs(file, case, 1)).max(1e-6);
        us.push(ours);
        them.push(theirs);
        ratios.push(theirs / ours);
    }
    ratios.sort_by(f64::total_cmp);
    let [us, them] = [us, them].map(|times| median(times) / f64::from(inputs));
    let (ratio, table) = (them / us, us * f64::from(POOL));
    if json {
        let table_ms = table * 1e3;
        println!("{{\"case\": \"{}\", \"ratio\": {ratio}, \"table_ms\": {table_ms}}}", case.name);
        return;
    }
    let verdict = |reached: bool| if reached { "pass" } else { "MISS" };
    let spread = format!("{:.1} to {:.1}", ratios[0], ratios[ratios.len() - 1]);
    print!("{:<42} {:>10.0} {:>12.0} {ratio:>5.1}x", case.name, us.recip(), them.recip());
    print!(" {spread:>12}  {:<5} {:>7.0} ms", verdict(ratio >= RATIO), table * 1e3);
    if case.devices == TABLE_DEVICES {
        print!("  {}", verdict(table <= TABLE));
    }
    println!();
}

fn main() {
    // Without this argument the benchmark is only tried out, by `cargo test --benches`.
    let measure = std::env::args().any(|argument| argument == "--bench");
    let chosen = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let file: PathBuf =
        std::env::temp_dir().join(format!("blockyard-mappings-{}", std::process::id()));
    let json = std::env::args().any(|argument| argument == "--json");
    if !json {
        println!(
            "{:<42} {:>10} {:>12} {:>6} {:>12}  {:<5} {:>10}",
            "", "ours/s", "crushtool/s", "ratio", "spread", "", "65,536 in"
        );
    }
    let names_one = |name: &String| CASES.iter().any(|case| case.name == *name);
    let is_chosen = |case: &&Case| match &chosen {
        Some(name) if names_one(name) => case.name == *name,
        Some(part) => case.name.contains(part),
        None => true,
    };
    for case in CASES.iter().filter(is_chosen) {
        report(case, &file, measure, json);
    }
    fs::remove_file(&file).unwrap();
}
