//! On which core of its nodes each vnode is. Pure.
//!
//! A node's cores get equally many vnodes, and keep those that they have as far as that allows.

use super::placing::Seat;

/// The seats of each vnode, those that were there before first and in their order. `cores`: how
/// many each node has; `holders`: the nodes of each vnode; `old`: the seats that were.
pub fn sit(cores: &[u16], holders: &[Vec<usize>], old: &[Vec<Seat>]) -> Vec<Vec<Seat>> {
    let both = old.iter().zip(holders);
    let mut seats: Vec<Vec<Seat>> = both.map(|(old, new)| in_old_order(old, new)).collect();
    for (node, cores) in cores.iter().enumerate() {
        sit_down(node, usize::from(*cores), &mut seats, old);
    }
    seats
}

/// One vnode of a node.
struct Sitter {
    vnode: usize,
    /// Which of the vnode's seats is the node's.
    at: usize,
    core: Option<usize>,
}

/// Gives each vnode of `node` one of its cores.
fn sit_down(node: usize, cores: usize, seats: &mut [Vec<Seat>], old: &[Vec<Seat>]) {
    let mut sitters: Vec<Sitter> = Vec::new();
    let mut has = vec![0u32; cores];
    for (vnode, seats) in seats.iter().enumerate() {
        let Some(at) = seats.iter().position(|seat| seat.0 == node) else {
            continue;
        };
        let was = old[vnode].iter().find(|seat| seat.0 == node);
        let core = was.map(|seat| usize::from(seat.1));
        let core = core.filter(|core| *core < cores);
        if let Some(core) = core {
            has[core] += 1;
        }
        sitters.push(Sitter { vnode, at, core });
    }
    let mut room = even(sitters.len() as u32, &has);
    // Who sits stays while there is room; the others then fill the cores in the order of the ring,
    // so that a core's vnodes are in few runs.
    for sitter in &mut sitters {
        match sitter.core {
            Some(core) if room[core] > 0 => room[core] -= 1,
            _ => sitter.core = None,
        }
    }
    let chairs = |(core, left): (usize, &u32)| std::iter::repeat_n(core, *left as usize);
    let mut free = room.iter().enumerate().flat_map(chairs);
    for sitter in sitters {
        let core = sitter.core.or_else(|| free.next());
        let core = core.expect("there is room for all");
        seats[sitter.vnode][sitter.at].1 = core as u16;
    }
}

/// The new holders, those that were there before first and in their order. Their cores come later.
fn in_old_order(old: &[Seat], new: &[usize]) -> Vec<Seat> {
    let mut seats: Vec<Seat> = new.iter().map(|node| (*node, 0)).collect();
    let place = |seat: &Seat| {
        let at = old.iter().position(|was| was.0 == seat.0);
        at.unwrap_or(old.len())
    };
    seats.sort_by_key(place);
    seats
}

/// `total` in equal parts; those that have more already get what is left over.
fn even(total: u32, has: &[u32]) -> Vec<u32> {
    let count = has.len() as u32;
    let mut parts = vec![total / count; has.len()];
    let mut order: Vec<usize> = (0..has.len()).collect();
    order.sort_by_key(|index| u32::MAX - has[*index]);
    for index in order.into_iter().take((total % count) as usize) {
        parts[index] += 1;
    }
    parts
}
