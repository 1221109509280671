//! An etcd in a simulated world: one key with its revisions behind some members, which speak the
//! JSON gateway's HTTP. They lose requests and answers, are slow, say that they have not done what
//! they have, forget tokens, and go down. What was done stays done; and what nodes have done to the
//! key is checked at once.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use quoit::cluster::map::ClusterMap;
use quoit::membership::etcd::{Endpoint, Etcd};
use quoit::protocol::http::{Body, HeadLimits, HeadParser, Parsed};
use quoit::rt::sim::NodeId as Machine;
use quoit::rt::{self, Listener, Stream};
use serde_json::{Value, json};

/// The machines that its members are.
pub const MEMBERS: [u16; 3] = [201, 202, 203];
/// Where they listen.
pub const PORT: u16 = 2379;
/// The key that nodes are given.
pub const KEY: &str = "/quoit/map";
const NAME: &str = "quoit";
const PASSWORD: &str = "a \"password\"";
const LIMITS: HeadLimits = HeadLimits {
    line_bytes_max: 1 << 10,
    fields_bytes_max: 4 << 10,
};
const BODY_BYTES_MAX: usize = 4 << 20;
/// A slow member takes so long at most: longer than nodes wait.
const SLOW_MAX: Duration = Duration::from_secs(4);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    LostBefore,
    LostAfter,
    Slow,
    DoneAndDenied,
    Refused,
}

/// What all members have in common.
#[derive(Default)]
pub struct Store {
    revision: u64,
    held: Option<(u64, Vec<u8>)>,
    /// The map that it has.
    pub map: Option<ClusterMap>,
    /// In a thousand requests, that each of the faults strikes.
    pub faults: u64,
    /// Only this user, with the password, may ask.
    pub has_user: bool,
    tokens: BTreeSet<String>,
    /// What nodes have done that must not be.
    pub wrong: Option<String>,
}

pub type Shared = Rc<RefCell<Store>>;

/// A node's way to it.
pub fn client(has_user: bool) -> Etcd {
    let place = |member: &u16| Endpoint {
        host: Machine(*member).address(PORT).ip().to_string(),
        port: PORT,
    };
    let mut endpoints: Vec<Endpoint> = MEMBERS.iter().map(place).collect();
    endpoints.rotate_left((rt::random() % 3) as usize);
    let user = has_user.then(|| (NAME.to_owned(), PASSWORD.to_owned()));
    Etcd::new(endpoints, KEY, user)
}

/// Runs one member.
pub async fn serve(member: u16, store: Shared) {
    let listener = Listener::bind(Machine(member).address(PORT)).expect("it is free");
    loop {
        if let Ok(stream) = listener.accept().await {
            let store = Rc::clone(&store);
            drop(rt::spawn(async move { talk(stream, store).await }));
        }
    }
}

async fn read_more(stream: &mut Stream, input: &mut Vec<u8>) -> Option<()> {
    let mut piece = [0; 4096];
    let count = stream
        .read(&mut piece)
        .await
        .ok()
        .filter(|count| *count > 0)?;
    input.extend_from_slice(&piece[..count]);
    Some(())
}

/// One request; `None`: it was not all there, or nobody waits any more.
async fn talk(mut stream: Stream, store: Shared) -> Option<()> {
    let (mut input, mut body) = (Vec::new(), Vec::new());
    let mut parser = HeadParser::default();
    let head = loop {
        match parser.parse(&input, LIMITS) {
            Parsed::Head(head, length) => {
                input.drain(..length);
                break head;
            }
            Parsed::Incomplete => read_more(&mut stream, &mut input).await?,
            Parsed::Refused(refusal) => panic!("{refusal:?}"),
        }
    };
    let mut reader = Body::new(head.framing, BODY_BYTES_MAX).expect("no node asks for more");
    while !reader.is_done() {
        reader.feed(&input, &mut body).expect("it is well-formed");
        input.clear();
        if !reader.is_done() {
            read_more(&mut stream, &mut input).await?;
        }
    }
    let asked: Value = serde_json::from_slice(&body).expect("it is JSON");
    let fate = store.borrow().fate();
    let denied = json!({ "error": "etcdserver: request timed out", "code": 14 });
    let (status, told) = match fate {
        Fate::LostBefore => return None,
        Fate::Refused => (503, denied),
        _ => {
            if fate == Fate::Slow {
                rt::sleep(SLOW_MAX.mul_f64((rt::random() % 1000) as f64 / 1000.0)).await;
            }
            let token = head.authorization.as_deref();
            let done = store.borrow_mut().carry_out(&head.path, token, &asked);
            match fate {
                Fate::LostAfter => return None,
                Fate::DoneAndDenied => (503, denied),
                _ => done,
            }
        }
    };
    let response = response(status, told.to_string().as_bytes());
    stream.write_all(&response).await.ok()?;
    stream.shutdown().await;
    Some(())
}

/// By its length, or in chunks.
fn response(status: u16, body: &[u8]) -> Vec<u8> {
    let start = format!("HTTP/1.1 {status} so\r\nContent-Type: application/json\r\n");
    let mut out = start.into_bytes();
    if rt::random().is_multiple_of(2) {
        out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        out.extend_from_slice(body);
        return out;
    }
    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    for chunk in body.chunks(1 + (rt::random() % 3000) as usize) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

impl Store {
    fn fate(&self) -> Fate {
        let fates = [
            Fate::LostBefore,
            Fate::LostAfter,
            Fate::Slow,
            Fate::DoneAndDenied,
            Fate::Refused,
        ];
        let roll = rt::random() % 1000;
        match roll.checked_div(self.faults) {
            Some(place) => fates.get(place as usize).copied().unwrap_or(Fate::Answered),
            None => Fate::Answered,
        }
    }

    fn carry_out(&mut self, path: &str, token: Option<&str>, asked: &Value) -> (u16, Value) {
        if path == "/v3/auth/authenticate" {
            let is_known = asked["name"] == NAME && asked["password"] == PASSWORD;
            if !self.has_user || !is_known {
                return (
                    400,
                    json!({ "error": "etcdserver: authentication failed", "code": 3 }),
                );
            }
            let token = format!("token.{}", rt::random());
            self.tokens.insert(token.clone());
            return (200, json!({ "header": {}, "token": token }));
        }
        if self.has_user {
            if rt::random() % 1000 < self.faults {
                self.tokens.clear();
            }
            if !token.is_some_and(|token| self.tokens.contains(token)) {
                return (
                    401,
                    json!({ "error": "etcdserver: invalid auth token", "code": 16 }),
                );
            }
        }
        match path {
            "/v3/kv/range" => (200, self.range(asked)),
            "/v3/kv/txn" => (200, self.transact(asked)),
            _ => (404, json!({ "error": "Not Found", "code": 5 })),
        }
    }

    fn header(&self) -> Value {
        json!({ "cluster_id": "7", "revision": (self.revision + 1).to_string() })
    }

    fn range(&self, asked: &Value) -> Value {
        let mut answer = json!({ "header": self.header() });
        assert_eq!(
            asked["key"],
            BASE64.encode(KEY),
            "the key that nodes are given"
        );
        let Some((revision, value)) = &self.held else {
            return answer;
        };
        answer["count"] = json!("1");
        if *revision >= number(&asked["min_mod_revision"]) {
            answer["kvs"] = json!([{
                "key": asked["key"],
                "mod_revision": revision.to_string(),
                "value": BASE64.encode(value),
            }]);
        }
        answer
    }

    fn transact(&mut self, asked: &Value) -> Value {
        let revision = self.held.as_ref().map_or(0, |(revision, _)| *revision);
        let holds = |compare: &Value| {
            assert_eq!(
                (&compare["target"], &compare["result"]),
                (&json!("MOD"), &json!("EQUAL"))
            );
            number(&compare["mod_revision"]) == revision
        };
        let compares = asked["compare"].as_array().expect("there is one");
        let is_done = compares.iter().all(holds);
        if is_done {
            let put = &asked["success"][0]["request_put"];
            let value = put["value"].as_str().map(|text| BASE64.decode(text));
            let value = value.expect("there is one").expect("it is base64");
            self.check(&value);
            self.revision += 1;
            self.held = Some((self.revision + 1, value));
        }
        let mut answer = json!({ "header": self.header() });
        if is_done {
            answer["succeeded"] = json!(true);
        }
        answer
    }

    /// Every map follows the one before it.
    fn check(&mut self, value: &[u8]) {
        let next = std::str::from_utf8(value).ok();
        let next = next.and_then(|text| ClusterMap::from_json(text).ok());
        let wrong = match (&self.map, &next) {
            (_, None) => Some("what etcd is given is no map".to_owned()),
            (None, Some(next)) if next.epoch() == 1 => None,
            (Some(old), Some(next))
                if old.cluster() == next.cluster() && old.epoch() + 1 == next.epoch() =>
            {
                None
            }
            (old, Some(next)) => {
                let old = old.as_ref().map(|map| (map.cluster(), map.epoch()));
                let (cluster, epoch) = (next.cluster(), next.epoch());
                Some(format!(
                    "etcd is given epoch {epoch} of {cluster} after {old:?}"
                ))
            }
        };
        self.map = next;
        self.wrong = self.wrong.take().or(wrong);
    }
}

fn number(value: &Value) -> u64 {
    value
        .as_str()
        .map_or(0, |text| text.parse().expect("a number"))
}
