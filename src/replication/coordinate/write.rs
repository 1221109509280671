//! A write, carried out: barrier, version, all replicas at once, the verdict; hints for those that
//! are away.
//!
//! What is lost on its way is sent again a few times, under the version that it has: an operation
//! is never written under two.

use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use super::{
    Change, Coordinator, Failure, Inbox, Mutation, Placement, Replicas, Written, alarm_at,
};
use crate::cluster::map::Holder;
use crate::replication::quorum::write::{Ack, WriteVerdict};
use crate::replication::quorum::{Level, Replica, WriteQuorum};
use crate::rt::{self, Bug};
use crate::types::{Meta, Version};

/// Between sending something and sending it again.
const RESEND_PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];

/// What has come of a request.
#[derive(Clone, Copy)]
enum Came {
    Direct(Replica, Ack),
    Hint(Replica, Ack),
}

/// A write that has its version.
struct Run<R> {
    coordinator: Rc<Coordinator<R>>,
    placement: Placement,
    mutation: Rc<Mutation>,
    deadline: Duration,
    quorum: WriteQuorum,
    inbox: Rc<Inbox<Came>>,
    /// Requests that nothing has come of yet.
    open: usize,
}

impl<R: Replicas> Coordinator<R> {
    /// Writes `change` at `level`.
    pub async fn write(
        self: &Rc<Self>,
        placement: Placement,
        level: Level,
        change: Change,
        deadline: Duration,
    ) -> Result<Written, Failure> {
        let mut heard = Version::ZERO;
        if level != Level::One {
            let ranking = self.ranking(&placement);
            heard = self.barrier(&placement, &ranking, deadline).await?;
        }
        let ranking = self.ranking(&placement);
        let (quorum, to) = WriteQuorum::start(level, &ranking, self.rules)?;
        let version = Rc::clone(&self.replicas).version(heard);
        let late = async {
            alarm_at(deadline).await;
            None
        };
        let version = future::or(async { Some(version.await) }, late).await;
        let version = version.ok_or(Failure::Failed)?.map_err(Failure::Here)?;
        assert!(
            version > heard,
            "a version is above the clocks of a majority"
        );
        let mut run = Run {
            coordinator: Rc::clone(self),
            placement,
            mutation: Rc::new(change.at(version)),
            deadline,
            quorum,
            inbox: Inbox::new(),
            open: 0,
        };
        to.iter().for_each(|replica| run.send(replica));
        let verdict = run.verdict().await;
        let written = Written {
            version,
            replicas: run.quorum.stored().len() as u8, // at most 16
        };
        run.go_on();
        match verdict {
            WriteVerdict::Met => Ok(written),
            WriteVerdict::Failed => Err(Failure::Failed),
            WriteVerdict::Unknown | WriteVerdict::Wait => Err(Failure::Unknown),
        }
    }

    /// Has `to` store `mutation`, and sends it again if it is lost.
    pub(super) async fn store_at(
        self: Rc<Self>,
        to: Holder,
        mutation: Rc<Mutation>,
        deadline: Duration,
    ) -> Ack {
        let mut pauses = RESEND_PAUSES.into_iter();
        let mut is_in_doubt = false;
        let mut mutation = mutation;
        loop {
            let asked = rt::now();
            let replicas = Rc::clone(&self.replicas);
            match replicas.write(to, Rc::clone(&mutation), deadline).await {
                Ack::Stored => {
                    self.note_write(to.node, asked);
                    return Ack::Stored;
                }
                // That this copy was refused says nothing of the one before.
                Ack::Refused if is_in_doubt => return Ack::Lost,
                Ack::Refused => return Ack::Refused,
                Ack::Lost => is_in_doubt = true,
            }
            match pauses.next() {
                Some(pause) if rt::now() + pause < deadline => rt::sleep(pause).await,
                _ => return Ack::Lost,
            }
            if rt::planted(Bug::Restamped) {
                mutation = self.restamped(&mutation).await;
            }
        }
    }

    /// The bug that [`Bug::Restamped`] plants.
    async fn restamped(&self, mutation: &Mutation) -> Rc<Mutation> {
        let mut copy = mutation.clone();
        if let Ok(version) = Rc::clone(&self.replicas).version(Version::ZERO).await {
            copy.meta.version = version;
        }
        Rc::new(copy)
    }
}

impl<R: Replicas> Run<R> {
    fn send(&mut self, replica: Replica) {
        let (coordinator, inbox) = (Rc::clone(&self.coordinator), Rc::clone(&self.inbox));
        let (to, mutation) = (self.placement.holder(replica), Rc::clone(&self.mutation));
        let deadline = self.deadline;
        self.open += 1;
        rt::spawn(async move {
            let ack = coordinator.store_at(to, mutation, deadline).await;
            inbox.put(Came::Direct(replica, ack));
        });
    }

    /// Asks for the hints that are due by now.
    fn keep_hints(&mut self) {
        for replica in self.quorum.hints().iter() {
            let replicas = Rc::clone(&self.coordinator.replicas);
            let (home, mutation) = (self.placement.holder(replica), Rc::clone(&self.mutation));
            let (inbox, deadline) = (Rc::clone(&self.inbox), self.deadline);
            self.open += 1;
            rt::spawn(async move {
                let ack = replicas.hint(home, mutation, deadline).await;
                inbox.put(Came::Hint(replica, ack));
            });
        }
    }

    fn note(&mut self, came: Came) -> WriteVerdict {
        self.open -= 1;
        match came {
            Came::Direct(replica, ack) => self.quorum.on_ack(replica, ack),
            Came::Hint(replica, ack) => self.quorum.on_hint(replica, ack),
        }
    }

    async fn verdict(&mut self) -> WriteVerdict {
        let mut alarm = std::pin::pin!(alarm_at(self.deadline));
        let inbox = Rc::clone(&self.inbox);
        loop {
            self.keep_hints();
            let verdict = match inbox.next(alarm.as_mut()).await {
                Some(came) => self.note(came),
                None => self.quorum.on_deadline(),
            };
            if verdict != WriteVerdict::Wait {
                return verdict;
            }
        }
    }

    /// What is left to do after the verdict: whoever turns out to have missed the write gets a
    /// hint.
    fn go_on(mut self) {
        self.keep_hints();
        if self.open == 0 {
            return;
        }
        rt::spawn(async move {
            let mut alarm = std::pin::pin!(alarm_at(self.deadline));
            let inbox = Rc::clone(&self.inbox);
            while self.open > 0 {
                match inbox.next(alarm.as_mut()).await {
                    Some(came) => self.note(came),
                    None => break,
                };
                self.keep_hints();
            }
            self.quorum.on_deadline();
            self.keep_hints();
        });
    }
}

impl Change {
    fn at(self, version: Version) -> Mutation {
        let meta = Meta {
            version,
            expiry: match self.value {
                Some(_) => self.expiry,
                None => 0,
            },
            tombstone: self.value.is_none(),
        };
        Mutation {
            meta,
            key: self.key,
            value: self.value.unwrap_or_default(),
        }
    }
}
