//! etcd's API, version 3, as its JSON gateway speaks it: requests as bodies, and what answers mean.
//! Pure.
//!
//! ```text
//! POST /v3/kv/range           {"key","min_mod_revision"}   -> {"header":{"revision"},"kvs":[{"key","value","mod_revision"}],"count"}
//! POST /v3/kv/txn             {"compare":[{"key","target":"MOD","mod_revision","result":"EQUAL"}],
//!                              "success":[{"request_put":{"key","value"}}]}     -> {"header":{"revision"},"succeeded"}
//! POST /v3/auth/authenticate  {"name","password"}                               -> {"token"}
//! any of them, refused        with a status other than 200                      -> {"error" or "message","code"}
//! ```
//!
//! Keys and values are base64. Numbers of 64 bits are text; zeros, `false` and what is empty are
//! left out of answers. A range is linearizable unless it asks to be `serializable`, which these
//! never do. A key that does not exist has revision 0, so that one comparison serves its creation,
//! too.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::config::MAP_BYTES_MAX;
use crate::rt::{self, Bug};

/// Where ranges are asked for.
pub const RANGE: &str = "/v3/kv/range";
/// Where transactions are.
pub const TXN: &str = "/v3/kv/txn";
/// Where a user gets a token.
pub const AUTHENTICATE: &str = "/v3/auth/authenticate";
/// Bytes of the body of an answer: a map in base64, and what is around it.
pub const ANSWER_BYTES_MAX: usize = MAP_BYTES_MAX / 3 * 4 + (64 << 10);
/// So much of a refusal is told.
const WHY_CHARS_MAX: usize = 200;

/// Counts the changes of all that etcd has. 0: before all of them.
pub type Revision = u64;

/// What etcd has under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Of its last change.
    pub revision: Revision,
    /// The value.
    pub value: Bytes,
}

/// What has come of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Of etcd, when it answered.
    pub revision: Revision,
    /// The key is there.
    pub exists: bool,
    /// What it has, if that was asked for.
    pub held: Option<Held>,
}

/// What has come of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Of etcd, when it answered.
    pub revision: Revision,
    /// True: the value was put; false: the key was changed meanwhile, and nothing was done.
    pub is_done: bool,
}

/// Asks for what `key` has, if that is newer than `known`.
pub fn range(key: &str, known: Revision) -> Vec<u8> {
    let mut body = json!({ "key": BASE64.encode(key) });
    if known > 0 {
        body["min_mod_revision"] = json!((known + 1).to_string());
    }
    body.to_string().into_bytes()
}

/// Asks that `key` be given `value` if its last change was that of `known`; 0: if there is no such
/// key.
pub fn put_if(key: &str, known: Revision, value: &[u8]) -> Vec<u8> {
    let key = BASE64.encode(key);
    let compare = json!([{
        "key": key,
        "target": "MOD",
        "result": "EQUAL",
        "mod_revision": known.to_string(),
    }]);
    let is_unchecked = known == 0 && rt::planted(Bug::CreatedUnchecked);
    let body = json!({
        "compare": if is_unchecked { json!([]) } else { compare },
        "success": [{ "request_put": { "key": key, "value": BASE64.encode(value) } }],
    });
    body.to_string().into_bytes()
}

/// Asks for a token.
pub fn authenticate(user: &str, password: &str) -> Vec<u8> {
    let body = json!({ "name": user, "password": password });
    body.to_string().into_bytes()
}

/// The answer to [`range`].
pub fn read_range(body: &[u8], key: &str) -> Option<Found> {
    let answer: RangeAnswer = serde_json::from_slice(body).ok()?;
    let held = match answer.kvs.first() {
        None => None,
        Some(found) if BASE64.decode(&found.key).ok()? == key.as_bytes() => Some(Held {
            revision: found.mod_revision,
            value: BASE64.decode(&found.value).ok()?.into(),
        }),
        Some(_) => return None,
    };
    Some(Found {
        revision: answer.header.revision,
        exists: answer.count > 0 || held.is_some(),
        held,
    })
}

/// The answer to [`put_if`].
pub fn read_put(body: &[u8]) -> Option<Put> {
    let answer: PutAnswer = serde_json::from_slice(body).ok()?;
    Some(Put {
        revision: answer.header.revision,
        is_done: answer.succeeded,
    })
}

/// The answer to [`authenticate`]: what later requests have as their `Authorization`.
pub fn read_token(body: &[u8]) -> Option<String> {
    let TokenAnswer { token } = serde_json::from_slice(body).ok()?;
    let is_sane = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_sane.then_some(token)
}

/// What a refusal says, in a line.
pub fn read_refusal(body: &[u8]) -> String {
    let told =
        serde_json::from_slice(body).map(|refusal: Refusal| match refusal.error.is_empty() {
            true => refusal.message,
            false => refusal.error,
        });
    let told = told.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    told.chars().take(WHY_CHARS_MAX).map(plain).collect()
}

#[derive(Deserialize)]
struct RangeAnswer {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default, deserialize_with = "number")]
    count: u64,
}

#[derive(Deserialize)]
struct PutAnswer {
    header: Header,
    #[serde(default)]
    succeeded: bool,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: String,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Header {
    #[serde(deserialize_with = "number")]
    revision: Revision,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(deserialize_with = "number")]
    mod_revision: Revision,
}

/// A number, as text or not.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    match Written::deserialize(from)? {
        Written::Number(number) => Ok(number),
        Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As etcd 3.4 and 3.5 write them.
    #[test]
    fn answers_of_etcd_are_understood() {
        let header = r#""header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"7","raft_term":"2"}"#;
        let there = format!(
            r#"{{{header},"kvs":[{{"key":"L3F1b2l0L21hcA==","create_revision":"2","mod_revision":"6","version":"4","value":"e30="}}],"count":"1"}}"#
        );
        let found = read_range(there.as_bytes(), "/quoit/map").expect("it is one");
        let held = found.held.expect("it has it");
        assert_eq!((found.revision, found.exists), (7, true));
        assert_eq!((held.revision, &held.value[..]), (6, &b"{}"[..]));
        assert_eq!(read_range(there.as_bytes(), "/other/map"), None);
        let state = |text: &str| {
            let text = format!("{{{header}{text}}}");
            read_range(text.as_bytes(), "k").map(|found| (found.exists, found.held))
        };
        assert_eq!(state(r#","count":"1""#), Some((true, None)), "not newer");
        assert_eq!(state(""), Some((false, None)), "not there");
        let done =
            format!(r#"{{{header},"succeeded":true,"responses":[{{"response_put":{{}}}}]}}"#);
        let not_done = format!("{{{header}}}");
        let put = |text: &str| read_put(text.as_bytes()).map(|put| (put.revision, put.is_done));
        assert_eq!(put(&done), Some((7, true)));
        assert_eq!(put(&not_done), Some((7, false)));
        let token = format!(r#"{{{header},"token":"RykbbJ.11"}}"#);
        assert_eq!(read_token(token.as_bytes()), Some("RykbbJ.11".to_owned()));
        let refusal = br#"{"error":"etcdserver: user name is empty","code":3,"message":"etcdserver: user name is empty"}"#;
        assert_eq!(read_refusal(refusal), "etcdserver: user name is empty");
        assert_eq!(read_refusal(b"404 page\nnot found"), "404 page not found");
    }

    /// Else a half of an answer, or a page of some proxy, could pass for "there is no such key".
    #[test]
    fn nothing_else_passes_for_an_answer() {
        let whole = br#"{"header":{"revision":"7"},"kvs":[{"key":"aw==","mod_revision":"6","value":"e30="}],"count":"1"}"#;
        assert!(read_range(whole, "k").is_some());
        for cut in 0..whole.len() {
            assert_eq!(read_range(&whole[..cut], "k"), None, "{cut}");
        }
        for text in [
            "{}",
            "[]",
            "<html>",
            r#"{"header":{}}"#,
            r#"{"header":{"revision":"x"}}"#,
        ] {
            assert_eq!(read_range(text.as_bytes(), "k"), None, "{text}");
            assert_eq!(read_put(text.as_bytes()), None, "{text}");
        }
        for text in ["{}", r#"{"token":""}"#, r#"{"token":"a\r\nb"}"#] {
            assert_eq!(read_token(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn requests_say_what_etcd_needs_to_know() {
        let text = |body: Vec<u8>| String::from_utf8(body).expect("it is text");
        assert_eq!(text(range("k", 0)), r#"{"key":"aw=="}"#);
        assert_eq!(
            text(range("k", 7)),
            r#"{"key":"aw==","min_mod_revision":"8"}"#
        );
        let put = text(put_if("k", 5, b"{}"));
        assert!(
            put.contains(r#""mod_revision":"5""#) && put.contains(r#""target":"MOD""#),
            "{put}"
        );
        assert!(
            put.contains(r#""request_put":{"key":"aw==","value":"e30="}"#),
            "{put}"
        );
        assert!(put.len() < 300);
        let password = text(authenticate("u", "\"\n"));
        assert_eq!(password, r#"{"name":"u","password":"\"\n"}"#);
    }
}
