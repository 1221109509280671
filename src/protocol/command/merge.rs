//! One answer made of the answers to the parts of a command.

use super::{Protocol, Reply};

/// How the answers to the parts of a [`super::KeysCommand`] make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// A list of them, in order.
    Array,
    /// Their sum: they are integers.
    Sum,
    /// OK if all of them are.
    Ok,
}

impl Merge {
    /// Appends the one answer to `out`. `parts` are the replies to all parts, in order; the first
    /// error among them, if there is one, is the answer.
    pub fn join<'p>(
        self,
        parts: impl ExactSizeIterator<Item = &'p [u8]> + Clone,
        protocol: Protocol,
        out: &mut Vec<u8>,
    ) {
        if let Some(error) = parts.clone().find(|part| part.first() == Some(&b'-')) {
            return out.extend_from_slice(error);
        }
        match self {
            Merge::Array => {
                Reply::new(out, protocol).array(parts.len());
                parts.for_each(|part| out.extend_from_slice(part));
            }
            Merge::Sum => Reply::new(out, protocol).integer(parts.map(integer).sum()),
            Merge::Ok => Reply::new(out, protocol).ok(),
        }
    }
}

/// The value of an integer reply.
fn integer(reply: &[u8]) -> i64 {
    let digits = reply.strip_prefix(b":").and_then(|rest| rest.strip_suffix(b"\r\n"));
    let value = digits.and_then(crate::protocol::number::parse_i64);
    value.expect("evaluate() answers the parts of a sum with integers")
}
