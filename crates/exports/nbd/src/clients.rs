//! The list of clients, and how many there are of each kind: looked at for every one that comes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::client::{Client, Phase};
use crate::listener::PeerHost;

/// What clients are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// In their handshake.
    Handshakes,
    /// In their handshake, and not told to make room.
    Staying,
    /// In their handshake, from one host.
    HandshakesOf(PeerHost),
    /// In their handshake from one host, and not told to make room.
    StayingOf(PeerHost),
    /// Served.
    Serving,
    /// Served, from one host.
    ServingOf(PeerHost),
    /// Gone, while the disk of an export has not done with them.
    LingeringAt(u64),
    /// Those of one host.
    LingeringOf(PeerHost, u64),
}

/// All clients, by their numbers.
#[derive(Default)]
pub(crate) struct Clients {
    all: BTreeMap<u64, Arc<Client>>,
    /// Those in their handshake, which are few: the oldest first.
    handshakes: BTreeMap<u64, Arc<Client>>,
    counts: HashMap<Group, usize>,
}

impl Clients {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.all.values()
    }

    pub(crate) fn has(&self, client: &Client) -> bool {
        self.all.contains_key(&client.id)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn count(&self, group: Group) -> usize {
        self.counts.get(&group).copied().unwrap_or(0)
    }

    /// One more, in its handshake.
    pub(crate) fn insert(&mut self, client: &Arc<Client>) {
        self.all.insert(client.id, Arc::clone(client));
        self.handshakes.insert(client.id, Arc::clone(client));
        self.tally(client, true);
    }

    pub(crate) fn remove(&mut self, client: &Arc<Client>) {
        if self.all.remove(&client.id).is_some() {
            self.handshakes.remove(&client.id);
            self.tally(client, false);
        }
    }

    /// Its handshake is over, and it is served.
    pub(crate) fn admit(&mut self, client: &Arc<Client>, export: u64) {
        self.change(client, |client| client.set_serving(export));
        self.handshakes.remove(&client.id);
    }

    /// It is not served any more.
    pub(crate) fn leave(&mut self, client: &Arc<Client>) {
        if client.phase() == Phase::Serving {
            self.change(client, Client::set_gone);
        }
    }

    /// The oldest in its handshake, or the oldest of a host, makes room.
    pub(crate) fn evict_oldest(&mut self, host: Option<PeerHost>) {
        let mut staying = self.handshakes.values().filter(|client| !client.is_evicted());
        let oldest = staying.find(|client| host.is_none() || client.host == host);
        if let Some(oldest) = oldest.cloned() {
            self.change(&oldest, Client::evict);
        }
    }

    fn change(&mut self, client: &Arc<Client>, change: impl FnOnce(&Client)) {
        self.tally(client, false);
        change(client);
        self.tally(client, true);
    }

    fn tally(&mut self, client: &Client, more: bool) {
        for group in groups(client).into_iter().flatten() {
            let count = self.counts.entry(group).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.counts.remove(&group);
            }
        }
    }
}

/// Where a client counts.
fn groups(client: &Client) -> [Option<Group>; 4] {
    let host = client.host;
    match client.phase() {
        Phase::Handshake if client.is_evicted() => {
            [Some(Group::Handshakes), host.map(Group::HandshakesOf), None, None]
        }
        Phase::Handshake => [
            Some(Group::Handshakes),
            host.map(Group::HandshakesOf),
            Some(Group::Staying),
            host.map(Group::StayingOf),
        ],
        Phase::Serving => [Some(Group::Serving), host.map(Group::ServingOf), None, None],
        Phase::Gone => {
            let export = client.export();
            let of_host = host.zip(export).map(|(host, export)| Group::LingeringOf(host, export));
            [export.map(Group::LingeringAt), of_host, None, None]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_count_where_they_are_and_nowhere_in_the_end() {
        let (mut clients, host) = (Clients::default(), PeerHost::User(7));
        let list: Vec<_> =
            (1..=3).map(|id| Arc::new(Client::new(id, String::new(), Some(host), 0))).collect();
        list.iter().for_each(|client| clients.insert(client));
        assert_eq!(clients.count(Group::StayingOf(host)), 3);
        clients.evict_oldest(Some(PeerHost::User(8)));
        clients.evict_oldest(Some(host));
        assert!(list[0].is_evicted() && !list[1].is_evicted());
        assert_eq!((clients.count(Group::Staying), clients.count(Group::Handshakes)), (2, 3));
        clients.admit(&list[1], 5);
        clients.evict_oldest(None);
        assert!(!list[1].is_evicted() && list[2].is_evicted());
        assert_eq!((clients.count(Group::ServingOf(host)), clients.count(Group::Staying)), (1, 0));
        (0..2).for_each(|_| clients.leave(&list[1]));
        assert_eq!((clients.count(Group::Serving), clients.count(Group::LingeringAt(5))), (0, 1));
        assert_eq!(clients.count(Group::LingeringOf(host, 5)), 1);
        list.iter().for_each(|client| clients.remove(client));
        assert!(
            clients.all.is_empty() && clients.counts.is_empty() && clients.handshakes.is_empty()
        );
    }
}
