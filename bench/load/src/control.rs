//! What is asked of a server before a run: whether it lets us in, its slot map, how locks are
//! released. Blocking, on one connection.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::plan::Release;
use crate::resp::write_command;
use crate::slots::SlotMap;
use crate::topology;
use crate::value::Value;

/// How long a server may take to accept a connection, and to answer one of these commands.
pub const PATIENCE: Duration = Duration::from_secs(5);
const PROBE_KEY: &[u8] = b"quoit-bench:probe";

/// What every connection says first.
#[derive(Clone, Debug, Default)]
pub struct Greeting {
    pub commands: Vec<Vec<Vec<u8>>>,
}

/// How to introduce oneself.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// RESP3 instead of RESP2.
    pub is_resp3: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    /// Consistency of reads and writes, of servers that have it.
    pub levels: Option<(String, String)>,
    /// Something to be answered, that tells whether anybody does.
    pub pings: bool,
}

impl Manners {
    pub fn greeting(&self) -> Greeting {
        let mut commands: Vec<Vec<Vec<u8>>> = Vec::new();
        let words = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let user = self.user.as_deref().unwrap_or("default");
        match (self.is_resp3, &self.password) {
            (true, Some(password)) => commands.push(words(&["HELLO", "3", "AUTH", user, password])),
            (true, None) => commands.push(words(&["HELLO", "3"])),
            (false, Some(password)) if self.user.is_some() => {
                commands.push(words(&["AUTH", user, password]))
            }
            (false, Some(password)) => commands.push(words(&["AUTH", password])),
            (false, None) => {}
        }
        if let Some((read, write)) = &self.levels {
            commands.push(words(&["KV.CONSISTENCY", "READ", read, "WRITE", write]));
        }
        if self.pings {
            commands.push(words(&["PING"]));
        }
        Greeting { commands }
    }
}

impl Greeting {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for command in &self.commands {
            let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            write_command(&words, &mut bytes);
        }
        bytes
    }
}

/// The first address that a name stands for.
pub fn resolve(address: &str) -> Result<SocketAddr, String> {
    let mut found = address
        .to_socket_addrs()
        .map_err(|why| format!("{address}: {why}"))?;
    found
        .next()
        .ok_or_else(|| format!("{address}: no such host"))
}

/// A connection that asks and waits.
pub struct Control {
    host: String,
    stream: BufReader<TcpStream>,
}

impl Control {
    /// Connects to `address`, `host:port`, and greets.
    pub fn connect(address: &str, greeting: &Greeting) -> Result<Control, String> {
        let connect = || -> std::io::Result<TcpStream> {
            let to = resolve(address).map_err(std::io::Error::other)?;
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = connect().map_err(|why| format!("{address}: {why}"))?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let mut control = Control {
            host: host.to_owned(),
            stream: BufReader::new(stream),
        };
        let mut first = vec![vec![b"PING".to_vec()]];
        first.splice(0..0, greeting.commands.iter().cloned());
        for command in first {
            let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            if let Value::Error(message) = control.call(&words)? {
                return Err(format!(
                    "{address}: {}: {message}",
                    String::from_utf8_lossy(words[0])
                ));
            }
        }
        Ok(control)
    }

    /// The answer to a command. An error of the server is one, too.
    pub fn call(&mut self, words: &[&[u8]]) -> Result<Value, String> {
        let mut bytes = Vec::new();
        write_command(words, &mut bytes);
        let sent = self.stream.get_mut().write_all(&bytes);
        let answer = sent.and_then(|()| Value::read(&mut self.stream));
        answer.map_err(|why| format!("{}: {why}", self.host))
    }

    /// Which node serves which slots.
    pub fn slot_map(&mut self) -> Result<SlotMap, String> {
        let ranges = match self.call(&[b"CLUSTER", b"SLOTS"])? {
            Value::Error(message) => match self.call(&[b"CLUSTER", b"SHARDS"])? {
                Value::Error(_) => return Err(format!("CLUSTER SLOTS: {message}")),
                reply => topology::from_shards(&reply, &self.host)?,
            },
            reply => topology::from_slots(&reply, &self.host)?,
        };
        SlotMap::from_ranges(&ranges)
    }

    /// The first that it has of what releases a lock only if it is ours.
    pub fn release(&mut self) -> Result<Release, String> {
        let probes: [(Release, &[&[u8]]); 3] = [
            (Release::Script, &[b"EVAL", b"return 0", b"1", PROBE_KEY]),
            (
                Release::DelexIfeq,
                &[b"DELEX", PROBE_KEY, b"IFEQ", b"nobody"],
            ),
            (Release::Delifeq, &[b"DELIFEQ", PROBE_KEY, b"nobody"]),
        ];
        for (release, words) in probes {
            // A node that does not own the probe's slot knows the command all the same.
            let is_known = match self.call(words)? {
                Value::Error(message) => message.starts_with("MOVED"),
                _ => true,
            };
            if is_known {
                return Ok(release);
            }
        }
        Ok(Release::Delete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(manners: Manners) -> String {
        String::from_utf8(manners.greeting().bytes())
            .expect("text")
            .replace("\r\n", " ")
    }

    #[test]
    fn greetings_say_what_the_protocol_and_the_password_need() {
        let password = Some("pw".to_owned());
        assert_eq!(said(Manners::default()), "");
        let plain = Manners {
            password: password.clone(),
            ..Manners::default()
        };
        assert_eq!(said(plain.clone()), "*2 $4 AUTH $2 pw ");
        assert_eq!(
            said(Manners {
                user: Some("me".into()),
                ..plain.clone()
            }),
            "*3 $4 AUTH $2 me $2 pw "
        );
        let three = Manners {
            is_resp3: true,
            ..plain
        };
        assert_eq!(said(three), "*5 $5 HELLO $1 3 $4 AUTH $7 default $2 pw ");
        let levels = Manners {
            levels: Some(("ONE".into(), "QUORUM".into())),
            ..Manners::default()
        };
        assert_eq!(
            said(levels),
            "*5 $14 KV.CONSISTENCY $4 READ $3 ONE $5 WRITE $6 QUORUM "
        );
    }
}
