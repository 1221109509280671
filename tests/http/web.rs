//! A plain HTTP client: it sends what it is told to, and takes answers apart.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::{Node, PATIENCE};

/// A connection.
pub struct Web {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
    /// The next answer is to HEAD.
    is_head: bool,
}

/// The sending half of a connection.
pub struct Sender(TcpStream);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    fields: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// A key as it stands in a path.
pub fn escaped(key: &[u8]) -> String {
    key.iter().map(|byte| format!("%{byte:02X}")).collect()
}

impl Sender {
    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0
            .write_all(bytes)
            .expect("the node takes what is sent");
    }
}

impl Web {
    /// Connects; nothing is said yet.
    pub fn connect(node: &Node) -> Web {
        Web::to(node.http)
    }

    fn to(address: SocketAddr) -> Web {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the node listens");
        stream.set_nodelay(true).expect("it is a socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("it is a socket");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("it is a socket");
        Web {
            address,
            stream: BufReader::new(stream),
            is_head: false,
        }
    }

    /// The same connection, to send from another thread.
    pub fn second(&self) -> Sender {
        Sender(
            self.stream
                .get_ref()
                .try_clone()
                .expect("descriptors are left"),
        )
    }

    /// Sends bytes as they are. The node may have hung up already, which reading will tell.
    pub fn send(&mut self, bytes: &[u8]) {
        let sent = self.stream.get_mut().write_all(bytes);
        if let Err(error) = sent {
            let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(kinds.contains(&error.kind()), "{error}");
        }
    }

    /// The next answer; panics if there is none.
    pub fn read(&mut self) -> Answer {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("the node answers");
            let line = line
                .strip_suffix("\r\n")
                .unwrap_or_else(|| panic!("{line:?} after {lines:?}"));
            if line.is_empty() {
                break;
            }
            lines.push(line.to_owned());
        }
        let status = lines[0]
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3));
        let status = status.and_then(|code| code.parse().ok()).expect("a status");
        let field = |line: &String| {
            let (name, value) = line.split_once(": ").expect("a field");
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let mut answer = Answer {
            status,
            fields: lines[1..].iter().map(field).collect(),
            body: Vec::new(),
        };
        if status != 100 {
            assert!(answer.field("date").is_some(), "{answer:?}");
        }
        if !matches!(status, 100 | 304) {
            let length = answer
                .field("content-length")
                .and_then(|length| length.parse().ok());
            let length: usize = length.expect("a length");
            if !std::mem::take(&mut self.is_head) {
                answer.body.resize(length, 0);
                self.stream
                    .read_exact(&mut answer.body)
                    .expect("the whole body");
            }
        }
        if status >= 400 && !answer.body.is_empty() {
            let told = answer.json();
            assert!(
                told["error"].is_string() && told["message"].is_string(),
                "{answer:?}"
            );
        }
        answer
    }

    /// The status of the answer that is coming, without reading it.
    pub fn peek_status(&mut self) -> u16 {
        let bytes = self.stream.fill_buf().expect("the node answers");
        let text = String::from_utf8_lossy(&bytes[9..12]).into_owned();
        text.parse().expect("a status")
    }

    /// True if an answer has begun to come within `time`.
    pub fn has_answer(&mut self, time: Duration) -> bool {
        let socket = self.stream.get_ref();
        socket.set_read_timeout(Some(time)).expect("it is a socket");
        let has = self.stream.fill_buf().is_ok();
        let socket = self.stream.get_ref();
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("it is a socket");
        has
    }

    /// Sends a request, and reads the answer.
    pub fn ask(&mut self, request: &str) -> Answer {
        self.send(request.as_bytes());
        self.read()
    }

    /// GET.
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    /// GET, by a connection of its own.
    pub fn get_on_new(&self, path: &str) -> Answer {
        Web::to(self.address).get(path)
    }

    /// HEAD.
    pub fn head(&mut self, path: &str) -> Answer {
        self.is_head = true;
        self.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    /// DELETE.
    pub fn delete(&mut self, path: &str) -> Answer {
        self.ask(&format!("DELETE {path} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    /// PUT.
    pub fn put(&mut self, path: &str, value: &[u8]) -> Answer {
        self.put_if(path, "", value)
    }

    /// PUT with further lines in its head.
    pub fn put_if(&mut self, path: &str, lines: &str, value: &[u8]) -> Answer {
        let length = value.len();
        let head =
            format!("PUT {path} HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {length}\r\n\r\n");
        self.send(&[head.as_bytes(), value].concat());
        self.read()
    }

    /// True if the node hangs up, and says nothing more before.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

impl Answer {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(field, _)| field == name);
        field.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A text in the body's JSON.
    pub fn text(&self, name: &str) -> String {
        let json = self.json();
        let text = json[name].as_str();
        text.unwrap_or_else(|| panic!("no {name}: {self:?}"))
            .to_owned()
    }
}
