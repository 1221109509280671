//! What is asked of the cluster's map, and what comes of it: changes of the register that the map
//! is. Pure.
//!
//! Each wish is judged by a map alone: it is granted there, or refused, or there is a next map in
//! which it is granted. None is ever taken back by a later map, so that one that was tried twice
//! counts once.

use bytes::Bytes;

use crate::cluster::claim::{self, change};
use crate::cluster::map::{ClusterMap, Node, NodeId, State};
use crate::config::KEEPERS_MAX;
use crate::replication::register::proposer::Change;
use crate::replication::register::{HolderId, Holders};
use crate::rt::{self, Bug};

/// What a newcomer is told whose cluster holds data.
pub const HOLDS_DATA: &str =
    "this cluster holds data already; moving data to a new node is not there yet";

/// What is asked of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To let this node in, whatever number it has: it is given one.
    Join(Box<Node>),
    /// To say that the cluster holds data.
    Open,
    /// To have this node keep the map, too, if that makes it safer.
    Keep(NodeId),
    /// To know this node, which it has, as it is now.
    Renew(Box<Node>),
    /// To look for this node, which it has, at this host and peer port, and to know it else as it
    /// did.
    Move(Box<Node>),
    /// Nothing, but to be of this epoch or a later one: for who has heard of such a map.
    Know(u64),
}

/// What a map says to a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is granted.
    Granted,
    /// It will not be, by this map.
    Refused(String),
    /// It is granted in this map, which may follow.
    Next(Box<ClusterMap>),
}

impl Wish {
    /// What `map` says to it.
    pub fn judge(&self, map: &ClusterMap) -> Verdict {
        match self {
            Wish::Join(node) => join(map, node),
            Wish::Open if map.is_open() => Verdict::Granted,
            Wish::Open => Verdict::Next(Box::new(map.opened())),
            Wish::Keep(node) => keep(map, *node),
            Wish::Renew(node) => renew(map, node),
            Wish::Move(node) => relocate(map, node),
            Wish::Know(epoch) if map.epoch() >= *epoch => Verdict::Granted,
            Wish::Know(epoch) => Verdict::Refused(format!("there is no map of epoch {epoch}")),
        }
    }
}

fn join(map: &ClusterMap, node: &Node) -> Verdict {
    if map.nodes().iter().any(|known| known.uuid == node.uuid) {
        return Verdict::Granted;
    }
    if map.is_open() && !rt::planted(Bug::JoinedLate) {
        return Verdict::Refused(HOLDS_DATA.to_owned());
    }
    let is_there = |known: &&Node| known.host == node.host && known.peer_port == node.peer_port;
    if let Some(NodeId(known)) = map.nodes().iter().find(is_there).map(|known| known.id) {
        return Verdict::Refused(format!(
            "node {known} of this cluster is at {}:{}: if it has lost its data directory, it cannot come back under \
             another identity yet",
            node.host, node.peer_port
        ));
    }
    let numbers = map.nodes().iter().map(|node| node.id);
    let highest = numbers.chain(map.retired().iter().copied()).max();
    let Some(number) = highest.map_or(Some(1), |NodeId(highest)| highest.checked_add(1)) else {
        return Verdict::Refused("there is no number left for another node".to_owned());
    };
    put(
        map,
        Node {
            id: NodeId(number),
            state: State::Alive, // nobody has data yet that it would lack
            ..node.clone()
        },
    )
}

fn put(map: &ClusterMap, node: Node) -> Verdict {
    match change(map, &[claim::Change::Put(node)]) {
        Ok(next) => Verdict::Next(Box::new(next)),
        Err(why) => Verdict::Refused(why.to_string()),
    }
}

/// An even number of keepers survives no more failures than one less: a second or fourth is taken
/// only on the way to the next.
fn keep(map: &ClusterMap, node: NodeId) -> Verdict {
    let keepers = map.keepers().nodes.len();
    if keepers == 0 {
        return Verdict::Granted; // it is kept elsewhere
    }
    let is_on_its_way = keepers.is_multiple_of(2) || map.nodes().len() >= keepers + 2;
    let is_wanted = is_on_its_way && keepers < KEEPERS_MAX;
    match map.kept_by(node).filter(|_| is_wanted) {
        Some(next) => Verdict::Next(Box::new(next)),
        None => Verdict::Granted,
    }
}

fn renew(map: &ClusterMap, node: &Node) -> Verdict {
    let Some(known) = map.node(node.id).filter(|known| known.uuid == node.uuid) else {
        return Verdict::Refused(format!("the map has no node {} any more", node.id.0));
    };
    let mut wanted = Node {
        state: known.state,
        ..node.clone()
    };
    if *known == wanted {
        return Verdict::Granted;
    }
    if map.nodes().len() == 1 {
        return match map.alone_again(wanted) {
            Ok(next) => Verdict::Next(Box::new(next)),
            Err(why) => Verdict::Refused(why.to_string()),
        };
    }
    if wanted.cores != known.cores {
        return Verdict::Refused(format!(
            "the cluster knows this node with {} cores: another number is for a node that is alone, as yet",
            known.cores
        ));
    }
    if map.is_open() {
        // Its share would change, and data would have to move.
        (wanted.rack, wanted.weight) = (known.rack.clone(), known.weight);
    }
    let is_taken = |other: &&Node| {
        let is_there = (&other.host, other.peer_port) == (&wanted.host, wanted.peer_port);
        other.id != wanted.id && is_there
    };
    if let Some(NodeId(other)) = map.nodes().iter().find(is_taken).map(|other| other.id) {
        return Verdict::Refused(format!(
            "the map says that node {other} is at {}:{}: as long as it does, it cannot say that node {} is there",
            wanted.host, wanted.peer_port, wanted.id.0
        ));
    }
    let has_moved_only = wanted.rack == known.rack && wanted.weight == known.weight;
    match has_moved_only {
        true if *known == wanted => Verdict::Granted,
        true => match map.readdressed(wanted) {
            Ok(next) => Verdict::Next(Box::new(next)),
            Err(why) => Verdict::Refused(why.to_string()),
        },
        false => put(map, wanted),
    }
}

fn relocate(map: &ClusterMap, node: &Node) -> Verdict {
    match map.node(node.id) {
        Some(known) if known.uuid == node.uuid => {
            let (host, peer_port) = (node.host.clone(), node.peer_port);
            let moved = Node {
                host,
                peer_port,
                ..known.clone()
            };
            renew(map, &moved)
        }
        _ => renew(map, node),
    }
}

/// A wish on its way through the register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapChange {
    /// What is asked.
    pub wish: Wish,
    /// No other change has the same.
    pub author: u64,
}

impl Change for MapChange {
    type Value = Bytes;

    fn apply(&self, current: Option<&Bytes>) -> Option<Bytes> {
        match self.wish.judge(&read(current?)?) {
            Verdict::Next(next) => Some(next.authored(self.author).to_json().into()),
            Verdict::Granted | Verdict::Refused(_) => None,
        }
    }

    fn holders(value: &Bytes) -> Option<Holders> {
        holders(&read(value)?)
    }

    fn is_in(&self, value: &Bytes) -> Option<bool> {
        Some(self.wish.judge(&read(value)?) == Verdict::Granted)
    }
}

/// The map that a value of the register is.
pub fn read(value: &Bytes) -> Option<ClusterMap> {
    ClusterMap::from_json(std::str::from_utf8(value).ok()?).ok()
}

/// Who holds the register, by this map.
pub fn holders(map: &ClusterMap) -> Option<Holders> {
    let keepers = map.keepers();
    let members: Vec<HolderId> = keepers.nodes.iter().map(|node| HolderId(node.0)).collect();
    Holders::new(keepers.set, &members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::map::Uuid;
    use crate::cluster::ring::Vnodes;
    use crate::membership::tests::node;

    fn first() -> ClusterMap {
        ClusterMap::first(Uuid(5), Vnodes::DEFAULT, 3, node(1)).expect("sound")
    }

    fn granted(map: &ClusterMap, wish: Wish) -> ClusterMap {
        let Verdict::Next(next) = wish.judge(map) else {
            panic!("{wish:?} makes no next map");
        };
        assert_eq!(wish.judge(&next), Verdict::Granted, "{wish:?} counts twice");
        assert_eq!(next.epoch(), map.epoch() + 1);
        *next
    }

    fn join(number: u16) -> Wish {
        Wish::Join(Box::new(node(number)))
    }

    /// Else a replica could be asked for what it never got.
    #[test]
    fn nodes_join_until_the_cluster_holds_data() {
        let two = granted(&first(), join(9));
        assert_eq!(two.nodes()[1].id, NodeId(2), "it is given its number");
        assert_eq!((two.copies(), two.replicas()), (2, 3));
        let open = granted(&two, Wish::Open);
        assert_eq!(join(8).judge(&open), Verdict::Refused(HOLDS_DATA.into()));
        assert_eq!(join(9).judge(&open), Verdict::Granted, "it is in already");
    }

    #[test]
    fn who_lost_its_data_directory_does_not_come_back_as_a_second_node() {
        let two = granted(&first(), join(9));
        let mut again = node(9);
        again.uuid = Uuid(1234);
        let verdict = Wish::Join(Box::new(again)).judge(&two);
        assert!(matches!(verdict, Verdict::Refused(why) if why.contains("node 2")));
    }

    #[test]
    fn keepers_are_one_three_or_five_but_for_a_moment() {
        let mut map = first();
        let mut counts = Vec::new();
        for number in 2..=7 {
            map = granted(&map, join(number));
            loop {
                let before = map.keepers().nodes.len();
                for node in map.clone().nodes() {
                    if let Verdict::Next(next) = Wish::Keep(node.id).judge(&map) {
                        map = *next;
                    }
                }
                if map.keepers().nodes.len() == before {
                    break;
                }
            }
            counts.push(map.keepers().nodes.len());
            assert_eq!(
                holders(&map).expect("a sane set").number(),
                map.keepers().set
            );
        }
        assert_eq!(counts, [1, 3, 3, 5, 5, 5]);
        assert_eq!(
            Wish::Keep(NodeId(99)).judge(&map),
            Verdict::Granted,
            "nobody"
        );
    }

    /// Else a node would try for ever to keep what is kept in etcd.
    #[test]
    fn a_map_that_is_kept_elsewhere_wants_no_keepers() {
        let map = first().kept_elsewhere();
        assert_eq!(Wish::Keep(NodeId(1)).judge(&map), Verdict::Granted);
        let two = granted(&map, join(9));
        assert_eq!(holders(&two), None);
        assert_eq!(Wish::Keep(NodeId(2)).judge(&two), Verdict::Granted);
        let open = granted(&two, Wish::Open);
        let text = Bytes::from(open.to_json());
        assert_eq!(read(&text), Some(open));
    }

    /// Else data would move that nobody moves, or others would look for a node where it was.
    #[test]
    fn a_node_may_move_elsewhere_but_its_share_stays_once_there_is_data() {
        let renew = |node: &Node| Wish::Renew(Box::new(node.clone()));
        let alone = first();
        let mut one = alone.nodes()[0].clone();
        assert_eq!(renew(&one).judge(&alone), Verdict::Granted);
        (one.cores, one.port) = (7, 1);
        let wider = granted(&alone, renew(&one));
        assert_eq!(wider.held_by(one.id).count(), 1024);
        let two = granted(&granted(&wider, join(9)), Wish::Open);
        let mut other = two.nodes()[1].clone();
        (other.port, other.host) = (77, "elsewhere".into());
        (other.weight, other.rack) = (1, "r".into());
        let moved = granted(&two, renew(&other));
        assert_eq!(claim::moves(&two, &moved), claim::Moves::default());
        assert_eq!((moved.nodes()[1].port, moved.nodes()[1].weight), (77, 100));
        other.cores += 1;
        assert!(matches!(renew(&other).judge(&moved), Verdict::Refused(_)));
        other.uuid = Uuid(1);
        assert!(matches!(renew(&other).judge(&moved), Verdict::Refused(_)));
    }

    /// Else who has a node looked for elsewhere would take back what it has said of itself since.
    #[test]
    fn who_says_where_another_node_is_changes_nothing_else_of_it() {
        let two = granted(&granted(&first(), join(9)), Wish::Open);
        let told = Node {
            host: "elsewhere".into(),
            peer_port: 4000,
            ..two.nodes()[1].clone()
        };
        let newer = Node {
            port: 77,
            ..two.nodes()[1].clone()
        };
        let newer = granted(&two, Wish::Renew(Box::new(newer)));
        let moved = granted(&newer, Wish::Move(Box::new(told.clone())));
        let known = &moved.nodes()[1];
        assert_eq!((known.port, known.peer_port), (77, 4000));
        assert_eq!(known.host, "elsewhere");
        let other = Node {
            uuid: Uuid(1),
            ..told
        };
        let verdict = Wish::Move(Box::new(other)).judge(&moved);
        assert!(matches!(verdict, Verdict::Refused(_)));
    }

    /// Else a proposer could take another's map for its own.
    #[test]
    fn no_two_changes_make_the_same_value() {
        let base = Bytes::from(first().to_json());
        let made = |author| {
            let wish = Wish::Open;
            MapChange { wish, author }.apply(Some(&base))
        };
        assert!(made(1).is_some() && made(1) == made(1) && made(1) != made(2));
        let open = made(1).expect("a map");
        let again = MapChange {
            wish: Wish::Open,
            author: 3,
        };
        assert_eq!(again.apply(Some(&open)), None);
        assert_eq!(again.is_in(&open), Some(true));
        assert_eq!(again.is_in(&base), Some(false));
        assert_eq!(again.apply(None), None, "there always is a map");
        assert_eq!(again.apply(Some(&Bytes::from("{}"))), None, "no map");
    }
}
