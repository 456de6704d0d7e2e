//! Memory for block I/O: aligned pages, pools, shared segments.
