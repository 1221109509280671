//! A newcomer asks a node to be let into its cluster: one connection, one request, one answer. A
//! member that looks for the others (`elsewhere`) asks in the same way.
//!
//! It has no number yet, so it connects as nobody in particular (`protocol/peer/handshake`), and
//! proves only that it knows the cluster's key.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future;

use super::begin::Unheard;
use super::proposing::WISH_MAX;
use super::{Boxed, Knocking, Said};
use crate::cluster::map::{Node, Uuid};
use crate::protocol::peer::handshake::{Connecting, Side};
use crate::protocol::peer::{self, Answer, Frame, Limits, Message, Parsed, Request};
use crate::rt::{self, Stream};

/// The whole of it takes no longer.
const KNOCK_MAX: Duration = Duration::from_secs(2 * WISH_MAX.as_secs() + 4);
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 16 << 10;

/// The way of a node that knows the cluster's key.
pub struct Door {
    /// The key.
    pub key: Vec<u8>,
}

impl Knocking for Door {
    fn knock(
        &self,
        address: SocketAddr,
        newcomer: Node,
        cluster: Option<Uuid>,
    ) -> Boxed<'_, Result<Said, Unheard>> {
        Box::pin(async move {
            let late = async {
                rt::sleep(KNOCK_MAX).await;
                Err(unreached("no answer came in time"))
            };
            future::or(ask(address, newcomer, cluster, &self.key), late).await
        })
    }
}

async fn ask(
    address: SocketAddr,
    mut newcomer: Node,
    cluster: Option<Uuid>,
    key: &[u8],
) -> Result<Said, Unheard> {
    let stream = Stream::connect(address).await.map_err(unreached)?;
    if newcomer.host.is_empty() {
        let seen = stream.local_addr().map(|address| address.ip());
        newcomer.host = seen.map_or_else(String::new, |ip| ip.to_string());
    }
    let mut nonce = [0; 32];
    for part in nonce.chunks_mut(8) {
        part.copy_from_slice(&rt::random().to_le_bytes());
    }
    let mut line = Line {
        stream,
        input: Vec::new(),
    };
    let (connecting, hello) = Connecting::start(Side::newcomer(nonce), None);
    line.send(Message::Hello(hello), 0).await?;
    let welcomed = line
        .receive(&Limits::greeting(), |message| match message {
            Message::Welcome(welcome) => Some(welcome),
            _ => None,
        })
        .await?;
    let (peer, proof) = connecting
        .on_welcome(&welcomed, key)
        .map_err(|refusal| Unheard::Hopeless(refusal.to_string()))?;
    let found = Uuid(u128::from_be_bytes(peer.side.cluster));
    if cluster.is_some_and(|cluster| cluster != found) {
        return Err(Unheard::Elsewhere(found));
    }
    line.send(Message::Proof(proof), peer.version).await?;
    let text = serde_json::to_vec(&newcomer).expect("names are text, and nothing is a float");
    let request = Message::Request(Request::Join(&text));
    line.send(request, peer.version).await?;
    let limits = Limits::proven(peer.version, 0, 0);
    line.receive(&limits, |message| match message {
        Message::Answer(Answer::Map { map, .. }) => Some(Said::Map(Bytes::copy_from_slice(map))),
        Message::Answer(Answer::Busy) => Some(Said::Busy),
        Message::Answer(Answer::Failed { text, .. }) => Some(Said::Refused(text.to_owned())),
        _ => None,
    })
    .await
}

fn unreached(why: impl ToString) -> Unheard {
    Unheard::Unreached(why.to_string())
}

/// One connection, frame by frame.
struct Line {
    stream: Stream,
    input: Vec<u8>,
}

impl Line {
    async fn send(&mut self, message: Message<'_>, version: u8) -> Result<(), Unheard> {
        let mut out = Vec::new();
        let frame = Frame {
            id: 1,
            deadline_ms: KNOCK_MAX.as_millis() as u32,
            epoch: 0,
            message,
        };
        peer::encode(&frame, version, &mut out);
        self.stream.write_all(&out).await.map_err(unreached)
    }

    /// The next frame, as `take` understands it.
    async fn receive<T>(
        &mut self,
        limits: &Limits,
        take: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, Unheard> {
        loop {
            match peer::parse(&self.input, limits) {
                Parsed::Frame { consumed, frame } => {
                    let taken = take(frame.message);
                    self.input.drain(..consumed);
                    return taken.ok_or_else(|| unreached("its answer is not understood"));
                }
                Parsed::Violation(error) => return Err(unreached(error)),
                Parsed::Incomplete { .. } => {
                    let mut piece = [0; PIECE_BYTES];
                    let count = self.stream.read(&mut piece).await.map_err(unreached)?;
                    if count == 0 {
                        let end = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return Err(unreached(end));
                    }
                    self.input.extend_from_slice(&piece[..count]);
                }
            }
        }
    }
}
