//! NBD over vsock, server and client in one guest by the kernel's loopback transport.

use crate::common::static_blockyard;
use crate::{nbd_guest, succeed};

#[test]
fn a_disk_is_served_used_and_carried_on_over_vsock() {
    let guest = nbd_guest().module("vsock_loopback").program(&static_blockyard());
    succeed(guest.script(include_str!("vsock.sh")).boot().unwrap());
}
