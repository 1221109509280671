//! HTTP/1.1 for those who do not speak RESP: one client, request after request.
//!
//! Each request is taken whole, done, and answered before the next one is looked at: a client that
//! does not read holds one reply. What can be refused is refused at the head, before a body is
//! waited for; whatever leaves in doubt where a request ends closes the connection. `routes` says
//! what is asked for, `answers` what is told.

mod answers;
mod metrics;
mod page;
mod routes;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;

use crate::config::{HTTP_BYTES_PER_S, HTTP_FIELDS_BYTES_MAX, HTTP_QUERY_BYTES_MAX};
use crate::protocol::http::{
    Body, CONTINUE, Expected, Framing, Head, HeadLimits, HeadParser, Method, Parsed, Refusal,
    Response,
};
use crate::rt::{self, Stream};
use crate::shard::{Buffer, Client, Shard};
use routes::Route;

/// Larger bodies are sent by themselves, and not copied behind their head.
const BODY_BYTES_JOINED_MAX: usize = 16 * 1024;
/// A client that was told no while it is still sending gets this long to read that.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// What is sent meanwhile is read in pieces of this size, and dropped.
const LINGER_BYTES: usize = 4096;

const TOO_LATE: Refusal = Refusal::new(408, "The request did not arrive in time.");
const NO_LENGTH: Refusal = Refusal::new(411, "A value comes with a Content-Length, or in chunks.");
const NO_BODY: Refusal = Refusal::new(400, "This method takes no body.");
const TOO_MANY: Refusal = Refusal::new(
    503,
    "There are as many clients as limits.clients-max allows.",
);

/// Serves one client until it leaves, misbehaves, or the node stops.
pub fn serve(shard: Rc<Shard>, mut stream: Stream) -> rt::Task<()> {
    rt::spawn(async move {
        if shard.is_closing() {
            return; // the other cores may have stopped already
        }
        let is_crowded = shard.is_crowded();
        let Some(client) = shard.admit_watcher(&stream) else {
            let mut bytes = answers::refusal(TOO_MANY).head(rt::wall_ms(), false);
            bytes.extend_from_slice(&answers::refusal(TOO_MANY).body);
            let _ = stream.write_all(&bytes).await;
            return;
        };
        client.about.borrow_mut().command = "http";
        let mut talk = Talk {
            shard,
            stream,
            client,
            is_crowded,
            buffer: Buffer::default(),
            // Of those few who are let in all the same, none may wait before it asks.
            begun: is_crowded.then(rt::now),
            taken: 0,
        };
        // Whatever ends it, the client finds out by itself.
        if let Ok(End::Midway) = talk.converse().await {
            talk.linger().await;
        }
        talk.shard.dismiss(&talk.client);
        talk.stream.shutdown().await;
    })
}

/// A conversation with one client.
struct Talk {
    shard: Rc<Shard>,
    stream: Stream,
    client: Rc<Client>,
    /// It came when there was no room: all it may ask is how the node is.
    is_crowded: bool,
    buffer: Buffer,
    /// When the request under way began to come, if one is.
    begun: Option<Duration>,
    /// Bytes of it that are done with.
    taken: u64,
}

/// How a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Between two requests.
    Between,
    /// The client may still be sending.
    Midway,
}

/// Why no more bytes came.
enum Lack {
    /// The client has left, or is sent home.
    Gone,
    /// It takes too long.
    Late,
}

impl Talk {
    async fn converse(&mut self) -> io::Result<End> {
        loop {
            let head = match self.next_head().await? {
                Ok(head) => head,
                Err(None) => return Ok(End::Between),
                Err(Some(refusal)) => return self.refuse(refusal).await,
            };
            if self.is_crowded && !routes::is_watching(&head) {
                return self.refuse(TOO_MANY).await;
            }
            let stays = match Route::of(&self.shard, &head) {
                Err(response) => {
                    // With a body behind it the next request is not found without reading that.
                    let stays = head.keep_alive && !has_body(head.framing);
                    self.respond(*response, &head, stays).await?
                }
                Ok(route) => {
                    let value = match self.take_body(&head).await? {
                        Ok(value) => value,
                        Err(None) => return Ok(End::Between),
                        Err(Some(refusal)) => return self.refuse(refusal).await,
                    };
                    let response = routes::answer(&self.shard, route, value).await;
                    self.respond(response, &head, head.keep_alive).await?
                }
            };
            self.begun = None;
            match stays {
                true => {}
                false if has_body(head.framing) => return Ok(End::Midway),
                false => return Ok(End::Between),
            }
        }
    }

    /// The next request; `None`: there will be none.
    async fn next_head(&mut self) -> io::Result<Result<Box<Head>, Option<Refusal>>> {
        let mut parser = HeadParser::default();
        let limits = self.head_limits();
        self.taken = 0;
        loop {
            if !self.buffer.filled().is_empty() {
                self.begun.get_or_insert_with(rt::now);
            }
            match parser.parse(self.buffer.filled(), limits) {
                Parsed::Head(head, length) => {
                    self.buffer.consume(length);
                    self.taken = length as u64;
                    return Ok(Ok(head));
                }
                Parsed::Refused(refusal) => return Ok(Err(Some(refusal))),
                Parsed::Incomplete => {}
            }
            match self.read_more().await? {
                Ok(()) => {}
                Err(Lack::Gone) => return Ok(Err(None)),
                Err(Lack::Late) => return Ok(Err(Some(TOO_LATE))),
            }
        }
    }

    fn head_limits(&self) -> HeadLimits {
        let key_bytes_max = self.shard.config().limits.key_max.0 as usize;
        HeadLimits {
            // Each byte of a key may be written with three.
            line_bytes_max: 3 * key_bytes_max + HTTP_QUERY_BYTES_MAX,
            fields_bytes_max: HTTP_FIELDS_BYTES_MAX,
        }
    }

    /// The body of this request; `None`: it will not come.
    async fn take_body(&mut self, head: &Head) -> io::Result<Result<Vec<u8>, Option<Refusal>>> {
        let value_bytes_max = self.shard.config().limits.value_max.0 as usize;
        match (head.method, head.framing) {
            (Method::Put, Framing::None) => return Ok(Err(Some(NO_LENGTH))),
            (Method::Put, _) => {}
            (_, framing) if has_body(framing) => return Ok(Err(Some(NO_BODY))),
            _ => {}
        }
        let mut body = match Body::new(head.framing, value_bytes_max) {
            Ok(body) => body,
            Err(refusal) => return Ok(Err(Some(refusal))),
        };
        let waits = head.expected == Expected::Continue && self.buffer.filled().is_empty();
        if waits && !body.is_done() {
            self.stream.write_all(CONTINUE).await?;
        }
        let mut value = Vec::new();
        loop {
            match body.feed(self.buffer.filled(), &mut value) {
                Err(refusal) => return Ok(Err(Some(refusal))),
                Ok(fed) => {
                    self.buffer.consume(fed.consumed);
                    self.taken += fed.consumed as u64;
                }
            }
            if body.is_done() {
                return Ok(Ok(value));
            }
            match self.read_more().await? {
                Ok(()) => {}
                Err(Lack::Gone) => return Ok(Err(None)),
                Err(Lack::Late) => return Ok(Err(Some(TOO_LATE))),
            }
        }
    }

    /// Waits for bytes: as long as it likes between two requests, and within one as long as that
    /// may take.
    async fn read_more(&mut self) -> io::Result<Result<(), Lack>> {
        let late_at = self.begun.map(|begun| {
            let seconds = self.shard.config().limits.http_request_timeout_s;
            let came = self.taken + self.buffer.filled().len() as u64;
            begun + Duration::from_secs(seconds + came / HTTP_BYTES_PER_S)
        });
        let read = self
            .shard
            .read_more(&mut self.stream, &self.client, &mut self.buffer, 1);
        let Some(late_at) = late_at else {
            return Ok(read.await?.then_some(()).ok_or(Lack::Gone));
        };
        let read = async { Some(read.await) };
        let late = async {
            rt::sleep(late_at.saturating_sub(rt::now())).await;
            None
        };
        match future::or(read, late).await {
            Some(read) => Ok(read?.then_some(()).ok_or(Lack::Gone)),
            None => Ok(Err(Lack::Late)),
        }
    }

    /// Says no, and that the connection ends here.
    async fn refuse(&mut self, refusal: Refusal) -> io::Result<End> {
        let response = answers::refusal(refusal);
        self.shard.count_http(response.status.0);
        self.send(&response, false).await?;
        Ok(End::Midway)
    }

    /// Answers; says whether the connection stays.
    async fn respond(&mut self, response: Response, head: &Head, stays: bool) -> io::Result<bool> {
        let stays = stays && !self.is_crowded && !self.shard.is_closing();
        self.shard.count_http(response.status.0);
        match head.method {
            Method::Head => self.send(&response.without_body(), stays).await?,
            _ => self.send(&response, stays).await?,
        }
        Ok(stays)
    }

    async fn send(&mut self, response: &Response, stays: bool) -> io::Result<()> {
        self.shard.put_aside(&mut self.buffer);
        let mut bytes = response.head(rt::wall_ms(), stays);
        if response.body.len() <= BODY_BYTES_JOINED_MAX {
            bytes.extend_from_slice(&response.body);
            return self.stream.write_all(&bytes).await;
        }
        self.stream.write_all(&bytes).await?;
        self.stream.write_all(&response.body).await
    }

    /// Drops what still comes, for a while: a connection that is closed with something unread is
    /// reset, and the client may never see why.
    async fn linger(&mut self) {
        self.stream.shutdown().await;
        let stream = &mut self.stream;
        let drain = async {
            let mut piece = [0; LINGER_BYTES];
            while matches!(stream.read(&mut piece).await, Ok(1..)) {}
        };
        future::or(drain, rt::sleep(LINGER_MAX)).await;
    }
}

fn has_body(framing: Framing) -> bool {
    !matches!(framing, Framing::None | Framing::Length(0))
}
