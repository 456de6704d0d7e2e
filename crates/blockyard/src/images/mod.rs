//! RBD images for disks and commands: which store, which image, who has it.

mod any;
pub(crate) mod demo;
mod holder;
mod open;
mod place;
mod spec;

pub(crate) use any::Store;
pub(crate) use holder::{CLOSE_LIMIT, Holder, file_name as holder_name, is_kept_out};
pub(crate) use open::{
    OwnedImage, change, lock, open_directory, own, owner, rbd_error, read, unused, wait, wait_on,
};
pub(crate) use place::Place;
pub(crate) use spec::ImageSpec;
