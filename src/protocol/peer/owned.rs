//! Requests and answers that outlive the bytes they came in: on their way to another task, or to
//! another core.

use super::Reader;
use super::message::{Answer, Request};

/// A request with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRequest(Owned);

/// An answer with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedAnswer(Owned);

/// A body that was encoded here, or decoded without a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    kind: u8,
    body: Vec<u8>,
}

impl OwnedRequest {
    /// Copies it.
    pub fn new(request: &Request<'_>) -> OwnedRequest {
        let mut body = Vec::new();
        request.encode(&mut body);
        let kind = request.kind();
        OwnedRequest(Owned { kind, body })
    }

    /// As it was.
    pub fn view(&self) -> Request<'_> {
        let mut reader = Reader(&self.0.body);
        Request::decode(self.0.kind, &mut reader).expect("it was encoded here")
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.0.body.len()
    }
}

impl OwnedAnswer {
    /// Copies it.
    pub fn new(answer: &Answer<'_>) -> OwnedAnswer {
        let mut body = Vec::new();
        answer.encode(&mut body);
        let kind = answer.kind();
        OwnedAnswer(Owned { kind, body })
    }

    /// As it was.
    pub fn view(&self) -> Answer<'_> {
        let mut reader = Reader(&self.0.body);
        Answer::decode(self.0.kind, &mut reader).expect("it was encoded here")
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.0.body.len()
    }
}
