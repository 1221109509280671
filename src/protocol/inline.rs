//! The words of an inline request, as people type them.
//!
//! word   := (plain | '"' (escape | character)* '"' | "'" ("\'" | character)* "'")*
//! escape := '\' ('n' | 'r' | 't' | 'b' | 'a' | 'x' hex hex | character)
//!
//! Words are separated by blanks. Quotes may open within a word, but closing them ends it: what
//! follows must be a blank or the line's end.

use super::args::OwnedArgs;

/// The words of a line; `None` if its quotes are not balanced.
pub(super) fn split_words(mut line: &[u8]) -> Option<OwnedArgs> {
    let (mut words, mut word) = (OwnedArgs::new(), Vec::new());
    loop {
        line = &line[line.iter().take_while(|&&byte| is_space(byte)).count()..];
        if line.is_empty() {
            return Some(words);
        }
        word.clear();
        line = take_word(line, &mut word)?;
        words.push(&word);
    }
}

/// Appends the word that `line` begins with to `word`; returns what follows it.
fn take_word<'a>(mut line: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        line = match line {
            [] | [b' ' | b'\n' | b'\r' | b'\t', ..] => return Some(line),
            [b'"', quoted @ ..] => return take_quoted(quoted, word, take_escaped),
            [b'\'', quoted @ ..] => return take_quoted(quoted, word, take_apostrophe),
            [byte, rest @ ..] => {
                word.push(*byte);
                rest
            }
        };
    }
}

/// Takes one character of a quoted text: what it stands for and what follows it. `None` at its end.
type TakeCharacter = fn(&[u8]) -> Option<(u8, &[u8])>;

fn take_quoted<'a>(
    mut text: &'a [u8],
    word: &mut Vec<u8>,
    take_character: TakeCharacter,
) -> Option<&'a [u8]> {
    while let Some((byte, rest)) = take_character(text) {
        word.push(byte);
        text = rest;
    }
    match text {
        [_quote] => Some(&[]),
        [_quote, rest @ ..] if is_space(rest[0]) => Some(rest),
        _ => None,
    }
}

fn take_escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [] | [b'"', ..] => None,
        [b'\\', b'x', high, low, rest @ ..]
            if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
        {
            Some((hex_digit(*high) << 4 | hex_digit(*low), rest))
        }
        [b'\\', escaped, rest @ ..] => Some((unescape(*escaped), rest)),
        [byte, rest @ ..] => Some((*byte, rest)),
    }
}

fn take_apostrophe(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [] | [b'\'', ..] => None,
        [b'\\', b'\'', rest @ ..] => Some((b'\'', rest)),
        [byte, rest @ ..] => Some((*byte, rest)),
    }
}

fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn unescape(escaped: u8) -> u8 {
    match escaped {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

/// White space in the C locale.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Option<Vec<Vec<u8>>> {
        split_words(line.as_bytes()).map(|words| words.iter().map(<[u8]>::to_vec).collect())
    }

    #[test]
    fn quotes_and_escapes_are_those_of_redis() {
        let cases: &[(&str, &[&[u8]])] = &[
            ("", &[]),
            (" \t\r\x0b ", &[]),
            ("  ping  ", &[b"ping"]),
            ("a\tb", &[b"a", b"b"]),
            ("a\x0bb", &[b"a\x0bb"]),
            (r#""""#, &[b""]),
            (r#"set k """#, &[b"set", b"k", b""]),
            (r#""a b" 'c d'"#, &[b"a b", b"c d"]),
            (r#""\n\r\t\b\a\\\"\z""#, &[b"\n\r\t\x08\x07\\\"z"]),
            (r#""\x00\xfF\x4""#, &[b"\x00\xffx4"]),
            (r#"'\n\'\x41'"#, &[br"\n'\x41"]),
            (r#"pre"fix 1" x"#, &[b"prefix 1", b"x"]),
            (r"a\nb", &[br"a\nb"]),
        ];
        for (line, words) in cases {
            let ours = split(line).expect(line);
            assert!(
                ours.iter().map(|word| &word[..]).eq(words.iter().copied()),
                "{line:?}: {ours:?}"
            );
        }
    }

    #[test]
    fn quotes_that_do_not_end_a_word_are_refused() {
        for line in [
            r#"""#,
            "'",
            r#""a"#,
            r#""a\""#,
            r"'a\'",
            r#""a"b"#,
            "'a'b",
            r#"'a'"b""#,
            r#"a""""#,
        ] {
            assert_eq!(split(line), None, "{line:?}");
        }
    }
}
