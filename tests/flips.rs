//! Damage of every kind to every kind of file: a bit, a page, a file's end, two files or two blocks
//! for each other. `quoit check` names it, and a node on such a directory refuses or serves right
//! values.
//!
//! The directories are made by a whole node in the simulated world; each damage is a world of its
//! own. Where something is stored, this test says by itself, from the formats. Of damage elsewhere
//! (padding, log space that is not in use) nothing may come. The one exception is computed, not
//! assumed: the last batches of a log of which no later one says that they were synced look, if
//! damaged, like the torn end of a crash; then the node must serve exactly what it would serve
//! without them. (If a table points to a record in them, then damage to that record is no torn
//! end.)
//!
//! `QUOIT_LONG=1` makes it 20,000, more than half of them single bits; `SEED=n` repeats one.

#[path = "flips/author.rs"]
mod author;
#[path = "sim/cluster.rs"]
mod cluster;
#[path = "flips/layout.rs"]
mod layout;
#[path = "flips/proof.rs"]
mod proof;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use author::{Author, State, write_all};
use cluster::{Client, End, NODE, Node, Reply, Request, Verdict, request};
use layout::{
    BLOCK, Batch, Files, Key, Kind, Known, Layout, dir_of, known_of, lay_out, name, segment_of,
    world_with,
};
use quoit::cluster::ring::Map;
use quoit::config::{Compression, Config, DurabilityName};
use quoit::rt::sim::{Options, World};
use quoit::rt::{self, Bug};
use quoit::storage::check::{self, Place, Summary, Told};
use quoit::storage::wal::format::{
    SegmentHeader, SegmentId, Stream, decode_batch_header, decode_life, decode_segment_header,
};

const CORES: u16 = 2;

/// A data directory, and what is in it.
struct Fixture {
    name: &'static str,
    config: Config,
    files: Files,
    /// By core's directory.
    known: BTreeMap<PathBuf, Known>,
    layouts: BTreeMap<PathBuf, Layout>,
    truth: State,
    /// All values that each key ever had.
    history: BTreeMap<Key, BTreeSet<Option<Vec<u8>>>>,
    /// What a node serves without these batches and all that follow them, by core and number.
    without: RefCell<BTreeMap<Lost, State>>,
}

/// The first lost batch of each log that lost its end, by directory and stream.
type Lost = BTreeMap<(PathBuf, Stream), u64>;

fn fixture(name: &'static str, seed: u64, durability: DurabilityName, end: End) -> Fixture {
    let world = World::new(Options::calm(seed));
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut config = cluster::config(CORES, &mut chance);
    config.durability = durability;
    config.storage.memtable = bytesize::ByteSize::kib(64);
    config.storage.wal_segment = bytesize::ByteSize::kib(64);
    config.storage.wal_max = bytesize::ByteSize::kib(192);
    config.value_log.threshold = bytesize::ByteSize::b(700);
    config.value_log.segment = bytesize::ByteSize::kib(64);
    config.value_log.replay_max = bytesize::ByteSize::kib(256);
    config.value_log.garbage_max_percent = 15;
    // The indexes of tables are read by need, or at the start.
    config.storage.index_share_percent = [0, 40][seed as usize % 2];
    config.value_log.compression = match durability {
        DurabilityName::Periodic => Compression::None,
        _ => Compression::Lz4, // half of the values
    };
    let node = Node::start(&world, &config).expect("an empty disk");
    let author = Author {
        chance,
        truth: State::new(),
        history: BTreeMap::new(),
    };
    let settle = match durability {
        // Written, and not synced.
        DurabilityName::Periodic => Duration::from_millis(10),
        _ => Duration::from_secs(1),
    };
    let write = |client| write_all(client, author, 12, settle);
    let mut author = node.ask(&world, write).expect("a sound node");
    node.end(&world, end).expect("a sound node");
    for number in 0..20 {
        author
            .truth
            .insert(format!("never:{number}").into_bytes(), None);
    }
    let disk = world.disk(NODE);
    let read = |path: PathBuf| {
        let bytes = disk.read(&path).expect("it is listed");
        (path, Rc::new(bytes))
    };
    let files: Files = disk.files().into_iter().map(read).collect();
    let known = known_of(&files);
    let layouts = lay_out(&files, &known);
    let fixture = Fixture {
        name,
        config,
        files,
        known,
        layouts,
        truth: author.truth,
        history: author.history,
        without: RefCell::default(),
    };
    fixture.is_sound();
    fixture
}

/// What a check says.
fn check_in(world: &World) -> (Result<Summary, String>, Vec<Place>, Vec<Place>) {
    world.run_on(NODE, async {
        let (mut damaged, mut notes) = (Vec::new(), Vec::new());
        let ring = |cores: u16| -> check::Owner {
            let map = Map::one_node(cores);
            Box::new(move |position| map.core_of(position))
        };
        let mut tell = |told| match told {
            Told::Damage(place) | Told::Unchecked(place) => damaged.push(place),
            Told::Note(place) => notes.push(place),
            Told::Progress { done, total } => assert!(done <= total, "{done} of {total}"),
        };
        let summary = check::check(Path::new("/data"), &ring, &mut tell).await;
        (summary.map_err(|error| error.to_string()), damaged, notes)
    })
}

/// What a node serves for the keys of `truth`: `Err` for a key is an error reply.
type Served = BTreeMap<Key, Result<Option<Vec<u8>>, String>>;

async fn read_all(mut client: Client, keys: Vec<Key>) -> Verdict<Served> {
    let mut served = Served::new();
    for some in keys.chunks(50) {
        let get = |key: &Key| request([&b"GET"[..], key]);
        let requests: Vec<Request> = some.iter().map(get).collect();
        for (key, reply) in some.iter().zip(client.must(&requests).await?) {
            let value = match reply {
                Reply::Error(why) => Err(why),
                other => Ok(other.value()?),
            };
            served.insert(key.clone(), value);
        }
    }
    Ok(served)
}

/// Writes other keys, so that memtables are flushed and tables merged.
async fn write_more(mut client: Client) -> Verdict {
    for number in 0..120 {
        let key = format!("more:{number}");
        let set = request([b"SET", key.as_bytes(), &[b'm'; 2_000]]);
        client.must(&[set]).await?;
    }
    rt::sleep(Duration::from_secs(30)).await;
    Ok(())
}

impl Fixture {
    /// The test itself is sound: undamaged, all is there, and the check finds nothing.
    fn is_sound(&self) {
        let world = world_with(&self.files, &[]);
        let (summary, damaged, _) = check_in(&world);
        assert_eq!(damaged, [], "{}: nothing is damaged", self.name);
        let summary = summary.expect("it can be checked");
        let kinds: BTreeSet<Kind> = self.files.keys().map(|path| Kind::of(path)).collect();
        assert_eq!(kinds.len(), 8, "every kind of file is there: {kinds:?}");
        assert!(
            summary.tables > 1 && summary.table_records > 50 && summary.pointers > 20,
            "{summary:?}"
        );
        let served = self.try_to_serve(&world, false).expect("a sound node");
        assert_eq!(compare(&served, &self.truth), Ok(0), "{}", self.name);
        println!("{}: {} files, {summary:?}", self.name, self.files.len());
    }

    /// What a node serves that must start, and must not refuse any key.
    fn serve(&self, world: &World, writes: bool) -> Verdict<State> {
        let served = self.try_to_serve(world, writes)?;
        let value = |(key, value): (Key, Result<_, _>)| value.map(|value| (key, value));
        served.into_iter().map(value).collect()
    }

    fn try_to_serve(&self, world: &World, writes: bool) -> Verdict<Served> {
        let node = Node::start(world, &self.config)?;
        let keys: Vec<Key> = self.truth.keys().cloned().collect();
        if writes {
            node.ask(world, write_more)?;
        }
        node.ask(world, |client| read_all(client, keys))
    }

    /// What there is without these ends of logs.
    fn left(&self, lost: &Lost) -> State {
        match lost.is_empty() {
            true => self.truth.clone(),
            false => self.without(lost),
        }
    }

    /// What a node serves if the ends of logs are lost.
    fn without(&self, lost: &Lost) -> State {
        if let Some(state) = self.without.borrow().get(lost) {
            return state.clone();
        }
        let mut files = self.files.clone();
        // What comes later than something that is lost never was, whichever log has it.
        let mut gaps: BTreeMap<PathBuf, u64> = BTreeMap::new();
        for (path, layout) in &self.layouts {
            let stream = segment_of(path).map(|(stream, _)| stream);
            let Some(first) = stream.and_then(|stream| lost.get(&(dir_of(path), stream))) else {
                continue;
            };
            let gone = |batch: &&Batch| batch.sequence >= *first;
            for batch in layout.batches.iter().filter(gone) {
                let bytes = Rc::make_mut(files.get_mut(path).expect("it is there"));
                // Its checksum: what tables point to stays.
                bytes[batch.range.start + 4] ^= 1;
                let gap = gaps.entry(dir_of(path)).or_insert(u64::MAX);
                let numbers = batch.keys.iter().map(|(number, _)| *number);
                *gap = numbers.fold(*gap, u64::min);
            }
        }
        let mut keys: BTreeSet<&Key> = BTreeSet::new();
        for (path, layout) in &self.layouts {
            let Some(gap) = gaps.get(&dir_of(path)) else {
                continue;
            };
            let written = layout.batches.iter().flat_map(|batch| &batch.keys);
            keys.extend(
                written
                    .filter(|(number, _)| number >= gap)
                    .map(|(_, key)| key),
            );
        }
        let state = self
            .serve(&world_with(&files, &[]), false)
            .expect("only an end is lost");
        for (key, value) in &state {
            if *value != self.truth[key] {
                assert!(
                    keys.contains(key),
                    "a key changed that the lost batches do not write"
                );
                assert!(self.history[key].contains(value), "a value that never was");
            }
        }
        self.without
            .borrow_mut()
            .insert(lost.clone(), state.clone());
        state
    }
}

/// What was done to a directory.
struct Damage {
    what: String,
    kind: Kind,
    files: Files,
}

/// What it hit.
#[derive(Debug, PartialEq, Eq)]
enum Hit {
    /// No byte that means anything.
    Nothing,
    /// Only batches at logs' ends that nothing says were synced.
    Ends(Lost),
    /// Something in these files; and ends of logs as well.
    Stored(BTreeSet<PathBuf>, Lost),
    /// Batches, and others too that said that these had been synced: that may be noticed or not.
    Doubtful(BTreeSet<PathBuf>),
}

impl Fixture {
    fn damage(&self, chance: &mut fastrand::Rng) -> Damage {
        let kind = [
            Kind::Identity,
            Kind::Manifest,
            Kind::Table,
            Kind::Table,
            Kind::Log,
            Kind::Values,
            Kind::Values,
            Kind::Moved,
            Kind::Cluster,
        ][chance.usize(..9)];
        let of_kind: Vec<&PathBuf> = self
            .files
            .keys()
            .filter(|path| Kind::of(path) == kind)
            .collect();
        let all: Vec<&PathBuf> = self.files.keys().collect();
        let path = of_kind[chance.usize(..of_kind.len())].clone();
        let mut files = self.files.clone();
        let length = self.files[&path].len();
        let place = self.place(&path, chance);
        let what = match chance.u8(..10) {
            0 => {
                let page = place / BLOCK * BLOCK;
                let bytes = Rc::make_mut(files.get_mut(&path).expect("it is there"));
                let end = length.min(page + BLOCK);
                bytes[page..end].fill(0);
                format!("{} zeroed from {page} on", path.display())
            }
            1 => {
                let kept = if chance.bool() {
                    chance.usize(..length)
                } else {
                    place
                };
                Rc::make_mut(files.get_mut(&path).expect("it is there")).truncate(kept);
                format!("{} cut to {kept} bytes", path.display())
            }
            2 => {
                let others = if chance.bool() { of_kind } else { all };
                let other = others[chance.usize(..others.len())].clone();
                let (one, two) = (files[&path].clone(), files[&other].clone());
                files.insert(path.clone(), two);
                files.insert(other.clone(), one);
                format!("{} and {} swapped", path.display(), other.display())
            }
            3 => {
                let other = of_kind[chance.usize(..of_kind.len())].clone();
                let (one, two) = (place / BLOCK, self.place(&other, chance) / BLOCK);
                swap_blocks(&mut files, (&path, one), (&other, two));
                format!(
                    "block {one} of {} and block {two} of {} swapped",
                    path.display(),
                    other.display()
                )
            }
            4 if self.is_missed(&path) => {
                files.remove(&path);
                format!("{} removed", path.display())
            }
            _ => {
                let bit = chance.u8(..8);
                let bytes = Rc::make_mut(files.get_mut(&path).expect("it is there"));
                bytes[place] ^= 1 << bit;
                format!("{}: bit {bit} of byte {place} flipped", path.display())
            }
        };
        Damage { what, kind, files }
    }

    /// True if something says that this file should be there: the last segment of a log leaves no
    /// trace when it goes as a whole, and one before it only in the next one.
    fn is_missed(&self, path: &Path) -> bool {
        let known = |segment: (Stream, SegmentId)| {
            let known = &self.known[&dir_of(path)];
            known.listed.contains(&segment) && !known.is_replayed(segment)
        };
        let is_live = || {
            let lists = |known: &Known| known.tables.contains(&name(path));
            // A node without CLUSTER is one from before there were clusters.
            let is_named = Kind::of(path) != Kind::Cluster;
            is_named && Kind::of(path) != Kind::Table
                || self.known.get(&dir_of(path)).is_some_and(lists)
        };
        segment_of(path).map_or_else(is_live, known)
    }

    /// A byte of a file: any, or one that means something.
    fn place(&self, path: &Path, chance: &mut fastrand::Rng) -> usize {
        let stored = &self.layouts[path].stored;
        if stored.is_empty() || chance.u8(..3) == 0 {
            return chance.usize(..self.files[path].len());
        }
        let range = &stored[chance.usize(..stored.len())];
        chance.usize(range.clone())
    }

    fn hit(&self, files: &Files) -> Hit {
        let mut stored = BTreeSet::new();
        let mut lost = Lost::new();
        let mut is_doubtful = false;
        let left = |path: &Path, batch: &Batch| {
            let after = files
                .get(path)
                .and_then(|after| after.get(batch.range.clone()));
            after == Some(&self.files[path][batch.range.clone()])
        };
        for (path, layout) in &self.layouts {
            let Some(after) = files.get(path) else {
                stored.insert(path.clone());
                continue;
            };
            let before = &self.files[path];
            if before == after {
                continue;
            }
            // A segment that a start reads as a log, and of which nothing can be read any more, is
            // like one that was never used; only what was in it may be missed.
            let is_void = segment_of(path).is_some_and(|segment| {
                let is_log = self.known[&dir_of(path)].is_replayed(segment);
                let is_left = layout.batches.iter().any(|batch| left(path, batch));
                is_log && !is_left && decode_life(after).is_none()
            });
            let is_cut = layout.is_measured && before.len() != after.len();
            let is_cut = is_cut && (!is_void || after.len() < BLOCK);
            if is_cut || self.is_another(path, after) {
                stored.insert(path.clone());
            }
            for range in &layout.stored {
                if after.get(range.clone()) == Some(&before[range.clone()]) {
                    continue;
                }
                let batch = layout.batches.iter().find(|batch| batch.range == *range);
                if batch.is_none() && is_void {
                    continue;
                }
                let is_proven = |batch: &Batch, left: &dyn Fn(&Path, &Batch) -> bool| {
                    proof::is_proven(&self.layouts, &self.known, (path, batch), left)
                };
                let Some(batch) = batch.filter(|batch| !is_proven(batch, &left)) else {
                    stored.insert(path.clone());
                    continue;
                };
                is_doubtful |= is_proven(batch, &|_, _| true);
                let segment = segment_of(path).expect("only logs have batches");
                let known = &self.known[&dir_of(path)];
                let is_changed =
                    |part: &Range<usize>| after.get(part.clone()) != before.get(part.clone());
                let is_inside = |part: &Range<usize>| range.contains(&part.start);
                if known
                    .pointed(segment)
                    .filter(is_inside)
                    .any(|part| is_changed(&part))
                {
                    stored.insert(path.clone());
                }
                if known.is_replayed(segment) {
                    let first = lost.entry((dir_of(path), segment.0));
                    let first = first.or_insert(batch.sequence);
                    *first = batch.sequence.min(*first);
                }
            }
        }
        match (stored.is_empty(), lost.is_empty()) {
            _ if is_doubtful => {
                let is_changed = |path: &&PathBuf| files.get(*path) != self.files.get(*path);
                Hit::Doubtful(self.files.keys().filter(is_changed).cloned().collect())
            }
            (true, true) => Hit::Nothing,
            (true, false) => Hit::Ends(lost),
            _ => Hit::Stored(stored, lost),
        }
    }

    /// True if a log segment's file holds another segment, and one of the two is needed. (A file
    /// that was being recycled when the power went has a name from before the floor, and holds
    /// nothing.)
    fn is_another(&self, path: &Path, bytes: &[u8]) -> bool {
        let Some((stream, id)) = segment_of(path) else {
            return false;
        };
        let known = &self.known[&dir_of(path)];
        let floor = match stream {
            Stream::Records => known.floor,
            _ => known.values_floor,
        };
        let is_read = stream == Stream::Records || known.is_replayed((stream, id));
        match decode_segment_header(bytes) {
            SegmentHeader::Valid(log, named) if is_read && (log, named) != (stream, id) => {
                let is_used = decode_batch_header(&bytes[BLOCK..], decode_life(bytes)).is_some();
                id >= floor || ((log != stream || named >= floor) && is_used)
            }
            _ => false,
        }
    }

    /// What comes of a damage, or what is wrong with that.
    fn judge(&self, damage: &Damage, writes: bool, planted: &[Bug]) -> Verdict<&'static str> {
        let hit = self.hit(&damage.files);
        let world = world_with(&damage.files, planted);
        let (summary, damaged, notes) = check_in(&world);
        let disk = world.disk(NODE);
        let is_same =
            |(path, bytes): (&PathBuf, &Rc<Vec<u8>>)| disk.read(path).as_ref() == Some(bytes);
        if disk.files().len() != damage.files.len() || !damage.files.iter().all(is_same) {
            return Err("the check has changed something".to_owned());
        }
        drop(disk);
        let summary = summary?;
        match &hit {
            Hit::Stored(files, _) => {
                if !damaged.iter().any(|place| files.contains(&place.file)) {
                    return Err(format!(
                        "the check does not name {files:?}, but {damaged:?} and {notes:?}"
                    ));
                }
            }
            Hit::Nothing | Hit::Ends(_) if !damaged.is_empty() || summary.damaged > 0 => {
                return Err(format!("{hit:?} was hit, and the check names {damaged:?}"));
            }
            Hit::Nothing | Hit::Ends(_) | Hit::Doubtful(_) => {}
        }
        match (&hit, self.try_to_serve(&world, writes)) {
            (Hit::Stored(files, _) | Hit::Doubtful(files), Err(why))
                if why.starts_with("the node does not start") =>
            {
                match files.iter().any(|path| why.contains(&name(path))) {
                    true => Ok("refused"),
                    false => Err(format!("{files:?} are damaged, and {why}")),
                }
            }
            (_, Err(why)) => Err(why),
            (Hit::Stored(_, lost), Ok(served)) => match compare(&served, &self.left(lost))? {
                0 => Ok("named, not met"),
                _ => Ok("error replies"),
            },
            (Hit::Doubtful(_), Ok(served)) => self.compare_with_history(&served),
            (Hit::Ends(lost), Ok(served)) => match compare(&served, &self.left(lost))? {
                0 => Ok("torn end"),
                _ => {
                    let error = served.values().find_map(|value| value.as_ref().err());
                    Err(format!("a torn end makes error replies, as {error:?}"))
                }
            },
            (Hit::Nothing, Ok(served)) => match compare(&served, &self.truth)? {
                0 => Ok("nothing stored"),
                _ => Err("nothing was hit, and there are error replies".to_owned()),
            },
        }
    }
}

impl Fixture {
    /// What is served must have been true at some time.
    fn compare_with_history(&self, served: &Served) -> Verdict<&'static str> {
        for (key, value) in served {
            if let Ok(value) = value
                && *value != self.truth[key]
                && !self.history[key].contains(value)
            {
                let key = String::from_utf8_lossy(key);
                return Err(format!("{key}: a value is served that never was"));
            }
        }
        Ok("doubtful")
    }
}

/// How many keys have an error for a reply; all others must be right.
fn compare(served: &Served, truth: &State) -> Verdict<usize> {
    let mut errors = 0;
    for (key, value) in truth {
        match &served[key] {
            Ok(found) if found == value => {}
            Ok(found) => {
                let describe = |value: &Option<Vec<u8>>| match value {
                    Some(value) => {
                        String::from_utf8_lossy(&value[..value.len().min(12)]).into_owned()
                    }
                    None => "nothing".to_owned(),
                };
                return Err(format!(
                    "{}: {} is served, it was {}",
                    String::from_utf8_lossy(key),
                    describe(found),
                    describe(value)
                ));
            }
            Err(_) => errors += 1,
        }
    }
    Ok(errors)
}

fn swap_blocks(files: &mut Files, one: (&PathBuf, usize), two: (&PathBuf, usize)) {
    let range = |files: &Files, (path, block): (&PathBuf, usize)| {
        block * BLOCK..files[path].len().min((block + 1) * BLOCK)
    };
    let (from, to) = (range(files, one), range(files, two));
    let (first, second) = (
        files[one.0][from.clone()].to_vec(),
        files[two.0][to.clone()].to_vec(),
    );
    if first.len() == second.len() {
        Rc::make_mut(files.get_mut(one.0).expect("it is there"))[from].copy_from_slice(&second);
        Rc::make_mut(files.get_mut(two.0).expect("it is there"))[to].copy_from_slice(&first);
    }
}

fn fixtures() -> Vec<Fixture> {
    vec![
        fixture("killed", 1, DurabilityName::Sync, End::Kill),
        fixture("stopped", 2, DurabilityName::Sync, End::Stop),
        fixture("periodic", 3, DurabilityName::Periodic, End::Kill),
    ]
}

/// True if this seed's damage is one flipped bit.
fn is_bit(fixtures: &[Fixture], seed: u64) -> bool {
    let mut chance = fastrand::Rng::with_seed(seed);
    let fixture = &fixtures[chance.usize(..fixtures.len())];
    fixture.damage(&mut chance).what.contains("flipped")
}

/// Judges one damage; a panic is a finding, too.
fn try_seed(fixtures: &[Fixture], seed: u64, planted: &[Bug]) -> (Kind, Verdict<&'static str>) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let fixture = &fixtures[chance.usize(..fixtures.len())];
    let damage = fixture.damage(&mut chance);
    let writes = chance.u8(..8) == 0;
    let judged = catch_unwind(AssertUnwindSafe(|| fixture.judge(&damage, writes, planted)));
    let verdict = judged.unwrap_or_else(|said| {
        let text = said.downcast_ref::<String>().map_or("a panic", |text| text);
        Err(format!("panic: {text}"))
    });
    let what = |why| format!("{}, {}: {why}", fixture.name, damage.what);
    (damage.kind, verdict.map_err(what))
}

/// Damage that is neither named nor met is a wrong answer to a client, sooner or later.
#[test]
fn damage_is_named_and_never_served() {
    let begun = Instant::now();
    let fixtures = fixtures();
    let count = if std::env::var_os("QUOIT_LONG").is_some() {
        20_000
    } else {
        2_000
    };
    let only = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..count, |seed| seed..seed + 1);
    let mut counts: BTreeMap<(Kind, &'static str), u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut bits = 0;
    for seed in seeds.clone() {
        bits += u64::from(is_bit(&fixtures, seed));
        match try_seed(&fixtures, seed, &[]) {
            (kind, Ok(outcome)) => *counts.entry((kind, outcome)).or_default() += 1,
            (_, Err(why)) => wrong.push(format!("SEED={seed}: {why}")),
        }
    }
    for ((kind, outcome), count) in &counts {
        println!("{kind:?}: {count} {outcome}");
    }
    println!(
        "{} damages, {bits} of them single bits, in {:.1?}, {} wrong",
        seeds.end - seeds.start,
        begun.elapsed(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut outcomes: BTreeSet<&str> = counts.keys().map(|(_, outcome)| *outcome).collect();
    outcomes.remove("doubtful"); // rare
    let is_enough = only.is_some() || outcomes.len() == 5;
    assert!(is_enough, "not every outcome came about: {outcomes:?}");
}

/// Of a store that has only tables, as one without a log, nothing would be left.
#[test]
fn tables_without_a_manifest_are_not_taken_for_an_empty_store() {
    let fixture = fixture("stopped", 2, DurabilityName::Sync, End::Stop);
    let mut files = fixture.files.clone();
    files.retain(|path, _| {
        let is_here = path.starts_with("/data/core-000");
        !is_here || Kind::of(path) == Kind::Table
    });
    let world = world_with(&files, &[]);
    let (_, damaged, _) = check_in(&world);
    assert_eq!(damaged[0].file, Path::new("/data/core-000/MANIFEST"));
    let why = fixture
        .try_to_serve(&world, false)
        .expect_err("its tables are data");
    assert!(why.contains("core-000/MANIFEST"), "{why}");
    let left = world.disk(NODE).files();
    let mut tables = files
        .keys()
        .filter(|path| path.starts_with("/data/core-000"));
    assert!(
        tables.all(|path| left.contains(path)),
        "it has removed tables"
    );
}

/// A test that sees no planted bug would see no other either.
#[test]
fn planted_bugs_let_damage_through_and_are_seen() {
    let fixtures = fixtures();
    for bug in [Bug::DamageIsAbsence, Bug::ReplayPastTornTail] {
        let is_seen = |seed: &u64| try_seed(&fixtures, *seed, &[bug]).1.is_err();
        let first = (0..2_000).find(is_seen);
        println!("{bug:?} is seen by damage {first:?}");
        assert!(first.is_some(), "{bug:?} is not seen");
    }
}
