//! On which nodes each vnode is: as few changes as the shares and the racks allow. Pure.
//!
//! Nodes are counted from 0 here, as the caller has them. The steps ([`Placing::run`]):
//! 1. Holders that break the rules go ([`Placing::strip`]).
//! 2. Vnodes that have too few get others ([`Placing::fill`]), of nodes that hold less than their share.
//! 3. Nodes that hold more than their share give to those that hold less ([`Placing::level`]).
//! 4. Nodes that came exchange vnodes with each other, which moves nothing more ([`Placing::spread`]).
//!
//! Where no node may take a vnode directly, a chain of exchanges is looked for that moves the
//! fewest others ([`Placing::chain`]); there is one wherever the shares can be met at all.

use std::collections::VecDeque;

use super::shares::{self, Candidate, Demand, Share, racks_wanted};

/// So many vnodes of a node are looked at when it has to give one.
const CANDIDATES_MAX: usize = 512;
/// Exchanges that are tried for each holder that came, and at most.
const EXCHANGES: usize = 48;
const EXCHANGES_MAX: usize = 1 << 18;
/// How much an even spread counts, against nodes being filled evenly.
const SPREAD_WEIGHT: f64 = 0.5;

/// A node that has a share.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Its weight.
    pub weight: u32,
    /// Its rack, counted from 0.
    pub rack: usize,
}

/// A holder as it was: a node and its core.
pub type Seat = (usize, u16);

/// The work on one placement.
pub struct Placing<'a> {
    sites: &'a [Site],
    demand: Demand,
    /// A vnode is on so many racks at least.
    racks: usize,
    /// Who held each vnode and is still there.
    old: &'a [Vec<Seat>],
    /// Who holds each vnode.
    holders: Vec<Vec<usize>>,
    /// What each node holds, in no order.
    held: Vec<Vec<usize>>,
    /// How many vnodes each node should hold.
    shares: Vec<Share>,
    /// How many vnodes each two nodes have in common.
    common: Vec<u32>,
    /// How many vnodes of each core are still its node's.
    loads: Vec<Vec<u32>>,
}

/// A vnode goes from a node, or from nobody, to another.
#[derive(Clone, Copy, Debug)]
struct Step {
    vnode: usize,
    from: Option<usize>,
    to: usize,
}

impl<'a> Placing<'a> {
    /// Begins with who holds each vnode and is still there.
    pub fn new(sites: &'a [Site], demand: Demand, old: &'a [Vec<Seat>]) -> Placing<'a> {
        let racks = sites.iter().map(|site| site.rack + 1).max().unwrap_or(0);
        let mut loads = vec![Vec::new(); sites.len()];
        for (node, core) in old.iter().flatten() {
            let (load, core): (&mut Vec<u32>, usize) = (&mut loads[*node], usize::from(*core));
            load.resize(load.len().max(core + 1), 0);
            load[core] += 1;
        }
        let mut placing = Placing {
            sites,
            demand,
            racks: racks_wanted(demand.copies as usize, racks),
            old,
            holders: vec![Vec::new(); old.len()],
            held: vec![Vec::new(); sites.len()],
            shares: vec![Share::default(); sites.len()],
            common: vec![0; sites.len() * sites.len()],
            loads,
        };
        for (vnode, seats) in old.iter().enumerate() {
            for (node, _) in seats {
                placing.put(vnode, *node);
            }
        }
        placing
    }

    /// The nodes that hold each vnode, in no order.
    pub fn run(mut self) -> Vec<Vec<usize>> {
        self.shares = self.share_out();
        self.strip();
        self.shares = self.share_out();
        self.fill();
        self.level();
        self.spread();
        self.holders
    }

    fn share_out(&self) -> Vec<Share> {
        let candidate = |(node, site): (usize, &Site)| Candidate {
            weight: site.weight,
            rack: site.rack,
            has: self.held[node].len() as u32,
        };
        let candidates: Vec<Candidate> = self.sites.iter().enumerate().map(candidate).collect();
        shares::shares(&candidates, self.demand)
    }

    /// Takes holders from vnodes that have too many, or too many on one rack.
    fn strip(&mut self) {
        for vnode in 0..self.holders.len() {
            while !self.is_sound(&self.holders[vnode]) {
                // Of those without whom the rest is on as many racks, the one that holds most
                // beyond its share.
                let holders = &self.holders[vnode];
                let racks = self.racks_of(holders.iter().copied());
                let is_spare = |node: &&usize| {
                    let rest = holders.iter().copied().filter(|other| other != *node);
                    self.racks_of(rest) == racks || racks > self.racks
                };
                let excess = |node: &usize| {
                    self.held[*node].len() as i64 - i64::from(self.shares[*node].whole)
                };
                let goes = holders
                    .iter()
                    .filter(is_spare)
                    .max_by_key(|node| excess(node));
                let goes = *goes.expect("more holders than racks: two are on one");
                self.take(vnode, goes);
            }
        }
    }

    /// Gives holders to vnodes that have too few.
    fn fill(&mut self) {
        let copies = self.demand.copies as usize;
        let vacant = |vnode: &usize| self.holders[*vnode].len() < copies;
        let vacant: Vec<usize> = (0..self.holders.len()).filter(vacant).collect();
        // Of how many of these each node may be a holder.
        let fitting = |node| {
            vacant
                .iter()
                .filter(|vnode| self.fits(**vnode, None, node))
                .count()
        };
        let mut chances: Vec<usize> = (0..self.sites.len()).map(fitting).collect();
        for vnode in vacant {
            for (node, chances) in chances.iter_mut().enumerate() {
                // A chain may have changed who fits: it is a guess.
                *chances = chances.saturating_sub(usize::from(self.fits(vnode, None, node)));
            }
            while self.holders[vnode].len() < copies {
                let cost = |node: &usize| self.fill_cost(vnode, *node, chances[*node]);
                let to = self.taker(vnode, cost);
                let chain = match self.lacks(to) || self.trade(to) {
                    true => Vec::new(),
                    false => self.chain(Some(vnode), None),
                };
                let from = None;
                match chain.is_empty() {
                    true => self.follow(&[Step { vnode, from, to }]),
                    false => self.follow(&chain),
                }
            }
        }
    }

    /// Who takes the vacant `vnode` best: who lacks vnodes, else who may have one more, else
    /// anybody.
    fn taker(&self, vnode: usize, cost: impl Fn(&usize) -> f64) -> usize {
        let rank = |node: &usize| {
            let may_trade = self.shares[*node].may_be(self.held[*node].len() as u32 + 1);
            (!self.lacks(*node), !may_trade)
        };
        let fitting = (0..self.sites.len()).filter(|node| self.fits(vnode, None, *node));
        let best = fitting.min_by(|one, other| {
            let by_rank = rank(one).cmp(&rank(other));
            by_rank.then(cost(one).total_cmp(&cost(other)))
        });
        best.expect("there are more nodes than copies, and as many racks as are wanted")
    }

    /// Rounds the share of `node` up, and down that of another that lacks vnodes: cheaper than a
    /// chain.
    fn trade(&mut self, node: usize) -> bool {
        let may_fall = |other: &usize| {
            let whole = self.shares[*other].whole;
            self.lacks(*other) && self.shares[*other].may_be(whole - 1)
        };
        let excess =
            |other: &usize| f64::from(self.shares[*other].whole) - self.shares[*other].fair;
        let others = (0..self.sites.len()).filter(may_fall);
        let most = others.max_by(|one, other| excess(one).total_cmp(&excess(other)));
        let may_rise = self.shares[node].may_be(self.shares[node].whole + 1);
        let Some(other) = most.filter(|_| may_rise) else {
            return false;
        };
        self.shares[node].whole += 1;
        self.shares[other].whole -= 1;
        true
    }

    /// How little it suits to give `vnode` to `node`, which may hold so many `others` that are
    /// vacant.
    fn fill_cost(&self, vnode: usize, node: usize, others: usize) -> f64 {
        let lacks = f64::from(self.shares[node].whole) - self.held[node].len() as f64;
        let need = lacks / (others as f64 + 1.0);
        SPREAD_WEIGHT * self.spread_cost(vnode, None, node) - need
    }

    /// How much `node` would have in common with the holders of `vnode` (without `from`), 1 being
    /// the mean.
    fn spread_cost(&self, vnode: usize, from: Option<usize>, node: usize) -> f64 {
        let others = self.holders[vnode]
            .iter()
            .filter(|other| Some(**other) != from);
        let (mut sum, mut count) = (0.0, 0.0);
        for other in others {
            let common = f64::from(self.common[self.pair(*other, node)]) + 0.5;
            sum += common / self.expected(*other, node);
            count += 1.0;
        }
        if count > 0.0 { sum / count } else { 0.0 }
    }

    /// How many vnodes two nodes would have in common if all were spread alike.
    fn expected(&self, one: usize, other: usize) -> f64 {
        let product =
            f64::from(self.shares[one].whole.max(1)) * f64::from(self.shares[other].whole.max(1));
        let places = f64::from(self.demand.vnodes) * f64::from(self.demand.copies);
        product * f64::from(self.demand.copies.max(2) - 1) / places
    }

    /// Moves vnodes from nodes that hold too many to those that hold too few.
    fn level(&mut self) {
        let mut is_stuck = vec![false; self.sites.len()];
        loop {
            let excess = |node: usize| {
                self.held[node].len() as f64 / f64::from(self.shares[node].whole.max(1))
            };
            let mut givers: Vec<usize> = (0..self.sites.len())
                .filter(|node| self.held[*node].len() as u32 > self.shares[*node].whole)
                .filter(|node| !is_stuck[*node])
                .collect();
            givers.sort_by(|one, other| excess(*other).total_cmp(&excess(*one)));
            let lacking = (0..self.sites.len()).filter(|node| self.lacks(*node));
            let Some(taker) = lacking.min_by(|one, other| excess(*one).total_cmp(&excess(*other)))
            else {
                return;
            };
            let Some(&first) = givers.first() else {
                return;
            };
            let gift = givers.iter().find_map(|giver| self.gift(*giver, taker));
            let chain = match gift {
                Some(step) => vec![step],
                None => self.chain(None, Some(first)),
            };
            is_stuck[first] = chain.is_empty();
            self.follow(&chain);
        }
    }

    /// The vnode that `giver` best gives to `taker`: of its fullest core, so that its cores stay
    /// even, and one whose other holders have little in common with the taker and much with the
    /// giver.
    fn gift(&self, giver: usize, taker: usize) -> Option<Step> {
        let vnodes = &self.held[giver];
        let start = mix(vnodes.len() as u64) as usize % vnodes.len();
        let looked_at = vnodes[start..]
            .iter()
            .chain(&vnodes[..start])
            .take(CANDIDATES_MAX);
        let fitting = looked_at.filter(|vnode| self.fits(**vnode, Some(giver), taker));
        let rank = |vnode: usize| {
            let load = self.load(vnode, giver);
            let cost = self.spread_cost(vnode, Some(giver), taker)
                - self.spread_cost(vnode, Some(giver), giver);
            (u32::MAX - load, cost)
        };
        let ranked = fitting.map(|vnode| (rank(*vnode), *vnode));
        let best = ranked.min_by(|(one, _), (other, _)| {
            let by_load = one.0.cmp(&other.0);
            by_load.then(one.1.total_cmp(&other.1))
        });
        best.map(|(_, vnode)| Step {
            vnode,
            from: Some(giver),
            to: taker,
        })
    }

    /// How many vnodes are on the core of `node` that holds `vnode`. What came just now is on none
    /// yet, and goes first.
    fn load(&self, vnode: usize, node: usize) -> u32 {
        let seat = self.old[vnode].iter().find(|(at, _)| *at == node);
        seat.map_or(u32::MAX, |(_, core)| self.loads[node][usize::from(*core)])
    }

    /// The cheapest chain of steps that ends at a node that lacks vnodes. It begins with `vacant`,
    /// which somebody takes, or with `full`, which gives something away. Empty if there is none.
    fn chain(&self, vacant: Option<usize>, full: Option<usize>) -> Vec<Step> {
        let mut reached: Vec<Option<Step>> = vec![None; self.sites.len()];
        let mut is_done = vec![false; self.sites.len()];
        let mut cost = vec![u32::MAX; self.sites.len()];
        let mut queue = VecDeque::new();
        if let Some(vnode) = vacant {
            for to in (0..self.sites.len()).filter(|node| self.fits(vnode, None, *node)) {
                reached[to] = Some(Step {
                    vnode,
                    from: None,
                    to,
                });
                cost[to] = 0;
                queue.push_back(to);
            }
        }
        if let Some(node) = full {
            cost[node] = 0;
            queue.push_back(node);
        }
        while let Some(node) = queue.pop_front() {
            if std::mem::replace(&mut is_done[node], true) {
                continue;
            }
            let path = trace(&reached, node);
            if self.lacks(node) {
                return path;
            }
            let free = self.held[node].iter().filter(|vnode| {
                let is_on_path = path.iter().any(|step| step.vnode == **vnode);
                !is_on_path
            });
            for vnode in free.copied() {
                for to in (0..self.sites.len()).filter(|to| !is_done[*to]) {
                    let price = self.price(vnode, node, to);
                    if cost[node] + price >= cost[to] || !self.fits(vnode, Some(node), to) {
                        continue;
                    }
                    cost[to] = cost[node] + price;
                    let from = Some(node);
                    reached[to] = Some(Step { vnode, from, to });
                    match price {
                        0 => queue.push_front(to),
                        _ => queue.push_back(to),
                    }
                }
            }
        }
        Vec::new()
    }

    /// How many more vnodes are copied if `vnode` goes from one node to another.
    fn price(&self, vnode: usize, from: usize, to: usize) -> u32 {
        u32::from(self.had(vnode, from) && !self.had(vnode, to))
    }

    /// Makes holders that came exchange vnodes, where that makes what nodes have in common more
    /// equal.
    fn spread(&mut self) {
        let mut came: Vec<(usize, usize)> = Vec::new();
        for (vnode, holders) in self.holders.iter().enumerate() {
            let new = holders.iter().filter(|node| !self.had(vnode, **node));
            came.extend(new.map(|node| (vnode, *node)));
        }
        let tries = (came.len() * EXCHANGES).min(EXCHANGES_MAX);
        for number in 0..tries as u64 {
            let pick = |salt| (mix(2 * number + salt) % came.len() as u64) as usize;
            let (one, other) = (pick(0), pick(1));
            let ((vnode, node), (vnode2, node2)) = (came[one], came[other]);
            let is_allowed = vnode != vnode2
                && node != node2
                && self.fits(vnode, Some(node), node2)
                && self.fits(vnode2, Some(node2), node);
            if !is_allowed {
                continue;
            }
            let gain = self.replace(vnode, node, node2) + self.replace(vnode2, node2, node);
            if gain > 0.0 {
                (came[one].1, came[other].1) = (node2, node);
            } else {
                self.replace(vnode, node2, node);
                self.replace(vnode2, node, node2);
            }
        }
    }

    /// Puts one holder in another's place; what that gains in evenness. Only [`Placing::spread`]
    /// may use it: what nodes hold is not brought up to date.
    fn replace(&mut self, vnode: usize, from: usize, to: usize) -> f64 {
        let mut gain = 0.0;
        for index in 0..self.holders[vnode].len() {
            let other = self.holders[vnode][index];
            if other == from {
                self.holders[vnode][index] = to;
                continue;
            }
            // What counts is the sum of squares over what is expected.
            let common = f64::from(self.common[self.pair(other, from)]);
            gain += (2.0 * common - 1.0) / self.expected(other, from);
            self.count(other, from, false);
            let common = f64::from(self.common[self.pair(other, to)]);
            gain -= (2.0 * common + 1.0) / self.expected(other, to);
            self.count(other, to, true);
        }
        gain
    }

    fn follow(&mut self, steps: &[Step]) {
        for step in steps {
            if let Some(from) = step.from {
                self.take(step.vnode, from);
            }
            self.put(step.vnode, step.to);
        }
    }

    fn put(&mut self, vnode: usize, node: usize) {
        for index in 0..self.holders[vnode].len() {
            self.count(self.holders[vnode][index], node, true);
        }
        self.holders[vnode].push(node);
        self.held[node].push(vnode);
    }

    fn take(&mut self, vnode: usize, node: usize) {
        let seat = self.old[vnode].iter().find(|(at, _)| *at == node);
        if let Some((_, core)) = seat {
            self.loads[node][usize::from(*core)] -= 1;
        }
        self.holders[vnode].retain(|other| *other != node);
        let at = self.held[node].iter().position(|held| *held == vnode);
        self.held[node].swap_remove(at.expect("a holder holds it"));
        for index in 0..self.holders[vnode].len() {
            self.count(self.holders[vnode][index], node, false);
        }
    }

    /// Two nodes have one vnode more in common, or one less.
    fn count(&mut self, one: usize, other: usize, is_more: bool) {
        for pair in [self.pair(one, other), self.pair(other, one)] {
            let common = &mut self.common[pair];
            *common = if is_more { *common + 1 } else { *common - 1 };
        }
    }

    fn pair(&self, one: usize, other: usize) -> usize {
        one * self.sites.len() + other
    }

    fn lacks(&self, node: usize) -> bool {
        (self.held[node].len() as u32) < self.shares[node].whole
    }

    fn had(&self, vnode: usize, node: usize) -> bool {
        self.old[vnode].iter().any(|(at, _)| *at == node)
    }

    /// True if `node` may hold `vnode`, in the place of `from` if that is said.
    fn fits(&self, vnode: usize, from: Option<usize>, node: usize) -> bool {
        let holders = &self.holders[vnode];
        if holders.contains(&node) {
            return false;
        }
        let rest = holders.iter().copied().filter(|other| Some(*other) != from);
        let count = holders.len() + usize::from(from.is_none());
        let racks = self.racks_of(rest.chain([node]));
        racks + (self.demand.copies as usize).saturating_sub(count) >= self.racks
    }

    /// True if these can be the holders of a vnode, or some of them.
    fn is_sound(&self, holders: &[usize]) -> bool {
        let copies = self.demand.copies as usize;
        let racks = self.racks_of(holders.iter().copied());
        holders.len() <= copies && racks + copies - holders.len() >= self.racks
    }

    fn racks_of(&self, nodes: impl Iterator<Item = usize> + Clone) -> usize {
        let rack = |node: usize| self.sites[node].rack;
        let firsts = nodes.clone().enumerate().filter(|(index, node)| {
            let mut before = nodes.clone().take(*index);
            before.all(|other| rack(other) != rack(*node))
        });
        firsts.count()
    }
}

/// The steps that led to `node`, the first one first.
fn trace(reached: &[Option<Step>], mut node: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = reached[node] {
        steps.push(step);
        match step.from {
            Some(from) => node = from,
            None => break,
        }
    }
    steps.reverse();
    steps
}

/// A number that looks like chance, always the same for the same seed (splitmix64).
fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
