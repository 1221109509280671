//! Which core does what of a client's commands, and how their replies are made of its parts'. Pure.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::keyspace::position_of;
use super::latches::Wants;
use super::transaction::{WatchState, Work};
use crate::cluster::face::Port;
use crate::cluster::ring::Map;
use crate::protocol::command::{
    Command, KeyCommand, KeyOp, KeysCommand, Merge, StoreCommand, parse,
};
use crate::protocol::reply::{Protocol, Reply};
use crate::protocol::resp::{ArgView, OwnedArgs};
use crate::storage::record::KeyRef;
use crate::types::{CoreId, KeyHash, Position};

/// For whom something is run.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// How to reply.
    pub protocol: Protocol,
    /// Where the client came in: whether "all keys" are the node's or one core's.
    pub port: Port,
}

/// What each core does of some commands of one client.
pub struct Plan {
    /// What each core does.
    pub works: BTreeMap<CoreId, Work>,
    /// Cores that may write.
    pub writers: Vec<CoreId>,
    /// How each command's reply is made, in order.
    pub steps: Vec<Step>,
    /// Whose commands they are.
    pub asker: Asker,
}

/// How one command's reply is made of those of its parts.
pub struct Step {
    /// The core of each part, and the part's number in that core's work.
    parts: Vec<(CoreId, usize)>,
    join: Join,
}

enum Join {
    One,
    Merge(Merge),
    /// Arrays become one array.
    Concat,
    /// The first reply that is no null.
    First,
}

impl Plan {
    /// Says which core does what of `commands`, which core `own` was sent.
    pub fn of(map: &Map, own: CoreId, commands: Vec<OwnedArgs>, asker: Asker) -> Plan {
        let mut plan = Plan {
            works: BTreeMap::new(),
            writers: Vec::new(),
            steps: Vec::new(),
            asker,
        };
        for args in commands {
            let step = match parse(args.view()) {
                Ok(Command::Key(command)) => {
                    let key = KeyRef::of(command.key);
                    let core = map.core_of(key.position);
                    let wants = Wants::key(key.hash);
                    Step::one(plan.add(core, args.clone(), wants, command.op.is_write()))
                }
                Ok(Command::Keys(command)) => plan.take_keys(map, args.view(), &command),
                Ok(Command::Store(command)) => plan.take_store(map, own, &args, &command),
                Ok(Command::Session(_) | Command::Kv(_)) => {
                    unreachable!("these are no part of a transaction")
                }
                // Its reply is the error, which whoever evaluates it will find again.
                Err(_) => {
                    let nothing = Wants::Keys(SmallVec::new());
                    Step::one(plan.add(own, args.clone(), nothing, false))
                }
            };
            plan.steps.push(step);
        }
        plan
    }

    fn take_keys(&mut self, map: &Map, args: ArgView<'_>, command: &KeysCommand<'_>) -> Step {
        let mut parts = Vec::with_capacity(command.len());
        for part in command.parts() {
            let key = KeyRef::of(part.key);
            let core = map.core_of(key.position);
            let single = single_part(args, &part);
            parts.push(self.add(core, single, Wants::key(key.hash), command.is_write()));
        }
        Step {
            parts,
            join: Join::Merge(command.merge()),
        }
    }

    fn take_store(
        &mut self,
        map: &Map,
        own: CoreId,
        args: &OwnedArgs,
        command: &StoreCommand<'_>,
    ) -> Step {
        let cores = match command {
            _ if self.asker.port == Port::Core => vec![own],
            StoreCommand::Scan(scan) => vec![map.core_of(position_of(scan.cursor))],
            StoreCommand::CountInSlot(slot) | StoreCommand::KeysInSlot { slot, .. } => {
                vec![map.core_of(Position::first_of(*slot))]
            }
            _ => (0..map.cores()).map(CoreId).collect(),
        };
        let write = matches!(command, StoreCommand::Flush);
        let add = |core| self.add(core, args.clone(), Wants::Everything, write);
        Step {
            parts: cores.into_iter().map(add).collect(),
            join: Join::of(command),
        }
    }

    fn add(&mut self, core: CoreId, args: OwnedArgs, wants: Wants, write: bool) -> (CoreId, usize) {
        let work = self.work(core, wants);
        work.commands.push(args);
        let index = work.commands.len() - 1;
        if write && !self.writers.contains(&core) {
            self.writers.push(core);
        }
        (core, index)
    }

    /// Adds a watched key to its core's work.
    pub fn watch(&mut self, core: CoreId, key: Vec<u8>, state: WatchState) {
        let wants = Wants::key(KeyHash::of(&key));
        self.work(core, wants).watches.push((key, state));
    }

    /// The work of `core`, which wants these too.
    fn work(&mut self, core: CoreId, wants: Wants) -> &mut Work {
        let asker = self.asker;
        let work = self.works.entry(core).or_insert_with(|| Work::new(asker));
        let before = std::mem::replace(&mut work.wants, Wants::Everything);
        work.wants = before.and(wants);
        work
    }

    /// How many of the commands need another core than `own`.
    pub fn crossing(&self, own: CoreId) -> u64 {
        let crosses = |step: &&Step| step.parts.iter().any(|(core, _)| *core != own);
        self.steps.iter().filter(crosses).count() as u64
    }
}

/// The request that does to one key what `args` does to several.
/// The part `part` of the request `args` as a request of its own.
pub fn single_part(args: ArgView<'_>, part: &KeyCommand<'_>) -> OwnedArgs {
    let mut single = OwnedArgs::new();
    match &part.op {
        KeyOp::Set(set) => {
            single.push(b"SET");
            single.push(part.key);
            single.push(set.value);
        }
        KeyOp::Get => {
            single.push(b"GET");
            single.push(part.key);
        }
        _ => {
            single.push(args.get(0).unwrap_or_default());
            single.push(part.key);
        }
    }
    single
}

impl Join {
    /// How the parts of all cores become one reply.
    fn of(command: &StoreCommand<'_>) -> Join {
        match command {
            StoreCommand::Scan(_)
            | StoreCommand::CountInSlot(_)
            | StoreCommand::KeysInSlot { .. } => Join::One,
            StoreCommand::Keys { .. } => Join::Concat,
            StoreCommand::Size => Join::Merge(Merge::Sum),
            StoreCommand::RandomKey => Join::First,
            StoreCommand::Flush => Join::Merge(Merge::Ok),
        }
    }
}

impl Step {
    fn one(part: (CoreId, usize)) -> Step {
        Step {
            parts: vec![part],
            join: Join::One,
        }
    }

    /// The reply to this command, made of those to its parts.
    pub fn reply(&self, replies: &BTreeMap<CoreId, Vec<Vec<u8>>>, protocol: Protocol) -> Vec<u8> {
        let part = |(core, index): &(CoreId, usize)| -> &[u8] { &replies[core][*index] };
        let mut out = Vec::new();
        match &self.join {
            Join::One => out.extend_from_slice(part(&self.parts[0])),
            Join::Merge(merge) => {
                merge.join(self.parts.iter().map(part), protocol, &mut out);
            }
            Join::Concat => concat(self.parts.iter().map(part), protocol, &mut out),
            Join::First => {
                let null = |reply: &&[u8]| reply.starts_with(b"$-1") || reply.starts_with(b"_");
                let first = self.parts.iter().map(part).find(|reply| !null(reply));
                out.extend_from_slice(first.unwrap_or_else(|| part(&self.parts[0])));
            }
        }
        out
    }
}

/// Makes one array of several.
fn concat<'p>(arrays: impl Iterator<Item = &'p [u8]>, protocol: Protocol, out: &mut Vec<u8>) {
    let mut items = 0;
    let mut bytes = Vec::new();
    for array in arrays {
        let Some(end) = array.windows(2).position(|two| two == b"\r\n") else {
            continue;
        };
        let digits = std::str::from_utf8(&array[1..end]).unwrap_or_default();
        if array[0] != b'*' {
            out.extend_from_slice(array); // an error is the answer
            return;
        }
        items += digits.parse::<usize>().unwrap_or(0);
        bytes.extend_from_slice(&array[end + 2..]);
    }
    let mut reply = Reply::new(out, protocol);
    reply.array(items);
    reply.raw(&bytes);
}
