//! What one host can take from the others: handshakes, and places of clients.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use blockyard_export_nbd::{Address, HeaderStyle, bind};
use common::{Client, DEADLINE, MIB, Yard, eventually, ram};
use socket2::{Domain, Socket, Type};

const MOST: usize = 16;
/// How many silent connections a host keeps.
const SHARE: usize = MOST / 4;

struct Lan {
    yard: Yard,
    port: u16,
}

impl Lan {
    fn new(per_host: Option<usize>) -> Self {
        let yard = Yard::with(ram(MIB), |config, _| {
            config.limits.max_clients = MOST;
            config.limits.max_clients_per_host = per_host;
        });
        let listener = bind(&"tcp:127.0.0.1:0".parse().unwrap(), None).unwrap();
        let [Address::Tcp { port, .. }] = listener.addresses()[..] else { panic!("one address") };
        yard.server.listen(listener);
        Self { yard, port }
    }

    /// From a host of the loopback network.
    fn connect(&self, host: u8) -> TcpStream {
        let address = |host, port| SocketAddr::from(([127, 0, 0, host], port));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address(host, 0).into()).unwrap();
        socket.connect(&address(1, self.port).into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn open(&self, host: u8) -> std::io::Result<Client> {
        Client::open(Box::new(self.connect(host)), "", HeaderStyle::Extended)
    }

    /// One that has its place: it hears of its export before it has.
    fn served(&self, host: u8) -> Client {
        served(self.open(host).unwrap())
    }
}

fn served(mut client: Client) -> Client {
    assert_eq!(client.read(0, 512), [0; 512]);
    client
}

/// Whether the server hangs up.
fn is_closed(stream: &mut impl Read) -> bool {
    // Reset, if the server was gone before it greeted.
    let ended = stream.read_to_end(&mut Vec::new());
    ended.map_or_else(|err| err.kind() == ErrorKind::ConnectionReset, |_| true)
}

#[test]
fn a_host_that_only_connects_keeps_out_itself_at_most() {
    let lan = Lan::new(None);
    let local = lan.yard.connect();
    eventually("its handshake", || lan.yard.server.clients().len() == 1);
    let mut silent = Vec::new();
    for n in 1..=12 {
        silent.push(lan.connect(1));
        let expected = 1 + SHARE.min(n);
        let newest = 1 + n as u64;
        eventually("room", || {
            let clients = lan.yard.server.clients();
            clients.len() == expected && clients.last().unwrap().id == newest
        });
    }
    assert!(silent.iter_mut().take(12 - SHARE).all(is_closed), "the oldest of the host");
    // The oldest of all is another's, and goes on; so does who comes from there in earnest.
    Client::open(Box::new(local), "", HeaderStyle::Extended).unwrap().disconnect();
    lan.open(1).unwrap().disconnect();
}

#[test]
fn a_user_of_a_unix_socket_is_a_host() {
    let lan = Lan::new(None);
    let other = lan.connect(1);
    eventually("its handshake", || lan.yard.server.clients().len() == 1);
    let mut silent = Vec::new();
    for n in 1..=12 {
        silent.push(lan.yard.connect());
        let expected = 1 + SHARE.min(n);
        let newest = 1 + n as u64;
        eventually("room", || {
            let clients = lan.yard.server.clients();
            clients.len() == expected && clients.last().unwrap().id == newest
        });
    }
    assert!(silent.iter_mut().take(12 - SHARE).all(is_closed), "the oldest of the user");
    Client::open(Box::new(other), "", HeaderStyle::Extended).unwrap().disconnect();
    lan.yard.client().disconnect();
}

#[test]
fn those_who_only_connect_keep_nobody_out() {
    let lan = Lan::new(None);
    let mut silent = Vec::new();
    for host in 0..4 {
        silent.extend((0..SHARE).map(|_| lan.connect(10 + host)));
    }
    eventually("their handshakes", || lan.yard.server.clients().len() == MOST);
    // The oldest makes room, whoever it is.
    let newest = lan.open(20).unwrap();
    assert!(is_closed(&mut silent[0]));
    eventually("room", || lan.yard.server.clients().len() == MOST);
    newest.disconnect();
}

#[test]
fn a_host_that_connects_faster_than_it_is_hung_up_on_keeps_nobody_else_out() {
    let lan = Lan::new(None);
    for round in 0..20 {
        let flood: Vec<_> = (0..4 * MOST).map(|_| lan.connect(1)).collect();
        lan.open(2).unwrap_or_else(|err| panic!("round {round}: {err}")).disconnect();
        drop(flood);
    }
}

#[test]
fn a_host_does_not_get_all_places_of_clients() {
    let lan = Lan::new(None);
    let three_quarters = MOST - MOST / 4;
    let mut first: Vec<_> = (0..three_quarters).map(|_| lan.served(1)).collect();
    assert!(lan.open(1).unwrap().is_closed());
    let mut others: Vec<_> = (0..MOST / 4).map(|_| lan.served(2)).collect();
    assert!(lan.open(2).map_or(true, |mut client| client.is_closed()), "there are no more places");
    for client in first.iter_mut().chain(&mut others) {
        assert_eq!(client.read(0, 512), [0; 512]);
    }
    first.pop().unwrap().disconnect();
    eventually("room", || lan.yard.server.clients().len() == MOST - 1);
    lan.open(1).unwrap().disconnect();
}

#[test]
fn the_places_of_a_host_can_be_chosen_and_users_are_hosts_then() {
    let lan = Lan::new(Some(2));
    let clients: Vec<_> = (0..2).map(|_| served(lan.yard.client())).collect();
    assert!(lan.yard.client().is_closed());
    let others: Vec<_> = (0..2).map(|_| lan.served(1)).collect();
    assert!(lan.open(1).unwrap().is_closed());
    drop(others);
    drop(clients);
    eventually("room", || lan.yard.server.clients().is_empty());
    lan.yard.shutdown(Duration::from_secs(5));
}
