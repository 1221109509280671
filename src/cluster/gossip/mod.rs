//! Gossip: every node learns who is alive, and that there is a newer map. Pure: what comes in are
//! events, what goes out are [`Effect`]s.
//!
//! Once in an interval a node counts its heartbeat on, and sends all heartbeats that it knows to a
//! node chosen by chance, which answers with its own; so news spread like a rumour, in a number of
//! rounds that grows with the logarithm of the number of nodes. A dead node, if there is one, is
//! asked besides, and nodes to which no link holds: who comes back is found by whoever asks. It
//! need not wait for that: a node that starts, or was stopped, asks all at once; and whoever hears
//! of a node that it could not reach asks that one at once.
//!
//! Only nodes of the map are members. Who is removed leaves the map by an epoch, and no heartbeat,
//! however late, brings it back. A node that hears of a higher epoch fetches the map; which map is
//! right is not gossip's to say. A node that is not in its own map is silent.
//!
//! Two processes may run as one node, from a copied data directory. The one that began later is
//! heard, and ends the other: a node of whose start others know, and that hears of a later one
//! which goes on living, is fenced ([`Effect::Fenced`]). A node that only begins may not know its
//! last generation any more: that one it outbids. So whoever has the highest goes on, and no two
//! do.

pub mod message;

use std::time::Duration;

use self::message::{COUNT_MAX, Kind, Message};
use super::map::{ClusterMap, NodeId, Uuid};
use super::member::{Heartbeat, Members, Source, Standing, Timing, Turn};
use crate::rt::{self, Bug};

/// A node that starts, or was stopped, asks so many others at once, at most; the others hear of it.
const GREETED_MAX: usize = 100;
/// Who is so many intervals late was stopped.
const LATE_INTERVALS: u32 = 2;
/// So many nodes to which no link holds are asked in a round.
const CUT_ASKED_MAX: usize = 8;
/// So often a node outbids a later start of itself before anybody has heard it.
const OUTBIDS_MAX: u32 = 3;
/// Generations have a part below this that is left to chance: two processes of one identity that
/// begin at one moment differ in it, and outbid an earlier one by different steps.
pub const GENERATION_CHANCES: u64 = 1000;

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
    /// End: another process runs as this node, since this later generation.
    Fenced(u64),
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
    timing: Timing,
    /// When the next round is due.
    due: Duration,
    /// All are to be asked in the next round.
    greets: bool,
    /// Others know of this start.
    is_heard: bool,
    /// How often it has outbid a later start of itself.
    outbids: u32,
    /// A later start of this node that others know of, and the attentive time at which it was
    /// heard.
    rival: Option<(Heartbeat, Duration)>,
    /// The epoch that was asked for last, and when.
    fetched: Option<(u64, Duration)>,
}

impl Gossip {
    /// Begins. `generation` is that of this start: the caller keeps it on disk, and it is above the
    /// one kept there before and the time of day, by less than [`GENERATION_CHANCES`].
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
            timing,
            due: now,
            greets: true,
            is_heard: false,
            outbids: 0,
            rival: None,
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

    /// Time has passed. To be called when a round is due, and may be at any other time. `chance` is
    /// any number.
    pub fn tick(&mut self, now: Duration, chance: u64) -> Vec<Effect> {
        let turns = self.members.look(now).into_iter();
        let mut effects: Vec<Effect> = turns.map(Effect::Turned).collect();
        effects.extend(self.outlive_rival());
        if now < self.due {
            return effects;
        }
        self.greets |= now >= self.due + self.timing.interval * LATE_INTERVALS;
        // Rounds that were missed are not made up for.
        self.due = now + self.timing.interval;
        if self.is_member {
            self.heartbeat.count += 1;
            let asked = self.whom_to_ask(chance);
            effects.extend(asked.into_iter().map(|to| self.ask(to)));
        }
        effects
    }

    /// The nodes of a round.
    fn whom_to_ask(&mut self, chance: u64) -> Vec<NodeId> {
        let is_blind = rt::planted(Bug::ReturnUnnoticed);
        let greets = std::mem::take(&mut self.greets) && !is_blind;
        let (mut living, mut cut, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        for (node, standing, ..) in self.members.all() {
            match standing {
                Standing::Dead => dead.push(node),
                Standing::Unreachable if !is_blind => cut.push(node),
                _ => living.push(node),
            }
        }
        let most = |usual| if greets { GREETED_MAX } else { usual };
        let mut asked = some_of(&living, most(1), chance >> 32);
        asked.extend(some_of(&cut, most(CUT_ASKED_MAX), chance >> 32));
        asked.extend(some_of(&dead, 1, chance & u64::from(u32::MAX)));
        asked
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
            let is_news = self.members.is_news(*node, *heartbeat);
            is_fresh |= source == Source::Itself && is_news;
            let turn = self.members.learn(*node, *heartbeat, source);
            effects.extend(turn.map(Effect::Turned));
            let is_answer = source == Source::Itself && message.kind == Kind::Answer;
            if is_news && !is_answer {
                effects.extend(self.try_again(*node, source, now));
            }
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

    /// `node` has made a connection to this one, and proved who it is.
    pub fn met(&mut self, node: NodeId, now: Duration) -> Option<Effect> {
        self.try_again(node, Source::Itself, now)
    }

    /// A connection to `node` was refused or reset, or a request to it has passed its deadline. It
    /// may have been an old one, to a node that has come back since: whoever was thought to be
    /// there is asked once.
    pub fn link_down(&mut self, node: NodeId, now: Duration) -> Vec<Effect> {
        let Some(turn) = self.members.link_down(node) else {
            return Vec::new();
        };
        let asked = self.try_again(node, Source::Hearsay, now);
        [Effect::Turned(turn)].into_iter().chain(asked).collect()
    }

    /// `node` shows life: it is asked at once, if that is of use.
    fn try_again(&mut self, node: NodeId, source: Source, now: Duration) -> Option<Effect> {
        let is_wanted = self.is_member && !rt::planted(Bug::ReturnUnnoticed);
        let may = is_wanted && self.members.may_try(node, source, now);
        may.then(|| self.ask(node))
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
            .is_none_or(|(asked, at)| epoch > asked || now >= at + self.timing.interval)
    }

    /// Others know of this node's own heartbeat, or of one that it never had. A node that nobody
    /// has heard yet has lost its generation, with a disk or by a clock. One that was heard would
    /// not have been, had others known of the later one then: that is another process's, if it
    /// lives.
    fn hear_of_itself(&mut self, heartbeat: Heartbeat) -> Option<Effect> {
        if heartbeat <= self.heartbeat {
            self.is_heard |= heartbeat.generation == self.heartbeat.generation;
            return None;
        }
        if !self.is_heard && self.outbids < OUTBIDS_MAX {
            self.outbids += 1;
            return self.renumber(heartbeat.generation);
        }
        match self.rival {
            Some((rival, _)) if heartbeat > rival => Some(Effect::Fenced(heartbeat.generation)),
            Some(_) => None,
            None => {
                self.rival = Some((heartbeat, self.members.attentive()));
                None
            }
        }
    }

    /// A later start that shows no life was an earlier one of this very node, of which somebody
    /// knew who was away.
    fn outlive_rival(&mut self) -> Option<Effect> {
        let (rival, since) = self.rival?;
        let is_silent = self.members.attentive() >= since + self.timing.suspect;
        is_silent.then(|| self.renumber(rival.generation)).flatten()
    }

    /// A generation above `above`, which makes this node heard again.
    fn renumber(&mut self, above: u64) -> Option<Effect> {
        let generation = above + 1 + self.heartbeat.generation % GENERATION_CHANCES;
        (self.is_heard, self.rival) = (false, None);
        if generation >= COUNT_MAX {
            return None;
        }
        self.heartbeat = Heartbeat {
            generation,
            count: 0,
        };
        Some(Effect::Renumbered(generation))
    }

    fn ask(&self, to: NodeId) -> Effect {
        let message = self.say(Kind::Ask);
        Effect::Send { to, message }
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

/// So many of `nodes`, or all, from one on that is chosen by chance.
fn some_of(nodes: &[NodeId], most: usize, chance: u64) -> Vec<NodeId> {
    let first = (chance % nodes.len().max(1) as u64) as usize;
    let in_turn = nodes.iter().cycle().skip(first);
    in_turn.take(most.min(nodes.len())).copied().collect()
}

#[cfg(test)]
mod tests;
