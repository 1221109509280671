//! A coordinator whose own disk hangs, so that it comes by no version.

use std::rc::Rc;
use std::time::Duration;

use quoit::cluster::map::{Holder, NodeId};
use quoit::error::Result;
use quoit::replication::coordinate::{
    Change, Coordinator, Failure, Held, Mutation, Placement, Question, Replicas,
};
use quoit::replication::quorum::read::Want;
use quoit::replication::quorum::write::Ack;
use quoit::replication::quorum::{Level, Reach, Rules};
use quoit::rt;
use quoit::rt::sim::{self, Options, World};
use quoit::types::{CoreId, Version};

/// Replicas that would store everything, and a clock that never comes.
struct Hung;

impl Replicas for Hung {
    async fn write(self: Rc<Self>, _: Holder, _: Rc<Mutation>, _: Duration) -> Ack {
        Ack::Stored
    }

    async fn read(
        self: Rc<Self>,
        _: Holder,
        _: Rc<Question>,
        _: Want,
        _: Duration,
    ) -> Option<Held> {
        None
    }

    async fn clock(self: Rc<Self>, _: Holder, _: Duration) -> Option<Version> {
        Some(Version::ZERO)
    }

    async fn hint(self: Rc<Self>, _: Holder, _: Rc<Mutation>, _: Duration) -> Ack {
        Ack::Stored
    }

    async fn version(self: Rc<Self>, _: Version) -> Result<Version> {
        std::future::pending().await
    }
}

/// Else every client of a node whose disk hangs would wait for as long as that does, though a
/// majority of others is there.
#[test]
fn a_write_that_gets_no_version_fails_by_its_deadline() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let world = World::new(Options::random(1));
    world.run_on(sim::NodeId(1), async {
        let coordinator = Coordinator::new(Rc::new(Hung), Rules::default());
        for level in [Level::One, Level::Quorum, Level::All] {
            let holder = |node| Holder {
                node: NodeId(node),
                core: CoreId(0),
            };
            let placement: Placement = [(holder(1), Reach::Own), (holder(2), Reach::Own)]
                .into_iter()
                .collect();
            let change = Change {
                key: b"key".to_vec(),
                value: Some(Vec::new()),
                expiry: 0,
            };
            let began = rt::now();
            let written = coordinator.write(placement, level, change, began + PATIENCE);
            let failure = written.await.expect_err("there is no version");
            assert!(matches!(failure, Failure::Failed), "{failure:?}");
            let took = rt::now() - began;
            assert!(PATIENCE <= took && took < PATIENCE * 2, "{took:?}");
        }
    });
}
