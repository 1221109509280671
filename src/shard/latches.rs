//! Who may touch which key of this core, in what order. Pure.
//!
//! A command that has to wait in its middle (for the disk, or for other cores) takes latches on its
//! keys first; whoever else wants one of them queues behind it. Commands that need no waiting take
//! none: they only look whether their key is free. A latch is on a key's hash, which is finer than
//! its vnode: unrelated keys of a vnode do not wait for each other.
//!
//! No deadlock: within a core a request enters all of its queues in one step, so of two requests
//! one is ahead in every queue that they share; between cores, transactions reserve in the order
//! of the cores' numbers. A request for the whole core waits until all before it are done, and all
//! after it wait for it.

use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;

use crate::types::KeyHash;

/// Names a request for latches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What a request wants to have alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    /// These keys.
    Keys(SmallVec<[KeyHash; 2]>),
    /// All keys of the core.
    Everything,
}

impl Wants {
    /// One key.
    pub fn key(hash: KeyHash) -> Wants {
        Wants::Keys(SmallVec::from_slice(&[hash]))
    }

    /// Both what `self` and what `other` want.
    pub fn and(self, other: Wants) -> Wants {
        match (self, other) {
            (Wants::Keys(mut keys), Wants::Keys(more)) => {
                keys.extend(more);
                Wants::Keys(keys)
            }
            _ => Wants::Everything,
        }
    }
}

/// The latches of one core.
#[derive(Debug, Default)]
pub struct Latches {
    ticket_next: u64,
    /// Requests for keys that are in the queues, granted or not.
    entered: BTreeMap<Ticket, Entered>,
    queues: BTreeMap<KeyHash, VecDeque<Ticket>>,
    /// The request that has everything.
    exclusive: Option<Ticket>,
    /// A request for everything that waits, and all that came after it.
    behind: VecDeque<(Ticket, Wants)>,
}

#[derive(Debug)]
struct Entered {
    keys: SmallVec<[KeyHash; 2]>,
    /// In how many queues it is not the first.
    missing: usize,
}

impl Latches {
    /// True if nobody has or wants `key`.
    pub fn is_free(&self, key: KeyHash) -> bool {
        self.is_idle() || (self.is_open() && !self.queues.contains_key(&key))
    }

    /// True if nobody has or wants anything.
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty() && self.is_open()
    }

    fn is_open(&self) -> bool {
        self.exclusive.is_none() && self.behind.is_empty()
    }

    /// Queues a request. Ask [`Latches::is_granted`], and release it in the end in any case.
    pub fn request(&mut self, wants: Wants) -> Ticket {
        let ticket = Ticket(self.ticket_next);
        self.ticket_next += 1;
        match wants {
            Wants::Keys(keys) if self.is_open() => {
                self.enter(ticket, keys);
            }
            Wants::Everything if self.is_open() && self.entered.is_empty() => {
                self.exclusive = Some(ticket);
            }
            wants => self.behind.push_back((ticket, wants)),
        }
        ticket
    }

    /// True if the request has all that it wants.
    pub fn is_granted(&self, ticket: Ticket) -> bool {
        let has_keys = |entered: &Entered| entered.missing == 0;
        self.exclusive == Some(ticket) || self.entered.get(&ticket).is_some_and(has_keys)
    }

    /// Ends a request, granted or not; returns those that are granted by that.
    pub fn release(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let mut granted = Vec::new();
        if self.exclusive == Some(ticket) {
            self.exclusive = None;
        } else if let Some(entered) = self.entered.remove(&ticket) {
            for key in entered.keys {
                self.leave(ticket, key, &mut granted);
            }
        } else {
            self.behind.retain(|(waiting, _)| *waiting != ticket);
        }
        self.admit_behind(&mut granted);
        granted
    }

    fn enter(&mut self, ticket: Ticket, mut keys: SmallVec<[KeyHash; 2]>) -> bool {
        keys.sort_unstable();
        keys.dedup();
        let mut missing = 0;
        for key in &keys {
            let queue = self.queues.entry(*key).or_default();
            missing += usize::from(!queue.is_empty());
            queue.push_back(ticket);
        }
        self.entered.insert(ticket, Entered { keys, missing });
        missing == 0
    }

    fn leave(&mut self, ticket: Ticket, key: KeyHash, granted: &mut Vec<Ticket>) {
        let queue = self
            .queues
            .get_mut(&key)
            .expect("a request is in all of its queues");
        if queue.front() != Some(&ticket) {
            queue.retain(|waiting| *waiting != ticket);
            return;
        }
        queue.pop_front();
        let Some(next) = queue.front() else {
            self.queues.remove(&key);
            return;
        };
        let entered = self
            .entered
            .get_mut(next)
            .expect("who is in a queue has entered");
        entered.missing -= 1;
        if entered.missing == 0 {
            granted.push(*next);
        }
    }

    fn admit_behind(&mut self, granted: &mut Vec<Ticket>) {
        while self.exclusive.is_none()
            && let Some((ticket, wants)) = self.behind.pop_front()
        {
            match wants {
                Wants::Keys(keys) => {
                    if self.enter(ticket, keys) {
                        granted.push(ticket);
                    }
                }
                Wants::Everything if self.entered.is_empty() => {
                    self.exclusive = Some(ticket);
                    granted.push(ticket);
                }
                Wants::Everything => {
                    self.behind.push_front((ticket, wants));
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(hashes: &[u64]) -> Wants {
        Wants::Keys(hashes.iter().map(|hash| KeyHash(*hash)).collect())
    }

    #[test]
    fn requests_for_one_key_are_granted_in_their_order() {
        let mut latches = Latches::default();
        let first = latches.request(keys(&[1]));
        let second = latches.request(keys(&[1, 2]));
        let third = latches.request(keys(&[2]));
        let other = latches.request(keys(&[3]));
        assert!(latches.is_granted(first) && latches.is_granted(other));
        assert!(
            !latches.is_granted(second) && !latches.is_granted(third),
            "2 is second's by order"
        );
        assert!(!latches.is_free(KeyHash(1)) && latches.is_free(KeyHash(4)));
        assert_eq!(latches.release(first), vec![second]);
        assert_eq!(latches.release(second), vec![third]);
        assert!(latches.release(third).is_empty() && latches.release(other).is_empty());
        assert!(latches.is_idle());
    }

    #[test]
    fn a_request_for_everything_waits_for_all_before_and_stops_all_after() {
        let mut latches = Latches::default();
        let before = latches.request(keys(&[1]));
        let everything = latches.request(Wants::Everything);
        let after = latches.request(keys(&[2]));
        assert!(!latches.is_free(KeyHash(9)), "nobody overtakes");
        assert!(!latches.is_granted(everything) && !latches.is_granted(after));
        assert_eq!(latches.release(before), vec![everything]);
        assert_eq!(latches.release(everything), vec![after]);
        assert!(latches.release(after).is_empty() && latches.is_idle());
    }

    #[test]
    fn a_key_named_twice_does_not_wait_for_itself() {
        let mut latches = Latches::default();
        let ticket = latches.request(keys(&[7, 7]));
        assert!(latches.is_granted(ticket));
        assert!(latches.release(ticket).is_empty() && latches.is_idle());
    }

    #[test]
    fn random_requests_exclude_each_other_and_all_come_to_their_turn() {
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut latches = Latches::default();
            let mut open: Vec<(Ticket, Wants)> = Vec::new();
            let mut made = 0;
            while made < 200 || !open.is_empty() {
                if made < 200 && random.bool() {
                    let wants = match random.u8(..10) {
                        0 => Wants::Everything,
                        _ => keys(&[random.u64(..6), random.u64(..6)]),
                    };
                    open.push((latches.request(wants.clone()), wants));
                    made += 1;
                    continue;
                }
                let granted: Vec<_> = (0..open.len())
                    .filter(|i| latches.is_granted(open[*i].0))
                    .collect();
                assert!(
                    open.is_empty() || !granted.is_empty(),
                    "seed {seed}: deadlock"
                );
                for one in &granted {
                    for other in granted.iter().filter(|other| *other != one) {
                        assert!(!conflict(&open[*one].1, &open[*other].1), "seed {seed}");
                    }
                }
                if !open.is_empty() {
                    // Mostly one that has its turn ends, sometimes one that still waits gives up.
                    let waiting = random.u8(..8) == 0;
                    let index = random.usize(..open.len());
                    let index = if waiting {
                        index
                    } else {
                        granted[random.usize(..granted.len())]
                    };
                    let (ticket, _) = open.swap_remove(index);
                    latches.release(ticket);
                }
            }
            assert!(latches.is_idle(), "seed {seed}: something is left behind");
        }
    }

    fn conflict(one: &Wants, other: &Wants) -> bool {
        match (one, other) {
            (Wants::Keys(keys), Wants::Keys(others)) => keys.iter().any(|key| others.contains(key)),
            _ => true,
        }
    }
}
