//! Gossip: every node learns who is alive, and that there is a newer map. Pure: what comes in are events, what
//! goes out are [`Effect`]s.
//!
//! Once in an interval a node counts its heartbeat on, and sends all heartbeats that it knows to a node chosen
//! by chance, which answers with its own; so news spread like a rumour, in a number of rounds that grows with the logarithm of
//! the number of nodes. A dead node, if there is one, is asked besides: who comes back is found by whoever asks.
//!
//! Only nodes of the map are members. Who is removed leaves the map by an epoch, and no heartbeat, however
//! late, brings it back. A node that hears of a higher epoch fetches the map; which map is right is not gossip's
//! to say. A node that is not in its own map is silent.

pub mod message;

use std::time::Duration;

use self::message::{COUNT_MAX, Kind, Message};
use super::map::{ClusterMap, NodeId, Uuid};
use super::member::{Heartbeat, Members, Source, Standing, Timing, Turn};

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send this; if it gets lost, nothing is.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Tell all cores, and the log.
    Turned(Turn),
    /// Ask this node for its map, which is of this epoch.
    FetchMap {
        /// Whom.
        from: NodeId,
        /// The epoch.
        epoch: u64,
    },
    /// Keep this generation, as at a start: others knew of a later one than this node did.
    Renumbered(u64),
}

/// One node's part in it.
#[derive(Clone, Debug)]
pub struct Gossip {
    own: NodeId,
    cluster: Uuid,
    /// This node's own.
    heartbeat: Heartbeat,
    /// The epoch of the map that this node has.
    epoch: u64,
    /// The map knows this node.
    is_member: bool,
    members: Members,
    interval: Duration,
    /// When the next round is due.
    due: Duration,
    /// The epoch that was asked for last, and when.
    fetched: Option<(u64, Duration)>,
}

impl Gossip {
    /// Begins. `generation` is that of this start: the caller keeps it on disk, and it is the one kept there
    /// before and one more, or the time of day if that is later.
    pub fn new(
        own: NodeId,
        generation: u64,
        timing: Timing,
        map: &ClusterMap,
        now: Duration,
    ) -> Gossip {
        assert!(generation < COUNT_MAX, "it is a time of day");
        let mut gossip = Gossip {
            own,
            cluster: map.cluster(),
            heartbeat: Heartbeat {
                generation,
                count: 0,
            },
            epoch: map.epoch(),
            is_member: false,
            members: Members::new(timing, now),
            interval: timing.interval,
            due: now,
            fetched: None,
        };
        gossip.take_members(map);
        gossip
    }

    /// What is thought of `node`; `None` if it is not another node of the map.
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        self.members.standing(node)
    }

    /// All others, as far as this node knows of them.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// When [`Gossip::tick`] is wanted next.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// Time has passed. To be called when a round is due, and may be at any other time. `chance` is any number.
    pub fn tick(&mut self, now: Duration, chance: u64) -> Vec<Effect> {
        let turns = self.members.look(now).into_iter();
        let mut effects: Vec<Effect> = turns.map(Effect::Turned).collect();
        if now < self.due {
            return effects;
        }
        // Rounds that were missed are not made up for.
        self.due = now + self.interval;
        if !self.is_member {
            return effects;
        }
        self.heartbeat.count += 1;
        let (dead, living): (Vec<_>, Vec<_>) = self
            .members
            .all()
            .partition(|(_, standing, ..)| *standing == Standing::Dead);
        for (nodes, chance) in [(living, chance >> 32), (dead, chance & u64::from(u32::MAX))] {
            if !nodes.is_empty() {
                let (to, ..) = nodes[(chance % nodes.len() as u64) as usize];
                let message = self.say(Kind::Ask);
                effects.push(Effect::Send { to, message });
            }
        }
        effects
    }

    /// A message has come.
    pub fn received(&mut self, now: Duration, message: &Message) -> Vec<Effect> {
        let mut effects = Vec::new();
        if message.cluster != self.cluster || message.from == self.own {
            return effects;
        }
        if message.epoch > self.epoch && self.may_fetch(message.epoch, now) {
            self.fetched = Some((message.epoch, now));
            let (from, epoch) = (message.from, message.epoch);
            effects.push(Effect::FetchMap { from, epoch });
        }
        self.members.attend(now);
        let mut is_fresh = false;
        for (node, heartbeat) in &message.beats {
            if *node == self.own {
                effects.extend(self.hear_of_itself(*heartbeat));
                continue;
            }
            let source = match *node == message.from {
                true => Source::Itself,
                false => Source::Hearsay,
            };
            is_fresh |= source == Source::Itself && self.members.is_news(*node, *heartbeat);
            let turn = self.members.learn(*node, *heartbeat, source);
            effects.extend(turn.map(Effect::Turned));
        }
        match message.kind {
            // Whoever asks gets an answer: a node that was removed learns of it by the epoch.
            Kind::Ask if self.is_member => {
                let (to, message) = (message.from, self.say(Kind::Answer));
                effects.push(Effect::Send { to, message });
            }
            // Both ways are open; unless it is an old answer.
            Kind::Answer if is_fresh => effects.extend(self.link_up(message.from)),
            Kind::Ask | Kind::Answer => {}
        }
        effects
    }

    /// What a node is asked apart from the rounds.
    pub fn question(&self) -> Message {
        self.say(Kind::Ask)
    }

    /// `node` has answered, whatever was asked.
    pub fn link_up(&mut self, node: NodeId) -> Option<Effect> {
        self.members.link_up(node).map(Effect::Turned)
    }

    /// A connection to `node` was refused or reset, or a request to it has passed its deadline.
    pub fn link_down(&mut self, node: NodeId) -> Option<Effect> {
        self.members.link_down(node).map(Effect::Turned)
    }

    /// This node has another map now.
    pub fn map_changed(&mut self, map: &ClusterMap) {
        assert_eq!(map.cluster(), self.cluster, "a node stays in its cluster");
        if map.epoch() > self.epoch {
            self.epoch = map.epoch();
            self.take_members(map);
        }
    }

    fn take_members(&mut self, map: &ClusterMap) {
        self.is_member = map.node(self.own).is_some();
        let nodes = map.nodes().iter().map(|node| node.id);
        self.members.set(nodes.filter(|node| *node != self.own));
    }

    fn may_fetch(&self, epoch: u64, now: Duration) -> bool {
        self.fetched
            .is_none_or(|(asked, at)| epoch > asked || now >= at + self.interval)
    }

    /// Others know of a heartbeat of this node that it never had: its generation was lost, with a disk or by
    /// a clock. Another one above all makes it heard again.
    fn hear_of_itself(&mut self, heartbeat: Heartbeat) -> Option<Effect> {
        let generation = heartbeat.generation + 1;
        if heartbeat <= self.heartbeat || generation >= COUNT_MAX {
            return None;
        }
        self.heartbeat = Heartbeat {
            generation,
            count: 0,
        };
        Some(Effect::Renumbered(generation))
    }

    fn say(&self, kind: Kind) -> Message {
        let others = self
            .members
            .all()
            .map(|(node, _, heartbeat, _)| (node, heartbeat));
        let known = others.filter(|(_, heartbeat)| *heartbeat > Heartbeat::default());
        Message {
            kind,
            from: self.own,
            cluster: self.cluster,
            epoch: self.epoch,
            beats: [(self.own, self.heartbeat)]
                .into_iter()
                .chain(known)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
