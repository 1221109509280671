//! The cluster face: each core as one node of a Redis Cluster, so that its clients send every
//! command to the core that owns the key. Pure.
//!
//! A node has one port that all of its cores share, where every key is served, and one port for
//! each core, where only that core's keys are: of others the client is told where they are
//! ([`judge`]). What the CLUSTER commands list are the ports of cores, and, for the copies that a
//! node has of keys of others, its shared port ([`Seat`]), whichever port they are asked at. (A
//! port that owned some slots and had copies of others would be one or the other to most clients,
//! whichever they met first.)

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use xxhash_rust::xxh3::xxh3_128;

use super::map::Holder;
use super::ring::Map;
use crate::types::{CoreId, Position, SLOTS, Slot, UnixMillis};

/// Where a client came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The port of all cores: every command works for every key.
    Shared,
    /// A port of one core: keys of its own, and "all keys" are those.
    Core,
}

/// What is served at the port of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Keys that the core owns.
    Owned,
    /// Those of which it has a copy, too: reads of a client that has said READONLY.
    Held,
}

/// Why a port of one core does not serve a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// The keys of this slot are that core's.
    Moved(Slot, CoreId),
    /// The keys of this slot are on other nodes, and that is the first of their holders.
    Elsewhere(Slot, Holder),
    /// The keys are of several slots.
    CrossSlot,
}

/// What the port of core `own` says to a command on keys in these slots; `None`: it is served.
///
/// Keys of several slots are refused even where one core owns them all, as in Redis: what works
/// must not depend on where slots happen to be.
pub fn judge(map: &Map, own: CoreId, mut slots: impl Iterator<Item = Slot>) -> Option<Redirect> {
    let slot = slots.next()?;
    if slots.any(|other| other != slot) {
        return Some(Redirect::CrossSlot);
    }
    let owner = map.core_of(Position::first_of(slot));
    (owner != own).then_some(Redirect::Moved(slot, owner))
}

/// The host by which a client is told to reach the node: the one that is configured, or the address
/// that the client has reached already. Never the address that means "any".
pub fn host(announced: &str, reached: Option<IpAddr>, bound: IpAddr) -> String {
    if !announced.is_empty() {
        return announced.to_owned();
    }
    let reached = reached.unwrap_or(bound).to_canonical();
    match reached {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "::1".to_owned(),
        concrete => concrete.to_string(),
    }
}

/// The name of a core among all cores of all nodes, as Redis Cluster names nodes: 40 hexadecimal
/// digits. It stays the same when the node starts again.
pub fn name(node: u16, core: CoreId) -> String {
    let seed = [node.to_be_bytes(), core.0.to_be_bytes()].concat();
    // The last digits keep it unique by construction, the first make names easy to tell apart.
    format!("{:032x}{node:04x}{:04x}", xxh3_128(&seed), core.0)
}

/// The name of the shared port of a node, where it has copies of keys of others.
pub fn name_of_copies(node: u16) -> String {
    name(node, CoreId(u16::MAX)) // no core has this number
}

/// Slots from the first to the last, both included.
pub type Slots = (Slot, Slot);

/// A place to connect to, as clients are told of it: the port of one core, for the keys that it
/// owns, or the shared port of a node, for its copies of the keys of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its name.
    pub name: String,
    /// Where clients find it.
    pub host: String,
    /// Its port there.
    pub port: u16,
    /// False if it is not asked at the moment.
    pub is_there: bool,
    /// Of a seat for copies: the seat that owns most of those keys. Clients want to hear of one.
    pub copies: Option<usize>,
}

/// Slots, and the seats that have their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The slots.
    pub slots: Slots,
    /// Who owns them.
    pub owner: usize,
    /// Who has copies and is there.
    pub replicas: Vec<usize>,
}

/// All that clients are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Where they can connect to.
    pub seats: Vec<Seat>,
    /// In the order of the slots; of those that are missing nobody is there.
    pub ranges: Vec<Range>,
}

/// A shard to clients: some slots, and all seats that have their keys, the owner first.
pub type Group = (Vec<usize>, Vec<Slots>);

impl Seat {
    /// The host, if it is a name rather than an address.
    pub fn hostname(&self) -> Option<&str> {
        let is_address = self.host.parse::<IpAddr>().is_ok();
        (!is_address).then_some(&self.host)
    }
}

impl Picture {
    /// Adds a range behind all others.
    pub fn push(&mut self, range: Range) {
        match self.ranges.last_mut() {
            Some(before)
                if before.slots.1.0 + 1 == range.slots.0.0
                    && (before.owner, &before.replicas) == (range.owner, &range.replicas) =>
            {
                before.slots.1 = range.slots.1;
            }
            _ => self.ranges.push(range),
        }
    }

    /// The seat with this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.seats.iter().position(|seat| seat.name == name)
    }

    /// The slots that a seat owns, in runs.
    pub fn owned_by(&self, seat: usize) -> Vec<Slots> {
        let mut runs = Vec::new();
        let own = self.ranges.iter().filter(|range| range.owner == seat);
        own.for_each(|range| add_run(&mut runs, range.slots));
        runs
    }

    /// The seats that have copies of what `owner` owns.
    pub fn replicas_of(&self, owner: usize) -> BTreeSet<usize> {
        let own = self.ranges.iter().filter(|range| range.owner == owner);
        own.flat_map(|range| range.replicas.iter().copied())
            .collect()
    }

    /// The slots by who has them. An owner of no slots has a group of its own.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: BTreeMap<Vec<usize>, Vec<Slots>> = BTreeMap::new();
        for range in &self.ranges {
            let mut seats = vec![range.owner];
            seats.extend(&range.replicas);
            add_run(groups.entry(seats).or_default(), range.slots);
        }
        let has_slots: BTreeSet<usize> = groups.keys().map(|seats| seats[0]).collect();
        for (place, seat) in self.seats.iter().enumerate() {
            if seat.copies.is_none() && !has_slots.contains(&place) {
                groups.insert(vec![place], Vec::new());
            }
        }
        groups.into_iter().collect()
    }
}

fn add_run(runs: &mut Vec<Slots>, slots: Slots) {
    match runs.last_mut() {
        Some(run) if run.1.0 + 1 == slots.0.0 => run.1 = slots.1,
        _ => runs.push(slots),
    }
}

/// All cores of `node`, which is alone, as `map` has them.
pub fn alone(map: &Map, node: u16, host: &str, port: impl Fn(CoreId) -> u16) -> Picture {
    let seat = |core| Seat {
        name: name(node, core),
        host: host.to_owned(),
        port: port(core),
        is_there: true,
        copies: None,
    };
    let mut picture = Picture {
        seats: (0..map.cores()).map(CoreId).map(seat).collect(),
        ranges: Vec::new(),
    };
    for run in map.runs() {
        picture.push(Range {
            slots: (run.first.slot(), run.last.slot()),
            owner: usize::from(run.core.0),
            replicas: Vec::new(),
        });
    }
    picture
}

/// CLUSTER NODES, as the seat `own` tells it: a line for each seat.
pub fn nodes(picture: &Picture, own: &str, epoch: u64, now: UnixMillis) -> String {
    let seats = 0..picture.seats.len();
    let lines = seats.map(|seat| line(picture, seat, None, (own, epoch, now)) + "\n");
    lines.collect()
}

/// CLUSTER REPLICAS of the seat `owner`: lines of those that have copies of its keys.
pub fn replicas(
    picture: &Picture,
    owner: usize,
    (own, epoch, now): (&str, u64, UnixMillis),
) -> Vec<String> {
    let replicas = picture.replicas_of(owner).into_iter();
    replicas
        .map(|seat| line(picture, seat, Some(owner), (own, epoch, now)))
        .collect()
}

/// A line of CLUSTER NODES; `of`: whose copies the seat has, if that is the question.
fn line(
    picture: &Picture,
    place: usize,
    of: Option<usize>,
    (own, epoch, now): (&str, u64, UnixMillis),
) -> String {
    let seat = &picture.seats[place];
    // Cores know of each other without a bus: its port is 0.
    let mut text = format!("{} {}:{}@0", seat.name, seat.host, seat.port);
    if let Some(name) = seat.hostname() {
        let _ = write!(text, ",{name}");
    }
    let of = of.or(seat.copies);
    let role = match of {
        Some(_) => "slave",
        None => "master",
    };
    let owner = of.map_or("-", |owner| &picture.seats[owner].name);
    let (before, behind, heard, link) = match seat.is_there {
        true if seat.name == own => ("myself,", "", 0, "connected"),
        true => ("", "", now, "connected"),
        false => ("", ",fail", 0, "disconnected"),
    };
    let _ = write!(
        text,
        " {before}{role}{behind} {owner} 0 {heard} {epoch} {link}"
    );
    for (first, last) in picture.owned_by(place) {
        let _ = match first == last {
            true => write!(text, " {}", first.0),
            false => write!(text, " {}-{}", first.0, last.0),
        };
    }
    text
}

/// CLUSTER INFO: how many slots have somebody who answers, and how many nodes there are.
pub fn info(picture: &Picture, epoch: u64) -> String {
    let runs = picture.ranges.iter().map(|range| range.slots);
    let served: u32 = runs
        .map(|(first, last)| u32::from(last.0) - u32::from(first.0) + 1)
        .sum();
    let state = match served == SLOTS {
        true => "ok",
        false => "fail",
    };
    let owners: BTreeSet<usize> = picture.ranges.iter().map(|range| range.owner).collect();
    let lines = [
        ("cluster_state", state.to_owned()),
        ("cluster_slots_assigned", SLOTS.to_string()),
        ("cluster_slots_ok", served.to_string()),
        ("cluster_slots_pfail", "0".to_owned()),
        ("cluster_slots_fail", (SLOTS - served).to_string()),
        ("cluster_known_nodes", picture.seats.len().to_string()),
        ("cluster_size", owners.len().to_string()),
        ("cluster_current_epoch", epoch.to_string()),
        ("cluster_my_epoch", epoch.to_string()),
        ("cluster_stats_messages_sent", "0".to_owned()),
        ("cluster_stats_messages_received", "0".to_owned()),
        ("total_cluster_links_buffer_limit_exceeded", "0".to_owned()),
    ];
    let text = lines
        .iter()
        .map(|(key, value)| format!("{key}:{value}\r\n"));
    text.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn slots_of(keys: &[&[u8]]) -> Vec<Slot> {
        keys.iter().map(|key| Slot::of(key)).collect()
    }

    #[test]
    fn a_command_is_served_by_the_one_core_that_owns_its_one_slot() {
        for cores in [1, 2, 3, 64, 1024] {
            let map = Map::one_node(cores);
            for number in 0..2_000 {
                let key = format!("key:{number}");
                let slot = Slot::of(key.as_bytes());
                let owner = map.core_of(Position::of(key.as_bytes()));
                for core in (0..cores).map(CoreId) {
                    let said = judge(&map, core, [slot, slot].into_iter());
                    let moved = Redirect::Moved(slot, owner);
                    assert_eq!(said, (core != owner).then_some(moved));
                }
            }
        }
    }

    #[test]
    fn keys_of_several_slots_are_refused_wherever_they_are() {
        let map = Map::one_node(1);
        let apart = slots_of(&[b"a", b"a", b"b"]);
        let said = judge(&map, CoreId(0), apart.into_iter());
        assert_eq!(said, Some(Redirect::CrossSlot), "though one core has all");
        let tagged = slots_of(&[b"{x}a", b"{x}b", b"x"]);
        assert_eq!(judge(&map, CoreId(0), tagged.into_iter()), None);
        assert_eq!(judge(&map, CoreId(0), std::iter::empty()), None, "no key");
    }

    #[test]
    fn the_host_is_never_the_address_that_means_any() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let any = [address("0.0.0.0"), address("::")];
        for bound in any {
            let came = |to: &str| host("", Some(address(to)), bound);
            assert_eq!(came("192.0.2.7"), "192.0.2.7");
            assert_eq!(
                came("::ffff:192.0.2.7"),
                "192.0.2.7",
                "IPv4 at an IPv6 port"
            );
            assert_eq!(came("2001:db8::7"), "2001:db8::7");
            assert_eq!(
                host("kv.example", Some(address("192.0.2.7")), bound),
                "kv.example"
            );
            let unknown = address(&host("", None, bound));
            assert!(unknown.is_loopback(), "{unknown}");
        }
    }

    #[test]
    fn names_are_40_digits_and_no_two_are_equal() {
        let mut names = BTreeSet::new();
        for node in [0, 1, 2, 256, 65_535] {
            for core in [0, 1, 2, 256, 1023] {
                let name = match core {
                    1023 => name_of_copies(node),
                    core => name(node, CoreId(core)),
                };
                let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                assert!(name.len() == 40 && name.bytes().all(digits), "{name}");
                assert!(names.insert(name));
            }
        }
    }

    fn alone(cores: u16, host: &str) -> Picture {
        super::alone(&Map::one_node(cores), 1, host, |core| 16379 + core.0)
    }

    #[test]
    fn the_seats_have_every_slot_exactly_once() {
        for cores in [1, 2, 3, 7, 64, 1024] {
            let picture = alone(cores, "::1");
            let seats = 0..picture.seats.len();
            let mut owned: Vec<Slots> = seats.flat_map(|seat| picture.owned_by(seat)).collect();
            owned.sort();
            let mut next = 0;
            for (first, last) in owned {
                assert_eq!(u32::from(first.0), next, "a hole or an overlap");
                assert!(first <= last);
                next = u32::from(last.0) + 1;
            }
            assert_eq!(next, SLOTS);
        }
    }

    #[test]
    fn a_line_of_nodes_has_all_of_its_fields() {
        let (one, two) = (name(1, CoreId(0)), name(1, CoreId(1)));
        assert_eq!(
            nodes(&alone(2, "127.0.0.1"), &two, 3, 99),
            format!(
                "{one} 127.0.0.1:16379@0 master - 0 99 3 connected 0-8191\n\
                 {two} 127.0.0.1:16380@0 myself,master - 0 0 3 connected 8192-16383\n"
            )
        );
        assert_eq!(
            nodes(&alone(1, "kv.example"), &one, 1, 0),
            format!(
                "{one} kv.example:16379@0,kv.example myself,master - 0 0 1 connected 0-16383\n"
            )
        );
        let mut single = alone(1, "::1");
        let range = |slots| Range {
            slots,
            owner: 0,
            replicas: Vec::new(),
        };
        single.ranges = vec![range((Slot(7), Slot(7))), range((Slot(9), Slot(10)))];
        let line = nodes(&single, &one, 1, 0);
        assert!(line.contains(" ::1:16379@0 "), "{line}");
        assert!(line.ends_with(" connected 7 9-10\n"), "{line}");
    }

    #[test]
    fn info_says_that_all_slots_are_served() {
        let text = info(&alone(2, "::1"), 5);
        for line in [
            "cluster_state:ok",
            "cluster_slots_assigned:16384",
            "cluster_known_nodes:2",
            "cluster_current_epoch:5",
        ] {
            assert!(text.contains(&format!("{line}\r\n")), "{text}");
        }
    }
}
