//! Who of the cluster's nodes is alive, as one node sees it. Pure.
//!
//! A node proves that it lives by a heartbeat that is newer than what was known of it: its
//! generation (which start of the node it is) and a count. Silence makes it suspect, then dead
//! ([`Timing`]). Two rules keep a loaded or mended network from telling lies:
//! - *Attentive time.* Silence is measured on a clock that runs only while this node looks: between two looks
//!   it goes on by two intervals at most. A node that was stopped for a minute, or had no CPU, convicts nobody for what it missed.
//! - *Hearsay.* Of a node that is dead, or that was never heard, a newer heartbeat that others tell is only
//!   noted: it may be old news from the other side of a partition. Another one above that, or one from the
//!   node itself, is life.
//!
//! Besides, a link that breaks makes a node unreachable at once, for this node only, until a link
//! succeeds. As soon as such a node is heard it is worth a try ([`Members::may_try`]).

use std::collections::BTreeMap;
use std::time::Duration;

use super::map::NodeId;

/// Between two looks, so many intervals of silence count at most.
const LOOK_INTERVALS_MAX: u32 = 2;
/// A node that makes itself heard is tried so often in an interval, at most.
const TRIES_MAX: u32 = 20;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From one round of gossip to the next.
    pub interval: Duration,
    /// A node that was silent for so long is suspect.
    pub suspect: Duration,
    /// A node that was silent for so long is dead.
    pub dead: Duration,
}

impl Timing {
    /// True if a node is silent for some rounds before it is suspect, and suspect before it is
    /// dead.
    pub fn is_sound(self) -> bool {
        let grows = self.interval < self.suspect && self.suspect < self.dead;
        !self.interval.is_zero() && grows
    }
}

/// What is thought of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It lives.
    Alive,
    /// It is silent, or was not heard yet: others are asked first.
    Suspect,
    /// No link to it holds: it is not asked, until a link succeeds.
    Unreachable,
    /// It was silent for long: it is not asked.
    Dead,
}

impl Standing {
    /// True if requests are sent to it.
    pub fn may_be_asked(self) -> bool {
        self <= Standing::Suspect
    }
}

/// Why a node's standing changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A newer heartbeat came.
    Heartbeat,
    /// None came for so long.
    Silence(Duration),
    /// A connection was refused or reset, or a deadline passed.
    LinkDown,
    /// It answered.
    LinkUp,
}

/// A node's standing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whose.
    pub node: NodeId,
    /// What it was.
    pub from: Standing,
    /// What it is.
    pub to: Standing,
    /// The reason.
    pub why: Why,
    /// Nothing was heard of it before.
    pub is_new: bool,
}

/// How far a node has come, as it says itself. The order is that of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heartbeat {
    /// Which start of the node it is: never lower than that of a start before.
    pub generation: u64,
    /// Counts its rounds of gossip.
    pub count: u64,
}

/// How a heartbeat came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The node itself sent it.
    Itself,
    /// Another node told it.
    Hearsay,
}

/// What is known of one node.
#[derive(Clone, Debug)]
struct Member {
    heartbeat: Heartbeat,
    life: Life,
    /// When it last showed life, or when it became known.
    seen: Duration,
    /// It was heard at some time since it became known.
    was_heard: bool,
    /// No link to it holds.
    is_cut: bool,
    /// When it was last tried because it showed life, if it was.
    tried: Option<Duration>,
    /// What was told last.
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It was not heard since it became known, or since it was dead.
    Unheard,
    /// There is hearsay.
    Noted,
    /// It has shown life.
    Shown,
}

/// All nodes but this one.
#[derive(Clone, Debug)]
pub struct Members {
    timing: Timing,
    members: BTreeMap<NodeId, Member>,
    /// Attentive time.
    attentive: Duration,
    /// When it was looked last.
    looked: Duration,
}

impl Members {
    /// Nobody yet.
    pub fn new(timing: Timing, now: Duration) -> Members {
        assert!(timing.is_sound(), "the configuration was checked");
        Members {
            timing,
            members: BTreeMap::new(),
            attentive: Duration::ZERO,
            looked: now,
        }
    }

    /// These are the nodes from now on: new ones begin unheard, others are forgotten.
    pub fn set(&mut self, nodes: impl Iterator<Item = NodeId>) {
        let mut before = std::mem::take(&mut self.members);
        let seen = self.attentive;
        let unheard = || Member {
            heartbeat: Heartbeat::default(),
            life: Life::Unheard,
            seen,
            was_heard: false,
            is_cut: false,
            tried: None,
            standing: Standing::Suspect,
        };
        self.members = nodes
            .map(|node| (node, before.remove(&node).unwrap_or_else(unheard)))
            .collect();
    }

    /// What is thought of `node`; `None` if it is not in the map.
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        self.members.get(&node).map(|member| member.standing)
    }

    /// All nodes with what is thought of them, how far they have come, and how long they have been
    /// silent.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, Standing, Heartbeat, Duration)> {
        self.members.iter().map(|(node, member)| {
            let silence = self.attentive - member.seen;
            (*node, member.standing, member.heartbeat, silence)
        })
    }

    /// True if so much was not known of `node` yet.
    pub fn is_news(&self, node: NodeId, heartbeat: Heartbeat) -> bool {
        let member = self.members.get(&node);
        member.is_some_and(|member| heartbeat > member.heartbeat)
    }

    /// True if `node`, which shows life, is to be asked at once: no link to it holds, or it was
    /// dead, and it was not tried just before. What others say of it counts once in an interval.
    pub fn may_try(&mut self, node: NodeId, source: Source, now: Duration) -> bool {
        let gap = match source {
            Source::Itself => self.timing.interval / TRIES_MAX,
            Source::Hearsay => self.timing.interval,
        };
        let Some(member) = self.members.get_mut(&node) else {
            return false;
        };
        let is_away = member.is_cut || member.standing == Standing::Dead;
        let may = is_away && member.tried.is_none_or(|tried| now >= tried + gap);
        if may {
            member.tried = Some(now);
        }
        may
    }

    /// Time that this node has been attentive.
    pub fn attentive(&self) -> Duration {
        self.attentive
    }

    /// A heartbeat of `node` is known.
    pub fn learn(&mut self, node: NodeId, heartbeat: Heartbeat, source: Source) -> Option<Turn> {
        let member = self.members.get_mut(&node)?;
        if heartbeat <= member.heartbeat {
            return None;
        }
        member.heartbeat = heartbeat;
        if source == Source::Hearsay && member.life == Life::Unheard {
            member.life = Life::Noted;
            return None;
        }
        self.live(node, Why::Heartbeat)
    }

    /// A link to `node` has broken, or a request to it has passed its deadline.
    pub fn link_down(&mut self, node: NodeId) -> Option<Turn> {
        self.members.get_mut(&node)?.is_cut = true;
        self.turn(node, Why::LinkDown)
    }

    /// `node` has answered.
    pub fn link_up(&mut self, node: NodeId) -> Option<Turn> {
        self.members.get_mut(&node)?.is_cut = false;
        self.live(node, Why::LinkUp)
    }

    /// It is `now`, and this node looks at what has come.
    pub fn attend(&mut self, now: Duration) {
        let most = self.timing.interval * LOOK_INTERVALS_MAX;
        self.attentive += now.saturating_sub(self.looked).min(most);
        self.looked = self.looked.max(now);
    }

    /// Looks who has been silent for too long.
    pub fn look(&mut self, now: Duration) -> Vec<Turn> {
        self.attend(now);
        let mut turns = Vec::new();
        let nodes: Vec<NodeId> = self.members.keys().copied().collect();
        for node in nodes {
            let silence = self.attentive - self.members[&node].seen;
            turns.extend(self.turn(node, Why::Silence(silence)));
        }
        turns
    }

    fn live(&mut self, node: NodeId, why: Why) -> Option<Turn> {
        let member = self.members.get_mut(&node)?;
        member.seen = self.attentive;
        member.life = Life::Shown;
        let turn = self.turn(node, why);
        self.members.get_mut(&node)?.was_heard = true;
        turn
    }

    /// Judges anew, and tells if that is something new.
    fn turn(&mut self, node: NodeId, why: Why) -> Option<Turn> {
        let member = self.members.get_mut(&node)?;
        let silence = self.attentive - member.seen;
        let is_dead = silence >= self.timing.dead;
        let is_suspect = silence >= self.timing.suspect || member.life != Life::Shown;
        let to = match () {
            () if is_dead => Standing::Dead,
            () if member.is_cut => Standing::Unreachable,
            () if is_suspect => Standing::Suspect,
            () => Standing::Alive,
        };
        let from = std::mem::replace(&mut member.standing, to);
        if is_dead && from != Standing::Dead {
            member.life = Life::Unheard;
        }
        (from != to).then_some(Turn {
            node,
            from,
            to,
            why,
            is_new: !member.was_heard,
        })
    }
}
