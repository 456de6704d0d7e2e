//! A load for any vhost-user-blk back-end, by the crate blkio: `vhost_user_load SOCKET read|write BLOCK_BYTES DEPTH SECONDS`.
//!
//! It keeps DEPTH requests out at random places of the disk, sleeps while none has ended, and prints what came out as JSON.
#![allow(clippy::print_stdout, reason = "it prints its result")]

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use blkio::{Blkio, Completion, ReqFlags};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Load {
    write: bool,
    block: usize,
    depth: usize,
    seconds: u64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.as_slice() {
        [socket, rw, numbers @ ..]
            if numbers.len() == 3 && ["read", "write"].contains(&rw.as_str()) =>
        {
            let number = |at: usize| numbers[at].parse().map_err(|_| format!("{:?}", numbers[at]));
            let load = || {
                Ok::<_, String>(Load {
                    write: rw == "write",
                    block: number(0)?,
                    depth: number(1)?,
                    seconds: numbers[2].parse().map_err(|_| numbers[2].clone())?,
                })
            };
            load().and_then(|load| run(socket, &load).map_err(|err| err.message().to_string()))
        }
        _ => Err("SOCKET read|write BLOCK_BYTES DEPTH SECONDS".into()),
    };
    match outcome {
        Ok(line) => println!("{line}"),
        Err(err) => {
            eprintln!("vhost_user_load: {err}");
            std::process::exit(1);
        }
    }
}

fn run(socket: &str, load: &Load) -> blkio::Result<String> {
    let mut blkio = Blkio::new("virtio-blk-vhost-user")?;
    blkio.set_str("path", socket)?;
    blkio.connect()?;
    blkio.set_i32("num-queues", 1)?;
    let mut queues = blkio.start()?.queues;
    let queue = &mut queues[0];
    let region = blkio.alloc_mem_region(load.block * load.depth)?;
    blkio.map_mem_region(&region)?;
    let blocks = blkio.get_u64("capacity")? / load.block as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut places: Vec<MaybeUninit<Completion>> = Vec::new();
    places.resize_with(load.depth, MaybeUninit::uninit);
    let (mut done, start, cpu) = (0_u64, Instant::now(), cpu_time());
    let mut submit = |queue: &mut blkio::Blkioq, slot: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = state % blocks * load.block as u64;
        let buffer = (region.addr + slot * load.block) as *mut u8;
        if load.write {
            queue.write(at, buffer, load.block, slot, ReqFlags::empty());
        } else {
            queue.read(at, buffer, load.block, slot, ReqFlags::empty());
        }
    };
    (0..load.depth).for_each(|slot| submit(queue, slot));
    while start.elapsed() < Duration::from_secs(load.seconds) {
        let mut patience = PATIENCE;
        let count = queue.do_io(&mut places, 1, Some(&mut patience), None)?;
        for place in &mut places[..count] {
            // SAFETY: `do_io` has filled as many completions as it says; each is read once before it is filled anew.
            let completion = unsafe { place.assume_init_read() };
            assert_eq!(completion.ret, 0, "a request failed");
            done += 1;
            submit(queue, completion.user_data);
        }
    }
    let (elapsed, spent) = (start.elapsed().as_secs_f64(), cpu_time() - cpu);
    let (iops, per_op) = (done as f64 / elapsed, spent.as_secs_f64() * 1e6 / done as f64);
    Ok(format!("{{\"iops\": {iops:.0}, \"client_cpu_us\": {per_op:.3}}}"))
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
