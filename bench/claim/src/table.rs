//! The table of all sizes, weights and racks.

use quoit::cluster::map::{ClusterMap, NodeId};

use crate::made::{Kind, without};
use crate::measure::{self, Fall, Step};

const SIZES: [u16; 4] = [3, 5, 30, 100];
const RACKS_MAX: u16 = 5;
/// Nodes whose leaving is tried, of each cluster.
const LEAVING: u16 = 15;

pub fn explain() {
    println!(
        "Largest share over what it should be (1 is even):
  weight   a node's vnodes over its weight's part of all
  node     the same, where its part is what racks and counting allow (a node holds a vnode once at most; where there
           are as many racks as replicas, a rack holds it once at most, so small racks get more than their weight)
  core     a core's vnodes over its part of that; (best): what whole vnodes allow at best
  first    vnodes that a node, and a core, is the first of (where cluster clients send commands), over its weight's part
  broken   vnodes on fewer racks than there could be
Moves, for one more node, and for the worst of {LEAVING} nodes that leave:
  copied/least   vnodes copied to a node that had them not, over what nodes should have more than before (small clusters may
                 have to copy more, see the README)
  seats    vnodes that change the core within a node, over all that are held
A death:
  others   nodes that share vnodes with the dead one, at least
  most     the most that one node's load rises, and (even): if all rose alike"
    );
}

pub fn print(vnodes: u32, replicas: u8, cores: u16) {
    println!("\n{vnodes} vnodes, {replicas} replicas, {cores} cores at mean weight");
    println!(
        "nodes weights racks | weight  node  core (best) | first: node  core | broken | \
         join: copied/least  seats | leave: copied/least  seats | death: others  most (even)"
    );
    for size in SIZES {
        for is_unequal in [false, true] {
            for racks in 1..=RACKS_MAX.min(size) {
                let kind = Kind {
                    vnodes,
                    replicas,
                    racks,
                    cores,
                    is_unequal,
                };
                line(size, kind);
            }
        }
    }
}

fn line(size: u16, kind: Kind) {
    let map = kind.grown(size);
    let even = measure::evenness(&map);
    let join = measure::step(&map, &kind.joined(&map, size + 1));
    let nodes = (1..=size).step_by(usize::from(size.div_ceil(LEAVING)));
    let nodes: Vec<NodeId> = nodes.map(NodeId).collect();
    let leaves = nodes
        .iter()
        .map(|node| measure::step(&map, &without(&map, *node)));
    let worst = leaves.max_by(|one, other| ratio(one).total_cmp(&ratio(other)));
    let falls: Vec<Fall> = nodes
        .iter()
        .map(|node| measure::fall(&map, *node))
        .collect();
    let others = falls.iter().map(|fall| fall.others).min().unwrap_or(0);
    let most = falls
        .iter()
        .max_by(|one, other| one.most.total_cmp(&other.most));
    let (Some(leave), Some(most)) = (worst, most) else {
        return;
    };
    println!(
        "{size:5} {:7} {:5} | {:6.3} {:5.3} {:5.3} ({:.3}) | {:11.3} {:5.3} | {:6} | {} | {} | {:13} {:4.1}% ({:.1}%)",
        if kind.is_unequal { "unequal" } else { "equal" },
        kind.racks,
        even.by_weight,
        even.node,
        even.core,
        even.core_best,
        even.first_node,
        even.first_core,
        even.racks_broken,
        moved(&map, &join),
        moved(&map, &leave),
        others,
        most.most * 100.0,
        most.even * 100.0,
    );
}

fn ratio(step: &Step) -> f64 {
    match step.least > 0.5 {
        true => step.copied as f64 / step.least,
        false => 1.0,
    }
}

fn moved(map: &ClusterMap, step: &Step) -> String {
    let held = f64::from(map.vnodes().count()) * map.copies() as f64;
    let seats = step.reseated as f64 / held * 100.0;
    format!(
        "{:5}/{:7.1} {:.3} {seats:4.2}%",
        step.copied,
        step.least,
        ratio(step)
    )
}
