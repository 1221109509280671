//! Who this node is, before it opens its data: one that knows its cluster, the founder of one, or
//! one that asks to be let into one, for as long as that takes.
//!
//! A newcomer writes its identity down before it asks, and what it was told before it does anything
//! else; so that whenever it ends on the way, the next start asks again as the same one, and gets
//! the same number.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::record::{Keeping, Place, Record};
use super::{Boxed, Said, wish};
use crate::cluster::map::{ClusterMap, Node, NodeId, Uuid};
use crate::cluster::ring::{Map, Vnodes};
use crate::error::{Error, Result};
use crate::replication::register::State;
use crate::rt;
use crate::storage::identity;
use crate::storage::sealed::{self, Unwritten};

/// Pause before all nodes that were named are asked again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Who the node is.
#[derive(Debug)]
pub enum Begun {
    /// A node of the cluster that the record names.
    Member(Box<Record>),
    /// The first node of a cluster that is yet to be founded, under this identity.
    Founder(Uuid),
}

/// Why knocking came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// It may be tried again.
    Unreached(String),
    /// It would end in the same way.
    Hopeless(String),
    /// It belongs to this cluster, and was asked nothing.
    Elsewhere(Uuid),
}

/// The way to a node of which only the address is known.
pub trait Knocking {
    /// Has the node at `address` let `newcomer` in. Where that has no host yet, it is the address
    /// that the other sees. If it belongs to a cluster already, it asks only nodes of that one.
    fn knock(
        &self,
        address: SocketAddr,
        newcomer: Node,
        cluster: Option<Uuid>,
    ) -> Boxed<'_, Result<Said, Unheard>>;
}

/// Finds out who the node is whose data is in `dir`. `node` is how others are to know it; its
/// number and identity are not looked at. `None`: it was asked to stop while it waited to be let
/// in.
pub async fn begin(
    dir: &Path,
    join: &[SocketAddr],
    node: &Node,
    way: &dyn Knocking,
) -> Result<Option<Begun>> {
    let own = Keeping::Register(State::default());
    let record = match read_record(dir, &own).await? {
        Some(record) if record.place.is_some() => {
            if !join.is_empty() {
                log::info!(
                    "this node belongs to its cluster already: `join` is of use only if the others are not where they were"
                );
            }
            return Ok(Some(Begun::Member(Box::new(record))));
        }
        Some(record) if !join.is_empty() => record,
        Some(_) => {
            return Err(Error::Setup(format!(
                "{} belongs to a node that has asked to be let into a cluster and does not know whether it was: start \
                 it with `join`, as before",
                dir.display()
            )));
        }
        None if join.is_empty() => return Ok(Some(Begun::Founder(uuid()))),
        None => introduce(dir, own).await?,
    };
    let newcomer = Node {
        uuid: record.uuid,
        ..node.clone()
    };
    let let_in = async { Some(ask_until_let_in(join, &newcomer, way).await) };
    let stopped = async {
        rt::stopping().await;
        None
    };
    let Some(let_in) = futures_lite::future::or(let_in, stopped).await else {
        return Ok(None);
    };
    let record = Record {
        place: Some(let_in?),
        ..record
    };
    write(dir, &record).await?;
    Ok(Some(Begun::Member(Box::new(record))))
}

/// What CLUSTER says, if it is there. The map must be kept where `own` says, for it stays where it
/// is.
pub(super) async fn read_record(dir: &Path, own: &Keeping) -> Result<Option<Record>> {
    let Some(payload) = sealed::settle(dir, sealed::CLUSTER).await? else {
        return Ok(None);
    };
    let record = Record::decode(&payload)
        .map_err(|why| Error::Corrupt {
            file: sealed::CLUSTER.path(dir),
            offset: 0,
            why,
        })?
        .with_decided();
    let refuse = |why: String| {
        let text = format!(
            "{} belongs to a node of a cluster whose map {why}. It stays there: start the node so, or another one with \
             another `dir`",
            dir.display()
        );
        Err(Error::Setup(text))
    };
    match (&record.keeping, own) {
        (Keeping::Register(_), Keeping::Register(_)) => Ok(Some(record)),
        (Keeping::Etcd(key), Keeping::Etcd(wanted)) if key == wanted => Ok(Some(record)),
        (Keeping::Register(_), Keeping::Etcd(_)) => refuse(
            "is kept by its own nodes (`cluster.metadata` = \"register\"), not in etcd".to_owned(),
        ),
        (Keeping::Etcd(key), Keeping::Register(_)) => refuse(format!(
            "is kept in etcd (`cluster.metadata` = \"etcd\"), under {key}, not by its own nodes"
        )),
        (Keeping::Etcd(key), Keeping::Etcd(wanted)) => refuse(format!(
            "is kept in etcd under {key}, not under {wanted} (`cluster.etcd-prefix`)"
        )),
    }
}

/// Which of the node's cores has which keys, by the cluster's map that its directory holds; `None`:
/// it is alone, or nothing is known. Changes nothing.
pub async fn read_map(dir: &Path) -> Option<Map> {
    let payload = sealed::read(dir, sealed::CLUSTER).await.ok()??;
    let place = Record::decode(&payload).ok()?.with_decided().place?;
    let is_alone = place.map.nodes().len() == 1;
    Map::of_node(&place.map, place.node).filter(|_| !is_alone)
}

/// What a cluster is to be.
#[derive(Clone, Copy, Debug)]
pub struct Founding {
    /// The arcs of its ring.
    pub vnodes: Vnodes,
    /// How many replicas each key is to have.
    pub replicas: u8,
    /// Its first node has data already.
    pub is_open: bool,
}

/// Founds the cluster of `node`, which is its first.
pub async fn found(dir: &Path, uuid: Uuid, node: Node, how: Founding) -> Result<Record> {
    let id = node.id;
    let map = ClusterMap::first(uuid_of_cluster(uuid), how.vnodes, how.replicas, node);
    let map = map.map_err(|why| Error::Setup(why.to_string()))?;
    let map = match how.is_open {
        true => map.opened(),
        false => map,
    };
    let record = Record::founder(uuid, id, map);
    write(dir, &record).await?;
    Ok(record)
}

/// The cluster that the node with this identity founds.
pub fn uuid_of_cluster(founder: Uuid) -> Uuid {
    Uuid(!founder.0)
}

/// A new node writes down who it is, before anybody else hears of it.
pub(super) async fn introduce(dir: &Path, keeping: Keeping) -> Result<Record> {
    match identity::read(dir).await {
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
        Ok(_) => {
            return Err(Error::Setup(format!(
                "{} has been used by a node of no such cluster: a node joins a cluster, or founds one in etcd, with an \
                 empty directory",
                dir.display()
            )));
        }
    }
    let record = Record::newcomer(uuid(), keeping);
    write(dir, &record).await?;
    Ok(record)
}

pub(super) async fn write(dir: &Path, record: &Record) -> Result<()> {
    let written = sealed::write(dir, sealed::CLUSTER, &record.encode()).await;
    written.map_err(|unwritten| match unwritten {
        Unwritten::Unchanged(error) | Unwritten::Uncertain(error) => error,
    })
}

fn uuid() -> Uuid {
    Uuid(u128::from(rt::random()) << 64 | u128::from(rt::random()))
}

async fn ask_until_let_in(
    join: &[SocketAddr],
    newcomer: &Node,
    way: &dyn Knocking,
) -> Result<Place> {
    let mut told = String::new();
    loop {
        match knock_at_all(join, newcomer, way).await? {
            Knocked::LetIn(place) => return Ok(place),
            Knocked::NotYet(why) if why != told => {
                log::warn!("{why}; asking again");
                told = why;
            }
            Knocked::NotYet(_) => {}
        }
        rt::sleep(PAUSE + Duration::from_millis(rt::random() % 500)).await;
    }
}

/// What has come of knocking at several nodes.
pub(super) enum Knocked {
    /// One of them has let the newcomer in.
    LetIn(Place),
    /// None has, and it may be tried again.
    NotYet(String),
}

/// Asks each of these nodes to let `newcomer` in, until one does. An error: one will not.
pub(super) async fn knock_at_all(
    addresses: &[SocketAddr],
    newcomer: &Node,
    way: &dyn Knocking,
) -> Result<Knocked> {
    let mut reasons = Vec::new();
    for address in addresses {
        let why = match way.knock(*address, newcomer.clone(), None).await {
            Ok(Said::Map(bytes)) => match place(&bytes, newcomer.uuid) {
                Some(place) => return Ok(Knocked::LetIn(place)),
                None => "it has sent a map without this node".to_owned(),
            },
            Ok(Said::Refused(why)) | Err(Unheard::Hopeless(why)) => {
                return Err(Error::Setup(format!(
                    "{address} does not let this node into its cluster: {why}"
                )));
            }
            Ok(Said::Busy) => "not enough nodes of its cluster have answered it".to_owned(),
            Ok(_) => "its answer is not understood".to_owned(),
            Err(Unheard::Unreached(why)) => why,
            Err(Unheard::Elsewhere(cluster)) => format!("it belongs to the cluster {cluster}"),
        };
        reasons.push(format!("{address} does not let this node in yet: {why}"));
    }
    Ok(Knocked::NotYet(reasons.join("; ")))
}

fn place(bytes: &bytes::Bytes, own: Uuid) -> Option<Place> {
    let map = wish::read(bytes)?;
    let NodeId(number) = map.nodes().iter().find(|node| node.uuid == own)?.id;
    log::info!(
        "this node is number {number} of {} in the cluster {}",
        map.nodes().len(),
        map.cluster()
    );
    Some(Place {
        node: NodeId(number),
        map: Arc::new(map),
    })
}
