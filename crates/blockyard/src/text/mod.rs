//! What people read and write: lines on a terminal, sizes, and words that are nearly right.

pub mod size;
pub mod suggest;
pub mod term;
