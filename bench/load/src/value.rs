//! Whole replies, for the few commands that are asked before a run begins. Pure, over any reader.

use std::io::{self, BufRead, Read};

/// Bytes of one reply, elements and all. The slot map of a thousand nodes is smaller.
const REPLY_BYTES_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 16;

/// A reply. Maps are lists of keys and values in turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Integer(i64),
    Null,
    List(Vec<Value>),
    Error(String),
}

impl Value {
    /// Reads one reply; pushes and attributes before it are passed over.
    pub fn read(from: &mut impl BufRead) -> io::Result<Value> {
        let mut bounded = from.take(REPLY_BYTES_MAX);
        loop {
            if let Some(value) = read(&mut bounded, 0)? {
                return Ok(value);
            }
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The elements of a list; none of anything else.
    pub fn list(&self) -> &[Value] {
        match self {
            Value::List(list) => list,
            _ => &[],
        }
    }

    /// The value of `key` in a map.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut pairs = self.list().chunks_exact(2);
        pairs.find_map(|pair| (pair[0].text() == Some(key)).then_some(&pair[1]))
    }
}

/// `None` for what is no reply.
fn read(from: &mut impl BufRead, depth: usize) -> io::Result<Option<Value>> {
    let line = read_line(from)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(broken)?;
    let number = || rest.parse::<i64>().map_err(|_| broken());
    Ok(Some(match kind {
        "+" | "," | "(" | "#" => Value::Text(rest.to_owned()),
        "-" => Value::Error(rest.to_owned()),
        ":" => Value::Integer(number()?),
        "_" => Value::Null,
        "$" | "=" | "!" if number()? < 0 => Value::Null,
        "$" => Value::Text(read_string(from, number()?)?),
        // A verbatim string begins with three letters for its format, and a colon.
        "=" => Value::Text(
            read_string(from, number()?)?
                .get(4..)
                .ok_or_else(broken)?
                .to_owned(),
        ),
        "!" => Value::Error(read_string(from, number()?)?),
        "*" | "~" | "%" | ">" | "|" if depth == DEPTH_MAX => return Err(broken()),
        "*" | "~" if number()? < 0 => Value::Null,
        "*" | "~" => Value::List(read_list(from, number()?, depth)?),
        "%" => Value::List(read_list(from, number()?.saturating_mul(2), depth)?),
        ">" => return read_list(from, number()?, depth).map(|_| None),
        "|" => return read_list(from, number()?.saturating_mul(2), depth).map(|_| None),
        _ => return Err(broken()),
    }))
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(broken()),
    }
}

fn read_string(from: &mut impl BufRead, length: i64) -> io::Result<String> {
    let length = u64::try_from(length).map_err(|_| broken())?;
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    let mut end = [0; 2];
    from.read_exact(&mut end)?;
    if bytes.len() as u64 != length || end != *b"\r\n" {
        return Err(broken());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_list(from: &mut impl BufRead, length: i64, depth: usize) -> io::Result<Vec<Value>> {
    let length = u64::try_from(length).map_err(|_| broken())?;
    let mut list = Vec::new();
    while (list.len() as u64) < length {
        if let Some(value) = read(from, depth + 1)? {
            list.push(value);
        }
    }
    Ok(list)
}

fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the server's answer is cut off, too long, or no RESP",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> io::Result<Value> {
        Value::read(&mut &*bytes)
    }

    #[test]
    fn replies_of_both_protocols_become_the_same_tree() {
        let three = value(b">1\r\n+aside\r\n%1\r\n$4\r\nport\r\n:6379\r\n").unwrap();
        let two = value(b"*2\r\n$4\r\nport\r\n:6379\r\n").unwrap();
        assert_eq!(three, two);
        assert_eq!(two.get("port").and_then(Value::integer), Some(6379));
        assert_eq!(two.get("host"), None);
        assert_eq!(value(b"$-1\r\n").unwrap(), Value::Null);
        assert_eq!(value(b"=6\r\ntxt:ab\r\n").unwrap().text(), Some("ab"));
        assert_eq!(
            value(b"-ERR no\r\n").unwrap(),
            Value::Error("ERR no".into())
        );
    }

    /// A server must not be able to end the program, or to take its memory.
    #[test]
    fn endless_deep_and_broken_replies_are_refused() {
        let deep = b"*1\r\n".repeat(1000);
        let many = [&b"*9223372036854775807\r\n"[..], &b":1\r\n".repeat(10)].concat();
        let wrong: [&[u8]; 10] = [
            b"",
            b"\r\n",
            b"$5\r\nab",
            b"$9223372036854775807\r\nab",
            b"=2\r\nab\r\n",
            b"=0\r\n\r\n",
            b":x\r\n",
            b"$1\r\nabc\r\n",
            &deep,
            &many,
        ];
        for bytes in wrong {
            assert!(
                value(bytes).is_err(),
                "{:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(30)])
            );
        }
    }
}
