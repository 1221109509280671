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
    let digits = reply
        .strip_prefix(b":")
        .and_then(|rest| rest.strip_suffix(b"\r\n"));
    let value = digits.and_then(crate::protocol::number::parse_i64);
    value.expect("evaluate() answers the parts of a sum with integers")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(merge: Merge, parts: &[&str]) -> String {
        let mut out = Vec::new();
        merge.join(
            parts.iter().map(|part| part.as_bytes()),
            Protocol::Resp2,
            &mut out,
        );
        String::from_utf8(out).expect("text went in")
    }

    #[test]
    fn parts_make_one_answer() {
        assert_eq!(
            join(Merge::Array, &["$1\r\na\r\n", "$-1\r\n"]),
            "*2\r\n$1\r\na\r\n$-1\r\n"
        );
        assert_eq!(
            join(Merge::Sum, &[":1\r\n", ":0\r\n", ":12\r\n"]),
            ":13\r\n"
        );
        assert_eq!(join(Merge::Ok, &["+OK\r\n", "+OK\r\n"]), "+OK\r\n");
    }

    #[test]
    fn the_first_error_is_the_answer() {
        let parts = ["+OK\r\n", "-ERR one\r\n", "-ERR two\r\n"];
        for merge in [Merge::Array, Merge::Sum, Merge::Ok] {
            assert_eq!(
                join(merge, &parts),
                "-ERR one\r\n",
                "{merge:?} hides a failed part"
            );
        }
    }
}
