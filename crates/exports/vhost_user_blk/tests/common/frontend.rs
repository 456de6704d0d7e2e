//! The driver of a disk: requests of virtio-blk by a front-end that may break every rule.
#![allow(dead_code, reason = "each test uses a part of it")]

#[allow(unused_imports, reason = "each test uses a part of it")]
pub(crate) use blockyard_conformance::blk_driver::BlkDriver;
pub(crate) use blockyard_conformance::front_end::*;
use std::os::fd::OwnedFd;

use blockyard_vhost_user::queue::{F_EVENT_IDX, F_INDIRECT_DESC};
use blockyard_vhost_user::wire::{Inflight, Message, Reply};

pub(crate) const ALL: u64 = F_EVENT_IDX | F_INDIRECT_DESC | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 14;

/// It is still there: a message is answered.
pub(crate) trait IsServed {
    fn is_served(&self) -> bool;
}

impl IsServed for FrontEnd {
    fn is_served(&self) -> bool {
        self.ask(&Message::GetQueueNum) == Reply::Number(64)
    }
}

/// An in-flight region for so many queues, which the front-end has asked for and not set yet.
pub(crate) fn inflight_of(driver: &FrontEnd, num_queues: u16) -> (OwnedFd, Inflight) {
    let asked = Inflight { num_queues, queue_size: SIZE, ..Inflight::default() };
    driver.tell(&Message::GetInflightFd(asked), &[]);
    driver.receive_fd(&Message::GetInflightFd(asked))
}
