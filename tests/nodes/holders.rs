//! What the replicas of keys hold, asked of each of them as a node asks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quoit::cluster::map::{Holder, NodeId};
use quoit::rt::sim;

use crate::cluster::{Verdict, peer_address_of};
use crate::peer::{self, Record};
use crate::scene::{Scene, machine};

/// The machine that asks, and the nodes as which it does.
const ASKER: sim::NodeId = sim::NodeId(90);
const NUMBERS: [NodeId; 2] = [NodeId(2), NodeId(1)];
/// Virtual time within which all replicas must have said what they hold.
const PATIENCE: Duration = Duration::from_secs(600);

/// By key: what each of its holders has.
type Records = BTreeMap<Vec<u8>, Vec<(Holder, Record)>>;

/// What all replicas of `keys` hold. All nodes are up, and nothing is wrong.
pub fn records(scene: &Scene, keys: &[Vec<u8>]) -> Verdict<Records> {
    let said: Rc<RefCell<Option<Verdict<Records>>>> = Rc::default();
    let (saying, keys) = (Rc::clone(&said), keys.to_vec());
    scene
        .world
        .start_node(ASKER, 1, move |_: quoit::rt::Core<()>| {
            let (saying, keys) = (Rc::clone(&saying), keys.clone());
            async move {
                let heard = ask(keys).await;
                *saying.borrow_mut() = Some(heard);
            }
        });
    let is_said = || said.borrow().is_some();
    scene.world.run_until(is_said, PATIENCE);
    scene.world.kill_node(ASKER);
    let said = said.take();
    said.unwrap_or_else(|| Err("replicas do not say what they hold".to_owned()))
}

async fn ask(keys: Vec<Vec<u8>>) -> Verdict<Records> {
    let first = (NodeId(1), peer_address_of(machine(0)));
    let [one, other] = NUMBERS;
    let peers = peer::pose_as(one, first.1).await;
    let map = peer::map_of(&peers, first).await?;
    let others = peer::pose_as(other, first.1).await;
    others.set_epoch(map.epoch());
    let askers = [(one, peers), (other, others)];
    let mut records = Records::new();
    for key in keys {
        let held = peer::records_of(&askers, &map, &key).await?;
        records.insert(key, held);
    }
    Ok(records)
}

/// Those of `keys` whose replicas differ, and how.
pub fn differing(scene: &Scene, keys: &[Vec<u8>]) -> Verdict<Vec<String>> {
    let records = records(scene, keys)?;
    let differ = |held: &&Vec<(Holder, Record)>| held.iter().any(|(_, one)| *one != held[0].1);
    let tell = |(key, held): (&Vec<u8>, &Vec<(Holder, Record)>)| {
        let holds = |(holder, (meta, value)): &(Holder, Record)| {
            let bytes = value.as_ref().map(Vec::len);
            format!("{holder:?}: {meta:?}, {bytes:?} bytes")
        };
        let all: Vec<String> = held.iter().map(holds).collect();
        format!("{}: {}", String::from_utf8_lossy(key), all.join("; "))
    };
    Ok(records
        .iter()
        .filter(|(_, held)| differ(held))
        .map(tell)
        .collect())
}
