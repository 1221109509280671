//! Cluster clients: each keeps a map of who owns which slots, sends every command to that core's
//! own port, and follows MOVED where its map is an old one, as it is after a start with other
//! cores.
//!
//! Each client writes keys of its own, in pairs that one transaction or one MSET sets; so it knows
//! what they may hold. What is checked: an owner serves its keys and nobody else does, a map of
//! this life is never wrong, an old one leads to the owner by one MOVED, the cores have all keys
//! between them, and no command crosses cores.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

use quoit::types::Slot;

use crate::cluster::{Client, Life, Reply, Request, Verdict, request};

/// Pairs of keys of each client.
const PAIRS: usize = 12;
/// A client gives a command up after so many attempts: the node is going down, or is not up yet.
const ATTEMPTS_MAX: usize = 10;

/// What all clients know together, over all lives.
pub struct Sight {
    /// Commands that were answered.
    pub answered: u64,
    /// Commands that an old map sent to the wrong core.
    pub redirected: u64,
    made: u64,
    /// By client: its map, which it keeps from one life to the next.
    maps: Vec<Option<Map>>,
    /// By pair: what its keys may hold, both the same; the first is what was last acknowledged.
    pairs: BTreeMap<String, Vec<Option<u64>>>,
}

/// A shared one.
pub type Shared = Rc<RefCell<Sight>>;

/// Ranges of slots, each with its owner's address.
type Map = Vec<((u16, u16), SocketAddr)>;

impl Sight {
    /// Nothing was done yet.
    pub fn new(clients: usize) -> Shared {
        let pairs = (0..clients).flat_map(|client| (0..PAIRS).map(move |pair| tag(client, pair)));
        Rc::new(RefCell::new(Sight {
            answered: 0,
            redirected: 0,
            made: 0,
            maps: vec![None; clients],
            pairs: pairs.map(|pair| (pair, vec![None])).collect(),
        }))
    }

    fn intend(&mut self, pair: &str) -> u64 {
        self.made += 1;
        let made = self.made;
        self.possible(pair).push(Some(made));
        made
    }

    fn possible(&mut self, pair: &str) -> &mut Vec<Option<u64>> {
        self.pairs.get_mut(pair).expect("pairs are known")
    }

    fn settle(&mut self, pair: &str, value: Option<u64>) {
        *self.possible(pair) = vec![value];
    }
}

fn tag(client: usize, pair: usize) -> String {
    format!("{{{client}:{pair}}}")
}

fn keys(pair: &str) -> [String; 2] {
    [format!("{pair}a"), format!("{pair}b")]
}

/// A new life: each core's port has its own keys, and each of them holds what it may.
pub async fn begin(sight: Shared, mut client: Client) -> Verdict {
    let slots = client.must(&[request(["CLUSTER", "SLOTS"])]).await?;
    let map = read_map(slots[0].clone())?;
    let mut sizes = 0;
    let mut met = BTreeSet::new();
    for (_, address) in &map {
        let mut core = Client::of(client.life(), *address);
        let size = core.must(&[request(["DBSIZE"])]).await?;
        sizes += size[0].number()?;
        let own = scan(&mut core).await?;
        for key in &own {
            let home = owner(&map, Slot::of(key));
            if home != *address {
                return Err(format!(
                    "{} is shown by {address}",
                    String::from_utf8_lossy(key)
                ));
            }
        }
        let before = met.len();
        met.extend(own.iter().cloned());
        if met.len() - before != own.len() || size[0].number()? != own.len() as i64 {
            return Err(format!("{address} shows a key twice, or counts otherwise"));
        }
    }
    let all = client.must(&[request(["DBSIZE"])]).await?[0].number()?;
    if all != sizes || met != scan(&mut client).await? {
        return Err(format!("{sizes} keys of the cores are {all} of the node"));
    }
    let pairs: Vec<String> = sight.borrow().pairs.keys().cloned().collect();
    let known: BTreeSet<Vec<u8>> = pairs
        .iter()
        .flat_map(|pair| keys(pair).map(Into::into))
        .collect();
    if let Some(key) = met.difference(&known).next() {
        return Err(format!(
            "{} was refused, and is there",
            String::from_utf8_lossy(key)
        ));
    }
    for pair in pairs {
        let [one, other] = keys(&pair);
        let address = owner(&map, Slot::of(pair.as_bytes()));
        let mut core = Client::of(client.life(), address);
        let replies = core.must(&[request(["MGET", &one, &other])]).await?;
        let value = judge_pair(&mut sight.borrow_mut(), &pair, replies)?;
        if met.contains(one.as_bytes()) != value.is_some() {
            return Err(format!("{one} holds {value:?}, and SCAN shows otherwise"));
        }
        sight.borrow_mut().settle(&pair, value);
    }
    let mut shared = Client::new(client.life());
    shared.must(&[request(["CONFIG", "RESETSTAT"])]).await?;
    Ok(())
}

/// The value of both keys of a pair, if it is one that they may hold.
fn judge_pair(sight: &mut Sight, pair: &str, mut replies: Vec<Reply>) -> Verdict<Option<u64>> {
    let reply = replies.pop().ok_or("no reply to MGET")?;
    let values = reply.items()?.into_iter().map(Reply::value);
    let values: Vec<Option<Vec<u8>>> = values.collect::<Verdict<_>>()?;
    let number = |value: &Option<Vec<u8>>| {
        let text = String::from_utf8_lossy(value.as_deref()?).into_owned();
        text.parse::<u64>().ok()
    };
    let [one, other] = &values[..] else {
        return Err("MGET of two keys gives two values".to_owned());
    };
    let (one, other) = (number(one), number(other));
    let possible = sight.possible(pair);
    match one == other && possible.contains(&one) {
        true => Ok(one),
        false => Err(format!(
            "{pair} holds {one:?} and {other:?}, not {possible:?}"
        )),
    }
}

/// No command of this life needed a second core.
pub async fn no_command_crossed(mut client: Client) -> Verdict {
    let replies = client.must(&[request(["INFO", "quoit"])]).await?;
    let info = replies[0].clone().value()?.unwrap_or_default();
    let info = String::from_utf8_lossy(&info);
    match info.contains("commands_sent_to_other_cores:0\r\n") {
        true => Ok(()),
        false => Err(format!("a command crossed cores: {info}")),
    }
}

async fn scan(client: &mut Client) -> Verdict<BTreeSet<Vec<u8>>> {
    let mut keys = BTreeSet::new();
    let mut cursor = b"0".to_vec();
    loop {
        let scan = request([&b"SCAN"[..], &cursor, b"COUNT", b"3"]);
        let page = client.must(&[scan]).await?[0].clone().items()?;
        cursor = page[0].clone().value()?.unwrap_or_default();
        for key in page[1].clone().items()? {
            if !keys.insert(key.value()?.unwrap_or_default()) {
                return Err("SCAN shows a key twice".to_owned());
            }
        }
        if cursor == b"0" {
            return Ok(keys);
        }
    }
}

/// The map, as the client's node tells it; `None`: it does not answer.
async fn load(client: &mut Client) -> Verdict<Option<Map>> {
    if !client.try_connect().await {
        return Ok(None);
    }
    let reply = client.call(&[request(["CLUSTER", "SLOTS"])]).await?.pop();
    reply.map(read_map).transpose()
}

/// A map of all slots, as CLUSTER SLOTS tells it.
fn read_map(reply: Reply) -> Verdict<Map> {
    let mut map = Map::new();
    let mut next = 0;
    for range in reply.items()? {
        let [first, last, node] = &range.items()?[..] else {
            return Err("a range of slots has three parts".to_owned());
        };
        let node = node.clone().items()?;
        let host = node[0].clone().value()?.unwrap_or_default();
        let host = String::from_utf8_lossy(&host).into_owned();
        let ip = host.parse().map_err(|_| format!("{host} is no address"))?;
        let (first, last) = (first.number()? as u16, last.number()? as u16);
        if first != next {
            return Err(format!("slot {next} has no owner, or two"));
        }
        next = last + 1;
        map.push(((first, last), SocketAddr::new(ip, node[1].number()? as u16)));
    }
    match next {
        16_384 => Ok(map),
        _ => Err(format!("slots from {next} on have no owner")),
    }
}

fn owner(map: &Map, slot: Slot) -> SocketAddr {
    let has = |((first, last), _): &&((u16, u16), SocketAddr)| (*first..=*last).contains(&slot.0);
    map.iter().find(has).expect("every slot has one").1
}

/// One client's connections of this life.
struct Router {
    sight: Shared,
    number: usize,
    life: Rc<Life>,
    connections: BTreeMap<SocketAddr, Client>,
    /// The map is of this life: it must not be wrong.
    is_fresh: bool,
    /// Pairs of which a write is perhaps still under way: they are only read.
    uncertain: BTreeSet<String>,
}

/// A client that goes on until its node goes down.
pub async fn work(sight: Shared, client: Client, number: usize, mut chance: fastrand::Rng) {
    let mut router = Router {
        sight,
        number,
        life: Rc::clone(client.life()),
        connections: BTreeMap::new(),
        is_fresh: false,
        uncertain: BTreeSet::new(),
    };
    while !router.life.is_over() && !router.life.is_wrong() {
        let pair = tag(number, chance.usize(..PAIRS));
        let verdict = match chance.u8(..10) {
            0..8 if router.uncertain.contains(&pair) => router.read(&pair).await,
            0..3 => router.read(&pair).await,
            3..8 => router.write(&pair, chance.u8(..4)).await,
            _ => router.err(&pair, &mut chance).await,
        };
        router.life.note(verdict);
    }
}

impl Router {
    async fn read(&mut self, pair: &str) -> Verdict {
        let [one, other] = keys(pair);
        let Some(replies) = self.send(pair, &[request(["MGET", &one, &other])]).await? else {
            return Ok(());
        };
        judge_pair(&mut self.sight.borrow_mut(), pair, replies).map(drop)
    }

    /// Sets both keys, or deletes them.
    async fn write(&mut self, pair: &str, how: u8) -> Verdict {
        let [one, other] = keys(pair);
        let value = match how {
            0 => None,
            _ => Some(self.sight.borrow_mut().intend(pair)),
        };
        let text = value.unwrap_or_default().to_string();
        let set = |key: &str| request(["SET", key, &text]);
        let requests = match how {
            0 => {
                self.sight.borrow_mut().possible(pair).push(None);
                vec![request(["DEL", &one, &other])]
            }
            1 => vec![request(["MSET", &one, &text, &other, &text])],
            _ => vec![
                request(["MULTI"]),
                set(&one),
                set(&other),
                request(["EXEC"]),
            ],
        };
        let Some(replies) = self.send(pair, &requests).await? else {
            self.uncertain.insert(pair.to_owned()); // the next life tells
            return Ok(());
        };
        match replies.last() {
            Some(Reply::Error(said)) => Err(format!("{pair}: {said}")),
            _ => {
                self.sight.borrow_mut().settle(pair, value);
                Ok(())
            }
        }
    }

    /// What must be refused, at any port, and must change nothing.
    async fn err(&mut self, pair: &str, chance: &mut fastrand::Rng) -> Verdict {
        let [one, _] = keys(pair);
        let stranger = tag(self.number, PAIRS + chance.usize(..PAIRS));
        let requests = match chance.bool() {
            true => vec![request(["MSET", &one, "never", &stranger, "never"])],
            false => vec![
                request(["MULTI"]),
                request(["SET", &one, "never"]),
                request(["SET", &stranger, "never"]),
                request(["EXEC"]),
            ],
        };
        if Slot::of(stranger.as_bytes()) == Slot::of(pair.as_bytes()) {
            return Ok(());
        }
        let Some(replies) = self.send(pair, &requests).await? else {
            return Ok(());
        };
        match replies.last() {
            Some(Reply::Error(said))
                if said.starts_with("CROSSSLOT ") || said.starts_with("EXECABORT ") =>
            {
                Ok(())
            }
            other => Err(format!("keys of two slots: {other:?}")),
        }
    }

    /// Sends requests on `pair` to its owner, wherever MOVED leads; `None`: nobody knows what
    /// became of them.
    async fn send(&mut self, pair: &str, requests: &[Request]) -> Verdict<Option<Vec<Reply>>> {
        let slot = Slot::of(pair.as_bytes());
        for _ in 0..ATTEMPTS_MAX {
            let map = self.sight.borrow().maps[self.number].clone();
            let Some(map) = map else {
                self.learn().await?;
                continue;
            };
            let address = owner(&map, slot);
            let connection = self.connections.entry(address);
            let client = connection.or_insert_with(|| Client::of(&self.life, address));
            if !client.try_connect().await {
                if self.life.is_over() {
                    return Ok(None);
                }
                self.learn().await?; // there may be fewer cores than there were
                continue;
            }
            let replies = client.call(requests).await?;
            if replies.len() < requests.len() {
                return Ok(None);
            }
            self.sight.borrow_mut().answered += 1;
            let mut sent = replies.iter().filter_map(moved);
            match sent.find(|(told, _)| *told == slot) {
                None => return Ok(Some(replies)),
                Some((_, home)) => self.follow(address, slot, home, &replies).await?,
            }
        }
        Ok(None)
    }

    /// A MOVED: it is right, and all of the requests came to nothing.
    async fn follow(
        &mut self,
        from: SocketAddr,
        slot: Slot,
        home: SocketAddr,
        replies: &[Reply],
    ) -> Verdict {
        if self.is_fresh || home == from {
            return Err(format!(
                "{from} sends slot {} to {home}, by a map of this life",
                slot.0
            ));
        }
        let done = |reply: &Reply| matches!(reply, Reply::Integer(_) | Reply::Array(_));
        if replies.iter().any(done) {
            return Err(format!(
                "a part was done where nothing should be: {replies:?}"
            ));
        }
        self.sight.borrow_mut().redirected += 1;
        self.learn().await?;
        let map = self.sight.borrow().maps[self.number].clone();
        match map.is_none_or(|map| !self.is_fresh || owner(&map, slot) == home) {
            true => Ok(()),
            false => Err(format!(
                "{from} sends slot {} to {home}, the map elsewhere",
                slot.0
            )),
        }
    }

    /// Loads the map anew, from the port that all cores share.
    async fn learn(&mut self) -> Verdict {
        let mut client = Client::new(&self.life);
        if let Some(map) = load(&mut client).await? {
            self.sight.borrow_mut().maps[self.number] = Some(map);
            self.is_fresh = true;
        }
        Ok(())
    }
}

/// Where a reply sends the client: the slot and the address.
fn moved(reply: &Reply) -> Option<(Slot, SocketAddr)> {
    let Reply::Error(said) = reply else {
        return None;
    };
    let (slot, address) = said.strip_prefix("MOVED ")?.split_once(' ')?;
    Some((Slot(slot.parse().ok()?), address.parse().ok()?))
}
