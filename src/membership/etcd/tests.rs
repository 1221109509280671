//! What comes of answers that are late, broken, too long, or none: each member of etcd here says
//! what the test has written down.

use std::collections::VecDeque;

use super::*;
use crate::cluster::map::Uuid;
use crate::cluster::ring::Vnodes;
use crate::membership::tests::node;
use crate::rt::sim::{NodeId as Machine, Options, World};
use crate::rt::{Core, Listener, Stream};

const PORT: u16 = 2379;
const MINUTE: Duration = Duration::from_secs(60);

/// What a member does with a request.
#[derive(Clone, Debug)]
enum Reply {
    /// Answers with this status and body.
    Say(u16, &'static str),
    /// These bytes, whatever they are, and the end.
    Raw(String),
    /// Nothing, for ever.
    Hang,
}
use Reply::{Hang, Raw, Say};

const NOTHING: Reply = Say(200, r#"{"header":{"revision":"3"}}"#);
const DONE: Reply = Say(200, r#"{"header":{"revision":"4"},"succeeded":true}"#);
const TOKEN: Reply = Say(200, r#"{"header":{},"token":"t"}"#);
const BAD_TOKEN: Reply = Say(
    401,
    r#"{"error":"etcdserver: invalid auth token","code":16}"#,
);

/// What members will say, and what each was asked: its number, the path, and as whom.
#[derive(Default)]
struct Script {
    replies: Vec<VecDeque<Reply>>,
    asked: Vec<(usize, String, bool)>,
}

async fn serve(number: usize, script: Rc<RefCell<Script>>) {
    let listener = Listener::bind(Machine(number as u16 + 1).address(PORT)).expect("it is free");
    while let Ok(stream) = listener.accept().await {
        drop(rt::spawn(answer(stream, number, Rc::clone(&script))));
    }
}

async fn answer(mut stream: Stream, number: usize, script: Rc<RefCell<Script>>) {
    let mut text = String::new();
    let is_whole = |text: &str| {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.split_once("Content-Length: ")?.1;
        let length: usize = length.lines().next()?.parse().ok()?;
        (body.len() == length).then_some(())
    };
    while is_whole(&text).is_none() {
        let mut piece = [0; 1024];
        let Ok(count @ 1..) = stream.read(&mut piece).await else {
            return;
        };
        text += std::str::from_utf8(&piece[..count]).expect("JSON in base64 is ASCII");
    }
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let reply = {
        let mut script = script.borrow_mut();
        let has_token = text.contains("\r\nAuthorization: t\r\n");
        script.asked.push((number, path, has_token));
        script.replies[number]
            .pop_front()
            .expect("it is not asked so often")
    };
    let bytes = match reply {
        Say(status, body) => format!(
            "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        Raw(bytes) => bytes,
        Hang => return std::future::pending().await,
    };
    if stream.write_all(bytes.as_bytes()).await.is_ok() {
        stream.shutdown().await;
    }
}

/// Has `ask` talk to members that say this; what came of it, and whom it has asked what.
fn tell<T: 'static>(
    replies: &[&[Reply]],
    user: Option<(String, String)>,
    ask: impl AsyncFnOnce(Etcd) -> T + 'static,
) -> (T, Vec<(usize, String, bool)>) {
    let world = World::new(Options::calm(1));
    let script = Rc::new(RefCell::new(Script {
        replies: replies
            .iter()
            .map(|replies| replies.iter().cloned().collect())
            .collect(),
        asked: Vec::new(),
    }));
    for number in 0..replies.len() {
        let script = Rc::clone(&script);
        let main = move |_: Core<()>| serve(number, Rc::clone(&script));
        drop(world.start_node(Machine(number as u16 + 1), 1, main));
    }
    let place = |number: usize| Endpoint {
        host: Machine(number as u16 + 1).address(PORT).ip().to_string(),
        port: PORT,
    };
    // One more, where nobody is.
    let endpoints = (0..=replies.len()).rev().map(place).collect();
    let etcd = Etcd::new(endpoints, "k", user);
    let came = world.run_on(Machine(99), async move { ask(etcd).await });
    let asked = std::mem::take(&mut script.borrow_mut().asked);
    (came, asked)
}

fn map() -> ClusterMap {
    let map = ClusterMap::first(Uuid(5), Vnodes::DEFAULT, 3, node(1)).expect("sound");
    map.kept_elsewhere()
}

fn members(asked: &[(usize, String, bool)]) -> Vec<usize> {
    asked.iter().map(|(number, ..)| *number).collect()
}

/// Else one broken member of etcd would be as bad as all.
#[test]
fn whoever_does_not_answer_as_it_should_is_passed_over_when_the_map_is_read() {
    let cases = [
        Hang,
        Say(503, r#"{"error":"etcdserver: no leader","code":14}"#),
        Say(200, "<html>"),
        Raw(String::new()),
        Raw("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n".to_owned()),
        Raw("HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{".to_owned()),
        Raw("SSH-2.0-OpenSSH_9.2\r\n".to_owned()),
    ];
    for case in cases {
        let what = format!("{case:?}");
        let read = async |etcd: Etcd| {
            let first = etcd.read(rt::now() + MINUTE).await;
            (first.is_ok_and(|found| found.is_none()), etcd.first.get())
        };
        let (came, asked) = tell(&[&[NOTHING], &[case]], None, read);
        assert_eq!(
            came,
            (true, 2),
            "{what}: it asks that one first from now on"
        );
        assert_eq!(members(&asked), [1, 0], "{what}");
    }
}

/// Else the second member would refuse what the first has done, and the change would count as
/// another's.
#[test]
fn a_change_that_may_be_done_is_not_sent_again() {
    for case in [Hang, Raw(String::new()), Say(503, "{}"), Say(200, "{}")] {
        let what = format!("{case:?}");
        let swap = async |etcd: Etcd| etcd.swap(3, &map(), rt::now() + MINUTE).await;
        let (came, asked) = tell(&[&[DONE], &[case]], None, swap);
        assert_eq!(
            (came, members(&asked)),
            (Swapped::Unknown, vec![1]),
            "{what}"
        );
    }
    let swap = async |etcd: Etcd| etcd.swap(3, &map(), rt::now() + MINUTE).await;
    let (came, asked) = tell(&[&[DONE]], None, swap);
    assert_eq!(
        (came, members(&asked)),
        (Swapped::Done, vec![0]),
        "where nobody is nothing is done"
    );
    let (came, _) = tell(&[&[NOTHING]], None, swap);
    assert_eq!(came, Swapped::Refused);
}

/// Else a node would be locked out for ever once etcd has forgotten its token, as it does after
/// five minutes.
#[test]
fn a_token_that_etcd_has_forgotten_is_asked_for_again() {
    let user = || Some(("u".to_owned(), "p".to_owned()));
    let swaps = async |etcd: Etcd| {
        let until = rt::now() + MINUTE;
        (
            etcd.swap(3, &map(), until).await,
            etcd.swap(4, &map(), until).await,
        )
    };
    let (came, asked) = tell(&[&[TOKEN, DONE, BAD_TOKEN, TOKEN, DONE]], user(), swaps);
    assert_eq!(came, (Swapped::Done, Swapped::Done));
    let has_token: Vec<bool> = asked.iter().map(|(.., has_token)| *has_token).collect();
    assert_eq!(has_token, [false, true, true, false, true]);
    let once = async |etcd: Etcd| etcd.swap(3, &map(), rt::now() + MINUTE).await;
    let (came, asked) = tell(&[&[TOKEN, BAD_TOKEN]], user(), once);
    assert_eq!(
        (came, asked.len()),
        (Swapped::Unknown, 2),
        "it is not tried for ever"
    );
    let unknown = Say(
        400,
        r#"{"error":"etcdserver: authentication failed","code":3}"#,
    );
    let (came, asked) = tell(&[&[unknown]], user(), once);
    assert_eq!(
        (came, asked.len()),
        (Swapped::Unknown, 1),
        "nothing is asked without a token"
    );
}

/// Else nobody would notice that the map is gone, or that etcd was brought back from an old copy.
#[test]
fn an_etcd_that_has_forgotten_something_is_noticed() {
    let none_newer = Say(200, r#"{"header":{"revision":"9"},"count":"1"}"#);
    let gone_back = Say(200, r#"{"header":{"revision":"2"},"count":"1"}"#);
    for (reply, is_forgotten) in [(none_newer, false), (gone_back, true), (NOTHING, true)] {
        let look = async |etcd: Etcd| {
            let until = rt::now() + MINUTE;
            assert_eq!(etcd.swap(3, &map(), until).await, Swapped::Done);
            let newer = etcd.read_newer(until).await.expect("it answers");
            matches!(newer, Newer::Forgotten)
        };
        let what = format!("{reply:?}");
        let (came, _) = tell(&[&[DONE, reply]], None, look);
        assert_eq!(came, is_forgotten, "{what}");
    }
}
