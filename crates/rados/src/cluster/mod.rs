//! A client of a cluster: the monitors' client and the objecter as one machine, with streams that are told apart by
//! numbers. Whoever has sockets needs only this: open and close streams as [`Event::Connect`] and [`Event::Close`] say,
//! carry bytes, keep time, and look at [`Client::poll_event`].

mod client;

pub use client::{Client, Config, Event, Peer};
