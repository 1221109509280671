//! The same over RESP: the KV commands tell what HTTP tells, and keep their place among other
//! commands.

use crate::common::{Client, Value, request, scratch};
use crate::start;
use crate::web::Web;

fn text(reply: &Value, field: &str) -> String {
    let value = reply.field(field);
    value
        .unwrap_or_else(|| panic!("no {field} in {reply:?}"))
        .text()
}

/// One key has one version, whoever asks.
#[test]
fn kv_commands_and_http_tell_the_same() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    for protocol in ["HELLO 2", "HELLO 3"] {
        let mut client = node.client();
        client.ask(protocol);
        for key in ["a", "b", "c", "d", "e"] {
            let put = client.ask(&format!("KV.PUT {key} value TTL 1000 CONSISTENCY quorum"));
            assert_eq!(text(&put, "status"), "stored");
            assert_eq!(put.field("replicas_written"), Some(Value::Integer(1)));
            let version = text(&put, "version");
            let got = web.get(&format!("/kv/{key}"));
            assert_eq!(got.field("x-version"), Some(&*version));
            assert_eq!(got.body, b"value");
            let told = client.ask(&format!("KV.GET {key} consistency ALL"));
            assert_eq!(told.field("value"), Some(Value::bulk("value")));
            assert_eq!(text(&told, "version"), version);
            let json = web.ask(&format!(
                "GET /kv/{key} HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n"
            ));
            assert_eq!(
                text(&told, "last_modified"),
                json.json()["last_modified"].to_string()
            );
            let Value::Integer(900..=1000) = client.ask(&format!("TTL {key}")) else {
                panic!("the time to live is lost");
            };
            let put = client.ask(&format!("KV.PUT {key} second IFMATCH {version}"));
            assert_eq!(text(&put, "status"), "stored");
            let now = text(&put, "version");
            assert!(now > version, "texts are in the order of the writes");
            let put = client.ask(&format!("KV.PUT {key} third IFMATCH {version}"));
            assert_eq!(text(&put, "status"), "precondition_failed");
            assert_eq!(text(&put, "version"), now, "it says which version it has");
            assert_eq!(client.ask(&format!("GET {key}")), Value::bulk("second"));
            let deleted = client.ask(&format!("KV.DEL {key} CONSISTENCY one"));
            assert_eq!(text(&deleted, "status"), "deleted");
            assert_eq!(
                text(&client.ask(&format!("KV.DEL {key}")), "status"),
                "not_found"
            );
            assert_eq!(client.ask(&format!("KV.GET {key}")), Value::Null);
            let put = client.ask(&format!("KV.PUT {key} third IFMATCH {now}"));
            assert_eq!(put.field("version"), Some(Value::Null), "nothing is there");
        }
    }
}

/// What cannot be meant must be refused, and change nothing.
#[test]
fn kv_commands_refuse_what_they_do_not_understand() {
    let dir = scratch();
    let node = start(dir.path());
    let mut client = node.client();
    for line in [
        "KV.PUT a",
        "KV.PUT a v TTL",
        "KV.PUT a v TTL 0",
        "KV.PUT a v TTL -1",
        "KV.PUT a v TTL x",
        "KV.PUT a v TTL 100000000001",
        "KV.PUT a v TTL 1 TTL 1",
        "KV.PUT a v CONSISTENCY two",
        "KV.PUT a v IFMATCH 1",
        "KV.PUT a v EX 1",
        "KV.GET a TTL 1",
        "KV.GET a IFMATCH 0000000000000000-00000000",
        "KV.DEL a CONSISTENCY",
        "KV.DEL a b",
        "KV.CONSISTENCY READ",
        "KV.CONSISTENCY READ two",
        "KV.CONSISTENCY one",
        "KV.CONSISTENCY READ one READ one",
    ] {
        assert!(client.ask(line).is_error("ERR "), "{line}");
    }
    assert_eq!(client.ask("EXISTS a"), Value::Integer(0));
    let large = [&b"KV.PUT"[..], b"a", &vec![b'x'; (256 << 10) + 1]];
    client.send(&request(&large));
    assert!(client.read().is_error("ERR "), "limits.value-max");
    let mut client = node.client();
    let long = "k".repeat((64 << 10) + 1);
    assert!(client.ask(&format!("KV.GET {long}")).is_error("ERR key"));
    assert_eq!(client.ask("MULTI"), Value::ok());
    assert!(client.ask("KV.PUT a v").is_error("ERR Command not allowed"));
    assert!(client.ask("EXEC").is_error("EXECABORT"));
    assert_eq!(client.ask("EXISTS a"), Value::Integer(0));
}

/// A connection's levels stay with it, and only with it.
#[test]
fn levels_are_those_of_the_connection() {
    let dir = scratch();
    let node = start(dir.path());
    let mut client = node.client();
    let levels = |client: &mut Client| {
        let told = client.ask("KV.CONSISTENCY");
        (text(&told, "read"), text(&told, "write"))
    };
    let pair = |read: &str, write: &str| (read.to_owned(), write.to_owned());
    assert_eq!(levels(&mut client), pair("one", "one"));
    assert_eq!(
        client.ask("KV.CONSISTENCY READ quorum WRITE All"),
        Value::ok()
    );
    assert_eq!(levels(&mut client), pair("quorum", "all"));
    assert_eq!(client.ask("kv.consistency write ONE"), Value::ok());
    assert_eq!(levels(&mut client), pair("quorum", "one"));
    assert_eq!(levels(&mut node.client()), pair("one", "one"));
    assert_eq!(client.ask("RESET").text(), "RESET");
    assert_eq!(levels(&mut client), pair("one", "one"));
}

/// Commands of one connection on one key run in their order, also where another core owns it.
#[test]
fn kv_commands_keep_their_place_in_a_pipeline() {
    let dir = scratch();
    let node = start(dir.path());
    let mut client = node.client();
    client.ask("KV.CONSISTENCY READ all WRITE quorum");
    for round in 0..20 {
        let mut bytes = Vec::new();
        for key in 0..20 {
            let (key, value) = (format!("k{key}"), format!("{round}"));
            bytes.extend(request(&["SET", &key, "before"]));
            bytes.extend(request(&["KV.PUT", &key, &value]));
            bytes.extend(request(&["APPEND", &key, "+"]));
            bytes.extend(request(&["KV.GET", &key]));
            bytes.extend(request(&["KV.DEL", &key]));
            bytes.extend(request(&["GET", &key]));
        }
        client.send(&bytes);
        for _ in 0..20 {
            assert_eq!(client.read(), Value::ok());
            assert_eq!(text(&client.read(), "status"), "stored");
            assert_eq!(
                client.read(),
                Value::Integer(format!("{round}+").len() as i64)
            );
            assert_eq!(text(&client.read(), "value"), format!("{round}+"));
            assert_eq!(text(&client.read(), "status"), "deleted");
            assert_eq!(client.read(), Value::Null);
        }
    }
}

/// Cluster clients find the core of a KV command as they do that of any other.
#[test]
fn cluster_clients_are_routed_by_the_key() {
    let dir = scratch();
    let node = start(dir.path());
    let mut shared = node.client();
    let keys = shared.ask_words(&["COMMAND", "GETKEYS", "KV.PUT", "a", "v", "TTL", "5"]);
    assert_eq!(keys, Value::List(vec![Value::bulk("a")]));
    let mut cores: Vec<Client> = node
        .cores
        .iter()
        .map(|core| Client::connect(*core))
        .collect();
    for key in ["a", "b", "c", "d", "e", "f"] {
        let replies: Vec<Value> = cores
            .iter_mut()
            .map(|core| core.ask(&format!("KV.PUT {key} v")))
            .collect();
        let moved = replies
            .iter()
            .filter(|reply| reply.is_error("MOVED "))
            .count();
        assert_eq!(moved, replies.len() - 1, "one core has {key}: {replies:?}");
        assert_eq!(text(&shared.ask(&format!("KV.GET {key}")), "value"), "v");
    }
}
