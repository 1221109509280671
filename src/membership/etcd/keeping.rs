//! How this node has the map changed that etcd has: read, judge, compare-and-set; and how it hears
//! of changes if nobody tells it.
//!
//! A wish is judged by the map that etcd has, never by an older one. A change whose outcome is
//! unknown is no refusal: the map is read again, and the wish judged by that; wishes count once
//! (`wish`).

use std::rc::Rc;
use std::time::Duration;

use super::{Etcd, Kept, Newer, Swapped, Unknown};
use crate::cluster::map::ClusterMap;
use crate::membership::Membership;
use crate::membership::proposing::{Ended, PAUSE, PAUSE_MAX, by_chance};
use crate::membership::wish::{Verdict, Wish};
use crate::rt::{self, Bug};

/// A node looks for a newer map so often, and half as often again by chance: gossip tells of it
/// sooner, unless who has changed the map has ended at once.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What has come of one attempt.
enum Attempt {
    /// This was decided; whether it grants the wish is for it to say.
    Decided(ClusterMap),
    /// Nothing is known of it.
    Again,
    /// It is of no use to try again.
    Hopeless(String),
}

impl Membership {
    /// Has `wish` carried out by what etcd has, as far as one map goes.
    pub(in crate::membership) async fn change_in_etcd(
        self: &Rc<Self>,
        etcd: &Etcd,
        wish: &Wish,
        deadline: Duration,
    ) -> Ended {
        let mut pause = PAUSE;
        loop {
            match self.try_in_etcd(etcd, wish, deadline).await {
                Attempt::Decided(map) => return Ended::Decided(Box::new(map)),
                Attempt::Hopeless(why) => return Ended::Hopeless(why),
                Attempt::Again if rt::now() >= deadline => return Ended::Late,
                Attempt::Again => {
                    rt::sleep(by_chance(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn try_in_etcd(self: &Rc<Self>, etcd: &Etcd, wish: &Wish, deadline: Duration) -> Attempt {
        let known = self.map();
        let Kept { revision, map } = match etcd.read(deadline).await {
            Ok(Some(kept)) => kept,
            Ok(None) => return Attempt::Hopeless(forgotten(etcd)),
            Err(Unknown::Away) => return Attempt::Again,
            Err(Unknown::NoMap(why)) => return Attempt::Hopeless(why),
        };
        if let Some(why) = mistaken(etcd, &known, &map) {
            return Attempt::Hopeless(why);
        }
        self.learn(map.clone());
        let Verdict::Next(next) = wish.judge(&map) else {
            return Attempt::Decided(map);
        };
        let next = next.authored(rt::random());
        match etcd.swap(revision, &next, deadline).await {
            Swapped::Done => Attempt::Decided(next),
            Swapped::Unknown if rt::planted(Bug::UnknownIsRefused) => {
                Attempt::Hopeless("others have changed the map".to_owned())
            }
            Swapped::Refused | Swapped::Unknown => Attempt::Again,
        }
    }

    /// Looks for newer maps now and then, for as long as the node lives.
    pub(in crate::membership) async fn follow_etcd(self: &Rc<Self>, etcd: &Etcd) {
        let mut told = String::new();
        loop {
            let known = self.map();
            let wrong = match etcd.read_newer(rt::now() + etcd.patience()).await {
                Ok(Newer::Kept(kept)) => {
                    let wrong = mistaken(etcd, &known, &kept.map);
                    if wrong.is_none() {
                        self.learn(kept.map);
                    }
                    wrong
                }
                Ok(Newer::Forgotten) => Some(forgotten(etcd)),
                Ok(Newer::Nothing) | Err(_) => None,
            };
            if let Some(why) = wrong.filter(|why| *why != told) {
                log::error!("{why}");
                told = why;
            }
            rt::sleep(LOOK_EVERY + by_chance(LOOK_EVERY / 2)).await;
        }
    }
}

fn forgotten(etcd: &Etcd) -> String {
    format!(
        "etcd has no map of this cluster under {} any more: the cluster goes on as it is, and cannot be changed before etcd has \
         what it had",
        etcd.key()
    )
}

/// Why `found` cannot be what etcd has, if etcd has forgotten nothing since `known` was decided.
fn mistaken(etcd: &Etcd, known: &ClusterMap, found: &ClusterMap) -> Option<String> {
    let key = etcd.key();
    if found.cluster() != known.cluster() {
        return Some(format!(
            "etcd has the map of another cluster under {key}, {}, not that of {}: the cluster goes on as it is, and cannot be \
             changed",
            found.cluster(),
            known.cluster()
        ));
    }
    (found.epoch() < known.epoch()).then(|| {
        format!(
            "etcd has a map of epoch {} under {key}, and this node knows that of epoch {}: etcd has forgotten what it had. The \
             cluster goes on as it is, and cannot be changed",
            found.epoch(),
            known.epoch()
        )
    })
}
