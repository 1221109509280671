//! What the next requests of a pipeline are about, found by a glance at their bytes. Pure.
//!
//! Looking a key up costs a few loads from memory, each of which must wait for the one before it.
//! Those of different keys need not wait for each other: if the keys are known early enough, the
//! processor fetches what they need at the same time. Whatever is found here is only a hint: the
//! requests are parsed and run by others, who do not know of it.

/// Requests that are looked at together.
pub const AHEAD_MAX: usize = 16;

/// Requests with more arguments end the glance.
const ARGS_MAX: usize = 8;
/// Digits of a length; longer ones end the glance.
const DIGITS_MAX: usize = 7;

/// The keys of requests at the front of some input.
pub struct Ahead<'a> {
    keys: [&'a [u8]; AHEAD_MAX],
    len: usize,
    /// How many requests were looked at.
    pub requests: usize,
}

impl<'a> Ahead<'a> {
    /// Looks at up to [`AHEAD_MAX`] whole requests.
    pub fn glance(input: &'a [u8]) -> Ahead<'a> {
        let mut ahead = Ahead {
            keys: [&[]; AHEAD_MAX],
            len: 0,
            requests: 0,
        };
        let mut rest = input;
        while ahead.requests < AHEAD_MAX
            && let Some((key, behind)) = request(rest)
        {
            rest = behind;
            ahead.requests += 1;
            if let Some(key) = key {
                ahead.keys[ahead.len] = key;
                ahead.len += 1;
            }
        }
        ahead
    }

    /// What stands where most commands have their key, in order.
    pub fn keys(&self) -> &[&'a [u8]] {
        &self.keys[..self.len]
    }
}

/// The first argument behind the name, if there is one, and what comes after the request.
fn request(input: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (count, mut rest) = number(input, b'*')?;
    if count == 0 || count > ARGS_MAX {
        return None;
    }
    let mut key = None;
    for index in 0..count {
        let (length, bytes) = number(rest, b'$')?;
        let bulk = bytes.get(..length)?;
        if index == 1 {
            key = Some(bulk);
        }
        rest = bytes.get(length + 2..)?;
    }
    Some((key, rest))
}

/// The number on a line that `mark` begins, and what comes after the line.
fn number(input: &[u8], mark: u8) -> Option<(usize, &[u8])> {
    let (first, digits) = input.split_first()?;
    let mut value = 0;
    for (index, &byte) in digits.iter().enumerate().take(DIGITS_MAX + 1) {
        match byte {
            b'0'..=b'9' => value = value * 10 + usize::from(byte - b'0'),
            b'\r' if *first == mark && index > 0 => return Some((value, digits.get(index + 2..)?)),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_whole_requests_are_seen_and_nothing_beyond() {
        let input = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n\
                      *3\r\n$3\r\nSET\r\n$2\r\nbb\r\n$4\r\n\r\n*1\r\n*2\r\n$3\r\nGET\r\n$1\r\nc";
        let ahead = Ahead::glance(input);
        assert_eq!(ahead.keys(), [&b"a"[..], b"bb"]);
        assert_eq!(ahead.requests, 3, "the last one is not complete");
    }

    #[test]
    fn no_more_than_the_bound_are_looked_at() {
        let input = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".repeat(AHEAD_MAX + 3);
        let ahead = Ahead::glance(&input);
        assert_eq!(ahead.keys().len(), AHEAD_MAX);
        assert_eq!(ahead.requests, AHEAD_MAX);
    }

    #[test]
    fn bytes_that_are_no_requests_give_no_keys() {
        let strange: [&[u8]; 9] = [
            b"",
            b"GET a\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*\r\n",
            b"*2\r\n$3\r\nGET\r\n$99999999999999999999\r\na\r\n",
            b"*2\r\n$3\r\nGET\r\n:1\r\na\r\n",
            b"*9\r\n",
            b"*2\r\n$3\r\nGET\r\n$9999999\r\na\r\n",
        ];
        for input in strange {
            let ahead = Ahead::glance(input);
            assert!(ahead.keys().is_empty(), "{}", input.escape_ascii());
        }
    }
}
