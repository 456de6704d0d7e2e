//! The suite that every driver runs, on images of a store in a directory: with and without a map of objects, with stripes, of a
//! clone, and with an end within a block.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use blockyard_conformance::{Capabilities, STORES, Subject};
use blockyard_rbd::format::{Features, Layout};
use common::{MIB, Made};

const IMAGES: Capabilities =
    Capabilities { discard_zeroes: true, holes: true, can_grow: true, ..STORES };

fn subject(made: &Made) -> Subject {
    let (bdev, guard) = made.open();
    Subject::new(bdev, guard).with(IMAGES)
}

blockyard_conformance::suite!(with_map, || subject(&Made::new(
    4 * MIB,
    small(),
    Features::DEFAULT
)));
blockyard_conformance::suite!(live, || {
    let (bdev, guard) = Made::new(4 * MIB, small(), Features::DEFAULT).open_live();
    Subject::new(bdev, guard).with(IMAGES)
});
blockyard_conformance::suite!(without_map, || {
    subject(&Made::new(4 * MIB, small(), Features::LAYERING))
});
blockyard_conformance::suite!(odd_end, || {
    subject(&Made::new(4 * MIB + 8192 + 1777, small(), Features::DEFAULT))
});
blockyard_conformance::suite!(striped, || {
    let layout = Layout::striped(17, 16384, 3).unwrap();
    subject(&Made::new(4 * MIB, layout, Features::DEFAULT))
});
blockyard_conformance::suite!(clone, || {
    subject(&Made::new(4 * MIB, small(), Features::DEFAULT).cloned())
});

fn small() -> Layout {
    Layout::new(18).unwrap()
}
