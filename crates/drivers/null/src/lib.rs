//! A disk that completes everything and keeps nothing.
#![forbid(unsafe_code)]
