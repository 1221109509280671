//! How this node has the map changed: a wish is carried out until it is granted or refused by a map
//! that was decided, or until the time is over. Here it is carried through the register, round by
//! round; where etcd keeps the map, `etcd/keeping` does that part.
//!
//! One wish at a time, for a node is one proposer. An answer that comes late belongs to its ballot,
//! and does no harm.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future;

use super::record::Keeping;
use super::wish::{self, MapChange, Verdict, Wish};
use super::{Ask, Membership, Said, Unreached};
use crate::cluster::map::{ClusterMap, Node, NodeId};
use crate::replication::register::proposer::Step;
use crate::replication::register::{Answer, Ballot, HolderId, Mistake, Proposer, Request, format};
use crate::rt::sync::Signal;
use crate::rt::{self, Bug};

/// A newcomer's wish is given so long, and a first write's.
pub(super) const WISH_MAX: Duration = Duration::from_secs(8);
/// So long all keepers may take for one answer; then another round begins.
const TRIP_MAX: Duration = Duration::from_secs(2);
/// The pause after a round that was overtaken is chosen below this, and below twice as much after
/// the next.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(640);
/// A node that keeps the map, or is known under a new address, only later tries again after this,
/// and half as much by chance.
pub(super) const LATER: Duration = Duration::from_secs(5);
/// So many wait for their turn to have the map changed; others are told that it is busy.
const WAITING_MAX: usize = 64;

/// What has become of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is granted in this map.
    Granted(Arc<ClusterMap>),
    /// It will not be.
    Refused(String),
    /// Not enough keepers of the map have answered in time. It may yet be granted.
    TooFew,
}

/// How one attempt to have a wish granted has ended, wherever the map is kept.
pub(super) enum Ended {
    /// This was decided; whether it grants the wish is for it to say.
    Decided(Box<ClusterMap>),
    /// There is a newer set of keepers.
    Outdated,
    /// The time is over.
    Late,
    /// It is of no use to try again.
    Hopeless(String),
}

/// Answers on their way to the proposer.
#[derive(Default)]
struct Inbox {
    answers: RefCell<VecDeque<(HolderId, Answer<Bytes>)>>,
    came: Signal,
}

impl Membership {
    /// Has `wish` carried out.
    pub async fn change(self: &Rc<Self>, wish: Wish, patience: Duration) -> Outcome {
        if self.proposing.waiting() >= WAITING_MAX {
            return Outcome::TooFew;
        }
        let deadline = rt::now() + patience;
        let late = async {
            rt::sleep(patience).await;
            None
        };
        let taken = async { Some(self.proposing.take().await) };
        let Some(_turn) = future::or(taken, late).await else {
            return Outcome::TooFew;
        };
        loop {
            let map = self.map();
            if wish.judge(&map) == Verdict::Granted {
                return Outcome::Granted(map);
            }
            let ended = match &self.setup.etcd {
                None => self.propose(&wish, &map, deadline).await,
                Some(etcd) => self.change_in_etcd(etcd, &wish, deadline).await,
            };
            match ended {
                Ended::Decided(map) => {
                    let verdict = wish.judge(&map);
                    self.learn(*map);
                    if let Verdict::Refused(why) = verdict {
                        return Outcome::Refused(why);
                    }
                    // Granted; or others have moved the map on: once more, from there.
                }
                Ended::Outdated => self.look_for_newer_map(deadline).await,
                Ended::Late => return Outcome::TooFew,
                Ended::Hopeless(why) => return Outcome::Refused(why),
            }
            if rt::now() >= deadline {
                return match wish.judge(&self.map()) {
                    Verdict::Granted => Outcome::Granted(self.map()),
                    _ => Outcome::TooFew,
                };
            }
        }
    }

    /// Runs rounds with the keepers of `map` until something is decided.
    async fn propose(self: &Rc<Self>, wish: &Wish, map: &ClusterMap, deadline: Duration) -> Ended {
        let Some(holders) = wish::holders(map) else {
            return Ended::Hopeless("this map is kept by nobody".to_owned());
        };
        let change = MapChange {
            wish: wish.clone(),
            author: rt::random(),
        };
        let (proposer, request) = Proposer::read(change, holders, self.last.get());
        let mistake = rt::planted(Bug::HalfOfKeepers).then_some(Mistake::SmallMajority);
        let mut proposer = proposer.with_mistake(mistake);
        let inbox = Rc::new(Inbox::default());
        let ended = self
            .run_rounds(&mut proposer, request, &inbox, deadline)
            .await;
        self.last.set(proposer.last());
        ended
    }

    async fn run_rounds(
        self: &Rc<Self>,
        proposer: &mut Proposer<MapChange>,
        mut request: Request<Bytes>,
        inbox: &Rc<Inbox>,
        deadline: Duration,
    ) -> Ended {
        let mut pause = PAUSE;
        loop {
            let until = deadline.min(rt::now() + TRIP_MAX);
            for holder in proposer.holders().members() {
                self.send(*holder, &request, inbox, until);
            }
            let step = match self.next_step(proposer, inbox, until).await {
                Some(Step::Overtaken) | None => {
                    if rt::now() >= deadline {
                        return Ended::Late;
                    }
                    rt::sleep(by_chance(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    proposer.retry()
                }
                Some(step) => step,
            };
            match step {
                Step::Send(next) => request = next,
                Step::Changed(value) | Step::Moved(value) => return decided(&value),
                Step::Kept(Some(value)) => return decided(&value),
                Step::InDoubt(Some(value)) if wish::read(&value).is_none() => {
                    return decided(&value);
                }
                // Wishes tell by any map whether they were granted: the next proposer finds out.
                Step::InDoubt(_) | Step::Outdated(_) => return Ended::Outdated,
                Step::Kept(None) => return Ended::Late, // nobody has heard of a map: there is none to change
                Step::Wait | Step::Overtaken => unreachable!("a proposer that retries sends"),
            }
        }
    }

    /// What follows from the answers that come until then.
    async fn next_step(
        &self,
        proposer: &mut Proposer<MapChange>,
        inbox: &Inbox,
        until: Duration,
    ) -> Option<Step<Bytes>> {
        loop {
            let next = inbox
                .came
                .wait_for(|| inbox.answers.borrow_mut().pop_front());
            let answered = async { Some(next.await) };
            let late = async {
                rt::sleep(until.saturating_sub(rt::now())).await;
                None
            };
            let (holder, answer) = future::or(answered, late).await?;
            match proposer.on_answer(holder, answer) {
                Step::Wait => {}
                step => return Some(step),
            }
        }
    }

    fn send(
        self: &Rc<Self>,
        to: HolderId,
        request: &Request<Bytes>,
        inbox: &Rc<Inbox>,
        until: Duration,
    ) {
        let bytes = format::encode_request(request);
        let (membership, inbox) = (Rc::clone(self), Rc::clone(inbox));
        drop(rt::spawn(async move {
            let said = match NodeId(to.0) {
                own if own == membership.own() => membership.on_register(&bytes).await,
                node => {
                    let patience = until.saturating_sub(rt::now());
                    match membership.ask(node, Ask::Register(bytes), patience).await {
                        Ok(Said::Register(answer)) => Some(answer),
                        _ => None,
                    }
                }
            };
            let answer = said.and_then(|bytes| format::decode_answer(&bytes));
            if let Some(answer) = answer {
                inbox.answers.borrow_mut().push_back((to, answer));
                inbox.came.wake_all();
            }
        }));
    }

    /// Asks another node of the map.
    pub(super) async fn ask(
        &self,
        node: NodeId,
        ask: Ask,
        patience: Duration,
    ) -> Result<Said, Unreached> {
        let map = self.map();
        let known = map.node(node).ok_or(Unreached::Silent)?;
        let node = self.elsewhere.borrow().place_of(known, rt::now());
        self.setup.reach.ask(&node, ask, patience).await
    }

    /// There is a newer set of keepers: asks all nodes for the map that names it, until one has it
    /// or the time is over.
    async fn look_for_newer_map(self: &Rc<Self>, deadline: Duration) {
        let map = self.map();
        let newer = map.epoch() + 1;
        for node in map.nodes().iter().filter(|node| node.id != self.own()) {
            let patience = TRIP_MAX.min(deadline.saturating_sub(rt::now()));
            if self.fetch(node.id, newer, patience).await || self.map().epoch() >= newer {
                return;
            }
        }
        rt::sleep(by_chance(PAUSE_MAX)).await;
    }

    /// Gets the map of `from`, if that is of `epoch` or later; true if it came.
    pub(super) async fn fetch(
        self: &Rc<Self>,
        from: NodeId,
        epoch: u64,
        patience: Duration,
    ) -> bool {
        if self.map().node(from).is_none() {
            // It has joined by that map, so that nobody here knows where it is: the keepers of the
            // map tell.
            let known = Box::pin(self.change(Wish::Know(epoch), WISH_MAX)).await;
            return matches!(known, Outcome::Granted(_));
        }
        let Ok(Said::Map(bytes)) = self.ask(from, Ask::Map(epoch), patience).await else {
            return false;
        };
        match wish::read(&bytes) {
            Some(map) => {
                self.learn(map);
                true
            }
            None => {
                log::warn!("node {} has sent a map that is none", from.0);
                false
            }
        }
    }

    /// A newcomer wants to be let in; or somebody who was let in already says where it is.
    pub(super) async fn on_join(self: &Rc<Self>, bytes: &[u8]) -> Said {
        let Ok(newcomer) = serde_json::from_slice::<Node>(bytes) else {
            return Said::Refused("what it says of itself is not understood".to_owned());
        };
        let map = self.map();
        let mut members = map.nodes().iter();
        if let Some(known) = members.find(|known| known.uuid == newcomer.uuid) {
            return self.on_knock_of_member(known, newcomer).await;
        }
        if self.setup.node.host.is_empty() {
            let why = "the node that was asked does not know under which address others reach it: it needs `announce-host`";
            return Said::Refused(why.to_owned());
        }
        if map.nodes().len() == 1 {
            // It need not have told anybody where it is now.
            let own = Wish::Renew(Box::new(self.setup.node.clone()));
            if let Outcome::TooFew = self.change(own, WISH_MAX).await {
                return Said::Busy;
            }
        }
        match self.change(Wish::Join(Box::new(newcomer)), WISH_MAX).await {
            Outcome::Granted(map) => Said::Map(map.to_json().into()),
            Outcome::Refused(why) => Said::Refused(why),
            Outcome::TooFew => Said::Busy,
        }
    }

    /// Sees to it that it is decided that the cluster holds data; false: it could not be, and none
    /// may be written.
    pub async fn open(self: &Rc<Self>) -> bool {
        matches!(self.change(Wish::Open, WISH_MAX).await, Outcome::Granted(_))
    }

    /// Has this node keep the map, too, if that is of use: it tries until that is so, or not wanted
    /// any more.
    pub(super) fn ask_to_keep(self: &Rc<Self>) {
        let wish = Wish::Keep(self.own());
        let is_wanted = wish.judge(&self.map()) != Verdict::Granted;
        if !is_wanted || self.is_asking_to_keep.replace(true) {
            return;
        }
        let membership = Rc::clone(self);
        drop(rt::spawn(async move {
            while membership.change(wish.clone(), WISH_MAX).await == Outcome::TooFew {
                rt::sleep(LATER + by_chance(LATER / 2)).await;
            }
            membership.is_asking_to_keep.set(false);
        }));
    }

    /// A keeper that has accepted a map of which nobody tells it finds out whether that was
    /// decided: who has proposed it may be gone, and then nobody would know before the next change.
    /// It goes on for as long as the node lives.
    pub(super) async fn settle_what_was_accepted(self: &Rc<Self>) {
        let mut looked_at = Ballot::ZERO;
        loop {
            // Whoever is alone has decided by itself.
            let has_others = || (self.map().nodes().len() > 1).then_some(());
            self.changed.wait_for(has_others).await;
            rt::sleep(LATER + by_chance(LATER / 2)).await;
            let accepted = match &self.record.borrow().keeping {
                Keeping::Register(state) => state.accepted,
                Keeping::Etcd(_) => Ballot::ZERO,
            };
            match accepted > looked_at {
                true if self.is_settled() => looked_at = accepted,
                true => self.find_out().await,
                false => {}
            }
        }
    }

    /// False if this node has accepted, as a keeper, a newer map than it knows.
    pub fn is_settled(&self) -> bool {
        let record = self.record.borrow();
        let Keeping::Register(state) = &record.keeping else {
            return true;
        };
        let accepted = state.value.as_ref().and_then(wish::read);
        accepted.is_none_or(|map| map.epoch() <= self.map().epoch())
    }

    /// Has the keepers tell what is decided, by a wish that changes nothing.
    async fn find_out(self: &Rc<Self>) {
        let _turn = self.proposing.take().await;
        let (wish, deadline) = (Wish::Keep(self.own()), rt::now() + WISH_MAX);
        match self.propose(&wish, &self.map(), deadline).await {
            Ended::Decided(map) => self.learn(*map),
            Ended::Outdated => self.look_for_newer_map(deadline).await,
            Ended::Late | Ended::Hopeless(_) => {}
        }
    }

    /// A node that was away: others may know it under another address, and must hear of this start.
    pub(super) fn come_back(self: &Rc<Self>) {
        let wish = Wish::Renew(Box::new(self.setup.node.clone()));
        if wish.judge(&self.map()) == Verdict::Granted {
            return;
        }
        let membership = Rc::clone(self);
        drop(rt::spawn(async move { membership.insist_on(wish).await }));
    }

    /// Wants something of the map until that is granted: what it says of others may have to change
    /// before.
    pub(super) async fn insist_on(self: &Rc<Self>, wish: Wish) {
        let mut told = String::new();
        loop {
            match self.change(wish.clone(), WISH_MAX).await {
                Outcome::Granted(_) => return,
                Outcome::Refused(why) if why != told => {
                    log::error!("{why}");
                    told = why;
                }
                Outcome::Refused(_) | Outcome::TooFew => {}
            }
            rt::sleep(LATER + by_chance(LATER / 2)).await;
        }
    }
}

fn decided(value: &Bytes) -> Ended {
    match wish::read(value) {
        Some(map) => Ended::Decided(Box::new(map)),
        None => {
            log::error!("what the keepers of the map have decided is no map");
            Ended::Hopeless("the map is damaged".to_owned())
        }
    }
}

/// Some time below `most`.
pub(super) fn by_chance(most: Duration) -> Duration {
    let micros = most.as_micros().max(1) as u64;
    Duration::from_micros(rt::random() % micros)
}
