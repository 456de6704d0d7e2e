//! RBD images for disks and commands: which store, which image, who has it.

pub(crate) mod demo;
mod open;
mod spec;

pub(crate) use open::{OwnedImage, Store, lock, open_store, own, rbd_error, read, wait};
pub(crate) use spec::ImageSpec;
