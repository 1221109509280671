//! One request: its bytes, and what an error says of it. Pure.

use crate::chance::{mix, scale};
use crate::content::{HEADER_BYTES, Stamp};
use crate::ledger::{Outcome, Write};
use crate::plan::{Plan, Release, Share};
use crate::resp::{write_head, write_number, write_word, write_word_with};
use crate::workload::Kind;

/// Deletes a lock if it holds the token that was put there.
const RELEASE_SCRIPT: &[u8] =
    b"if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

/// Errors that say that nothing was done. Whatever else goes wrong with a write leaves it in doubt.
const REFUSALS: &[&str] = &[
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "WRONGTYPE",
];
/// Failures that another server of the same cluster may not have.
const OF_ONE_SERVER: &[&str] = &[
    "BUSY",
    "CLUSTERDOWN",
    "IOERR",
    "LOADING",
    "MISCONF",
    "NOREPLICAS",
    "TRYAGAIN",
    "UNKNOWN",
    "disconnected",
    "timeout",
];
/// Letters of an error's first word.
const CLASS_BYTES_MAX: usize = 24;

/// The part of an operation that a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All of it.
    Whole,
    /// Its reading, before the writing; or the reading back of what it wrote.
    Read,
    /// The write before the WAIT that is all of it.
    Ahead,
    /// A greeting of the connection, of no operation.
    Greeting,
}

/// A request that is on its way.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub kind: Kind,
    pub step: Step,
    pub client: u32,
    /// As its thread counts it.
    pub record: u64,
    /// Which write of the record it is.
    pub seq: u32,
    /// What it may not read older than.
    pub floor: u32,
    /// When it was due, and when it was handed to its connection.
    pub due: u64,
    pub sent: u64,
    /// Of an unlock: when its lock was sent.
    pub locked: u64,
    pub redirects: u8,
    /// The server that it was sent to, and those that have failed it, a bit for each.
    pub server: u16,
    pub tried: u32,
    /// Whether one of them has, and whether what it was to do may be done by that one nevertheless.
    pub is_again: bool,
    pub is_doubtful: bool,
}

impl Request {
    /// What a connection of `client` says first.
    pub fn greeting(client: u32) -> Request {
        Request {
            kind: Kind::Get,
            step: Step::Greeting,
            client,
            record: 0,
            seq: 0,
            floor: 0,
            due: 0,
            sent: 0,
            locked: 0,
            redirects: 0,
            server: 0,
            tried: 0,
            is_again: false,
            is_doubtful: false,
        }
    }

    /// The write to a value that its operation makes, sooner or later.
    pub fn write(&self) -> Option<Write> {
        match self.kind {
            Kind::Set | Kind::Insert | Kind::ReadModifyWrite => Some(Write::Value),
            Kind::SetExpiring => Some(Write::Expiring),
            Kind::Delete => Some(Write::Delete),
            Kind::Get | Kind::Increment | Kind::Lock | Kind::Unlock => None,
        }
    }

    /// Whether it is followed by a WAIT.
    pub fn waits(&self, plan: &Plan) -> bool {
        plan.wait > 0 && self.step == Step::Whole && self.write().is_some()
    }

    /// Whether it may be done twice, one time after the other, as if it had been done once.
    pub fn is_idempotent(&self) -> bool {
        match self.kind {
            Kind::Get
            | Kind::Set
            | Kind::SetExpiring
            | Kind::Insert
            | Kind::Delete
            | Kind::ReadModifyWrite => true,
            Kind::Increment | Kind::Lock | Kind::Unlock => self.step == Step::Read,
        }
    }

    /// Appends its key.
    pub fn write_key(&self, plan: &Plan, share: Share, out: &mut Vec<u8>) {
        let keys = plan.keys.of(self.kind.spec().family);
        keys.write(share.number(self.record), out);
    }

    /// Appends its bytes.
    pub fn write_to(&self, plan: &Plan, share: Share, out: &mut Vec<u8>) {
        let keys = plan.keys.of(self.kind.spec().family);
        let number = share.number(self.record);
        let mut begin = |words: usize, name: &[u8]| {
            write_head(words, out);
            write_word(name, out);
            write_word_with(keys.key_bytes(), out, |out| keys.write(number, out));
        };
        match (self.kind, self.step) {
            (_, Step::Greeting) => unreachable!("greetings have bytes of their own"),
            (Kind::Get, _) | (_, Step::Read) => begin(2, b"GET"),
            (Kind::Set | Kind::Insert | Kind::ReadModifyWrite, _) => {
                begin(3, b"SET");
                self.write_value(plan, number, out);
            }
            (Kind::SetExpiring, _) => {
                begin(5, b"SET");
                self.write_value(plan, number, out);
                // From half to one and a half of it: so that they do not expire all at once.
                let spread = scale(mix(self.entropy(number)), plan.ttl_ms.max(1));
                write_expiry(plan.ttl_ms / 2 + spread + 1, out);
            }
            (Kind::Delete, _) => begin(2, b"DEL"),
            (Kind::Increment, _) => begin(2, b"INCR"),
            (Kind::Lock, _) => {
                begin(6, b"SET");
                write_word(&self.token(plan, number), out);
                write_word(b"NX", out);
                write_expiry(plan.ttl_ms, out);
            }
            (Kind::Unlock, _) => {
                let token = self.token(plan, number);
                match plan.release {
                    Release::Script => {
                        write_head(5, out);
                        write_word(b"EVAL", out);
                        write_word(RELEASE_SCRIPT, out);
                        write_word(b"1", out);
                        write_word_with(keys.key_bytes(), out, |out| keys.write(number, out));
                        write_word(&token, out);
                    }
                    Release::DelexIfeq => {
                        begin(4, b"DELEX");
                        write_word(b"IFEQ", out);
                        write_word(&token, out);
                    }
                    Release::Delifeq => {
                        begin(3, b"DELIFEQ");
                        write_word(&token, out);
                    }
                    Release::Delete => begin(2, b"DEL"),
                }
            }
        }
    }

    /// Appends the bytes of its WAIT.
    pub fn write_wait(&self, plan: &Plan, out: &mut Vec<u8>) {
        write_head(3, out);
        write_word(b"WAIT", out);
        for number in [u64::from(plan.wait), plan.timeout / 1_000_000] {
            let mut digits = Vec::with_capacity(20);
            write_number(number, &mut digits);
            write_word(&digits, out);
        }
    }

    fn write_value(&self, plan: &Plan, number: u64, out: &mut Vec<u8>) {
        let stamp = Stamp {
            record: number,
            run: plan.run,
            seq: self.seq,
        };
        let length = plan.sizes.pick(self.entropy(number)) as usize;
        match plan.verify {
            true => {
                let length = length.max(HEADER_BYTES);
                write_word_with(length, out, |out| {
                    plan.content.write_checked(stamp, length, out)
                });
            }
            false => write_word_with(length, out, |out| {
                plan.content.write_body(stamp, length, out)
            }),
        }
    }

    /// What is chosen for a write follows from this, so that a redirected one has the same bytes.
    fn entropy(&self, number: u64) -> u64 {
        mix(number.rotate_left(32) ^ u64::from(self.seq))
    }

    fn token(&self, plan: &Plan, number: u64) -> [u8; 16] {
        let mut token = [0; 16];
        token[..8].copy_from_slice(&number.to_le_bytes());
        token[8..12].copy_from_slice(&plan.run.to_le_bytes());
        token[12..].copy_from_slice(&self.seq.to_le_bytes());
        token
    }
}

fn write_expiry(millis: u64, out: &mut Vec<u8>) {
    write_word(b"PX", out);
    let mut digits = Vec::with_capacity(20);
    write_number(millis, &mut digits);
    write_word(&digits, out);
}

/// The first word of an error, if it looks like one: what clients tell errors apart by.
pub fn class_of(message: &str) -> &str {
    let word = message.split([' ', ':']).next().unwrap_or_default();
    let is_class = !word.is_empty()
        && word.len() <= CLASS_BYTES_MAX
        && word
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    if is_class { word } else { "ERR" }
}

/// Whether a failure of this class is worth asking another server.
pub fn is_of_one_server(class: &str) -> bool {
    OF_ONE_SERVER.contains(&class)
}

/// What an error says of the write that it answers.
pub fn outcome_of(message: &str) -> Outcome {
    match REFUSALS.contains(&class_of(message)) {
        true => Outcome::Refused,
        false => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_their_first_word() {
        for (message, class) in [
            ("OOM command not allowed", "OOM"),
            ("UNKNOWN the log failed", "UNKNOWN"),
            ("ERR unknown command", "ERR"),
            ("something else", "ERR"),
            ("", "ERR"),
        ] {
            assert_eq!(class_of(message), class, "{message}");
        }
    }

    /// To take a write for refused that was done makes a sound server look wrong; the reverse hides
    /// faults.
    #[test]
    fn only_errors_that_say_so_mean_that_nothing_was_done() {
        assert_eq!(outcome_of("MISCONF no space"), Outcome::Refused);
        assert_eq!(outcome_of("NOREPLICAS too few"), Outcome::Refused);
        assert_eq!(
            outcome_of("UNKNOWN may or may not survive"),
            Outcome::Unknown
        );
        assert_eq!(outcome_of("ERR whatever"), Outcome::Unknown);
    }
}
