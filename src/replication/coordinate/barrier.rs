//! The clock barrier of writes above ONE, and who asks for the clocks on behalf of whom.
//!
//! A holder is asked for its clock once for all writes of a turn: whoever comes before the request
//! is sent joins it. A clock that was asked for before a write began says nothing to that write, so
//! nobody joins later.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::{Coordinator, Failure, Inbox, Placement, Replicas, alarm_at};
use crate::cluster::map::Holder;
use crate::replication::quorum::barrier::BarrierVerdict;
use crate::replication::quorum::{Barrier, Ranking, Replica};
use crate::rt::{self, Bug};
use crate::types::Version;

/// Where what a holder told, or did not, is to go.
type Clocks = Rc<Inbox<(Replica, Option<Version>)>>;

/// By holder: the writes that will hear its clock, while it is not asked yet.
#[derive(Default)]
pub struct Gatherings(RefCell<BTreeMap<Holder, Vec<(Clocks, Replica)>>>);

impl<R: Replicas> Coordinator<R> {
    /// The highest clock of a majority of the holders, each told after this was called.
    pub(super) async fn barrier(
        self: &Rc<Self>,
        placement: &Placement,
        ranking: &Ranking,
        deadline: Duration,
    ) -> Result<Version, Failure> {
        let (mut barrier, asked) = Barrier::start(ranking, self.rules)?;
        if rt::planted(Bug::NoBarrier) {
            return Ok(Version::ZERO);
        }
        let clocks: Clocks = Inbox::new();
        for replica in asked.iter() {
            self.join(
                placement.holder(replica),
                (Rc::clone(&clocks), replica),
                deadline,
            );
        }
        let mut alarm = std::pin::pin!(alarm_at(deadline));
        loop {
            let verdict = match clocks.next(alarm.as_mut()).await {
                Some((replica, Some(clock))) => barrier.on_clock(replica, clock),
                Some((replica, None)) => barrier.on_failure(replica),
                None => barrier.on_deadline(),
            };
            match verdict {
                BarrierVerdict::Wait => {}
                BarrierVerdict::Met { highest } => return Ok(highest),
                BarrierVerdict::Failed => return Err(Failure::Failed),
            }
        }
    }

    /// Has `holder` asked for its clock when this turn is over.
    fn join(self: &Rc<Self>, holder: Holder, who: (Clocks, Replica), deadline: Duration) {
        let mut gatherings = self.gatherings.0.borrow_mut();
        if let Some(waiting) = gatherings.get_mut(&holder) {
            return waiting.push(who);
        }
        gatherings.insert(holder, vec![who]);
        let coordinator = Rc::clone(self);
        rt::spawn(async move {
            rt::after_others().await;
            let gathered = coordinator.gatherings.0.borrow_mut().remove(&holder);
            let asked = rt::now();
            let replicas = Rc::clone(&coordinator.replicas);
            let clock = replicas.clock(holder, deadline).await;
            if clock.is_some() {
                coordinator.note_read(holder.node, asked);
            }
            for (clocks, replica) in gathered.into_iter().flatten() {
                clocks.put((replica, clock));
            }
        });
    }
}
