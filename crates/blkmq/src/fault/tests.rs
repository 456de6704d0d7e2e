use rand::RngExt;

use super::*;
use crate::testing::rng;
use crate::units::{SECTOR_SIZE, Sector};

fn spec(kind: FaultKind) -> FaultSpec {
    FaultSpec::new(kind)
}

fn set(specs: &[FaultSpec]) -> FaultSet {
    let rules: Vec<_> =
        (1..).zip(specs).map(|(id, spec)| Arc::new(Rule::new(id, spec.clone(), 0))).collect();
    FaultSet::new(&rules, None, &Arc::default())
}

fn acts(set: &FaultSet, op: Op, count: usize) -> Vec<bool> {
    let plan = |_| set.plan(op, &(0..4096), 0).is_some_and(|plan| plan.act != Act::Pass);
    (0..count).map(plan).collect()
}

#[test]
fn a_rule_is_for_its_operations_its_range_and_its_time() {
    let error = FaultKind::Error(Status::Io);
    let set = set(&[FaultSpec {
        ops: FaultOps::WRITE,
        range: Some(4096..8192),
        lasts: Some(Duration::from_nanos(100)),
        ..spec(error)
    }]);
    let is_for = |op, range: Range<u64>, now_ns| set.plan(op, &range, now_ns).is_some();
    assert!(is_for(Op::Write, 0..4097, 0) && is_for(Op::Write, 8191..9000, 99));
    assert!(!is_for(Op::Write, 0..4096, 0) && !is_for(Op::Write, 8192..9000, 0));
    assert!(!is_for(Op::Read, 4096..8192, 0) && !is_for(Op::Flush, 0..0, 0));
    assert!(!is_for(Op::Write, 4096..8192, 100));
}

#[test]
fn a_rule_begins_after_some_and_ends_after_so_many() {
    let count = NonZeroU64::new(2);
    let set = set(&[FaultSpec { after: 3, count, ..spec(FaultKind::Error(Status::Io)) }]);
    let got = acts(&set, Op::Read, 7);
    assert_eq!(got, [false, false, false, true, true, false, false]);
    let info = set.rules[0].info(0, 0);
    assert_eq!((info.matched, info.fired), (5, 2), "one that is over is not looked at");
    assert_eq!(set.tally.counts()[FaultKind::Error(Status::Io).index()], 2);
}

#[test]
fn the_same_seed_draws_the_same() {
    let seed = rng("the_same_seed_draws_the_same").random();
    let chance = |seed| FaultSpec { probability: 0.3, seed, ..spec(FaultKind::Error(Status::Io)) };
    let one = acts(&set(&[chance(seed)]), Op::Read, 1000);
    assert_eq!(one, acts(&set(&[chance(seed)]), Op::Read, 1000));
    assert_ne!(one, acts(&set(&[chance(!seed)]), Op::Read, 1000));
    let fired = one.iter().filter(|&&fired| fired).count();
    assert!((150..450).contains(&fired), "{fired}");
}

#[test]
fn delays_add_up_and_the_first_that_decides_is_the_last() {
    let ms = Duration::from_millis;
    let delay = |least, most| spec(FaultKind::Delay { least: ms(least), most: ms(most) });
    let set = set(&[
        delay(5, 5),
        delay(1, 3),
        spec(FaultKind::Error(Status::Medium)),
        spec(FaultKind::Error(Status::Io)),
        delay(100, 100),
    ]);
    for _ in 0..100 {
        let mut plan = set.plan(Op::Read, &(0..512), 0).unwrap();
        assert_eq!(plan.act, Act::End(Status::Medium));
        let waits: Vec<_> = std::iter::from_fn(|| plan.next_wait(&set)).collect();
        assert!(waits.iter().map(|wait| wait.by).eq([1, 2]));
        let delay_ns: u64 = waits.iter().filter_map(|wait| wait.for_ns).sum();
        assert!((6_000_000..=8_000_000).contains(&delay_ns), "{waits:?}");
    }
    let counts = set.tally.counts();
    assert_eq!((counts[0], counts[1]), (100, 200));
}

#[test]
fn stalls_come_before_delays_and_none_outlives_its_rule() {
    let ms = Duration::from_millis(1);
    let (delay, stall) = (FaultKind::Delay { least: ms, most: ms }, FaultKind::Stall);
    let all = set(&[delay, stall, delay, stall].map(spec));
    let mut plan = all.plan(Op::Read, &(0..512), 0).unwrap();
    let less = FaultSet::new(&all.rules[..3], None, &Arc::default());
    let waits: Vec<_> = std::iter::from_fn(|| plan.next_wait(&less)).collect();
    let wait = |by, for_ns| Wait { by, for_ns };
    assert_eq!(waits, [wait(2, None), wait(1, Some(1_000_000)), wait(3, Some(1_000_000))]);
}

#[test]
fn a_power_cut_comes_before_all_others() {
    let set = set(&[spec(FaultKind::Stall), spec(FaultKind::PowerCut)]);
    let plan = set.plan(Op::Write, &(0..512), 0).unwrap();
    assert_eq!(plan, Plan { act: Act::End(Status::Io), ..Plan::default() });
}

#[test]
fn what_cannot_be_is_refused() {
    let error = || spec(FaultKind::Error(Status::Io));
    let zero = Duration::ZERO;
    let wrong = [
        (FaultSpec { probability: 2.0, ..error() }, "probability"),
        (FaultSpec { probability: 0.0, ..error() }, "probability"),
        (FaultSpec { probability: f64::NAN, ..error() }, "probability"),
        (FaultSpec { range: Some(0..4097), ..error() }, "within the disk"),
        (FaultSpec { range: Some(7..7), ..error() }, "within the disk"),
        (FaultSpec { lasts: Some(zero), ..error() }, "longer than 0"),
        (FaultSpec { ops: FaultOps::WRITE, ..spec(FaultKind::Corrupt) }, "operations"),
        (FaultSpec { ops: FaultOps::empty(), ..error() }, "operations"),
        (spec(FaultKind::Delay { least: zero, most: zero }), "invalid delay"),
        (spec(FaultKind::Volatile { max_bytes: 0 }), "from 1 to"),
        (spec(FaultKind::Volatile { max_bytes: u64::MAX }), "from 1 to"),
    ];
    let mut control = Control::default();
    for (spec, why) in wrong {
        let told = control.add(spec, 4096, 0).err().unwrap();
        assert!(told.kind() == ErrorKind::Invalid && told.to_string().contains(why), "{told}");
    }
    for _ in 0..MAX_FAULTS - 1 {
        control.add(error(), 4096, 0).ok().unwrap();
    }
    control.add(spec(FaultKind::PowerCut), 4096, 0).ok().unwrap();
    assert_eq!(control.add(error(), 4096, 0).err().unwrap().kind(), ErrorKind::Resource);
    control.rules.pop_if(|rule| rule.id == 1);
    control.rules.remove(0);
    let again = control.add(spec(FaultKind::PowerCut), 4096, 0);
    assert_eq!(again.err().unwrap().kind(), ErrorKind::Exists);
}

/// What a disk is over which a cache lies: each sector is a number.
fn run_cache(seed_of: &str) {
    const SECTORS: u64 = 64;
    let mut rng = rng(seed_of);
    let cache = WriteCache::new(u64::MAX, Durable::Flush);
    let size = usize::try_from(SECTORS * SECTOR_SIZE).unwrap();
    let (mut disk, mut seen) = (vec![0; size], vec![0; size]);
    for step in 1..=2000_u32 {
        let (from, len) = (rng.random_range(0..SECTORS), rng.random_range(1..20));
        let len = len.min(SECTORS - from);
        let at = usize::try_from(from * SECTOR_SIZE).unwrap();
        let bytes = usize::try_from(len * SECTOR_SIZE).unwrap();
        match rng.random_range(0..10) {
            0..5 => {
                let data = vec![u8::try_from(step % 255 + 1).unwrap(); bytes];
                assert!(cache.write(Sector(from), bytes, Some(&data)));
                seen[at..at + bytes].copy_from_slice(&data);
            }
            5 => {
                assert!(cache.write(Sector(from), bytes, None));
                seen[at..at + bytes].fill(0);
            }
            6..8 => {
                let mut read = disk[at..at + bytes].to_vec();
                WriteCache::lay_over(&cache.over(Sector(from), bytes), Sector(from), &mut read);
                assert_eq!(read, seen[at..at + bytes], "step {step}");
            }
            8 => {
                assert_eq!(cache.begin_flush(u64::from(step)), Begun::Yes);
                assert_eq!(cache.begin_flush(u64::from(step)), Begun::Busy);
                // Of the next flush.
                let newer = rng.random_bool(0.5).then(|| vec![0xff; 512]);
                if let Some(newer) = &newer {
                    assert!(cache.write(Sector(7), 512, Some(newer)));
                }
                let fails = rng.random_bool(0.3);
                let (mut next, mut runs) = (Sector::ZERO, rng.random_range(0..9));
                while let Some((sector, run)) = cache.next_run(next, |_| 4096 + 512) {
                    assert!(run.len() <= 4608 && sector >= next);
                    let at = usize::try_from(sector.bytes()).unwrap();
                    disk[at..at + run.len()].copy_from_slice(&run);
                    next = sector + Sector(run.len() as u64 / SECTOR_SIZE);
                    runs -= 1;
                    if fails && runs <= 0 {
                        break;
                    }
                }
                if !fails {
                    assert_eq!(disk, seen);
                }
                cache.end_flush(!fails);
                if let Some(newer) = newer {
                    seen[7 * 512..8 * 512].copy_from_slice(&newer);
                }
            }
            _ => {
                cache.cut(u64::from(step));
                assert_eq!(cache.bytes(), 0);
                assert_eq!(cache.begin_flush(u64::from(step)), Begun::Late);
                seen.clone_from(&disk);
            }
        }
    }
}

#[test]
fn a_cache_is_what_was_written_over_what_was_flushed() {
    run_cache("a_cache_is_what_was_written_over_what_was_flushed");
}

#[test]
fn the_last_block_of_a_disk_is_held_whole_and_its_padding_is_zero() {
    let cache = WriteCache::new(u64::MAX, Durable::Flush);
    let page = |byte: u8| vec![byte; 4096];
    assert!(cache.write(Sector(0), 4096, Some(&page(1))));
    assert_eq!(cache.begin_flush(1), Begun::Yes);
    assert!(cache.write(Sector(8), 4096, Some(&page(2))));
    // One block of 4 KiB, of which 700 bytes are the disk's.
    cache.truncate(Sector(8), 700);
    assert_eq!(cache.bytes(), 4096);
    let (sector, run) = cache.next_run(Sector(0), |_| 8192).unwrap();
    assert_eq!((sector, run.len()), (Sector(0), 4096));
    assert!(run[..700].iter().all(|&byte| byte == 1) && run[700..].iter().all(|&byte| byte == 0));
    cache.truncate(Sector(0), 0);
    assert_eq!((cache.bytes(), cache.next_run(Sector(0), |_| 8192)), (0, None));
}

#[test]
fn a_cache_holds_no_more_than_it_may() {
    let cache = WriteCache::new(8192, Durable::Flush);
    assert!(cache.write(Sector(0), 4096, None) && cache.write(Sector(8), 4096, None));
    assert!(cache.write(Sector(4), 4096, None), "it is there already");
    assert!(!cache.write(Sector(12), 4096, None));
    assert!(!cache.write(Sector(0), usize::MAX / 2, None));
    assert_eq!(cache.bytes(), 8192);
    assert!(cache.is_full_first() && !cache.is_full_first());
    assert_eq!(cache.begin_flush(1), Begun::Yes);
    assert!(!cache.write(Sector(16), 512, None), "until it is flushed");
    cache.end_flush(true);
    assert!(cache.write(Sector(16), 512, None));
    assert_eq!(cache.cut(2), 512);
}
