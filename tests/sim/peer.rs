//! A test that plays a node: it asks the cores of others what only members of their cluster may
//! ask.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use quoit::cluster::map::{ClusterMap, Holder, NodeId};
use quoit::cluster::peers::{Event, Identity, PeerAddress, PeerLimits, Peers, Unanswered};
use quoit::protocol::peer::handshake::{Connecting, Side};
use quoit::protocol::peer::{
    self, Answer, Frame, Limits, Message, OwnedAnswer, Parsed, Request, Want,
};
use quoit::rt::{self, Stream};
use quoit::types::{CoreId, Meta, Position};

use crate::cluster::{CLUSTER_KEY, Verdict};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// A core that does not answer so many times does not answer.
const TRIES_MAX: u32 = 100;
/// As which core it asks: none that a node has, whose connection it would take over.
const CORE: CoreId = CoreId(77);

/// Asks over a bare connection who is there.
async fn who_is_there(address: SocketAddr) -> Option<Side> {
    let mut stream = Stream::connect(address).await.ok()?;
    let (_, hello) = Connecting::start(Side::newcomer([1; 32]), None);
    let mut bytes = Vec::new();
    let frame = Frame {
        id: 0,
        deadline_ms: 0,
        epoch: 0,
        message: Message::Hello(hello),
    };
    peer::encode(&frame, peer::VERSION, &mut bytes);
    stream.write_all(&bytes).await.ok()?;
    let mut input = Vec::new();
    loop {
        match peer::parse(&input, &Limits::greeting()) {
            Parsed::Frame { frame, .. } => match frame.message {
                Message::Welcome(welcome) => return Some(welcome.side),
                _ => return None,
            },
            Parsed::Violation(_) => return None,
            Parsed::Incomplete { .. } => {
                let mut piece = [0; 500];
                let count = stream.read(&mut piece).await.ok();
                let count = count.filter(|count| *count > 0)?;
                input.extend_from_slice(&piece[..count]);
            }
        }
    }
}

/// The links of one core more of the node with this number, which is in the cluster of whoever
/// listens at `address`, as soon as it does. They go by its map.
pub async fn pose_as(number: NodeId, address: SocketAddr) -> Rc<Peers> {
    let side = loop {
        match who_is_there(address).await {
            Some(side) => break side,
            None => rt::sleep(MS * 20).await,
        }
    };
    let limits = PeerLimits {
        key_bytes_max: 64 << 10,
        value_bytes_max: 1 << 20,
        requests_max: 100,
        waiting_bytes_max: 1 << 20,
        served_max: 1,
        greeting_max: 1,
        greeting_time_max: SECOND * 3,
        pause_min: MS * 10,
        pause_max: MS * 100,
        silence_max: SECOND * 5,
    };
    let peers = Peers::new(CORE, CLUSTER_KEY, limits, |_: Event| {});
    peers.set_identity(Identity {
        cluster: side.cluster,
        node: number,
    });
    peers.set_epoch(side.epoch);
    peers
}

/// Asks `core` of the node whose core 0 listens at `first`.
pub async fn ask(
    peers: &Rc<Peers>,
    (node, first): (NodeId, SocketAddr),
    core: CoreId,
    request: &Request<'_>,
    patience: Duration,
) -> Result<OwnedAnswer, Unanswered> {
    let host = first.ip().to_string();
    let address = PeerAddress {
        host: &host,
        port: first.port() + core.0,
    };
    let to = Holder { node, core };
    let asked = peers.ask(to, address, request, rt::now() + patience);
    Ok(asked.await?.answer)
}

/// The map of the node whose core 0 listens at `first`; `peers` go by it from now on.
pub async fn map_of(peers: &Rc<Peers>, (node, first): (NodeId, SocketAddr)) -> Verdict<ClusterMap> {
    for _ in 0..TRIES_MAX {
        let request = Request::Map { at_least: 0 };
        let asked = ask(peers, (node, first), CoreId(0), &request, SECOND * 10).await;
        if let Ok(Answer::Map { map, .. }) = asked.as_ref().map(OwnedAnswer::view) {
            let text = std::str::from_utf8(map).map_err(|_| "a map that is no text".to_owned())?;
            let map = ClusterMap::from_json(text).map_err(|why| why.0)?;
            peers.set_epoch(map.epoch());
            return Ok(map);
        }
        rt::sleep(MS * 100).await;
    }
    Err(format!("node {} does not tell its map", node.0))
}

/// What a replica holds: its record, and the value of one that is not deleted, expired or not.
pub type Record = (Meta, Option<Vec<u8>>);

/// What each holder of `key` has. Nobody is asked as the node that it is, so two are needed to ask
/// all.
pub async fn records_of(
    askers: &[(NodeId, Rc<Peers>); 2],
    map: &ClusterMap,
    key: &[u8],
) -> Verdict<Vec<(Holder, Record)>> {
    let mut records = Vec::new();
    for holder in map.holders_of(Position::of(key)) {
        let mut others = askers.iter().filter(|(number, _)| *number != holder.node);
        let (_, peers) = others.next().expect("they are not the same node");
        let node = map.node(holder.node).expect("a holder is in the map");
        let request = Request::Read {
            key,
            want: Want::Value,
            now: 0, // nothing has expired at that moment
        };
        let mut tries = 0;
        let record = loop {
            let deadline = rt::now() + SECOND * 10;
            let address = PeerAddress::of(node, holder.core);
            let asked = peers.ask(*holder, address, &request, deadline).await;
            match asked.as_ref().map(|answered| answered.answer.view()) {
                Ok(Answer::Holds(held)) => break (held.meta, held.value.map(<[u8]>::to_vec)),
                // There is a newer map since, by which others keep it: a cluster's keys stay where
                // they are.
                Ok(Answer::StaleEpoch { epoch }) => peers.set_epoch(epoch),
                _ => {}
            }
            tries += 1;
            if tries == TRIES_MAX {
                return Err(format!("{holder:?} does not say what it holds"));
            }
            rt::sleep(MS * 100).await;
        };
        records.push((*holder, record));
    }
    Ok(records)
}
