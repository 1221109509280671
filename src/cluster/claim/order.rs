//! In which order the holders of each vnode stand. Pure.
//!
//! The first is where cluster clients send their commands: so each node is first in proportion to
//! its weight, and each of its cores in proportion to what it holds, as nearly as whole numbers and
//! the placement allow. The second is chosen so that what clients asked of a node that dies falls
//! on many others. Nothing moves for an order, but clients learn of it; so it stays as it is where
//! it is even.

use std::collections::VecDeque;

use super::placing::Seat;
use super::shares::{self, Candidate, Demand};

/// Cores are gone through at most so often.
const ROUNDS_MAX: usize = 8;
/// Products that differ by less are equal.
const EPSILON: f64 = 1e-6;

/// Orders the seats of all vnodes. `weights` and `cores`: of each node.
pub fn order(weights: &[u32], cores: &[u16], seats: &mut [Vec<Seat>]) {
    let parts = Parts::of(weights, cores, seats);
    parts.lead(seats, |_, _| true);
    lead_by_nodes(weights, seats);
    parts.lead(seats, |node, other| node == other);
    second(weights, seats);
}

/// Makes each node the first of as many vnodes as its weight says.
fn lead_by_nodes(weights: &[u32], seats: &mut [Vec<Seat>]) {
    let mut leads = Leads::of(weights.len(), seats, |seat| seat.0);
    let candidate = |(node, weight): (usize, &u32)| Candidate {
        weight: *weight,
        rack: 0,
        has: leads.first[node].len() as u32,
    };
    let candidates: Vec<Candidate> = weights.iter().enumerate().map(candidate).collect();
    let demand = Demand {
        vnodes: leads.seats.len() as u32,
        copies: 1,
    };
    let quotas = shares::shares(&candidates, demand);
    for node in 0..weights.len() {
        while leads.first[node].len() as u32 > quotas[node].whole {
            let chain = leads.chain(node, |leads, other| {
                (leads.first[other].len() as u32) < quotas[other].whole
            });
            if chain.is_empty() {
                break; // it holds nothing that others do who lack it
            }
            leads.follow(&chain);
        }
    }
}

/// All cores of all nodes, counted from 0, and of how many vnodes each should be the first.
struct Parts {
    /// The first core of each node, and how many there are.
    bases: Vec<usize>,
    /// The node of each core.
    node_of: Vec<usize>,
    ideal: Vec<f64>,
}

impl Parts {
    fn of(weights: &[u32], cores: &[u16], seats: &[Vec<Seat>]) -> Parts {
        let mut bases = vec![0];
        for cores in cores {
            bases.push(bases[bases.len() - 1] + usize::from(*cores));
        }
        let mut node_of = vec![0; bases[cores.len()]];
        let mut ideal = vec![0.0; node_of.len()];
        for seat in seats.iter().flatten() {
            ideal[bases[seat.0] + usize::from(seat.1)] += 1.0;
        }
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (node, weight) in weights.iter().enumerate() {
            let own = bases[node]..bases[node + 1];
            node_of[own.clone()].fill(node);
            let held: f64 = ideal[own.clone()].iter().sum();
            let share = seats.len() as f64 * f64::from(*weight) / total;
            ideal[own]
                .iter_mut()
                .for_each(|part| *part *= share / held.max(1.0));
        }
        Parts {
            bases,
            node_of,
            ideal,
        }
    }

    /// Makes each core the first of as many vnodes as it should be, as far as the leads may pass
    /// from one node to another.
    fn lead(&self, seats: &mut [Vec<Seat>], may_pass: impl Fn(usize, usize) -> bool) {
        let core_of = |seat: Seat| self.bases[seat.0] + usize::from(seat.1);
        let mut leads = Leads::of(self.ideal.len(), seats, core_of);
        for _ in 0..ROUNDS_MAX {
            let mut is_even = true;
            for core in 0..self.ideal.len() {
                loop {
                    let is_wanted = |leads: &Leads<'_, _>, other: usize| {
                        may_pass(self.node_of[core], self.node_of[other])
                            && self.is_better(leads, core, other)
                    };
                    // A glance at all before the long way to one.
                    let has_any = (0..self.ideal.len()).any(|other| is_wanted(&leads, other));
                    let chain = match has_any {
                        true => leads.chain(core, is_wanted),
                        false => Vec::new(),
                    };
                    if chain.is_empty() {
                        break;
                    }
                    is_even = false;
                    leads.follow(&chain);
                }
            }
            if is_even {
                return;
            }
        }
    }

    /// True if it is more even when `other` leads one more, and `core` one less.
    fn is_better<W>(&self, leads: &Leads<'_, W>, core: usize, other: usize) -> bool {
        // a/b > c/d without a division
        let own = leads.first[core].len() as f64 * self.ideal[other];
        let its = (leads.first[other].len() + 1) as f64 * self.ideal[core];
        own > its + EPSILON
    }
}

/// Orders who stands behind the first.
fn second(weights: &[u32], seats: &mut [Vec<Seat>]) {
    let count = weights.len();
    let mut seconds = vec![0u32; count * count];
    for seats in seats.iter_mut().filter(|seats| seats.len() > 2) {
        let first = seats[0].0;
        let rank = |seat: &Seat| {
            let load = f64::from(seconds[first * count + seat.0] + 1);
            load / f64::from(weights[seat.0])
        };
        seats[1..].sort_by(|one, other| rank(one).total_cmp(&rank(other)));
        seconds[first * count + seats[1].0] += 1;
    }
}

/// Who leads which vnodes, where who is a node or a core.
struct Leads<'a, W> {
    seats: &'a mut [Vec<Seat>],
    /// Who a seat belongs to.
    who: W,
    /// The vnodes that each of them leads.
    first: Vec<Vec<usize>>,
}

/// One vnode gets another of its seats as its first.
#[derive(Clone, Copy)]
struct Change {
    vnode: usize,
    seat: usize,
    /// Whose the first seat was.
    from: usize,
}

impl<'a, W: Fn(Seat) -> usize> Leads<'a, W> {
    fn of(count: usize, seats: &'a mut [Vec<Seat>], who: W) -> Leads<'a, W> {
        let mut first = vec![Vec::new(); count];
        for (vnode, seats) in seats.iter().enumerate() {
            first[who(seats[0])].push(vnode);
        }
        Leads { seats, who, first }
    }

    /// The shortest chain of changes by which `start` leads one vnode less, and one that is
    /// `wanted` one more. Empty if there is none.
    fn chain(&self, start: usize, wanted: impl Fn(&Self, usize) -> bool) -> Vec<Change> {
        let mut reached: Vec<Option<Change>> = vec![None; self.first.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for vnode in self.first[at].iter().copied() {
                for (seat, other) in self.seats[vnode].iter().enumerate().skip(1) {
                    let to = (self.who)(*other);
                    if to == start || reached[to].is_some() {
                        continue;
                    }
                    let from = at;
                    reached[to] = Some(Change { vnode, seat, from });
                    if wanted(self, to) {
                        return trace(&reached, start, to);
                    }
                    queue.push_back(to);
                }
            }
        }
        Vec::new()
    }

    fn follow(&mut self, chain: &[Change]) {
        for change in chain {
            let seats = &mut self.seats[change.vnode];
            seats.swap(0, change.seat);
            let to = (self.who)(seats[0]);
            self.first[change.from].retain(|vnode| *vnode != change.vnode);
            self.first[to].push(change.vnode);
        }
    }
}

/// The changes that led from `start` to `end`.
fn trace(reached: &[Option<Change>], start: usize, end: usize) -> Vec<Change> {
    let mut chain = Vec::new();
    let mut at = end;
    while at != start {
        let change = reached[at].expect("it was reached");
        chain.push(change);
        at = change.from;
    }
    chain
}
