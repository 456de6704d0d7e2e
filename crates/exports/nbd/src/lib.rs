//! An NBD server in front of a block device.
#![forbid(unsafe_code)]
