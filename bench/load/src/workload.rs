//! What is asked of the server: kinds of operations, and the mixes of them that have names. Pure.
//!
//! Both are tables: parsing, help, reports and the choice of the next operation read them.

use std::str::FromStr;

use crate::chance::Chance;

/// One kind of operation. `as usize` is its place in [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    Set,
    SetExpiring,
    Insert,
    Delete,
    ReadModifyWrite,
    Increment,
    Lock,
    Unlock,
}

/// What there is to know of a kind.
pub struct KindSpec {
    pub kind: Kind,
    /// In mixes, tables and names of files.
    pub name: &'static str,
    /// Of these keys.
    pub family: Family,
    /// Whether it may be part of a mix: an unlock follows its lock by itself.
    pub is_in_mixes: bool,
}

/// Values, counters and locks have keys of their own: one cannot be taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Values,
    Counters,
    Locks,
}

const fn spec(kind: Kind, name: &'static str, family: Family) -> KindSpec {
    KindSpec {
        kind,
        name,
        family,
        is_in_mixes: !matches!(kind, Kind::Unlock),
    }
}

pub const KINDS: [KindSpec; 9] = [
    spec(Kind::Get, "get", Family::Values),
    spec(Kind::Set, "set", Family::Values),
    spec(Kind::SetExpiring, "setex", Family::Values),
    spec(Kind::Insert, "insert", Family::Values),
    spec(Kind::Delete, "del", Family::Values),
    spec(Kind::ReadModifyWrite, "rmw", Family::Values),
    spec(Kind::Increment, "incr", Family::Counters),
    spec(Kind::Lock, "lock", Family::Locks),
    spec(Kind::Unlock, "unlock", Family::Locks),
];

impl Kind {
    pub fn spec(self) -> &'static KindSpec {
        &KINDS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.spec().name
    }
}

/// Kinds and how often each comes beside the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    /// With the sum of the weights up to its own.
    parts: Vec<(u32, Kind)>,
}

/// Weights of a mix are at most this, so that their sums fit.
const WEIGHT_MAX: u32 = 1_000_000;

impl Mix {
    pub fn draw(&self, chance: &mut Chance) -> Kind {
        if let [(_, only)] = self.parts.as_slice() {
            return *only;
        }
        let sum = self.parts.last().map_or(0, |(sum, _)| *sum);
        let at = chance.below(u64::from(sum)) as u32;
        self.parts[self.parts.partition_point(|(sum, _)| *sum <= at)].1
    }

    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        self.parts.iter().map(|(_, kind)| *kind)
    }

    pub fn has(&self, family: Family) -> bool {
        self.kinds().any(|kind| kind.spec().family == family)
    }
}

impl FromStr for Mix {
    type Err = String;

    /// `get=10,set=1`.
    fn from_str(text: &str) -> Result<Mix, String> {
        let (mut parts, mut sum) = (Vec::new(), 0);
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let is_named = |spec: &&KindSpec| spec.name == name && spec.is_in_mixes;
            let spec = KINDS.iter().find(is_named).ok_or_else(|| {
                let names = KINDS
                    .iter()
                    .filter(|spec| spec.is_in_mixes)
                    .map(|spec| spec.name);
                format!(
                    "`{name}` is none of {}",
                    names.collect::<Vec<_>>().join(", ")
                )
            })?;
            let weight: u32 = weight
                .parse()
                .map_err(|_| format!("`{weight}` is no weight"))?;
            if weight == 0
                || weight > WEIGHT_MAX
                || parts.iter().any(|(_, kind)| *kind == spec.kind)
            {
                return Err(format!("{name}: one weight from 1 to {WEIGHT_MAX}"));
            }
            sum += weight;
            parts.push((sum, spec.kind));
        }
        Ok(Mix { parts })
    }
}

/// Which record comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As the distribution says, for as long as the run lasts.
    Drawn,
    /// Each record once, in no order; then the run is over.
    OnceEach,
}

/// A load that has a name. What it says can be said otherwise on the command line.
pub struct Workload {
    pub name: &'static str,
    pub mix: &'static str,
    pub keys: &'static str,
    pub value: &'static str,
    pub order: Order,
    pub about: &'static str,
}

const fn drawn(names: [&'static str; 4], about: &'static str) -> Workload {
    let [name, mix, keys, value] = names;
    Workload {
        name,
        mix,
        keys,
        value,
        order: Order::Drawn,
        about,
    }
}

const fn once_each(names: [&'static str; 3], about: &'static str) -> Workload {
    let [name, mix, value] = names;
    Workload {
        name,
        mix,
        keys: "uniform",
        value,
        order: Order::OnceEach,
        about,
    }
}

/// YCSB's records have ten fields of 100 bytes; here they are one value. Its workload E is missing:
/// it scans ranges of keys, which servers that order keys by their hash do not have.
pub static WORKLOADS: &[Workload] = &[
    drawn(
        ["mission", "get=10,set=1", "zipf", "10KiB"],
        "10 reads to 1 write of 10 KiB",
    ),
    drawn(["get", "get", "uniform", "100"], "reads"),
    drawn(["set", "set", "uniform", "100"], "writes"),
    drawn(
        ["ycsb-a", "get=50,set=50", "zipf", "1000"],
        "YCSB A: update heavy",
    ),
    drawn(
        ["ycsb-b", "get=95,set=5", "zipf", "1000"],
        "YCSB B: read mostly",
    ),
    drawn(["ycsb-c", "get", "zipf", "1000"], "YCSB C: read only"),
    drawn(
        ["ycsb-d", "get=95,insert=5", "latest", "1000"],
        "YCSB D: read latest",
    ),
    drawn(
        ["ycsb-f", "get=50,rmw=50", "zipf", "1000"],
        "YCSB F: read, modify, write back",
    ),
    once_each(["fill", "set", "100"], "writes each record once"),
    drawn(
        ["overwrite", "set", "uniform", "100"],
        "writes records again",
    ),
    once_each(["delete", "del", "100"], "deletes each record once"),
    drawn(
        ["churn", "get=2,set=1,del=1", "uniform", "100"],
        "writes, deletes, and reads beside them",
    ),
    drawn(
        ["ttl", "setex=1,get=1", "uniform", "100"],
        "values that expire, and reads beside them",
    ),
    drawn(["counters", "incr", "zipf", "100"], "adds one"),
    drawn(
        ["locks", "lock", "zipf", "100"],
        "takes a lock that expires, and releases it if it is ours",
    ),
];

impl Workload {
    pub fn named(name: &str) -> Option<&'static Workload> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Distribution;
    use crate::sizes::Sizes;

    #[test]
    fn kinds_stand_at_their_places_in_the_table() {
        for (place, spec) in KINDS.iter().enumerate() {
            assert_eq!(spec.kind as usize, place, "{}", spec.name);
        }
    }

    #[test]
    fn every_named_workload_is_well_formed() {
        for workload in WORKLOADS {
            let name = workload.name;
            workload
                .mix
                .parse::<Mix>()
                .unwrap_or_else(|why| panic!("{name}: {why}"));
            workload
                .keys
                .parse::<Distribution>()
                .unwrap_or_else(|why| panic!("{name}: {why}"));
            workload
                .value
                .parse::<Sizes>()
                .unwrap_or_else(|why| panic!("{name}: {why}"));
            assert!(std::ptr::eq(
                Workload::named(name).expect("it is named"),
                workload
            ));
        }
    }

    /// A mix that is off measures another load than the one in the table beside the figure.
    #[test]
    fn kinds_come_as_often_as_the_mix_says() {
        let mix: Mix = "get=10,set=1".parse().unwrap();
        let mut chance = Chance::new(5);
        let draws = 110_000;
        let sets = (0..draws)
            .filter(|_| mix.draw(&mut chance) == Kind::Set)
            .count();
        assert!(
            (9_700..10_300).contains(&sets),
            "{sets} of {draws}, 10000 expected"
        );
    }

    #[test]
    fn nonsense_is_no_mix() {
        for wrong in [
            "",
            "get=",
            "get=0",
            "get=1,get=2",
            "unlock",
            "fly=1",
            "get=9999999999",
            "get=1,",
        ] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
    }
}
