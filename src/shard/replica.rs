//! What a core does as a replica: stores what coordinators send, says what it holds, tells its
//! clock. (`walk` tells of keys.)
//!
//! A mutation is stored if it is above what the core has of its key, under the key's latch: the
//! order of versions alone decides, not that of arrival, and what comes twice changes nothing. It
//! is `Done` when it is synced, or the newer record that is there instead. A failure says whether
//! the mutation may have been stored. Nothing is begun past the deadline.
//!
//! A core answers only for keys that it holds by the map that it has when it answers: a mutation
//! may have waited for its admission while the cluster formed, and the map that it came by is then
//! another.
//!
//! Records that are deleted or expired are told with their versions: a tombstone is not the absence
//! of a record.

use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::Shard;
use super::latches::Wants;
use crate::cluster::map::NodeId;
use crate::error::Error;
use crate::protocol::peer::{self, Answer, Certainty, Mutation, OwnedAnswer, Request};
use crate::rt::sync::answer_slot;
use crate::rt::{self, Bug};
use crate::storage::record::{KeyRef, Record};
use crate::storage::wal::Admission;
use crate::storage::{Batch, Found, Lookup, Peek, Want};
use crate::types::{Lsn, Meta, Position, UnixMillis};

/// No clock is ever so far ahead: a version beyond would leave none above it.
pub(super) const CLOCK_MAX: u64 = 1 << 63;
pub(super) const TOO_LATE: &str = "the deadline has passed";

/// Where an answer goes.
pub(super) trait Give: FnOnce(&Answer<'_>) + 'static {}

impl<F: FnOnce(&Answer<'_>) + 'static> Give for F {}

/// What became of an attempt to store a mutation at once.
enum Attempt {
    /// It, or a newer record, is in this place of the log.
    Placed(Lsn),
    Refused(Error),
    /// It has to wait; nothing was done.
    Wait,
}

/// A mutation could not be stored.
pub(super) struct Failure(Certainty, String);

impl Failure {
    pub(super) fn not_done(why: impl ToString) -> Failure {
        Failure(Certainty::NotDone, why.to_string())
    }
}

impl Shard {
    /// Answers `request` (Write, Read, Walk, Clock, Hint or Ping) as a replica, from whichever core
    /// or node it comes; `give` is called once, now or later, unless the core ends before. Past
    /// `deadline` (of [`rt::now`]) nothing is begun any more.
    pub fn serve_replica(
        self: &Rc<Self>,
        request: &Request<'_>,
        deadline: Duration,
        give: impl FnOnce(&Answer<'_>) + 'static,
    ) {
        match *request {
            Request::Write(Mutation { key, .. }) | Request::Read { key, .. }
                if self.is_others(Position::of(key)) =>
            {
                give(&Answer::NotMine);
            }
            Request::Write(mutation) => self.store_mutation(mutation, deadline, give),
            Request::Read { key, want, now } => {
                self.tell_record(KeyRef::of(key), (want, now), deadline, give);
            }
            Request::Walk(walk) => self.tell_walk(walk, deadline, give),
            Request::Clock => give(&Answer::Clock(self.clock.borrow().last())),
            Request::Ping => give(&Answer::Pong),
            Request::Hint { node, mutation, .. } => {
                self.serve_hint(NodeId(node), mutation, deadline, give);
            }
            Request::Gossip(_)
            | Request::Register { .. }
            | Request::Map { .. }
            | Request::TakeMap(_)
            | Request::Join(_) => give(&Answer::NotMine),
        }
    }

    /// The same, for whoever waits.
    pub async fn replica_answer(
        self: &Rc<Self>,
        request: &Request<'_>,
        deadline: Duration,
    ) -> OwnedAnswer {
        let (answerer, answer) = answer_slot();
        self.serve_replica(request, deadline, move |answer| {
            answerer.give(OwnedAnswer::new(answer));
        });
        let ended = Answer::failed(Certainty::Unknown, "the core has ended");
        let given = answer.wait().await;
        given.unwrap_or_else(|| OwnedAnswer::new(&ended))
    }

    fn store_mutation(
        self: &Rc<Self>,
        mutation: Mutation<'_>,
        deadline: Duration,
        give: impl Give,
    ) {
        if let Some(why) = self.cannot_be(&mutation) {
            return give(&Answer::failed(Certainty::NotDone, why));
        }
        if rt::now() >= deadline && !rt::planted(Bug::DeadlineIgnored) {
            return give(&Answer::failed(Certainty::NotDone, TOO_LATE));
        }
        self.clock.borrow_mut().observe(mutation.meta.version);
        let key = KeyRef::of(mutation.key);
        let attempt = match self.latches.is_free(key.hash) {
            true => self.attempt_mutation(&key, mutation),
            false => Attempt::Wait,
        };
        match attempt {
            Attempt::Placed(lsn) => self.give_when_synced(lsn, give),
            Attempt::Refused(error) => give_failure(give, &Failure::not_done(error)),
            Attempt::Wait => {
                let latched = self.latches.request(Wants::key(key.hash));
                let record = Record::new(mutation.meta, mutation.key, mutation.value);
                let shard = Rc::clone(self);
                rt::spawn(async move {
                    let placed = shard.apply(record, deadline, latched.granted()).await;
                    drop(latched);
                    match placed {
                        Ok(lsn) => shard.give_when_synced(lsn, give),
                        Err(failure) => give_failure(give, &failure),
                    }
                });
            }
        }
    }

    /// True if what is at `position` has its replicas elsewhere.
    fn is_others(&self, position: Position) -> bool {
        self.is_clustered() && !self.holds(position) && !rt::planted(Bug::StaleMapTaken)
    }

    /// Why a mutation is none that a coordinator sends; the sizes were checked where it came to the
    /// cluster.
    pub(super) fn cannot_be(&self, mutation: &Mutation<'_>) -> Option<&'static str> {
        let limits = &self.config.limits;
        match () {
            () if mutation.key.len() as u64 > limits.key_max.0 => Some("the key is too long here"),
            () if mutation.value.len() as u64 > limits.value_max.0 => {
                Some("the value is too long here")
            }
            () if mutation.meta.version.clock >= CLOCK_MAX => Some("no clock is so far ahead"),
            () => None,
        }
    }

    /// Stores it if nothing has to be waited for. Nobody holds or wants the key's latch.
    fn attempt_mutation(&self, key: &KeyRef<'_>, mutation: Mutation<'_>) -> Attempt {
        let found = match self.store.peek(key, Want::Meta) {
            Peek::Known(found) => found,
            Peek::OnDisk(_) => return Attempt::Wait,
        };
        if let Some(lsn) = is_superseded(found.as_ref(), mutation.meta) {
            return Attempt::Placed(lsn);
        }
        match self.store.admit(key.key.len(), mutation.value.len()) {
            Admission::Ready => {
                let record = Record::new(mutation.meta, key.key, mutation.value);
                Attempt::Placed(self.store.write(key.position, record))
            }
            admission => admission.refusal().map_or(Attempt::Wait, Attempt::Refused),
        }
    }

    /// Stores it when it is its turn, waiting for what must be waited for, but not for the log.
    async fn apply(
        &self,
        record: Record,
        deadline: Duration,
        granted: impl Future<Output = ()>,
    ) -> Result<Lsn, Failure> {
        let key = KeyRef::of(record.key());
        let position = key.position;
        let late = || Failure::not_done(TOO_LATE);
        before(deadline, granted).await.ok_or_else(late)?;
        let found = self.store.get(&key, Want::Meta).await;
        let found = found.map_err(Failure::not_done)?;
        if let Some(lsn) = is_superseded(found.as_ref(), record.meta()) {
            return Ok(lsn);
        }
        let batch = Batch {
            clear: None,
            records: vec![(position, record)],
        };
        let admitted = before(deadline, self.store.wait_admitted(&batch)).await;
        admitted.ok_or_else(late)?.map_err(Failure::not_done)?;
        if self.is_others(position) {
            return Err(Failure::not_done(
                "this core does not hold the key any more",
            ));
        }
        Ok(self.store.write_batch(batch))
    }

    /// `Done` once what is at `lsn` is synced.
    fn give_when_synced(self: &Rc<Self>, lsn: Lsn, give: impl Give) {
        if self.store.is_acknowledged(lsn) || rt::planted(Bug::ReplicaUnsynced) {
            return give(&Answer::Done);
        }
        let shard = Rc::clone(self);
        rt::spawn(async move {
            match shard.store.wait_acknowledged(lsn).await {
                Ok(()) => give(&Answer::Done),
                Err(error) => give(&Answer::failed(Certainty::Unknown, &error.to_string())),
            }
        });
    }

    fn tell_record(
        self: &Rc<Self>,
        key: KeyRef<'_>,
        (want, now): (peer::Want, UnixMillis),
        deadline: Duration,
        give: impl Give,
    ) {
        if rt::now() >= deadline && !rt::planted(Bug::DeadlineIgnored) {
            return give(&Answer::failed(Certainty::NotDone, TOO_LATE));
        }
        let wanted = match want {
            peer::Want::Value => Want::Value,
            peer::Want::Digest => Want::Meta,
        };
        match self.store.peek(&key, wanted) {
            Peek::OnDisk(lookup) => self.tell_from_disk(lookup, key, (want, now), give),
            Peek::Known(found) => {
                let lsn = self.depends_on(found.as_ref());
                if self.store.is_acknowledged(lsn) {
                    return give_held(give, found.as_ref(), (want, now));
                }
                let shard = Rc::clone(self);
                rt::spawn(async move {
                    let synced = shard.store.wait_acknowledged(lsn).await;
                    match synced {
                        Ok(()) => give_held(give, found.as_ref(), (want, now)),
                        Err(error) => give_failure(give, &Failure::not_done(error)),
                    }
                });
            }
        }
    }

    fn tell_from_disk(
        self: &Rc<Self>,
        lookup: Lookup,
        key: KeyRef<'_>,
        wanted: (peer::Want, UnixMillis),
        give: impl Give,
    ) {
        let (shard, key) = (Rc::clone(self), key.key.to_vec());
        rt::spawn(async move {
            let read = async {
                let found = lookup.read(&KeyRef::of(&key)).await?;
                let lsn = shard.depends_on(found.as_ref());
                shard.store.wait_acknowledged(lsn).await?;
                Ok::<_, Error>(found)
            };
            match read.await {
                Ok(found) => give_held(give, found.as_ref(), wanted),
                Err(error) => give_failure(give, &Failure::not_done(error)),
            }
        });
    }
}

/// The place in the log of what is there instead, if that is not below `meta`.
fn is_superseded(found: Option<&Found>, meta: Meta) -> Option<Lsn> {
    let found = found?;
    let is_newer = meta.rank() > found.record.meta().rank();
    let stores_it = is_newer || rt::planted(Bug::OlderOverwrites);
    (!stores_it).then_some(found.lsn)
}

pub(super) fn give_failure(give: impl Give, Failure(certainty, why): &Failure) {
    give(&Answer::failed(*certainty, why));
}

fn give_held(give: impl Give, found: Option<&Found>, (want, now): (peer::Want, UnixMillis)) {
    let Some(found) = found else {
        return give(&Answer::Holds(peer::Held {
            meta: Meta::ABSENT,
            value: None,
        }));
    };
    let view = found.record.view();
    let has_value = want == peer::Want::Value && view.is_live(now);
    give(&Answer::Holds(peer::Held {
        meta: view.meta(),
        value: has_value.then(|| view.value()),
    }));
}

/// What `future` gives before `deadline`.
pub(super) async fn before<T>(deadline: Duration, future: impl Future<Output = T>) -> Option<T> {
    let late = async {
        let left = deadline.saturating_sub(rt::now());
        rt::sleep(left).await;
        None
    };
    future::or(async { Some(future.await) }, late).await
}
