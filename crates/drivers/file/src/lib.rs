//! A disk in a regular file or a block device.
#![forbid(unsafe_code)]
