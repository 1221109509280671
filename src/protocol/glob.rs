//! Patterns of KEYS, SCAN and their like, as Redis reads them.
//!
//! `*` any bytes, `?` one byte, `[abc]` `[^abc]` `[a-z]` one byte of a class, `\` takes the next
//! byte as it is. Odd patterns mean what they mean in Redis: a class without `]` ends with the
//! pattern, `[]` contains nothing, and in `[a-]` the range ends in `]`. Bytes are compared
//! unsigned, and `*` matches an empty text too.
//!
//! Every element but `*` takes exactly one byte. So once the part behind a `*` has matched, no
//! earlier `*` needs another try, and one place to go back to is enough: no recursion, and time
//! in proportion to pattern times text at worst.

/// Bytes of the pattern that are looked at before giving up, as many as no pattern and text of
/// 1 KiB each can ask for. A longer pair that is still undecided then does not match.
const STEPS_MAX: usize = 2 << 20;

/// True if `text` as a whole is what `pattern` describes.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let mut steps_left = STEPS_MAX;
    // What is left of both, and what was left of them behind the last `*` when it took least.
    let (mut pattern_left, mut text_left) = (pattern, text);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern_left {
            if rest.is_empty() {
                return true;
            }
            pattern_left = rest;
            retry = Some((rest, text_left));
            continue;
        }
        let matched = match (pattern_left, text_left) {
            ([], []) => return true,
            (_, []) => return false, // a longer `*` would leave even less
            ([], _) => false,
            (_, [byte, text_rest @ ..]) => {
                let (element_bytes, accepts) = match_one(pattern_left, *byte);
                if steps_left < element_bytes {
                    return false;
                }
                steps_left -= element_bytes;
                pattern_left = &pattern_left[element_bytes..];
                text_left = text_rest;
                accepts
            }
        };
        if !matched {
            let Some((pattern_retry, [_, text_retry @ ..])) = retry else {
                return false;
            };
            retry = Some((pattern_retry, text_retry));
            (pattern_left, text_left) = (pattern_retry, text_retry);
        }
    }
}

/// Bytes of the element that `pattern` begins with, which is not `*`, and if it accepts `byte`.
fn match_one(pattern: &[u8], byte: u8) -> (usize, bool) {
    match pattern {
        [b'?', ..] => (1, true),
        [b'[', b'^', class @ ..] => {
            let (class_bytes, contains) = match_class(class, byte);
            (2 + class_bytes, !contains)
        }
        [b'[', class @ ..] => {
            let (class_bytes, contains) = match_class(class, byte);
            (1 + class_bytes, contains)
        }
        [b'\\', escaped, ..] => (2, *escaped == byte),
        _ => (1, pattern[0] == byte),
    }
}

/// Bytes of the class that `class` begins with, its `]` included, and if it contains `byte`.
fn match_class(class: &[u8], byte: u8) -> (usize, bool) {
    let mut contains = false;
    let mut left = class;
    loop {
        left = match left {
            [] => return (class.len(), contains),
            [b'\\', escaped, rest @ ..] => {
                contains |= *escaped == byte;
                rest
            }
            [b']', rest @ ..] => return (class.len() - rest.len(), contains),
            [one, b'-', other, rest @ ..] => {
                contains |= (*one.min(other)..=*one.max(other)).contains(&byte);
                rest
            }
            [single, rest @ ..] => {
                contains |= *single == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        // (pattern, texts it matches, texts it does not match): as KEYS of Redis 7.0.15 finds them.
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("*", &["", "a", "abc"], &[]),
            ("", &[""], &["a"]),
            ("h?llo", &["hello", "h?llo"], &["hllo", "heello"]),
            ("h*llo", &["hllo", "heeeello"], &["hll", "xhllo"]),
            ("h[ae]llo", &["hello", "hallo"], &["hillo", "hllo"]),
            ("h[^e]llo", &["hallo", "h^llo"], &["hello", "hllo"]),
            ("h[a-c]llo", &["hallo", "hcllo"], &["hdllo", "h-llo"]),
            ("h[c-a]llo", &["hbllo"], &["hdllo"]),
            ("a\\*b", &["a*b"], &["axb", "a\\b"]),
            ("a\\", &["a\\"], &["a"]),
            ("[\\]]", &["]"], &["\\", "x"]),
            ("[\\-z]", &["-", "z"], &["a", "\\"]),
            ("[]a", &[], &["a", "]a", ""]),
            ("[^]a", &["xa", "]a"], &["a"]),
            ("[abc", &["a", "c"], &["[abc", "d"]),
            ("[a-", &["a", "-"], &["b"]),
            ("[a-]", &["a", "_", "]"], &["b", "-"]),
            ("[", &[], &["[", ""]),
            ("[^", &["x"], &["", "xx"]),
            ("*a*b*", &["ab", "xaxbx", "aab"], &["ba", "a", "b"]),
            ("*ab", &["ab", "aab", "abab"], &["aba", "b"]),
            ("**?", &["a", "ab"], &[""]),
            ("a*?*c", &["abc", "abbc"], &["ac"]),
            (
                "user:[0-9]*:name",
                &["user:1:name", "user:12:name"],
                &["user::name", "user:x:name"],
            ),
        ];
        for (pattern, matching, others) in cases {
            for text in *matching {
                assert!(
                    matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern:?} on {text:?}"
                );
            }
            for text in *others {
                assert!(
                    !matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern:?} on {text:?}"
                );
            }
        }
        assert!(
            matches(b"[\x7f-\xff]", b"\x80"),
            "bytes are compared unsigned"
        );
    }

    /// The definition, by recursion: what the loop with one place to go back to must agree with.
    fn matches_by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], _) => text.is_empty(),
            ([b'*', rest @ ..], _) => {
                (0..=text.len()).any(|taken| matches_by_definition(rest, &text[taken..]))
            }
            (_, []) => false,
            (_, [byte, text_rest @ ..]) => {
                let (element_bytes, accepts) = match_one(pattern, *byte);
                accepts && matches_by_definition(&pattern[element_bytes..], text_rest)
            }
        }
    }

    #[test]
    fn one_place_to_go_back_to_is_enough() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut matched = 0;
        for _ in 0..20_000 {
            let mut bytes = |from: &[u8], length_max: usize| -> Vec<u8> {
                (0..random.usize(0..=length_max))
                    .map(|_| from[random.usize(0..from.len())])
                    .collect()
            };
            let (pattern, text) = (bytes(b"ab**?[]^-\\", 10), bytes(b"ab", 10));
            let expected = matches_by_definition(&pattern, &text);
            let shown = (pattern.escape_ascii(), text.escape_ascii());
            assert_eq!(
                matches(&pattern, &text),
                expected,
                "{} on {}",
                shown.0,
                shown.1
            );
            matched += usize::from(expected);
        }
        assert!(
            matched > 500,
            "the patterns must not be so odd that all is refused"
        );
    }

    #[test]
    fn a_hostile_pattern_costs_no_more_than_its_steps() {
        // Exponential for a matcher that tries every split: it would not end in our lifetime.
        let pattern = [&b"a*".repeat(200)[..], b"b"].concat();
        assert!(!matches(&pattern, &b"a".repeat(1000)));
        // At the bounds of 1 KiB each, the answer is still exact.
        let mut text = vec![b'a'; 1024];
        let pattern = [&b"*"[..], &b"a".repeat(512)[..], b"b"].concat();
        assert!(!matches(&pattern, &text));
        text[1023] = b'b';
        assert!(matches(&pattern, &text));
        // Beyond them, it ends undecided.
        let text = [&b"a".repeat(64 << 10)[..], b"b"].concat();
        assert!(!matches(
            &[&b"*"[..], &b"a".repeat(1000)[..], b"b"].concat(),
            &text
        ));
    }

    #[test]
    fn no_pattern_is_out_of_bounds() {
        const LETTERS: &[u8] = b"[]^-\\*?a\0\xff";
        let mut random = fastrand::Rng::with_seed(13);
        for _ in 0..50_000 {
            let length = random.usize(0..12);
            let pattern: Vec<u8> = (0..length)
                .map(|_| LETTERS[random.usize(0..LETTERS.len())])
                .collect();
            let text: Vec<u8> = (0..random.usize(0..6)).map(|_| random.u8(..)).collect();
            let closed = [&pattern[..], b"*"].concat();
            if matches(&pattern, &text) && !pattern.ends_with(b"\\") && !pattern.contains(&b'[') {
                assert!(matches(&closed, &text), "a `*` more takes nothing away");
            }
        }
    }
}
