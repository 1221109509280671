//! This node's part as a keeper of the map, and its file CLUSTER.
//!
//! An answer leaves only after what it says is on disk. If CLUSTER cannot be written and the old
//! one is still there, the request has not happened. If nobody knows which of the two is there,
//! nothing is promised until the next start.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use super::Membership;
use super::record::{Keeping, Place, Record};
use crate::replication::register::format;
use crate::rt::{self, Bug};
use crate::storage::sealed::{self, Unwritten};

/// A keeper waits so long for a map of which it has heard. Less than a proposer waits for it.
const MAP_WAIT_MAX: Duration = Duration::from_millis(500);

impl Membership {
    /// Does what a proposer asks of this keeper; `None`: it cannot, and nothing has changed.
    pub(super) async fn on_register(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let request = format::decode_request(bytes)?;
        if !self.has_map_of(request.set()).await {
            return None;
        }
        let _turn = self.writing.take().await;
        if self.is_broken.get() {
            return None;
        }
        let record = self.record.borrow().clone();
        let mut acceptor = record.acceptor()?;
        let reaction = acceptor.on_request(&request);
        if reaction.is_changed {
            let next = Record {
                keeping: Keeping::Register(acceptor.state().clone()),
                ..record
            };
            if rt::planted(Bug::PromisedUnwritten) {
                self.record.replace(next);
            } else if !self.write(next).await {
                return None;
            }
        }
        Some(format::encode_answer(&reaction.answer))
    }

    /// Waits for the map by which this set keeps the register; whoever runs a round in it has told
    /// that there is a newer one, and it is on its way here. A keeper that took part without it
    /// might be the only one left that has heard of the set, and then nobody could change the map
    /// any more: of those who go by the older one it would take nothing, and of who is in the new
    /// set it knows nothing. False: it does not come.
    async fn has_map_of(&self, set: u64) -> bool {
        let is_there = || (self.map().keepers().set >= set).then_some(());
        let came = async {
            self.changed.wait_for(is_there).await;
            true
        };
        let late = async {
            rt::sleep(MAP_WAIT_MAX).await;
            false
        };
        rt::planted(Bug::SetBeforeMap) || future::or(came, late).await
    }

    /// Writes down the newest map, so that the next start knows it, if nobody else does so first.
    pub(super) async fn keep_known_map(self: Rc<Self>) {
        let _turn = self.writing.take().await;
        let (record, map) = (self.record.borrow().clone(), self.map());
        let Some(Place { node, map: kept }) = record.place.clone() else {
            return;
        };
        if self.is_broken.get() || kept.epoch() >= map.epoch() {
            return;
        }
        let place = Some(Place { node, map });
        self.write(Record { place, ..record }).await;
    }

    /// Writes down a generation that others may hear of; false if it could not be.
    pub(super) async fn keep_generation(&self, generation: u64) -> bool {
        let _turn = self.writing.take().await;
        let record = self.record.borrow().clone();
        if self.is_broken.get() {
            return false;
        }
        self.write(Record {
            generation,
            ..record
        })
        .await
    }

    /// Makes `record` what CLUSTER says. It is the caller's turn.
    async fn write(&self, mut record: Record) -> bool {
        // What is newer in memory goes with it.
        if let Some(place) = &mut record.place {
            place.map = Arc::clone(&self.map.borrow());
        }
        match sealed::write(&self.setup.dir, sealed::CLUSTER, &record.encode()).await {
            Ok(()) => {
                self.record.replace(record);
                true
            }
            Err(Unwritten::Unchanged(error)) => {
                log::warn!("{error}: this node does not take part in changes of the map meanwhile");
                false
            }
            Err(Unwritten::Uncertain(error)) => {
                log::error!(
                    "{error}: this node takes no part in changes of the map before it is started again"
                );
                self.is_broken.set(true);
                false
            }
        }
    }
}
