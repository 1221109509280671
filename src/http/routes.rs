//! What a request asks for, by its path, its query and its fields; and having it done.

use std::rc::Rc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use super::answers::Form;
use super::{answers, metrics, page};
use crate::cluster::face::Port;
use crate::config::TTL_SECONDS_MAX;
use crate::protocol::http::{Head, Method, Response, Tags};
use crate::shard::Shard;
use crate::shard::kv::{Condition, Deed, Operation, Part, Versions};
use crate::types::{Level, Version};

/// What is asked for.
#[derive(Debug)]
pub enum Route {
    /// Something of a key.
    Kv(KvRequest),
    /// Does the process answer?
    Live,
    /// Does the node do its work?
    Ready,
    /// Figures for Prometheus.
    Metrics,
    /// The page for people.
    Page,
}

/// A request about a key.
#[derive(Debug)]
pub struct KvRequest {
    key: Vec<u8>,
    method: Method,
    level: Level,
    ttl_s: Option<u64>,
    condition: Condition,
    wants_json: bool,
}

/// A refusal, whose connection may stay.
type Refused = Box<Response>;

fn no(status: u16, why: &str) -> Refused {
    Box::new(answers::error(status, why))
}

const KV: &[Method] = &[Method::Get, Method::Head, Method::Put, Method::Delete];
const LOOK: &[Method] = &[Method::Get, Method::Head];

impl Route {
    /// What `head` asks for, if this client may have it.
    pub fn of(shard: &Shard, head: &Head) -> Result<Route, Refused> {
        // Whoever watches over a node need not know its password.
        if !head.path.starts_with("/health") && !is_admitted(shard, head) {
            return Err(Box::new(answers::unauthorized()));
        }
        if let Some(key) = head.path.strip_prefix("/kv/") {
            allow(head, KV)?;
            return KvRequest::of(shard, head, key).map(Route::Kv);
        }
        let route = match (head.path.as_str(), head.query.as_deref()) {
            ("/health/live", None) | ("/health", Some("live")) => Route::Live,
            ("/health/ready", None) | ("/health", Some("ready") | None) => Route::Ready,
            ("/metrics", None) => Route::Metrics,
            ("/", None) => Route::Page,
            ("/" | "/metrics" | "/health" | "/health/live" | "/health/ready", Some(_)) => {
                return Err(no(400, "This parameter is not known here."));
            }
            _ => return Err(no(404, "There is nothing here: keys are at /kv/KEY.")),
        };
        allow(head, LOOK)?;
        Ok(route)
    }
}

/// True if `head` asks how the node is, and for nothing else.
pub fn is_watching(head: &Head) -> bool {
    head.path.starts_with("/health") || head.path == "/metrics"
}

fn allow(head: &Head, methods: &'static [Method]) -> Result<(), Refused> {
    match methods.contains(&head.method) {
        true => Ok(()),
        false => Err(Box::new(answers::not_allowed(methods.len() == KV.len()))),
    }
}

/// True if the client is the one user and has the password, or there is none to have.
fn is_admitted(shard: &Shard, head: &Head) -> bool {
    if shard.config().password.is_empty() {
        return true;
    }
    let login = head.authorization.as_deref().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        let is_basic = scheme.eq_ignore_ascii_case("basic");
        BASE64_STANDARD
            .decode(token.trim_start())
            .ok()
            .filter(|_| is_basic)
    });
    login.is_some_and(|login| {
        let mut words = login.splitn(2, |byte| *byte == b':');
        let (user, password) = (words.next(), words.next());
        shard.admits_user(user.unwrap_or_default(), password.unwrap_or_default())
    })
}

impl KvRequest {
    fn of(shard: &Shard, head: &Head, key: &str) -> Result<KvRequest, Refused> {
        let key = decode(key)
            .ok_or_else(|| no(400, "A % in a key is followed by two hexadecimal digits."))?;
        if key.is_empty() {
            return Err(no(400, "The key is empty."));
        }
        if key.len() as u64 > shard.config().limits.key_max.0 {
            return Err(no(400, "The key is larger than limits.key-max."));
        }
        let mut request = KvRequest {
            key,
            method: head.method,
            level: match head.method {
                Method::Put | Method::Delete => shard.config().write_consistency,
                _ => shard.config().read_consistency,
            },
            ttl_s: None,
            condition: Condition {
                if_match: head
                    .if_match
                    .as_ref()
                    .map(|tags| versions(tags, Compare::Strong)),
                if_none_match: head
                    .if_none_match
                    .as_ref()
                    .map(|tags| versions(tags, Compare::Weak)),
            },
            wants_json: head.wants_json,
        };
        if let Some(query) = head.query.as_deref().filter(|query| !query.is_empty()) {
            request.take_query(query)?;
        }
        Ok(request)
    }

    fn take_query(&mut self, query: &str) -> Result<(), Refused> {
        let mut level = None;
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_first = match name {
                "consistency" => {
                    let read = Level::parse(value.as_bytes());
                    let read =
                        read.ok_or_else(|| no(400, "`consistency` is one, quorum or all."))?;
                    level.replace(read).is_none()
                }
                "ttl" if self.method == Method::Put => {
                    let read = ttl(value)
                        .ok_or_else(|| no(400, "`ttl` is a number of seconds, at least 1."))?;
                    self.ttl_s.replace(read).is_none()
                }
                _ => return Err(no(400, "This parameter is not known here.")),
            };
            if !is_first {
                return Err(no(400, "A parameter is there twice."));
            }
        }
        self.level = level.unwrap_or(self.level);
        Ok(())
    }

    fn operation(&self, value: Vec<u8>) -> Operation {
        let deed = match self.method {
            Method::Put => Deed::Put {
                value,
                ttl_ms: self.ttl_s.map(|seconds| seconds * 1000),
                condition: self.condition.clone(),
            },
            Method::Delete => Deed::Delete(self.condition.clone()),
            // The length of JSON is known when it is made.
            Method::Head if !self.wants_json => Deed::Get(Part::Meta),
            _ => Deed::Get(Part::Value),
        };
        Operation {
            key: self.key.clone(),
            level: self.level,
            deed,
        }
    }
}

/// The bytes that `text` stands for; `None` if a `%` is not followed by two hexadecimal digits.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut escapes = text.split('%').skip(1);
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    escapes
        .all(is_escape)
        .then(|| percent_decode_str(text).collect())
}

fn ttl(word: &str) -> Option<u64> {
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = word.parse().ok().filter(|_| is_number)?;
    (1..=TTL_SECONDS_MAX).contains(&seconds).then_some(seconds)
}

/// How entity tags are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compare {
    /// A weak tag is like no other.
    Strong,
    /// A weak tag is like the strong one.
    Weak,
}

/// The versions that `tags` name. A tag that was never one of ours names none.
fn versions(tags: &Tags, compare: Compare) -> Versions {
    match tags {
        Tags::Any => Versions::Any,
        Tags::These(tags) => {
            let counts = |is_weak: bool| !is_weak || compare == Compare::Weak;
            let named = tags.iter().filter(|(is_weak, _)| counts(*is_weak));
            let named = named.filter_map(|(_, tag)| Version::parse(tag.as_bytes()));
            Versions::These(named.collect())
        }
    }
}

/// Does what is asked for. `value` is the body.
pub async fn answer(shard: &Rc<Shard>, route: Route, value: Vec<u8>) -> Response {
    match route {
        Route::Kv(request) => match shard.kv(request.operation(value)).await {
            Ok(outcome) => {
                let form = match request.wants_json {
                    true => Form::Json(shard.config().limits.reply_max.0),
                    false => Form::Bytes,
                };
                answers::outcome(outcome, &request.condition, form)
            }
            Err(error) => answers::failure(&error),
        },
        Route::Live => answers::health(true, "live"),
        Route::Ready => match shard.is_ready().await {
            true => answers::health(true, "ready"),
            false => answers::health(false, "not_ready"),
        },
        Route::Metrics => {
            let reports = shard.reports(Port::Shared).await;
            answers::metrics(metrics::exposition(&metrics::Figures::of(shard, &reports)))
        }
        Route::Page => {
            let reports = shard.reports(Port::Shared).await;
            answers::page(page::page(shard, &metrics::Figures::of(shard, &reports)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_any_bytes_and_a_broken_escape_is_none() {
        assert_eq!(decode("a%20b%2F%00%ff+/"), Some(b"a b/\0\xff+/".to_vec()));
        assert_eq!(decode("%25"), Some(b"%".to_vec()));
        for broken in ["%", "%4", "%4g", "%%20", "a%", "%+1", "% 1"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_time_to_live_is_a_plain_number() {
        assert_eq!(ttl("1"), Some(1));
        assert_eq!(ttl("100000000000"), Some(TTL_SECONDS_MAX));
        for wrong in [
            "",
            "0",
            "-1",
            "+1",
            "1.5",
            "1s",
            " 1",
            "100000000001",
            "99999999999999999999",
        ] {
            assert_eq!(ttl(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tags_name_versions_by_the_rules_of_their_field() {
        let version = Version {
            clock: 1,
            coordinator: 2,
        };
        let tags = Tags::These(vec![
            (true, version.to_string()),
            (false, "another's".to_owned()),
        ]);
        assert_eq!(versions(&tags, Compare::Strong), Versions::These(vec![]));
        assert_eq!(
            versions(&tags, Compare::Weak),
            Versions::These(vec![version])
        );
        assert_eq!(versions(&Tags::Any, Compare::Strong), Versions::Any);
    }
}
