//! The cluster face of this core: what CLUSTER answers, and where a client is sent from a core's
//! own port. What is decided is decided in `cluster/face`; here it gets the shapes of Redis 7.0.

use super::Shard;
use super::connection::Client;
use super::session::Session;
use crate::cluster::face::{self, Picture, Port, Redirect, Scope, Seat};
use crate::cluster::faces::{self, Addresses};
use crate::cluster::map::{Holder, Node};
use crate::membership::View;
use crate::protocol::ArgView;
use crate::protocol::command::{Cluster, READONLY, Spec};
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

/// What a client may ask of a core at its own port.
fn scope(session: &Session, mut specs: impl Iterator<Item = &'static Spec>) -> Scope {
    match session.reads_copies && specs.all(|spec| spec.is(READONLY)) {
        true => Scope::Held,
        false => Scope::Owned,
    }
}

impl Shard {
    /// Why this request is not served at this port, if it is not.
    pub(super) fn redirect(
        &self,
        session: &Session,
        spec: &'static Spec,
        args: ArgView<'_>,
    ) -> Option<Redirect> {
        match session.client.port {
            Port::Shared => None,
            Port::Core => {
                let scope = scope(session, std::iter::once(spec));
                self.judge(scope, slots(spec, args))
            }
        }
    }

    /// Why these requests, which are one transaction, are not served at this port, if they are not.
    pub(super) fn redirect_all<'a>(
        &self,
        session: &Session,
        requests: impl Iterator<Item = ArgView<'a>> + Clone,
    ) -> Option<Redirect> {
        let known = requests.filter_map(|args| Some((Spec::of(args).ok()?, args)));
        match session.client.port {
            Port::Shared => None,
            Port::Core => {
                let on_keys = known
                    .clone()
                    .filter(|(spec, args)| slots(spec, *args).next().is_some());
                let scope = scope(session, on_keys.map(|(spec, _)| spec));
                let slots = known.flat_map(|(spec, args)| slots(spec, args));
                self.judge(scope, slots)
            }
        }
    }

    fn judge(&self, scope: Scope, slots: impl Iterator<Item = Slot>) -> Option<Redirect> {
        let Some(view) = self.view().filter(|_| self.is_clustered()) else {
            return face::judge(&self.map, self.id, slots);
        };
        let own = Holder {
            node: view.own,
            core: self.id,
        };
        let is_there = |node| view.may_be_asked(node);
        faces::judge(&view.map, (own, scope), is_there, slots)
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
        let view = self.view().filter(|_| self.is_clustered());
        let epoch = view.as_ref().map_or(self.epoch, |view| view.map.epoch());
        let picture = || self.picture(view.as_deref(), client);
        let told = |picture: &Picture| (self.name_at(client.port, picture), epoch, rt::wall_ms());
        match question {
            Cluster::Slots => reply_slots(&picture(), reply),
            Cluster::Shards => reply_shards(&picture(), reply),
            Cluster::Nodes => {
                let picture = picture();
                let (own, epoch, now) = told(&picture);
                reply.verbatim("txt", &face::nodes(&picture, &own, epoch, now));
            }
            Cluster::Replicas(name) => {
                let picture = picture();
                let (own, epoch, now) = told(&picture);
                let found = picture.find(&String::from_utf8_lossy(name));
                match found.map(|seat| (seat, picture.seats[seat].copies)) {
                    None => {
                        let name = String::from_utf8_lossy(name);
                        reply.error(&format!("ERR Unknown node {name}"));
                    }
                    Some((_, Some(_))) => reply.error("ERR The specified node is not a master"),
                    Some((owner, None)) => {
                        let lines = face::replicas(&picture, owner, (&own, epoch, now));
                        reply.array(lines.len());
                        lines.iter().for_each(|line| reply.bulk(line.as_bytes()));
                    }
                }
            }
            Cluster::Info => {
                reply.verbatim("txt", &face::info(&picture(), epoch));
            }
            Cluster::MyId => reply.bulk(self.name_at(client.port, &picture()).as_bytes()),
            Cluster::KeySlot(key) => reply.integer(i64::from(Slot::of(key).0)),
            Cluster::Links => reply.array(0),
        }
    }

    /// What `client` is told of all cores.
    fn picture(&self, view: Option<&View>, client: &Client) -> Picture {
        let Some(view) = view else {
            let (host, node) = (self.host_for(client), self.place.node.0);
            return face::alone(&self.map, node, &host, |core| self.port_of(core));
        };
        let addresses = Addresses {
            host: |node: &Node| self.host_of(node, client),
            first_port: |node: &Node| self.first_port_of(node),
            shared_port: |node: &Node| node.port,
        };
        faces::picture(&view.map, |node| view.may_be_asked(node), &addresses)
    }

    /// The name of who answers at this port.
    fn name_at(&self, port: Port, picture: &Picture) -> String {
        let node = self.place.node.0;
        let of_copies = face::name_of_copies(node);
        match port {
            Port::Shared if picture.find(&of_copies).is_some() => of_copies,
            Port::Shared | Port::Core => face::name(node, self.id),
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

/// CLUSTER SLOTS: each range with its owner, and then those that have copies.
fn reply_slots(picture: &Picture, reply: &mut Reply<'_>) {
    reply.array(picture.ranges.len());
    for range in &picture.ranges {
        let (first, last) = range.slots;
        reply.array(3 + range.replicas.len());
        reply.integer(i64::from(first.0));
        reply.integer(i64::from(last.0));
        let seats = std::iter::once(range.owner).chain(range.replicas.iter().copied());
        for seat in seats.map(|seat| &picture.seats[seat]) {
            reply.array(4);
            reply.bulk(seat.host.as_bytes());
            reply.integer(i64::from(seat.port));
            reply.bulk(seat.name.as_bytes());
            reply.map(0); // nothing else is known of where it is
        }
    }
}

/// CLUSTER SHARDS: slots that the same seats have, with these.
fn reply_shards(picture: &Picture, reply: &mut Reply<'_>) {
    let groups = picture.groups();
    reply.array(groups.len());
    for (seats, slots) in groups {
        reply.map(2);
        reply.bulk(b"slots");
        reply.array(2 * slots.len());
        for (first, last) in slots {
            reply.integer(i64::from(first.0));
            reply.integer(i64::from(last.0));
        }
        reply.bulk(b"nodes");
        reply.array(seats.len());
        seats
            .iter()
            .for_each(|seat| reply_seat(&picture.seats[*seat], reply));
    }
}

fn reply_seat(seat: &Seat, reply: &mut Reply<'_>) {
    let text = |reply: &mut Reply<'_>, key: &str, value: &str| {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    };
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
    let role = match seat.copies {
        Some(_) => "replica",
        None => "master",
    };
    text(reply, "role", role);
    reply.bulk(b"replication-offset");
    reply.integer(0);
    let health = match seat.is_there {
        true => "online",
        false => "failed",
    };
    text(reply, "health", health);
}
