//! Who this node is, where the map is kept in etcd: whoever creates the key has founded the
//! cluster, all others find its nodes in the map, and ask one of them to be let in, as they would
//! without etcd. So whoever is let in knows the cluster's key.
//!
//! The founder writes its identity down before it creates the key: if it ends before it knows
//! whether it has, the next start finds itself in the map.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Etcd, Kept, Swapped, Unknown};
use crate::cluster::map::{ClusterMap, Node};
use crate::error::{Error, Result};
use crate::membership::begin::{
    Begun, Founding, Knocked, Knocking, PAUSE, introduce, knock_at_all, read_record,
    uuid_of_cluster, write,
};
use crate::membership::record::{Keeping, Place, Record};
use crate::membership::wish::{Verdict, Wish};
use crate::rt;

/// Finds out who the node is whose data is in `dir`, as [`begin`](crate::membership::begin) does. A
/// cluster that it founds is to be like `how`.
pub async fn begin_in_etcd(
    dir: &Path,
    etcd: &Etcd,
    how: Founding,
    node: &Node,
    way: &dyn Knocking,
) -> Result<Option<Begun>> {
    let own = Keeping::Etcd(etcd.key().to_owned());
    let record = match read_record(dir, &own).await? {
        Some(record) => record,
        None => introduce(dir, own).await?,
    };
    let stopped = async {
        rt::stopping().await;
        None
    };
    let work = async { Some(find_place(etcd, how, (&record, node), way).await) };
    let Some(place) = futures_lite::future::or(work, stopped).await else {
        return Ok(None);
    };
    let place = Some(place?);
    if place == record.place {
        return Ok(Some(Begun::Member(Box::new(record))));
    }
    let record = Record { place, ..record };
    write(dir, &record).await?;
    Ok(Some(Begun::Member(Box::new(record))))
}

async fn find_place(
    etcd: &Etcd,
    how: Founding,
    (record, node): (&Record, &Node),
    way: &dyn Knocking,
) -> Result<Place> {
    if let Some(place) = &record.place {
        return confirm_alone(etcd, place, node).await;
    }
    let newcomer = Node {
        uuid: record.uuid,
        ..node.clone()
    };
    let mut told = String::new();
    loop {
        let why = match etcd.read(rt::now() + etcd.patience()).await {
            Ok(None) => match found(etcd, how, &newcomer).await? {
                Some(place) => return Ok(place),
                None => continue, // either way there is a map soon
            },
            Ok(Some(Kept { map, .. })) => match join(etcd, map, &newcomer, way).await? {
                Knocked::LetIn(place) => return Ok(place),
                Knocked::NotYet(why) => why,
            },
            Err(Unknown::Away) => String::new(), // it has said why
            Err(Unknown::NoMap(why)) => return Err(Error::Setup(why)),
        };
        if !why.is_empty() && why != told {
            log::warn!("{why}; asking again");
            told = why;
        }
        rt::sleep(pause()).await;
    }
}

fn pause() -> Duration {
    PAUSE + Duration::from_millis(rt::random() % 500)
}

/// Founds the cluster, if nobody else does. `None`: that is not known, or somebody has.
async fn found(etcd: &Etcd, how: Founding, founder: &Node) -> Result<Option<Place>> {
    if founder.host.is_empty() {
        return Err(Error::Setup(
            "others find this node by the map in etcd, and `bind` does not say where it is: set `announce-host`".to_owned(),
        ));
    }
    let cluster = uuid_of_cluster(founder.uuid);
    let map = ClusterMap::first(cluster, how.vnodes, how.replicas, founder.clone());
    let map = map.map_err(|why| Error::Setup(why.to_string()))?;
    let map = map.kept_elsewhere().authored(rt::random());
    match etcd.swap(0, &map, rt::now() + etcd.patience()).await {
        Swapped::Done => {
            log::info!(
                "this node has founded the cluster {cluster}; etcd has its map under {}",
                etcd.key()
            );
            Ok(place_in(map, founder))
        }
        Swapped::Refused => Ok(None),
        Swapped::Unknown => {
            rt::sleep(pause()).await;
            Ok(None)
        }
    }
}

/// Has a node of the cluster let this one in.
async fn join(
    etcd: &Etcd,
    map: ClusterMap,
    newcomer: &Node,
    way: &dyn Knocking,
) -> Result<Knocked> {
    if let Some(place) = place_in(map.clone(), newcomer) {
        return Ok(Knocked::LetIn(place));
    }
    let wish = Wish::Join(Box::new(newcomer.clone()));
    // Who does not know its own address yet learns it by knocking.
    if let Verdict::Refused(why) = wish.judge(&map)
        && !newcomer.host.is_empty()
    {
        return Err(Error::Setup(format!(
            "the cluster whose map etcd has under {} does not let this node in: {why}",
            etcd.key()
        )));
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for node in map.nodes() {
        if let Ok(address) = rt::resolve(&node.host, node.peer_port).await {
            addresses.push(address);
        }
    }
    knock_at_all(&addresses, newcomer, way).await
}

fn place_in(map: ClusterMap, own: &Node) -> Option<Place> {
    let node = map.nodes().iter().find(|node| node.uuid == own.uuid)?.id;
    Some(Place {
        node,
        map: Arc::new(map),
    })
}

/// A node that was alone, and is to have another number of cores, must know that it still is alone:
/// nobody may have been let in of whom it has not heard. Only etcd knows.
async fn confirm_alone(etcd: &Etcd, place: &Place, node: &Node) -> Result<Place> {
    let cores = place.map.node(place.node).map(|known| known.cores);
    if place.map.nodes().len() > 1 || cores == Some(node.cores) {
        return Ok(place.clone());
    }
    match etcd.read(rt::now() + etcd.patience()).await {
        Ok(Some(kept)) if follows(&kept.map, &place.map) => Ok(Place {
            node: place.node,
            map: Arc::new(kept.map),
        }),
        _ => Err(Error::Setup(format!(
            "this node was alone in its cluster; before it takes another number of cores, etcd must say whether it still is, \
             and etcd does not say it ({})",
            etcd.key()
        ))),
    }
}

/// True if `map` can have come after `known`.
fn follows(map: &ClusterMap, known: &ClusterMap) -> bool {
    map.cluster() == known.cluster() && map.epoch() >= known.epoch()
}
