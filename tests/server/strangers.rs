//! Whoever reaches a peer port of the real program: with garbage, with a wrong key, with the right
//! one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use quoit::protocol::peer::handshake::{Connecting, Side};
use quoit::protocol::peer::{
    Answer, Frame, Limits, Message, Parsed, Request, VERSION, encode, parse,
};

use super::common::{Launch, PATIENCE, Value, scratch};

const KEY: &str = "the cluster's key";

/// A connection to a peer port, frame by frame.
struct Line {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Line {
    fn new(address: SocketAddr) -> Line {
        let stream = TcpStream::connect(address).expect("a peer port is open");
        let timeout = stream.set_read_timeout(Some(PATIENCE));
        timeout.expect("a timeout can be set");
        Line {
            stream,
            input: Vec::new(),
        }
    }

    /// It may be hung up on at any moment.
    fn send(&mut self, message: Message<'_>) {
        let frame = Frame {
            id: 1,
            deadline_ms: 60_000,
            epoch: 0,
            message,
        };
        let mut bytes = Vec::new();
        encode(&frame, VERSION, &mut bytes);
        let _ = self.stream.write_all(&bytes);
    }

    /// What `take` makes of the next frame; `None`: there is none, but the end.
    fn receive<T>(&mut self, limits: &Limits, take: impl Fn(&Message<'_>) -> T) -> Option<T> {
        loop {
            match parse(&self.input, limits) {
                Parsed::Frame { consumed, frame } => {
                    let taken = take(&frame.message);
                    self.input.drain(..consumed);
                    return Some(taken);
                }
                Parsed::Violation(error) => panic!("the node has sent {error}"),
                Parsed::Incomplete { .. } => {
                    let mut piece = [0; 4096];
                    match self.stream.read(&mut piece) {
                        Ok(0) => return None,
                        Ok(count) => self.input.extend_from_slice(&piece[..count]),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            panic!("the node neither answers nor hangs up");
                        }
                        Err(_) => return None,
                    }
                }
            }
        }
    }

    /// Proves to know `key`, as a node that is in no cluster; false if the node does not prove the
    /// same.
    fn greet(&mut self, key: &[u8]) -> bool {
        let side = Side::newcomer([fastrand::u8(..); 32]);
        let (connecting, hello) = Connecting::start(side, None);
        self.send(Message::Hello(hello));
        let welcome = self.receive(&Limits::greeting(), |message| match message {
            Message::Welcome(welcome) => *welcome,
            other => panic!("{other:?} instead of a welcome"),
        });
        let Some(welcome) = welcome else { return false };
        match connecting.on_welcome(&welcome, key) {
            Ok((_, proof)) => {
                self.send(Message::Proof(proof));
                true
            }
            Err(_) => {
                self.send(Message::Proof([7; 32]));
                false
            }
        }
    }

    /// True if the node answers a ping.
    fn is_served(&mut self) -> bool {
        self.send(Message::Request(Request::Ping));
        let limits = Limits::proven(VERSION, 64 << 10, 64 << 20);
        let is_pong = |message: &Message<'_>| *message == Message::Answer(Answer::Pong);
        self.receive(&limits, is_pong) == Some(true)
    }
}

/// Else anybody who reaches the port could end the process, or read and write without the key.
#[test]
fn a_peer_port_stands_garbage_and_serves_only_who_knows_the_key() {
    let dir = scratch();
    let mut node = Launch::new(dir.path()).with("--cluster-key", KEY).start();
    assert_eq!(node.peers.len(), 2, "one for each core");
    let before = node.resident_bytes();
    for address in node.peers.clone() {
        for round in 0..150 {
            let mut line = Line::new(address);
            if round % 3 == 0 {
                assert!(line.greet(KEY.as_bytes()));
            }
            let mut garbage: Vec<u8> = (0..fastrand::usize(1..5000))
                .map(|_| fastrand::u8(..))
                .collect();
            if round % 2 == 0 {
                garbage.iter_mut().take(4).for_each(|byte| *byte = 0xFF); // a length of 4 GiB
            }
            let _ = line.stream.write_all(&garbage);
        }
        assert!(
            !Line::new(address).greet(b"another key"),
            "it proves what it does not know"
        );
        let mut guess = Line::new(address);
        guess.greet(b"another key");
        assert!(!guess.is_served(), "without the key");
        let mut early = Line::new(address);
        assert!(!early.is_served(), "before the handshake");
        let mut known = Line::new(address);
        assert!(known.greet(KEY.as_bytes()) && known.is_served());
    }
    assert!(node.is_running());
    assert_eq!(node.client().ask("PING"), Value::Simple("PONG".into()));
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    assert!(
        node.said().contains("to the peer port"),
        "the log says why it hung up"
    );
}

/// Else a node could not be started beside another one, or would not say where it is reached.
#[test]
fn a_peer_port_that_is_taken_is_named() {
    let dir = scratch();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let (code, said) = Launch::new(dir.path())
        .with("--cores", 1)
        .with("--peer-port", port)
        .refused();
    assert!(code == Some(1) && said.contains("--peer-port"), "{said}");
    let empty = dir.path().join("key");
    std::fs::write(&empty, " \n").expect("the test's directory is writable");
    let launch = Launch::new(dir.path()).with("--cluster-key-file", empty.display());
    let (code, said) = launch.refused();
    assert!(code == Some(1) && said.contains("no key"), "{said}");
}
