//! Cases that were found wrong once, the smallest that shows each.

use blockyard_blkmq::{Bio, Op, Sector, Status, TagSetConfig};

use crate::rig::Rig;
use crate::script::{Chances, Config};

fn rig(depth: u32, config: Config) -> Rig {
    Rig::new(1, TagSetConfig { depth, ..TagSetConfig::default() }, config, 64)
}

/// The statuses of what has ended.
fn statuses(rig: &Rig) -> Vec<Status> {
    rig.ends.take().iter().map(|bio| bio.status()).collect()
}

#[test]
fn an_answer_that_was_begun_before_a_requeue_is_forgotten() {
    let rig = rig(
        4,
        Config { chances: Chances { requeue: 1000, ..Chances::default() }, ..Config::default() },
    );
    rig.submit(0, Bio::new(Op::Read, Sector(0), 4096));
    for _ in 0..3 {
        assert!(rig.script.step(), "delivered a part of it, and requeued it");
    }
    rig.script.calm_down();
    rig.script.finish_all();
    let ends = rig.ends.take();
    assert_eq!(
        (ends[0].status(), ends[0].data().iter().map(|s| s.len()).sum::<usize>()),
        (Status::Ok, 4096)
    );
    rig.tear_down();
}
