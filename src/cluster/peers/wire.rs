//! One connection: bytes in to frames, waiting frames out, both at once in one task; and the
//! handshake before.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::future;

use super::input::{Buffers, Input};
use super::queue::{Moment, Queue, Turn};
use crate::error::Error;
use crate::protocol::peer::handshake::{Accepting, Connecting, Peer, Refusal, Side};
use crate::protocol::peer::{Frame, Limits, Message, Parsed, PeerError, VERSION, encode, parse};
use crate::rt::{self, Stream};
use crate::types::CoreId;

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Broken {
    /// The other side has closed it.
    Ended,
    /// There is nobody to connect to.
    Unreachable(Error),
    /// The network, or the system.
    Io(io::Error),
    /// What came first is nothing that a node says.
    Foreign,
    /// It has hung up when it was to prove itself.
    Unproven,
    /// What came is no frame.
    Garbage(PeerError),
    /// What came has no place there.
    OutOfPlace(&'static str),
    /// The two do not talk to each other.
    Refused(Refusal),
    /// It took too long.
    TooSlow,
    /// This side wants it to end.
    Closed(&'static str),
}

impl Broken {
    /// True if the other side is to blame.
    pub fn is_violation(&self) -> bool {
        matches!(
            self,
            Broken::Foreign
                | Broken::Unproven
                | Broken::Garbage(_)
                | Broken::OutOfPlace(_)
                | Broken::Refused(_)
        )
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Ended => write!(f, "the other side has closed it"),
            Broken::Unreachable(error) => write!(f, "{error}"),
            Broken::Io(error) => write!(f, "{error}"),
            Broken::Foreign => write!(f, "it is no Quoit node"),
            Broken::Unproven => write!(
                f,
                "it has hung up instead of proving who it is: it has another `cluster-key`, or looked for another node or cluster"
            ),
            Broken::Garbage(error) => write!(f, "it has sent {error}"),
            Broken::OutOfPlace(what) => write!(f, "it has sent {what}"),
            Broken::Refused(refusal) => write!(f, "{refusal}"),
            Broken::TooSlow => write!(f, "it does not answer"),
            Broken::Closed(why) => write!(f, "{why}"),
        }
    }
}

/// What of a connection is seen from outside of its task.
#[derive(Default)]
pub(super) struct Outside {
    pub queue: RefCell<Queue>,
    /// Bytes that have left the queue and are not with the system yet.
    unwritten: Cell<usize>,
    closed: Cell<Option<&'static str>>,
    task: RefCell<Option<Waker>>,
}

impl Outside {
    /// Bytes that wait to be sent.
    pub fn waiting_bytes(&self) -> usize {
        self.queue.borrow().bytes() + self.unwritten.get()
    }

    /// Something is in the queue: the connection's task is to send it.
    pub fn ring(&self) {
        let task = self.task.take();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Ends the connection.
    pub fn close(&self, why: &'static str) {
        if self.closed.get().is_none() {
            self.closed.set(Some(why));
            self.ring();
        }
    }

    /// The connection is over: as if there had been none.
    pub fn end(&self) {
        self.queue.borrow_mut().clear();
        self.unwritten.set(0);
        self.closed.set(None);
        let task = self.task.take();
        drop(task);
    }

    fn wait(&self, context: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        match task
            .as_ref()
            .is_some_and(|task| task.will_wake(context.waker()))
        {
            true => {}
            false => *task = Some(context.waker().clone()),
        }
    }
}

/// What the two sides of a conversation do with it.
pub(super) trait Talk {
    /// What is seen from outside.
    fn outside(&self) -> &Outside;
    /// A frame has come, so long after the handshake.
    fn take(&self, frame: &Frame<'_>, since_handshake: Duration) -> Result<(), Broken>;
    /// Whether a request leaves whose turn it is, at this moment.
    fn judge(&self, id: u64, now: Duration) -> Turn;
    /// The epoch to be told.
    fn epoch(&self) -> u64;
    /// True if frames are to be read now.
    fn is_reading(&self) -> bool;
}

/// A connection as its own task has it.
pub(super) struct Wire<'b> {
    stream: Stream,
    input: Input,
    buffers: &'b Buffers,
    output: Vec<u8>,
    written: usize,
    /// It has read since it last took something from the queue.
    has_read: bool,
    /// When the handshake was done: deadlines count from there.
    greeted: Duration,
}

enum Woken {
    Read,
    Queue,
    Over(Broken),
}

/// An output buffer that has grown beyond this is not kept.
const OUTPUT_KEPT_BYTES: usize = 256 * 1024;

impl<'b> Wire<'b> {
    /// A connection of which nothing has been said yet.
    pub fn new(stream: Stream, buffers: &'b Buffers) -> Wire<'b> {
        Wire {
            stream,
            input: Input::default(),
            buffers,
            output: Vec::new(),
            written: 0,
            has_read: false,
            greeted: Duration::ZERO,
        }
    }

    /// Makes the other side, to which this one has connected, prove itself.
    pub async fn connect(
        &mut self,
        side: Side,
        wanted: Option<(u16, CoreId)>,
        key: &[u8],
    ) -> Result<Peer, Broken> {
        let (connecting, hello) = Connecting::start(side, wanted);
        self.say(Message::Hello(hello)).await?;
        let said = self
            .hear(|message| match message {
                Message::Welcome(welcome) => Some(*welcome),
                _ => None,
            })
            .await?;
        let (peer, proof) = connecting.on_welcome(&said, key).map_err(Broken::Refused)?;
        self.greeted = rt::now(); // not later than the other side
        self.say(Message::Proof(proof)).await?;
        Ok(peer)
    }

    /// Makes the other side, which has connected to this one, prove itself.
    pub async fn accept(&mut self, side: Side, key: &[u8]) -> Result<Peer, Broken> {
        let hello = self
            .hear(|message| match message {
                Message::Hello(hello) => Some(*hello),
                _ => None,
            })
            .await?;
        let (accepting, welcome) = Accepting::on_hello(side, &hello, key);
        let said = self.say(Message::Welcome(welcome)).await;
        let accepting = accepting.map_err(Broken::Refused)?;
        said?;
        let proof = self
            .hear(|message| match message {
                Message::Proof(proof) => Some(*proof),
                _ => None,
            })
            .await
            .map_err(|broken| match broken {
                Broken::Ended => Broken::Unproven,
                other => other,
            })?;
        self.greeted = rt::now();
        accepting.on_proof(&proof, key).map_err(Broken::Refused)
    }

    async fn say(&mut self, message: Message<'_>) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        let frame = Frame {
            id: 0,
            deadline_ms: 0,
            epoch: 0,
            message,
        };
        encode(&frame, VERSION, &mut bytes);
        self.stream.write_all(&bytes).await.map_err(Broken::Io)
    }

    /// The next message of the handshake, which must be the one that `choose` knows.
    async fn hear<T>(&mut self, choose: impl Fn(&Message<'_>) -> Option<T>) -> Result<T, Broken> {
        let limits = match rt::planted(rt::Bug::GreetingUncapped) {
            true => Limits::proven(VERSION, 0, 64 << 20),
            false => Limits::greeting(),
        };
        loop {
            let needed = match parse(self.input.filled(), &limits) {
                Parsed::Frame { consumed, frame } => {
                    let chosen = choose(&frame.message);
                    self.input.consume(consumed);
                    return chosen.ok_or(Broken::OutOfPlace("another part of the handshake"));
                }
                Parsed::Violation(PeerError::Length(_) | PeerError::Checksum) => {
                    return Err(Broken::Foreign);
                }
                Parsed::Violation(error) => return Err(Broken::Garbage(error)),
                Parsed::Incomplete { needed } => needed,
            };
            poll_fn(|context| self.poll_read(context, needed)).await?;
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>, needed: usize) -> Poll<Result<(), Broken>> {
        let room = self.input.room(needed, self.buffers);
        match self.stream.poll_read(context, room) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(Broken::Ended)),
            Poll::Ready(Ok(count)) => {
                self.input.filled_by(count);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(Broken::Io(error))),
            Poll::Pending => {
                self.input.put_aside(self.buffers);
                Poll::Pending
            }
        }
    }

    /// Talks until the connection is over, and says why it is.
    pub async fn talk(&mut self, limits: &Limits, talk: &impl Talk) -> Broken {
        // What came with the end of the handshake is here already.
        let mut needed = match self.take_frames(limits, talk) {
            Ok(more) => more,
            Err(broken) => return broken,
        };
        loop {
            let woken = poll_fn(|context| self.poll(context, needed, talk)).await;
            match woken {
                Woken::Over(broken) => return broken,
                Woken::Read => match self.take_frames(limits, talk) {
                    Ok(more) => needed = more,
                    Err(broken) => return broken,
                },
                Woken::Queue => {
                    // Whatever else is ready may have something to say, too: it all leaves at once.
                    rt::after_others().await;
                    self.fetch(talk);
                }
            }
            rt::yield_if_needed().await;
        }
    }

    /// What comes first: room for what is to be sent, something to send, something to read, or the
    /// end.
    fn poll(&mut self, context: &mut Context<'_>, needed: usize, talk: &impl Talk) -> Poll<Woken> {
        let outside = talk.outside();
        if let Some(why) = outside.closed.get() {
            return Poll::Ready(Woken::Over(Broken::Closed(why)));
        }
        outside.wait(context);
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match self.stream.poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Woken::Over(Broken::Ended)),
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Woken::Over(Broken::Io(error))),
                Poll::Pending => break,
            }
        }
        outside.unwritten.set(self.output.len() - self.written);
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            if self.output.capacity() > OUTPUT_KEPT_BYTES {
                self.output = Vec::new();
            }
        }
        let may_fetch = self.output.is_empty() && !outside.queue.borrow().is_empty();
        let is_reading = talk.is_reading();
        // Reading and writing take turns: neither waits for an end of the other.
        if is_reading && !(may_fetch && self.has_read) {
            match self.poll_read(context, needed) {
                Poll::Ready(Ok(())) => {
                    self.has_read = true;
                    return Poll::Ready(Woken::Read);
                }
                Poll::Ready(Err(broken)) => return Poll::Ready(Woken::Over(broken)),
                Poll::Pending => {}
            }
        }
        if may_fetch {
            self.has_read = false;
            return Poll::Ready(Woken::Queue);
        }
        Poll::Pending
    }

    /// Takes what waits in the queue to be written.
    fn fetch(&mut self, talk: &impl Talk) {
        let outside = talk.outside();
        let now = rt::now();
        let moment = Moment {
            now: match rt::planted(rt::Bug::DeadlineIgnored) {
                true => Duration::ZERO,
                false => now,
            },
            greeted: self.greeted,
            epoch: talk.epoch(),
        };
        let mut queue = outside.queue.borrow_mut();
        queue.take(&mut self.output, moment, |id| talk.judge(id, now));
        outside.unwritten.set(self.output.len());
    }

    /// Hands on all whole frames; says how many bytes are missing to the next.
    fn take_frames(&mut self, limits: &Limits, talk: &impl Talk) -> Result<usize, Broken> {
        let now = rt::now();
        loop {
            match parse(self.input.filled(), limits) {
                Parsed::Frame { consumed, frame } => {
                    talk.take(&frame, now.saturating_sub(self.greeted))?;
                    self.input.consume(consumed);
                }
                Parsed::Incomplete { needed } => return Ok(needed),
                Parsed::Violation(error) => return Err(Broken::Garbage(error)),
            }
        }
    }

    /// Sends the end.
    pub async fn shutdown(mut self) {
        self.stream.shutdown().await;
    }
}

/// `future`, if it is done within `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    future: impl Future<Output = Result<T, Broken>>,
) -> Result<T, Broken> {
    let late = async {
        rt::sleep(limit).await;
        Err(Broken::TooSlow)
    };
    future::or(future, late).await
}
