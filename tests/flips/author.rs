//! What is written to the directories that are damaged, and what must be there then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quoit::rt;

use crate::cluster::{Client, Reply, Request, Verdict, request};
use crate::layout::Key;

/// What each key has.
pub type State = BTreeMap<Key, Option<Vec<u8>>>;

/// What a test writes, and what must be there then.
pub struct Author {
    pub chance: fastrand::Rng,
    pub truth: State,
    pub history: BTreeMap<Key, BTreeSet<Option<Vec<u8>>>>,
}

impl Author {
    pub fn key(&mut self) -> Key {
        let number = self.chance.u32(..150);
        match number % 4 {
            0 => format!("{{t{}}}:{number}", number % 7).into_bytes(),
            _ => format!("key:{number}").into_bytes(),
        }
    }

    pub fn value(&mut self) -> Vec<u8> {
        let length = match self.chance.u8(..30) {
            0 => self.chance.usize(9_000..20_000),
            1..=8 => self.chance.usize(..2_500),
            _ => self.chance.usize(..200),
        };
        let fill = self.chance.alphanumeric() as u8;
        let mut value = format!("{:08x}", self.chance.u32(..)).into_bytes();
        // Half of them can be compressed.
        match self.chance.bool() {
            true => value.resize(8 + length, fill),
            false => value.extend((0..length).map(|_| self.chance.alphanumeric() as u8)),
        }
        value
    }

    pub fn note(&mut self, key: &Key, value: Option<Vec<u8>>) {
        let history = self.history.entry(key.clone()).or_default();
        history.insert(None);
        history.insert(value.clone());
        self.truth.insert(key.clone(), value);
    }

    pub fn set(&mut self) -> Request {
        let (key, value) = (self.key(), self.value());
        self.note(&key, Some(value.clone()));
        let set = request([&b"SET"[..], &key, &value]);
        match self.chance.u8(..5) {
            0 => set.with("EX").with("900000"),
            _ => set,
        }
    }

    pub fn delete(&mut self) -> Request {
        let key = self.key();
        self.note(&key, None);
        request([&b"DEL"[..], &key])
    }

    pub fn plain(&mut self) -> Request {
        match self.chance.u8(..8) {
            0 => self.delete(),
            _ => self.set(),
        }
    }

    pub fn any(&mut self) -> Request {
        if self.chance.u8(..8) > 0 {
            return self.plain();
        }
        let mut words = request(["MSET"]);
        let mut used = BTreeSet::new();
        for _ in 0..3 {
            let (key, value) = (self.key(), self.value());
            if used.insert(key.clone()) {
                self.note(&key, Some(value.clone()));
                words = words.with(&key).with(&value);
            }
        }
        words
    }

    pub fn flush_all(&mut self) -> Request {
        self.truth.values_mut().for_each(|value| *value = None);
        request(["FLUSHALL"])
    }
}

pub async fn must(client: &mut Client, requests: &[Request]) -> Verdict {
    for reply in client.must(requests).await? {
        if let Reply::Error(why) = reply {
            return Err(format!("a write is refused: {why}"));
        }
    }
    Ok(())
}

/// Writes until there is something in every kind of file. What comes last are plain writes of
/// single keys, after a pause in which all before them has settled.
pub async fn write_all(
    mut client: Client,
    mut author: Author,
    last: usize,
    settle: Duration,
) -> Verdict<Author> {
    for _ in 0..60 {
        let requests = [author.any(), author.any()];
        must(&mut client, &requests).await?;
    }
    let clear = author.flush_all();
    must(&mut client, &[clear]).await?;
    for _ in 0..260 {
        let requests: Vec<Request> = (0..author.chance.usize(1..4))
            .map(|_| author.any())
            .collect();
        must(&mut client, &requests).await?;
    }
    rt::sleep(Duration::from_secs(20)).await;
    for _ in 0..20 {
        let requests: Vec<Request> = (0..author.chance.usize(1..5))
            .map(|_| author.plain())
            .collect();
        must(&mut client, &requests).await?;
    }
    rt::sleep(Duration::from_secs(20)).await;
    for _ in 0..last {
        let request = author.plain();
        must(&mut client, &[request]).await?;
    }
    rt::sleep(settle).await;
    Ok(author)
}
