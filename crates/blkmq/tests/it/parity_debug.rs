//! What a queue shows of itself to people.

use std::sync::atomic::Ordering;

use blockyard_blkmq::{Bio, Op, Sector, TagSetConfig};

use crate::rig::Rig;
use crate::script::{Chances, Config};

#[test]
fn a_queue_shows_what_is_out_and_what_waits_with_the_words_of_the_driver() {
    let set = TagSetConfig { depth: 2, ..TagSetConfig::default() };
    let chances = Chances { device: 1000, ..Chances::default() };
    let rig = Rig::new(1, set, Config { chances, ..Config::default() }, 64);
    for sector in [0, 16, 32] {
        rig.submit(0, Bio::new(Op::Read, Sector(sector), 512));
    }
    let shown = rig.disk.show();
    assert!(shown.contains("2 of 2 requests in use"), "{shown}");
    assert!(shown.contains("begun=true"), "the driver handed it back: {shown}");
    assert!(shown.contains("waits: Bio"), "there is no third tag: {shown}");
    assert!(rig.script.counts.shown.load(Ordering::SeqCst) >= 2);
    rig.script.calm_down();
    rig.script.finish_all();
    assert_eq!(rig.ends.take().len(), 3);
    rig.tear_down();
}
