//! A sparse RAM disk.
#![forbid(unsafe_code)]
