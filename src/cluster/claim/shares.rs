//! How many vnodes each node should hold: in proportion to weights, within what racks and counting
//! allow.
//!
//! A node holds a vnode once at most. Where there are as many racks as replicas, a rack holds it
//! once at most; where there are fewer, every rack holds it once at least. Within these bounds the
//! nodes' shares are as near to their weights as they can be (water-filling): a node or rack that
//! reaches its bound stays there, and the others share what is left. Then come whole numbers.

/// Rounding may make a share larger than it should be by so much, where another choice is left.
const EXCESS_MAX: f64 = 1.045;
/// Sums of floats that are whole numbers but for so much are whole numbers.
const EPSILON: f64 = 1e-6;
/// Halvings by which a level is found: more than a float has bits.
const HALVINGS: usize = 128;

/// One node that is to have a share.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its weight.
    pub weight: u32,
    /// Its rack, counted from 0.
    pub rack: usize,
    /// How many vnodes it holds already.
    pub has: u32,
}

/// A share, exact and in whole vnodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// As exact as the bounds allow.
    pub fair: f64,
    /// Rounded.
    pub whole: u32,
}

impl Share {
    /// True if it may be rounded to one more, or to one less, without being far from fair.
    pub fn may_be(self, whole: u32) -> bool {
        let whole = f64::from(whole);
        let is_low = whole < self.fair && whole > self.fair - 2.0 + EPSILON;
        let is_high = whole < self.fair + 1.0 - EPSILON && whole <= self.fair * EXCESS_MAX;
        is_low || (is_high && whole >= self.fair)
    }
}

/// What is to be shared out.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Vnodes of the ring.
    pub vnodes: u32,
    /// Holders of each.
    pub copies: u32,
}

/// How many racks a vnode has holders on at least.
pub fn racks_wanted(copies: usize, racks: usize) -> usize {
    copies.min(racks)
}

/// The share of each node, as exact as the bounds allow; a fraction.
pub fn fair(nodes: &[Candidate], demand: Demand) -> Vec<f64> {
    let racks = Racks::of(nodes, demand);
    let total = f64::from(demand.vnodes) * f64::from(demand.copies);
    let level = level_where(total, nodes, demand, |level| {
        (0..racks.count())
            .map(|rack| racks.bounded(rack, nodes, demand, level))
            .sum()
    });
    let mut shares = vec![0.0; nodes.len()];
    for rack in 0..racks.count() {
        let rack_total = racks.bounded(rack, nodes, demand, level);
        let members = &racks.members[rack];
        let inside = |level| {
            let share = |node: &usize| level_share(nodes[*node], demand, level);
            members.iter().map(share).sum()
        };
        let level = level_where(rack_total, nodes, demand, inside);
        for node in members {
            shares[*node] = level_share(nodes[*node], demand, level);
        }
    }
    shares
}

/// The share of each node in whole vnodes. Together they are all that is demanded. A node gets its
/// fair share rounded up or down. Nothing is copied for the sake of rounding: up it goes rather
/// where so much is already, and who has one vnode less than the fair share rounded down may stay
/// with that.
pub fn shares(nodes: &[Candidate], demand: Demand) -> Vec<Share> {
    let racks = Racks::of(nodes, demand);
    let fair = fair(nodes, demand);
    let least = |(node, fair): (&Candidate, &f64)| {
        let down = (fair + EPSILON) as u32;
        node.has.clamp(down.saturating_sub(1), down)
    };
    let mut shares: Vec<u32> = nodes.iter().zip(&fair).map(least).collect();
    let mut totals: Vec<u32> = vec![0; racks.count()];
    for (node, share) in nodes.iter().zip(&shares) {
        totals[node.rack] += share;
    }
    let total = demand.vnodes * demand.copies;
    while totals.iter().sum::<u32>() < total {
        // Racks that need it to reach their least come first.
        let needs = |node: &Candidate| totals[node.rack] < racks.least;
        let is_needed = nodes.iter().any(needs);
        let may_have = |index: &usize| {
            let node = &nodes[*index];
            let has_room = totals[node.rack] < racks.most[node.rack];
            has_room && (needs(node) || !is_needed) && shares[*index] < demand.vnodes
        };
        let rank = |index: usize| {
            let up = f64::from(shares[index] + 1);
            let beyond = up - fair[index];
            let is_copied = f64::from(nodes[index].has) < up;
            let is_excess = beyond > 0.0 && up > fair[index] * EXCESS_MAX;
            (beyond > 1.0 - EPSILON, is_excess, is_copied, beyond)
        };
        let fitting = (0..nodes.len()).filter(may_have);
        let best = fitting.min_by(|one, other| {
            let order = rank(*one).partial_cmp(&rank(*other));
            order.expect("no share is NaN")
        });
        let best = best.expect("fair shares fit the bounds, and so do they rounded");
        shares[best] += 1;
        totals[nodes[best].rack] += 1;
    }
    let both = fair.into_iter().zip(shares);
    both.map(|(fair, whole)| Share { fair, whole }).collect()
}

/// The racks' bounds.
struct Racks {
    members: Vec<Vec<usize>>,
    /// Vnodes that each rack holds at least.
    least: u32,
    /// Vnodes that each rack holds at most, those that several of its nodes hold counted for each.
    most: Vec<u32>,
}

impl Racks {
    fn of(nodes: &[Candidate], demand: Demand) -> Racks {
        assert!(
            nodes.len() >= demand.copies as usize,
            "a node holds a vnode once"
        );
        let count = nodes.iter().map(|node| node.rack + 1).max().unwrap_or(0);
        let mut members = vec![Vec::new(); count];
        for (index, node) in nodes.iter().enumerate() {
            members[node.rack].push(index);
        }
        assert!(
            members.iter().all(|rack| !rack.is_empty()),
            "racks are counted from 0"
        );
        let racks = count as u32;
        let is_rich = racks >= demand.copies;
        let per_vnode = match is_rich {
            true => 1,
            false => demand.copies - racks + 1,
        };
        let most = |rack: &Vec<usize>| demand.vnodes * per_vnode.min(rack.len() as u32);
        Racks {
            least: if is_rich { 0 } else { demand.vnodes },
            most: members.iter().map(most).collect(),
            members,
        }
    }

    fn count(&self) -> usize {
        self.members.len()
    }

    /// What the rack gets at this level, within its bounds.
    fn bounded(&self, rack: usize, nodes: &[Candidate], demand: Demand, level: f64) -> f64 {
        let share = |node: &usize| level_share(nodes[*node], demand, level);
        let sum: f64 = self.members[rack].iter().map(share).sum();
        sum.clamp(f64::from(self.least), f64::from(self.most[rack]))
    }
}

/// What a node gets at this level: in proportion to its weight, but no vnode twice.
fn level_share(node: Candidate, demand: Demand, level: f64) -> f64 {
    (level * f64::from(node.weight)).min(f64::from(demand.vnodes))
}

/// The level at which `sum`, which rises with it, is `total`.
fn level_where(total: f64, nodes: &[Candidate], demand: Demand, sum: impl Fn(f64) -> f64) -> f64 {
    let lightest = nodes.iter().map(|node| node.weight).min().unwrap_or(1);
    let (mut low, mut high) = (0.0, f64::from(demand.vnodes) / f64::from(lightest));
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        match sum(middle) < total {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}
