//! One request to one member of etcd: a connection, a POST, an answer, the end. Changes of the map
//! are rare, so none is kept.

use std::fmt::Write;
use std::time::Duration;

use futures_lite::future;

use super::gateway::ANSWER_BYTES_MAX;
use crate::protocol::http::{AnswerHead, Body, read_answer};
use crate::rt::{self, Stream};

/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 16 << 10;

/// Where a member of etcd listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address.
    pub host: String,
    /// Its port for clients.
    pub port: u16,
}

/// A request.
pub struct Post<'a> {
    /// What it is about.
    pub path: &'static str,
    /// Who asks.
    pub token: Option<&'a str>,
    /// What is asked, as JSON.
    pub body: &'a [u8],
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The code of its status.
    pub status: u16,
    /// What it says, as JSON.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// There was no connection: certainly not done.
    NotSent(String),
    /// It may have been done, or may be yet.
    InDoubt(String),
}

impl Endpoint {
    /// Asks, and waits for the answer no longer than `until`.
    pub async fn post(&self, post: &Post<'_>, until: Duration) -> Result<Answer, Unanswered> {
        let connected = in_time(until, self.connect()).await;
        let mut stream = connected.map_err(Unanswered::NotSent)?;
        let answered = in_time(until, self.talk(&mut stream, post)).await;
        answered.map_err(Unanswered::InDoubt)
    }

    async fn connect(&self) -> Result<Stream, String> {
        let found = rt::resolve(&self.host, self.port).await;
        let address = found.map_err(|error| format!("cannot find {}: {error}", self.host))?;
        let connected = Stream::connect(address).await;
        connected.map_err(|error| error.to_string())
    }

    async fn talk(&self, stream: &mut Stream, post: &Post<'_>) -> Result<Answer, String> {
        let mut request = self.head(post).into_bytes();
        request.extend_from_slice(post.body);
        let sent = stream.write_all(&request).await;
        sent.map_err(|error| format!("{self} takes no request: {error}"))?;
        let mut input = Vec::new();
        let (AnswerHead { status, framing }, start) = loop {
            let read = read_answer(&input, HEAD_BYTES_MAX);
            match read.map_err(|why| format!("{self}: {why}"))? {
                Some(read) => break read,
                None => self.read_more(stream, &mut input).await?,
            }
        };
        input.drain(..start);
        let mut out = Vec::new();
        let unfit = |why: &str| format!("{self} gives an answer that is not taken: {why}");
        let mut body = Body::new(framing, ANSWER_BYTES_MAX).map_err(|_| unfit("it is too long"))?;
        loop {
            let fed = body.feed(&input, &mut out);
            if fed.map_err(|refusal| unfit(refusal.why))?.done {
                break;
            }
            input.clear();
            self.read_more(stream, &mut input).await?;
        }
        Ok(Answer {
            status: status.0,
            body: out,
        })
    }

    fn head(&self, post: &Post<'_>) -> String {
        let mut head = String::with_capacity(256);
        // Writing to a String cannot fail.
        let _ = write!(
            head,
            "POST {} HTTP/1.1\r\nHost: {self}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            post.path,
            post.body.len()
        );
        if let Some(token) = post.token {
            let _ = write!(head, "Authorization: {token}\r\n");
        }
        head += "Connection: close\r\n\r\n";
        head
    }

    async fn read_more(&self, stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), String> {
        let mut piece = [0; PIECE_BYTES];
        match stream.read(&mut piece).await {
            Ok(0) => Err(format!("{self} hangs up without an answer")),
            Ok(count) => {
                input.extend_from_slice(&piece[..count]);
                Ok(())
            }
            Err(error) => Err(format!("{self} gives no answer: {error}")),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

async fn in_time<T>(
    until: Duration,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let late = async {
        rt::sleep(until.saturating_sub(rt::now())).await;
        Err("it takes too long".to_owned())
    };
    future::or(work, late).await
}
