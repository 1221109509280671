//! Gossip, carried out: rounds when they are due, messages there and back, and what follows from
//! them.

use std::rc::Rc;
use std::time::Duration;

use super::{Ask, Membership, Said, Unreached};
use crate::cluster::gossip::Effect;
use crate::cluster::gossip::message::{Kind, Message};
use crate::cluster::map::NodeId;
use crate::cluster::member::{Standing, Turn, Why};
use crate::error::Error;
use crate::rt::{self, Bug};

/// A newer map comes within this, or is asked for again.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// From one that has said that it has it, so soon, or it is asked of the next that says so.
const TOLD_FETCH_MAX: Duration = Duration::from_millis(500);
/// However short the rounds are, an answer may take so long.
const ANSWER_MIN: Duration = Duration::from_secs(1);

impl Membership {
    /// Gossips for as long as the node lives; it does nothing while it is alone.
    pub(super) async fn gossip(self: &Rc<Self>) {
        let is_alone = || self.map().nodes().len() <= 1;
        self.changed.wait_for(|| (!is_alone()).then_some(())).await;
        // Others must never hear of a generation that this node could forget.
        let generation = self.record.borrow().generation;
        while !self.keep_generation(generation).await {
            rt::sleep(self.setup.timing.interval).await;
        }
        loop {
            self.changed.wait_for(|| (!is_alone()).then_some(())).await;
            let due = self.gossip.borrow().due();
            rt::sleep(due.saturating_sub(rt::now())).await;
            let effects = self.gossip.borrow_mut().tick(rt::now(), rt::random());
            self.carry_out(effects);
        }
    }

    /// Another node says who is alive; what this one answers.
    pub(super) fn on_gossip(self: &Rc<Self>, bytes: &[u8]) -> Said {
        let Some(message) = Message::decode(bytes) else {
            return Said::Refused("this is no message of gossip".to_owned());
        };
        let mut effects = self.gossip.borrow_mut().received(rt::now(), &message);
        let is_answer = |effect: &Effect| {
            matches!(effect, Effect::Send { to, message: told }
                if *to == message.from && told.kind == Kind::Answer)
        };
        let answer = effects.iter().position(is_answer);
        let answer = answer.map(|place| effects.swap_remove(place));
        self.carry_out(effects);
        match answer {
            Some(Effect::Send { message, .. }) => Said::Gossip(message.encode()),
            _ => Said::Gossip(Vec::new()),
        }
    }

    /// A link to `node` has come up or gone down, as the transport found.
    pub fn note_link(self: &Rc<Self>, node: NodeId, is_up: bool) {
        let effects = {
            let mut gossip = self.gossip.borrow_mut();
            match is_up {
                true => gossip.link_up(node).into_iter().collect(),
                false => gossip.link_down(node, rt::now()),
            }
        };
        self.carry_out(effects);
    }

    /// `node` has made a connection to this one, and proved who it is.
    pub fn note_met(self: &Rc<Self>, node: NodeId) {
        let effect = self.gossip.borrow_mut().met(node, rt::now());
        self.carry_out(effect);
    }

    /// Returns when this node is to end because another process runs under its identity, and why it
    /// ends.
    pub async fn fenced(&self) -> Error {
        let is_fenced = || self.is_fenced.get().then_some(());
        self.changed.wait_for(is_fenced).await;
        Error::Setup(format!(
            "this process has stopped serving: another one runs as node {} since",
            self.own().0
        ))
    }

    /// One line says it all, as soon as it is known: what follows may take a moment.
    fn fence(&self, generation: u64) {
        if self.is_fenced.replace(true) {
            return;
        }
        let NodeId(own) = self.own();
        log::error!(
            "another process runs as node {own}, and was started after this one (generation {generation}, this is {}): from a \
             copy of the data directory {}, say. Only one may: this one stops. Each node needs a data directory of its own; \
             one that is to join begins with an empty one",
            self.record.borrow().generation,
            self.setup.dir.display()
        );
        self.changed.wake_all();
    }

    /// `node` has said that its map is of this epoch.
    pub fn note_epoch(self: &Rc<Self>, node: NodeId, epoch: u64) {
        if epoch <= self.map().epoch() || self.is_fetching.replace(true) {
            return; // it is told again until it is here
        }
        let membership = Rc::clone(self);
        drop(rt::spawn(async move {
            membership.fetch(node, epoch, TOLD_FETCH_MAX).await;
            membership.is_fetching.set(false);
        }));
    }

    fn carry_out(self: &Rc<Self>, effects: impl IntoIterator<Item = Effect>) {
        let mut has_turned = false;
        for effect in effects {
            match effect {
                Effect::Send { to, message } => drop(rt::spawn(Rc::clone(self).say(to, message))),
                Effect::Turned(turn) => {
                    tell_turn(turn);
                    has_turned = true;
                }
                Effect::FetchMap { from, epoch } => {
                    let membership = Rc::clone(self);
                    drop(rt::spawn(async move {
                        membership.fetch(from, epoch, FETCH_MAX).await
                    }));
                }
                Effect::Fenced(generation) => self.fence(generation),
                Effect::Renumbered(generation) => {
                    log::warn!(
                        "others know of a later start of this node than it does itself: it goes on with generation \
                         {generation}"
                    );
                    let membership = Rc::clone(self);
                    drop(rt::spawn(async move {
                        membership.keep_generation(generation).await
                    }));
                }
            }
        }
        if has_turned {
            self.tell();
        }
    }

    async fn say(self: Rc<Self>, to: NodeId, message: Message) {
        let patience = self.setup.timing.interval.max(ANSWER_MIN);
        match self.ask(to, Ask::Gossip(message.encode()), patience).await {
            Ok(said) => {
                // It is the answer to this question, and no old one, even if its heartbeat was
                // known: between two nodes that keep step it always is.
                self.note_link(to, true);
                if let Said::Gossip(bytes) = said
                    && let Some(answer) = Message::decode(&bytes)
                {
                    let effects = self.gossip.borrow_mut().received(rt::now(), &answer);
                    self.carry_out(effects);
                    if answer.epoch < self.map().epoch() {
                        self.hand_over_map(to).await;
                    }
                }
            }
            Err(Unreached::Silent) => self.note_link(to, false),
            Err(Unreached::Unasked) => {}
        }
    }

    /// Gossips with `node` at once: it may not be where it was.
    pub(super) fn greet(self: &Rc<Self>, node: NodeId) {
        let question = self.gossip.borrow().question();
        drop(rt::spawn(Rc::clone(self).say(node, question)));
    }

    /// Node `to` has an older map, by which it may look for this one, and for all that have a newer
    /// one, where none of them is any more: it does not get the newer map by asking.
    async fn hand_over_map(&self, to: NodeId) {
        if !rt::planted(Bug::NewerMapKept) {
            let map = self.map().to_json().into();
            // Who does not take it is told again with the next round.
            let _ = self.ask(to, Ask::TakeMap(map), FETCH_MAX).await;
        }
    }
}

/// The log says of each change what it is and why.
fn tell_turn(turn: Turn) {
    let NodeId(node) = turn.node;
    let why = match turn.why {
        Why::Heartbeat => "it was heard".to_owned(),
        Why::Silence(silence) => {
            format!("nothing was heard of it for {:.1} s", silence.as_secs_f64())
        }
        Why::LinkDown => "no connection to it holds, or it does not answer in time".to_owned(),
        Why::LinkUp => "it answers".to_owned(),
    };
    let (from, to) = (name(turn.from), name(turn.to));
    match turn.to {
        Standing::Alive if turn.is_new => {
            log::info!("node {node} is {to}: {why} for the first time")
        }
        Standing::Unreachable if turn.is_new => {
            log::info!("node {node} is not there yet: {why}");
        }
        Standing::Alive => log::info!("node {node} is {to} (it was {from}): {why}"),
        _ => log::warn!("node {node} is {to} (it was {from}): {why}"),
    }
}

/// A standing in a word.
pub fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Alive => "alive",
        Standing::Suspect => "suspect",
        Standing::Unreachable => "unreachable",
        Standing::Dead => "dead",
    }
}
