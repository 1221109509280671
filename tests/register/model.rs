//! The register with its network as one state, what may happen next, and what must never be.
//!
//! Messages lie in the network until they are dropped: each may be delivered at any time, often, or
//! never. The value of the register is the list of the operations that it has gone through, so that
//! a lost or doubled one shows.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use quoit::replication::register::proposer::{Change, Step, Sticky};
use quoit::replication::register::{
    Acceptor, Answer, Ballot, HolderId, Holders, Mistake, Proposer, Request, State,
};
use smallvec::SmallVec;

/// Longest script.
const OPS_MAX: usize = 16;

/// An operation of a proposer's script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Read,
    /// Always changes the value.
    Append,
    /// Changes it only if nobody has: a compare-and-set on the first epoch.
    First,
    /// Changes it if it is still what it was when this began.
    Join(u16),
    Leave(u16),
}

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Proposer(Mistake),
    /// A holder that restarts knows only what it has accepted.
    PromiseForgotten,
    /// A holder does not remember of which sets it has heard.
    OldSetHeard,
}

/// What one proposer does.
pub struct Part {
    script: Vec<Op>,
    rounds_max: u8,
    last_round: u64,
}

impl Part {
    pub fn of(script: &[Op]) -> Part {
        Part {
            script: script.to_vec(),
            rounds_max: 1,
            last_round: 0,
        }
    }

    /// Each operation may begin so many rounds.
    pub fn rounds(self, rounds_max: u8) -> Part {
        Part { rounds_max, ..self }
    }

    /// It has counted so many rounds already.
    pub fn ahead(self, last_round: u64) -> Part {
        Part { last_round, ..self }
    }
}

/// A case to explore.
pub struct Case {
    holders: u16,
    parts: Vec<Part>,
    crashes_max: u8,
    losses_max: u8,
}

impl Case {
    /// With three holders at first.
    pub fn of(parts: Vec<Part>) -> Case {
        Case {
            holders: 3,
            parts,
            crashes_max: 0,
            losses_max: 1,
        }
    }

    /// So many answers may be lost that somebody waits for.
    pub fn losses(self, losses_max: u8) -> Case {
        Case { losses_max, ..self }
    }

    /// So many proposers, or holders if that is the fault, may restart.
    pub fn crashes(self, crashes_max: u8) -> Case {
        Case {
            crashes_max,
            ..self
        }
    }
}

/// What the register holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Value {
    /// The operations that it has gone through, each by its number.
    history: SmallVec<[u8; 8]>,
    set: u64,
    members: SmallVec<[u16; 5]>,
}

impl Value {
    fn holders(&self) -> Holders {
        let members: Vec<HolderId> = self.members.iter().copied().map(HolderId).collect();
        Holders::new(self.set, &members).expect("a sane set")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Apply {
    op: Op,
    number: u8,
    /// Who holds the register while it is empty.
    first: u16,
}

impl Change for Apply {
    type Value = Value;

    fn apply(&self, current: Option<&Value>) -> Option<Value> {
        let empty = Value {
            history: SmallVec::new(),
            set: 1,
            members: (0..self.first).collect(),
        };
        let mut value = current.cloned().unwrap_or(empty);
        match self.op {
            Op::Read => return None,
            Op::First if !value.history.is_empty() => return None,
            Op::Append | Op::First => {}
            Op::Join(_) | Op::Leave(_) => {
                let holders = match self.op {
                    Op::Join(holder) => value.holders().with(HolderId(holder)),
                    Op::Leave(holder) => value.holders().without(HolderId(holder)),
                    _ => None,
                }?;
                value.set = holders.number();
                value.members = holders.members().iter().map(|holder| holder.0).collect();
            }
        }
        value.history.push(self.number);
        Some(value)
    }

    fn holders(value: &Value) -> Option<Holders> {
        Some(value.holders())
    }

    /// Of every other operation the value tells.
    fn is_in(&self, value: &Value) -> Option<bool> {
        let does_tell = self.number.is_multiple_of(2);
        does_tell.then(|| value.history.contains(&self.number))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Packet {
    /// Whose operation it belongs to.
    number: u8,
    proposer: u8,
    holder: u16,
    body: Body,
}

/// In the network: with its hash, which is computed once.
#[derive(Clone, Debug)]
struct Posted {
    print: u64,
    packet: Rc<Packet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Body {
    Request(Request<Value>),
    Answer(Answer<Value>),
}

/// One that changes and reads, and what it knows.
#[derive(Clone, Debug, Hash)]
struct Slot {
    script: SmallVec<[Op; 4]>,
    /// The operation under way, and its number.
    work: Option<(u8, Proposer<Apply>)>,
    rounds: u8,
    rounds_max: u8,
    last: Ballot,
    sticky: Option<Sticky<Value>>,
    holders: Holders,
    /// What was decided when the operation began.
    floor: SmallVec<[u8; 8]>,
}

#[derive(Clone)]
struct Model {
    acceptors: Vec<Rc<Acceptor<Value>>>,
    slots: Vec<Rc<Slot>>,
    network: Vec<Posted>,
    /// Answers lie in the network, too. Else one comes at once or never, which shows no less: a
    /// proposer that hears later sends later, and what it sends may be late as well; and it counts
    /// answers in whatever order they come.
    is_slow: bool,
    crashes: u8,
    losses: u8,
    first: u16,
    /// Each round that got as far as to propose: in which set, what, and who has accepted it.
    rounds: Vec<(Ballot, Rc<Round>)>,
    /// Operations that failed for certain.
    failed: SmallVec<[u8; 8]>,
}

#[derive(Clone, Hash)]
struct Round {
    holders: Holders,
    value: Option<Value>,
    accepted: SmallVec<[u16; 5]>,
}

impl Round {
    fn is_decided(&self) -> bool {
        2 * self.accepted.len() > self.holders.members().len()
    }

    fn history(&self) -> &[u8] {
        self.value.as_ref().map_or(&[], |value| &value.history)
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Begin(usize),
    /// Begins without what the last operation has left.
    BeginAnew(usize),
    Retry(usize),
    /// A proposer restarts, and has forgotten everything.
    Crash(usize),
    /// A holder restarts, and has forgotten what the fault says.
    Restart(usize),
    /// A proposer hears of the newest holders.
    Learn(usize),
    Deliver(usize),
    /// And the answer is lost.
    DeliverInVain(usize),
}

type Verdict = Result<(), String>;

impl Model {
    fn new(case: &Case, spare: u16) -> Model {
        let holders = case.holders;
        assert!(case.parts.iter().all(|part| part.script.len() <= OPS_MAX));
        let members: Vec<HolderId> = (0..holders).map(HolderId).collect();
        let first = Holders::new(1, &members).expect("a sane set");
        let slot = |(number, part): (usize, &Part)| Slot {
            script: part.script.iter().copied().rev().collect(),
            work: None,
            rounds: 0,
            rounds_max: part.rounds_max,
            last: Ballot {
                round: part.last_round,
                proposer: number as u32 + 1,
            },
            sticky: None,
            holders: first.clone(),
            floor: SmallVec::new(),
        };
        Model {
            acceptors: (0..holders + spare)
                .map(|_| Rc::new(Acceptor::new(State::default())))
                .collect(),
            slots: case
                .parts
                .iter()
                .enumerate()
                .map(slot)
                .map(Rc::new)
                .collect(),
            network: Vec::new(),
            is_slow: false,
            crashes: 0,
            losses: 0,
            first: holders,
            rounds: Vec::new(),
            failed: SmallVec::new(),
        }
    }

    fn events(&self, case: &Case, fault: Option<Fault>, events: &mut Vec<Event>) {
        for (index, slot) in self.slots.iter().enumerate() {
            match &slot.work {
                None if slot.script.is_empty() => {}
                None => {
                    events.push(Event::Begin(index));
                    if slot.sticky.is_some() {
                        events.push(Event::BeginAnew(index));
                    }
                }
                Some(_) => {
                    if slot.rounds < slot.rounds_max {
                        events.push(Event::Retry(index));
                    }
                    if self.crashes < case.crashes_max {
                        events.push(Event::Crash(index));
                    }
                }
            }
            let newest = self.newest_holders();
            if slot.work.is_none() && newest.is_some_and(|newest| newest != slot.holders) {
                events.push(Event::Learn(index));
            }
        }
        if fault == Some(Fault::PromiseForgotten) && self.crashes < case.crashes_max.max(1) {
            events.extend((0..self.acceptors.len()).map(Event::Restart));
        }
        for (index, Posted { packet, .. }) in self.network.iter().enumerate() {
            events.push(Event::Deliver(index));
            if !self.is_slow && self.losses < case.losses_max && self.is_awaited(packet) {
                events.push(Event::DeliverInVain(index));
            }
        }
    }

    /// True if an answer to this could be of use.
    fn is_awaited(&self, packet: &Packet) -> bool {
        let work = self.slots[usize::from(packet.proposer)].work.as_ref();
        work.is_some_and(|(number, proposer)| {
            let of_round = match &packet.body {
                Body::Request(Request::Prepare { ballot, .. } | Request::Accept { ballot, .. }) => {
                    Some(*ballot)
                }
                Body::Answer(
                    Answer::Promised { ballot, .. }
                    | Answer::Accepted { ballot, .. }
                    | Answer::Refused { ballot, .. },
                ) => Some(*ballot),
                Body::Request(Request::Read { .. })
                | Body::Answer(Answer::Holds { .. } | Answer::Outdated { .. }) => None,
            };
            *number == packet.number && of_round.is_none_or(|ballot| ballot == proposer.ballot())
        })
    }

    /// Of the last value that was decided.
    fn newest_holders(&self) -> Option<Holders> {
        let mut newest_first = self.rounds.iter().rev();
        let (_, decided) = newest_first.find(|(_, round)| round.is_decided())?;
        decided.value.as_ref().map(Value::holders)
    }

    fn decided(&self) -> &[u8] {
        let decided = self.rounds.iter().filter(|(_, round)| round.is_decided());
        let histories = decided.map(|(_, round)| round.history());
        histories
            .max_by_key(|history| history.len())
            .unwrap_or_default()
    }

    fn step(&mut self, event: Event, fault: Option<Fault>) -> Verdict {
        match event {
            Event::Begin(index) => self.begin(index, true, fault),
            Event::BeginAnew(index) => self.begin(index, false, fault),
            Event::Retry(index) => self.work(index, |slot, proposer| {
                slot.rounds += 1;
                proposer.retry()
            }),
            Event::Crash(index) => {
                self.crashes += 1;
                let slot = Rc::make_mut(&mut self.slots[index]);
                slot.last.round = 0;
                slot.sticky = None;
                self.give_up(index);
                Ok(())
            }
            Event::Restart(index) => {
                self.crashes += 1;
                let state = self.acceptors[index].state().clone();
                let promised = state.accepted;
                self.acceptors[index] = Rc::new(Acceptor::new(State { promised, ..state }));
                Ok(())
            }
            Event::Learn(index) => {
                let newest = self.newest_holders().expect("something was decided");
                Rc::make_mut(&mut self.slots[index]).holders = newest;
                Ok(())
            }
            Event::DeliverInVain(index) => {
                self.losses += 1;
                let packet = Rc::clone(&self.network[index].packet);
                match &packet.body {
                    Body::Request(request) => self.deliver(&packet, request, fault).map(|_| ()),
                    Body::Answer(_) => Ok(()),
                }
            }
            Event::Deliver(index) => {
                let packet = Rc::clone(&self.network[index].packet);
                match &packet.body {
                    Body::Request(request) => {
                        let answer = self.deliver(&packet, request, fault)?;
                        self.answer(&packet, answer)
                    }
                    // It may come again if the request does.
                    Body::Answer(answer) => {
                        self.network.remove(index);
                        self.hear(&packet, answer.clone())
                    }
                }
            }
        }
    }

    fn begin(&mut self, index: usize, may_stick: bool, fault: Option<Fault>) -> Verdict {
        let floor = self.decided().iter().copied().collect();
        let slot = Rc::make_mut(&mut self.slots[index]);
        slot.floor = floor;
        let change = Apply {
            op: slot.script.pop().expect("there is one left"),
            // Unlike that of any other.
            number: (index * OPS_MAX + slot.script.len()) as u8,
            first: self.first,
        };
        let number = change.number;
        let (holders, last) = (slot.holders.clone(), slot.last);
        let (proposer, request) = match slot.sticky.take().filter(|_| may_stick) {
            Some(sticky) => Proposer::stick(change, holders, sticky),
            None if change.op == Op::Read => Proposer::read(change, holders, last),
            None => Proposer::change(change, holders, last),
        };
        let mistake = match fault {
            Some(Fault::Proposer(mistake)) => Some(mistake),
            _ => None,
        };
        slot.rounds = 1;
        slot.work = Some((number, proposer.with_mistake(mistake)));
        self.send(index, request)
    }

    /// Lets a proposer do something, and does what it says.
    fn work(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Slot, &mut Proposer<Apply>) -> Step<Value>,
    ) -> Verdict {
        let slot = Rc::make_mut(&mut self.slots[index]);
        let Some((number, mut proposer)) = slot.work.take() else {
            return Ok(());
        };
        let step = act(slot, &mut proposer);
        let sticky = proposer.sticky();
        slot.last = proposer.last();
        slot.work = Some((number, proposer));
        match step {
            Step::Wait | Step::Overtaken => Ok(()),
            Step::Send(request) => self.send(index, request),
            Step::Changed(value) => {
                slot.holders = value.holders();
                let is_in = value.history.contains(&number);
                if !is_in {
                    return Err(format!("{number} says that it has changed {value:?}"));
                }
                self.conclude(index, Some(value), sticky)
            }
            Step::Kept(value) => self.conclude(index, value, sticky),
            Step::Moved(value) => {
                slot.holders = value.holders();
                self.give_up_checked(index, Some(value))
            }
            Step::Outdated(_) | Step::InDoubt(_) => {
                self.give_up(index);
                Ok(())
            }
        }
    }

    fn send(&mut self, index: usize, request: Request<Value>) -> Verdict {
        let (number, proposer) = self.slots[index].work.as_ref().expect("it is at work");
        let (number, holders) = (*number, proposer.holders().clone());
        if let Request::Accept { ballot, value, .. } = &request {
            let place = match self
                .rounds
                .binary_search_by_key(ballot, |(ballot, _)| *ballot)
            {
                Ok(place) => place,
                Err(place) => {
                    let round = Round {
                        holders: holders.clone(),
                        value: value.clone(),
                        accepted: SmallVec::new(),
                    };
                    self.rounds.insert(place, (*ballot, Rc::new(round)));
                    place
                }
            };
            let (_, round) = &self.rounds[place];
            if round.value != *value {
                return Err(format!(
                    "{ballot:?} has two values, {:?} and {value:?}",
                    round.value
                ));
            }
        }
        for holder in holders.members() {
            self.post(Packet {
                number,
                proposer: index as u8,
                holder: holder.0,
                body: Body::Request(request.clone()),
            });
        }
        Ok(())
    }

    fn post(&mut self, packet: Packet) {
        let print = hash(&packet);
        if let Err(place) = self
            .network
            .binary_search_by_key(&print, |posted| posted.print)
        {
            let packet = Rc::new(packet);
            self.network.insert(place, Posted { print, packet });
        }
    }

    fn answer(&mut self, request: &Packet, answer: Answer<Value>) -> Verdict {
        if !self.is_slow {
            return self.hear(request, answer);
        }
        self.post(Packet {
            body: Body::Answer(answer),
            ..request.clone()
        });
        Ok(())
    }

    fn hear(&mut self, packet: &Packet, answer: Answer<Value>) -> Verdict {
        let index = usize::from(packet.proposer);
        let work = self.slots[index].work.as_ref();
        if work.is_none_or(|(number, _)| *number != packet.number) {
            return Ok(());
        }
        let holder = HolderId(packet.holder);
        self.work(index, |_, proposer| proposer.on_answer(holder, answer))
    }

    fn deliver(
        &mut self,
        packet: &Packet,
        request: &Request<Value>,
        fault: Option<Fault>,
    ) -> Result<Answer<Value>, String> {
        let index = usize::from(packet.holder);
        if fault == Some(Fault::OldSetHeard) {
            let state = self.acceptors[index].state().clone();
            self.acceptors[index] = Rc::new(Acceptor::new(State { set: 0, ..state }));
        }
        let reaction = Rc::make_mut(&mut self.acceptors[index]).on_request(request);
        if let (Request::Accept { ballot, .. }, Answer::Accepted { .. }) =
            (request, &reaction.answer)
        {
            let place = self
                .rounds
                .binary_search_by_key(ballot, |(ballot, _)| *ballot);
            let (_, round) = &mut self.rounds[place.expect("it was sent")];
            if !round.accepted.contains(&packet.holder) {
                let round = Rc::make_mut(round);
                round.accepted.push(packet.holder);
                round.accepted.sort_unstable();
                let round = round.clone();
                self.judge(*ballot, &round)?;
            }
        }
        Ok(reaction.answer)
    }

    /// Every decided value has grown out of the one that was decided before.
    fn judge(&self, ballot: Ballot, round: &Round) -> Verdict {
        if !round.is_decided() {
            return Ok(());
        }
        let history = round.history();
        let is_twice = |at: usize| history[..at].contains(&history[at]);
        if (0..history.len()).any(is_twice) {
            return Err(format!("an operation counts twice in {history:?}"));
        }
        if let Some(failed) = history.iter().find(|number| self.failed.contains(number)) {
            return Err(format!("{failed} had failed and is in {history:?}"));
        }
        let others = self.rounds.iter().filter(|(_, round)| round.is_decided());
        for (other, decided) in others {
            let (old, new) = match *other < ballot {
                true => (decided.history(), history),
                false => (history, decided.history()),
            };
            if !new.starts_with(old) {
                return Err(format!("{old:?} was decided, and then {new:?}"));
            }
        }
        Ok(())
    }

    /// An operation ends with a decided value, which is not older than what was decided when it
    /// began.
    fn conclude(
        &mut self,
        index: usize,
        value: Option<Value>,
        sticky: Option<Sticky<Value>>,
    ) -> Verdict {
        Rc::make_mut(&mut self.slots[index]).sticky = sticky;
        self.give_up_checked(index, value)
    }

    fn give_up_checked(&mut self, index: usize, value: Option<Value>) -> Verdict {
        let history = value.as_ref().map_or(&[][..], |value| &value.history);
        let is_it = |round: &Round| round.is_decided() && round.value == value;
        if value.is_some() && !self.rounds.iter().any(|(_, round)| is_it(round)) {
            return Err(format!("{history:?} was told, and was not decided"));
        }
        let floor = &self.slots[index].floor;
        if !history.starts_with(floor) {
            return Err(format!("{history:?} was told after {floor:?} was decided"));
        }
        self.give_up(index);
        Ok(())
    }

    /// Nothing of what is still under way for it matters any more, but what holders may yet accept.
    fn give_up(&mut self, index: usize) {
        let slot = Rc::make_mut(&mut self.slots[index]);
        let Some((number, proposer)) = slot.work.take() else {
            return;
        };
        if !proposer.is_in_doubt() {
            self.failed.push(number);
            self.failed.sort_unstable();
        }
    }

    /// Takes away what can change nothing, so that states that differ in it only are the same.
    fn tidy(&mut self) {
        let mut network = std::mem::take(&mut self.network);
        network.retain(|Posted { packet, .. }| {
            let state = self.acceptors[usize::from(packet.holder)].state();
            let may_change = match &packet.body {
                Body::Request(Request::Prepare { set, ballot }) => {
                    *set > state.set || (*set == state.set && *ballot > state.promised)
                }
                Body::Request(Request::Accept { set, ballot, .. }) => {
                    *set > state.set || (*set == state.set && *ballot >= state.promised)
                }
                Body::Answer(_) | Body::Request(Request::Read { .. }) => false,
            };
            may_change || self.is_awaited(packet)
        });
        self.network = network;
    }

    fn print(&self) -> u64 {
        let mut hasher = Mixer(self.network.len() as u64);
        self.acceptors.hash(&mut hasher);
        self.slots.hash(&mut hasher);
        self.rounds.hash(&mut hasher);
        self.failed.hash(&mut hasher);
        hasher.write_u8(self.crashes);
        hasher.write_u8(self.losses);
        self.network
            .iter()
            .for_each(|posted| hasher.write_u64(posted.print));
        hasher.finish()
    }
}

/// A quick hash; what it takes for the same state in error, once in millions of millions, is not
/// explored.
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let product =
            u128::from(self.0 ^ value ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        self.0 = (product as u64 ^ (product >> 64) as u64).rotate_left(23);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut mixer = Mixer(1);
    value.hash(&mut mixer);
    mixer.finish()
}

/// How an exploration ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Sound,
    Broken(String),
    TooMuch,
}

/// The events that led to a state.
struct Path {
    event: Event,
    before: Option<Rc<Path>>,
}

/// Goes through every state that can be reached, but for those beyond `states_max`, and tells how
/// many there are.
pub fn explore(case: &Case, fault: Option<Fault>, states_max: usize) -> (usize, Found) {
    let mut seen: HashSet<u64> = HashSet::new();
    let mut events = Vec::new();
    let mut stack = vec![(Model::new(case, 1), None::<Rc<Path>>)];
    while let Some((model, path)) = stack.pop() {
        events.clear();
        model.events(case, fault, &mut events);
        for &event in &events {
            let mut next = model.clone();
            let before = path.clone();
            if let Err(why) = next.step(event, fault) {
                return (seen.len(), Found::Broken(tell(why, Path { event, before })));
            }
            next.tidy();
            if seen.insert(next.print()) {
                stack.push((next, Some(Rc::new(Path { event, before }))));
            }
        }
        if seen.len() > states_max {
            return (seen.len(), Found::TooMuch);
        }
    }
    (seen.len(), Found::Sound)
}

fn tell(why: String, path: Path) -> String {
    let mut events = vec![format!("{:?}", path.event)];
    let mut before = path.before;
    while let Some(path) = before {
        events.push(format!("{:?}", path.event));
        before = path.before.clone();
    }
    events.reverse();
    format!("{why}\n  {}", events.join(" "))
}

/// What a walk came to.
pub struct Walked {
    pub decided: usize,
    pub sets: u64,
}

/// One long case, by chance.
pub fn walk(seed: u64, fault: Option<Fault>) -> Result<Walked, String> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let holders = [3, 3, 5][chance.usize(..3)];
    let proposers = chance.usize(1..5);
    let does_move = holders == 3 && chance.bool();
    let length = chance.usize(2..12);
    let part = |_| {
        let script: Vec<Op> = (0..length).map(|_| op(&mut chance, does_move)).collect();
        Part::of(&script).rounds(20)
    };
    let parts: Vec<Part> = (0..proposers).map(part).collect();
    let case = Case {
        holders,
        ..Case::of(parts).crashes([0, 3, 30][chance.usize(..3)])
    };
    let mut model = Model::new(&case, 2);
    model.is_slow = true;
    let loss = [0.01, 0.1, 0.3][chance.usize(..3)];
    let mut events = Vec::new();
    for _ in 0..4_000 {
        events.clear();
        model.events(&case, fault, &mut events);
        let is_delivery = |event: &Event| matches!(event, Event::Deliver(_));
        // Mostly messages; the newest as often as all others.
        let deliveries = events.iter().filter(|event| is_delivery(event)).count();
        let others = events.len() - deliveries;
        let event = match chance.u8(..16) {
            0 if others > 0 => events[chance.usize(..others)],
            _ if deliveries > 0 => events[others + chance.usize(..deliveries)],
            _ if others > 0 => events[chance.usize(..others)],
            _ => break,
        };
        model.step(event, fault)?;
        model.tidy();
        if chance.f64() < loss && !model.network.is_empty() {
            let index = chance.usize(..model.network.len());
            model.network.remove(index);
        }
    }
    Ok(Walked {
        decided: model.decided().len(),
        sets: model
            .newest_holders()
            .map_or(0, |holders| holders.number() - 1),
    })
}

fn op(chance: &mut fastrand::Rng, does_move: bool) -> Op {
    match chance.u8(..10) {
        0..3 => Op::Read,
        3 => Op::First,
        4..7 if does_move && chance.bool() => Op::Join(chance.u16(..5)),
        4..7 if does_move => Op::Leave(chance.u16(..5)),
        _ => Op::Append,
    }
}
