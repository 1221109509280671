//! The engines that Quoit is compared with, each driven by as many threads as there are workers.
//!
//! They get the same memory in all: memtables and caches together, as Quoit's budget holds its own.
//! What else is set is what their manuals advise for large values and durable writes;
//! bench/engines/README.md lists it.

mod fjall_engine;
mod rocksdb_engine;

use std::sync::Arc;
use std::time::Instant;

use crate::content::key;
use crate::engine::{Engine, EngineName, Facts, Setup};
use crate::failure::{Failure, Outcome};
use crate::phase::{Phase, Recorder, Worker, prepare_put};
use crate::stream::Kind;

/// Memtables that there may be at once, as in Quoit.
const MEMTABLES_MAX: u64 = 3;
/// A memtable is at most this large, for each core, and this part of the memory.
const MEMTABLE_BYTES: u64 = 64 << 20;
const MEMTABLE_SHARE: u64 = 8;

/// How the memory is divided.
#[derive(Clone, Copy, Debug)]
struct Memory {
    memtable: u64,
    cache: u64,
}

impl Memory {
    fn of(setup: &Setup) -> Memory {
        let memtable = (MEMTABLE_BYTES * u64::from(setup.cores)).min(setup.memory / MEMTABLE_SHARE);
        Memory {
            memtable,
            cache: setup.memory - MEMTABLES_MAX * memtable,
        }
    }
}

/// What threads call.
trait Peer: Send + Sync {
    /// Writes a record; returns when it is durable if `synced`.
    fn put(&self, key: &[u8], value: &[u8], synced: bool) -> Outcome<()>;

    /// Reads one, and has `check` look at its value.
    fn get(&self, key: &[u8], check: &mut dyn FnMut(Option<&[u8]>)) -> Outcome<()>;

    /// Makes durable what was written without that.
    fn sync(&self) -> Outcome<()>;

    /// What it tells of itself.
    fn facts(&self) -> Facts;
}

struct Threads(Box<dyn Peer>);

/// Opens `peer`.
pub fn open(setup: &Setup, peer: EngineName) -> Outcome<Box<dyn Engine>> {
    std::fs::create_dir_all(&setup.dir)?;
    let memory = Memory::of(setup);
    let peer: Box<dyn Peer> = match peer {
        EngineName::Quoit => return Err(Failure::new("quoit is no peer of itself")),
        EngineName::Rocksdb => Box::new(rocksdb_engine::Rocks::open(setup, memory)?),
        EngineName::Fjall => Box::new(fjall_engine::Fjall::open(setup, memory, false)?),
        EngineName::FjallSeparated => Box::new(fjall_engine::Fjall::open(setup, memory, true)?),
    };
    Ok(Box::new(Threads(peer)))
}

impl Engine for Threads {
    fn lanes(&self) -> usize {
        1
    }

    fn run(&mut self, phase: &Arc<Phase>) -> Outcome<()> {
        let count = phase.spec.workers;
        std::thread::scope(|scope| {
            for index in 0..count {
                let worker = Worker::new(phase, index, count, 0);
                scope.spawn(|| work(&*self.0, phase, worker));
            }
        });
        match phase.spec.measured {
            true => Ok(()),
            false => self.0.sync(),
        }
    }

    fn facts(&mut self) -> Outcome<Facts> {
        Ok(self.0.facts())
    }

    fn close(self: Box<Self>) -> Outcome<()> {
        self.0.sync()
    }
}

fn work(peer: &dyn Peer, phase: &Arc<Phase>, mut worker: Worker) {
    let mut recorder = Recorder::new(phase);
    let mut value = Vec::new();
    while let Some(operation) = worker.next(&|_| true) {
        let begun = match operation.due {
            Some(due) => {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due
            }
            None => Instant::now(),
        };
        let number = operation.number;
        let done = match operation.kind {
            Kind::Put => {
                let ticket = prepare_put(phase, number, &mut value);
                let put = peer.put(&key(number), &value, phase.spec.measured);
                put.inspect(|()| phase.ledger.acknowledged(number, ticket, false))
            }
            Kind::Get => {
                let floor = phase.ledger.floor(number);
                peer.get(&key(number), &mut |value| phase.check(number, floor, value))
            }
        };
        match done {
            Ok(()) => recorder.note(operation.kind, begun),
            Err(failure) => phase.fail(&failure),
        }
    }
}
