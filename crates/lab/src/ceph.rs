//! A cluster of Ceph's own daemons on loopback.
