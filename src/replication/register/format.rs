//! A register's requests, answers and durable state as bytes, for values that are bytes themselves.
//!
//! state   := format u8 (1) | set u64 | ballot promised | ballot accepted | value | crc u32 of all before
//! request := 1 | set u64                                                   read
//!          | 2 | set u64 | ballot                                          prepare
//!          | 3 | set u64 | ballot | next round u64 | value                 accept
//! answer  := 1 | ballot accepted | value                                   holds
//!          | 2 | ballot | ballot accepted | value                          promised
//!          | 3 | ballot | is next promised u8 (0, 1)                       accepted
//!          | 4 | ballot | ballot promised                                  refused
//!          | 5 | set u64                                                   outdated
//! ballot  := round u64 | proposer u32
//! value   := 0 | 1 | bytes                                                 to the end
//!
//! Little endian. Whoever sends or stores these bytes keeps their length. What is decoded is
//! well-formed to the last byte, and no allocation is larger than what was given.

use bytes::Bytes;

use super::{Answer, Ballot, Request, State};

const FORMAT: u8 = 1;
const CRC_BYTES: usize = 4;

const READ: u8 = 1;
const PREPARE: u8 = 2;
const ACCEPT: u8 = 3;

const HOLDS: u8 = 1;
const PROMISED: u8 = 2;
const ACCEPTED: u8 = 3;
const REFUSED: u8 = 4;
const OUTDATED: u8 = 5;

/// The bytes of a holder's state.
pub fn encode_state(state: &State<Bytes>) -> Vec<u8> {
    let mut out = vec![FORMAT];
    out.extend_from_slice(&state.set.to_le_bytes());
    put_ballot(&mut out, state.promised);
    put_ballot(&mut out, state.accepted);
    put_value(&mut out, state.value.as_ref());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// A holder's state; `None` if the bytes are damaged, or of another format. Such a holder has lost
/// its state.
pub fn decode_state(bytes: &[u8]) -> Option<State<Bytes>> {
    let (bytes, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
    if crc32c::crc32c(bytes) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut reader = Reader(bytes);
    if reader.u8()? != FORMAT {
        return None;
    }
    let state = State {
        set: reader.u64()?,
        promised: reader.ballot()?,
        accepted: reader.ballot()?,
        value: reader.value()?,
    };
    let is_sane = state.accepted <= state.promised && may_hold(state.accepted, &state.value);
    is_sane.then_some(state)
}

/// The bytes of a request.
pub fn encode_request(request: &Request<Bytes>) -> Vec<u8> {
    let mut out = Vec::new();
    let (kind, set) = match request {
        Request::Read { set } => (READ, set),
        Request::Prepare { set, .. } => (PREPARE, set),
        Request::Accept { set, .. } => (ACCEPT, set),
    };
    out.push(kind);
    out.extend_from_slice(&set.to_le_bytes());
    match request {
        Request::Read { .. } => {}
        Request::Prepare { ballot, .. } => put_ballot(&mut out, *ballot),
        Request::Accept {
            ballot,
            value,
            next,
            ..
        } => {
            assert!(next > ballot && next.proposer == ballot.proposer);
            put_ballot(&mut out, *ballot);
            out.extend_from_slice(&next.round.to_le_bytes());
            put_value(&mut out, value.as_ref());
        }
    }
    out
}

/// A request; `None` if it is none.
pub fn decode_request(bytes: &[u8]) -> Option<Request<Bytes>> {
    let mut reader = Reader(bytes);
    let (kind, set) = (reader.u8()?, reader.u64()?);
    let request = match kind {
        READ => Request::Read { set },
        PREPARE => Request::Prepare {
            set,
            ballot: reader.round()?,
        },
        ACCEPT => {
            let (ballot, next) = (reader.round()?, reader.u64()?);
            Request::Accept {
                set,
                ballot,
                value: reader.value()?,
                next: Some(next)
                    .filter(|next| *next > ballot.round)
                    .map(|round| Ballot { round, ..ballot })?,
            }
        }
        _ => return None,
    };
    reader.0.is_empty().then_some(request)
}

/// The bytes of an answer.
pub fn encode_answer(answer: &Answer<Bytes>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Answer::Holds { accepted, value } => {
            out.push(HOLDS);
            put_ballot(&mut out, *accepted);
            put_value(&mut out, value.as_ref());
        }
        Answer::Promised {
            ballot,
            accepted,
            value,
        } => {
            out.push(PROMISED);
            put_ballot(&mut out, *ballot);
            put_ballot(&mut out, *accepted);
            put_value(&mut out, value.as_ref());
        }
        Answer::Accepted {
            ballot,
            is_next_promised,
        } => {
            out.push(ACCEPTED);
            put_ballot(&mut out, *ballot);
            out.push(u8::from(*is_next_promised));
        }
        Answer::Refused { ballot, promised } => {
            out.push(REFUSED);
            put_ballot(&mut out, *ballot);
            put_ballot(&mut out, *promised);
        }
        Answer::Outdated { set } => {
            out.push(OUTDATED);
            out.extend_from_slice(&set.to_le_bytes());
        }
    }
    out
}

/// An answer; `None` if it is none.
pub fn decode_answer(bytes: &[u8]) -> Option<Answer<Bytes>> {
    let mut reader = Reader(bytes);
    let answer = match reader.u8()? {
        HOLDS => {
            let (accepted, value) = (reader.ballot()?, reader.value()?);
            may_hold(accepted, &value).then_some(Answer::Holds { accepted, value })?
        }
        PROMISED => {
            let (ballot, accepted, value) = (reader.round()?, reader.ballot()?, reader.value()?);
            let is_sane = accepted < ballot && may_hold(accepted, &value);
            is_sane.then_some(Answer::Promised {
                ballot,
                accepted,
                value,
            })?
        }
        ACCEPTED => Answer::Accepted {
            ballot: reader.round()?,
            is_next_promised: match reader.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        },
        REFUSED => Answer::Refused {
            ballot: reader.round()?,
            promised: reader.round()?,
        },
        OUTDATED => Answer::Outdated { set: reader.u64()? },
        _ => return None,
    };
    reader.0.is_empty().then_some(answer)
}

/// Who has accepted nothing has no value.
fn may_hold(accepted: Ballot, value: &Option<Bytes>) -> bool {
    accepted != Ballot::ZERO || value.is_none()
}

fn put_ballot(out: &mut Vec<u8>, ballot: Ballot) {
    out.extend_from_slice(&ballot.round.to_le_bytes());
    out.extend_from_slice(&ballot.proposer.to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: Option<&Bytes>) {
    out.push(u8::from(value.is_some()));
    out.extend_from_slice(value.map_or(&[], |value| value));
}

/// What is left to be decoded.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn ballot(&mut self) -> Option<Ballot> {
        let ballot = Ballot {
            round: self.u64()?,
            proposer: self.u32()?,
        };
        // So that there is always a next one.
        (ballot.round < u64::MAX / 2).then_some(ballot)
    }

    /// The ballot of a round: not the lowest, which stands for none.
    fn round(&mut self) -> Option<Ballot> {
        self.ballot().filter(|ballot| ballot.round > 0)
    }

    /// The rest.
    fn value(&mut self) -> Option<Option<Bytes>> {
        let has_value = self.u8()?;
        let rest = std::mem::take(&mut self.0);
        match has_value {
            0 => rest.is_empty().then_some(None),
            1 => Some(Some(Bytes::copy_from_slice(rest))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(chance: &mut fastrand::Rng) -> Ballot {
        Ballot {
            round: chance.u64(1..1 << 40),
            proposer: chance.u32(..),
        }
    }

    fn value(chance: &mut fastrand::Rng) -> Option<Bytes> {
        let length = chance.usize(..40);
        let bytes: Bytes = (0..length).map(|_| chance.u8(..)).collect();
        Some(bytes).filter(|_| chance.bool())
    }

    fn above(ballot: Ballot) -> Ballot {
        Ballot {
            round: ballot.round + 1,
            ..ballot
        }
    }

    fn request(chance: &mut fastrand::Rng) -> Request<Bytes> {
        let (set, ballot) = (chance.u64(..), ballot(chance));
        match chance.u8(..3) {
            0 => Request::Read { set },
            1 => Request::Prepare { set, ballot },
            _ => Request::Accept {
                set,
                ballot,
                value: value(chance),
                next: above(ballot),
            },
        }
    }

    fn answer(chance: &mut fastrand::Rng) -> Answer<Bytes> {
        let (accepted, value) = (ballot(chance), value(chance));
        match chance.u8(..5) {
            0 => Answer::Holds { accepted, value },
            1 => Answer::Promised {
                ballot: above(accepted),
                accepted,
                value,
            },
            2 => Answer::Accepted {
                ballot: accepted,
                is_next_promised: chance.bool(),
            },
            3 => Answer::Refused {
                ballot: accepted,
                promised: above(accepted),
            },
            _ => Answer::Outdated {
                set: chance.u64(..),
            },
        }
    }

    #[test]
    fn what_is_encoded_comes_back_and_nothing_shorter_or_longer_passes_for_it() {
        let mut chance = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let (request, answer) = (request(&mut chance), answer(&mut chance));
            assert_eq!(
                decode_request(&encode_request(&request)),
                Some(request.clone())
            );
            assert_eq!(decode_answer(&encode_answer(&answer)), Some(answer.clone()));
            let accepted = ballot(&mut chance);
            let state = State {
                set: chance.u64(..),
                promised: above(accepted),
                accepted,
                value: value(&mut chance),
            };
            let bytes = encode_state(&state);
            assert_eq!(decode_state(&bytes), Some(state));
            for cut in 0..bytes.len() {
                assert_eq!(decode_state(&bytes[..cut]), None);
            }
        }
    }

    /// Else bytes of the network or a damaged file could end the process, or make a holder forget.
    #[test]
    fn no_bytes_end_the_process_and_no_damage_passes_for_a_state() {
        for seed in 0..20_000 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let mut bytes = match chance.u8(..3) {
                0 => encode_request(&request(&mut chance)),
                1 => encode_answer(&answer(&mut chance)),
                _ => (0..chance.usize(..60)).map(|_| chance.u8(..6)).collect(),
            };
            for _ in 0..chance.usize(..4) {
                match bytes.len() {
                    0 => bytes.push(chance.u8(..)),
                    length if chance.bool() => bytes[chance.usize(..length)] = chance.u8(..),
                    length => bytes.truncate(chance.usize(..=length)),
                }
            }
            if let Some(request) = decode_request(&bytes) {
                assert_eq!(
                    encode_request(&request),
                    bytes,
                    "seed {seed}: two forms of one request"
                );
            }
            if let Some(answer) = decode_answer(&bytes) {
                assert_eq!(
                    encode_answer(&answer),
                    bytes,
                    "seed {seed}: two forms of one answer"
                );
            }
            let accepted = ballot(&mut chance);
            let mut bytes = encode_state(&State {
                set: 1,
                promised: accepted,
                accepted,
                value: value(&mut chance),
            });
            let at = chance.usize(..bytes.len());
            bytes[at] ^= 1 << chance.u8(..8);
            assert_eq!(decode_state(&bytes), None, "seed {seed}");
        }
    }
}
