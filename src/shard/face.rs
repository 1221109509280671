//! The cluster face of this core: what CLUSTER answers, and where a client is sent from a core's own
//! port. What is decided is decided in `cluster/face`; here it gets the shapes of Redis 7.0.

use super::Shard;
use super::connection::Client;
use crate::cluster::face::{self, Port, Redirect, Seat};
use crate::cluster::faces;
use crate::cluster::map::{Holder, Node};
use crate::protocol::ArgView;
use crate::protocol::command::{Cluster, Spec};
use crate::protocol::reply::Reply;
use crate::rt;
use crate::types::{CoreId, Slot};

/// What a server is, to clients at this port: those at the shared one need not know of cores.
pub fn mode(port: Port) -> &'static str {
    match port {
        Port::Shared => "standalone",
        Port::Core => "cluster",
    }
}

/// The slots of the keys in a request.
fn slots<'a>(spec: &Spec, args: ArgView<'a>) -> impl Iterator<Item = Slot> + use<'a> {
    let keys = spec.keys.indices(args.len());
    keys.filter_map(move |index| args.get(index).map(Slot::of))
}

impl Shard {
    /// Why this request is not served at this port, if it is not.
    pub(super) fn redirect(&self, port: Port, spec: &Spec, args: ArgView<'_>) -> Option<Redirect> {
        match port {
            Port::Shared => None,
            Port::Core => self.judge(slots(spec, args)),
        }
    }

    /// Why these requests, which are one transaction, are not served at this port, if they are not.
    pub(super) fn redirect_all<'a>(
        &self,
        port: Port,
        requests: impl Iterator<Item = ArgView<'a>>,
    ) -> Option<Redirect> {
        let known = requests.filter_map(|args| Some((Spec::of(args).ok()?, args)));
        match port {
            Port::Shared => None,
            Port::Core => {
                let slots = known.flat_map(|(spec, args)| slots(spec, args));
                self.judge(slots)
            }
        }
    }

    fn judge(&self, slots: impl Iterator<Item = Slot>) -> Option<Redirect> {
        let Some(view) = self.view().filter(|_| self.is_clustered()) else {
            return face::judge(&self.map, self.id, slots);
        };
        let own = Holder {
            node: view.own,
            core: self.id,
        };
        let is_there = |node| view.may_be_asked(node);
        faces::judge(&view.map, own, is_there, slots)
    }

    /// Counts a command that was not served, and says why in Redis's words.
    pub(super) fn tell_redirect(&self, redirect: Redirect, client: &Client) -> String {
        self.counters.borrow_mut().redirected += 1;
        match redirect {
            Redirect::CrossSlot => {
                "CROSSSLOT Keys in request don't hash to the same slot".to_owned()
            }
            Redirect::Moved(slot, owner) => {
                let (host, port) = (self.host_for(client), self.port_of(owner));
                format!("MOVED {} {host}:{port}", slot.0)
            }
            Redirect::Elsewhere(slot, owner) => {
                let view = self.view();
                let node = view.as_ref().and_then(|view| view.map.node(owner.node));
                let host = node.map_or_else(String::new, |node| self.host_of(node, client));
                let port = node.map_or(0, |node| self.first_port_of(node));
                format!(
                    "MOVED {} {host}:{}",
                    slot.0,
                    port.saturating_add(owner.core.0)
                )
            }
        }
    }

    /// Answers CLUSTER.
    pub(super) fn describe_cluster(
        &self,
        question: &Cluster<'_>,
        client: &Client,
        reply: &mut Reply<'_>,
    ) {
        let node = self.place.node.0;
        let view = self.view().filter(|_| self.is_clustered());
        let epoch = view.as_ref().map_or(self.epoch, |view| view.map.epoch());
        let seats = || match &view {
            Some(view) => faces::seats(
                &view.map,
                |node| view.may_be_asked(node),
                |node| self.host_of(node, client),
                |node| self.first_port_of(node),
            ),
            None => {
                let host = self.host_for(client);
                face::seats(&self.map, node, &host, |core| self.port_of(core))
            }
        };
        match question {
            Cluster::Slots => reply_slots(&seats(), reply),
            Cluster::Shards => reply_shards(&seats(), reply),
            Cluster::Nodes => {
                let text = face::nodes(&seats(), (node, self.id), epoch, rt::wall_ms());
                reply.verbatim("txt", &text);
            }
            Cluster::Info => {
                reply.verbatim("txt", &face::info(&seats(), epoch));
            }
            Cluster::MyId => {
                let name = face::name(node, self.id);
                reply.bulk(name.as_bytes());
            }
            Cluster::KeySlot(key) => reply.integer(i64::from(Slot::of(key).0)),
            Cluster::Links => reply.array(0),
        }
    }

    /// Where clients find `node`: this one as they came to it.
    fn host_of(&self, node: &Node, client: &Client) -> String {
        match node.id == self.place.node {
            true => self.host_for(client),
            false => node.host.clone(),
        }
    }

    /// Where clients find core 0 of `node`.
    fn first_port_of(&self, node: &Node) -> u16 {
        match node.id == self.place.node {
            true => self.port_of(CoreId(0)),
            false => node.core_port,
        }
    }

    fn host_for(&self, client: &Client) -> String {
        let reached = client.local.map(|address| address.ip());
        face::host(&self.config.announce_host, reached, self.config.bind)
    }

    fn port_of(&self, core: CoreId) -> u16 {
        match self.config.announce_core_port {
            0 => self.facts.address_of(core).port(),
            first => first + core.0, // Config::check has seen that all have room
        }
    }
}

/// CLUSTER SLOTS: each range with the node that has it.
fn reply_slots(seats: &[Seat], reply: &mut Reply<'_>) {
    let mut ranges: Vec<_> = seats
        .iter()
        .flat_map(|seat| seat.slots.iter().map(move |range| (range, seat)))
        .collect();
    ranges.sort_by_key(|(range, _)| **range);
    reply.array(ranges.len());
    for ((first, last), seat) in ranges {
        reply.array(3);
        reply.integer(i64::from(first.0));
        reply.integer(i64::from(last.0));
        reply.array(4);
        reply.bulk(seat.host.as_bytes());
        reply.integer(i64::from(seat.port));
        reply.bulk(seat.name.as_bytes());
        reply.map(0); // nothing else is known of where it is
    }
}

/// CLUSTER SHARDS: each node with the ranges that it has.
fn reply_shards(seats: &[Seat], reply: &mut Reply<'_>) {
    let text = |reply: &mut Reply<'_>, key: &str, value: &str| {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    };
    reply.array(seats.len());
    for seat in seats {
        reply.map(2);
        reply.bulk(b"slots");
        reply.array(2 * seat.slots.len());
        for (first, last) in &seat.slots {
            reply.integer(i64::from(first.0));
            reply.integer(i64::from(last.0));
        }
        reply.bulk(b"nodes");
        reply.array(1);
        let hostname = seat.hostname();
        reply.map(7 + usize::from(hostname.is_some()));
        text(reply, "id", &seat.name);
        reply.bulk(b"port");
        reply.integer(i64::from(seat.port));
        text(reply, "ip", &seat.host);
        text(reply, "endpoint", &seat.host);
        if let Some(name) = hostname {
            text(reply, "hostname", name);
        }
        text(reply, "role", "master");
        reply.bulk(b"replication-offset");
        reply.integer(0);
        text(reply, "health", "online");
    }
}
