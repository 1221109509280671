//! Why a request is no command, in Redis's words: clients match on them.

use super::{ArgView, Reply};

/// Bytes of a client's words that an error repeats, at most.
const QUOTE_BYTES_MAX: usize = 128;

/// Why a request is no command. Nothing was done.
#[derive(Clone, Copy)]
pub enum CommandError<'a> {
    /// There is no such command.
    UnknownCommand(ArgView<'a>),
    /// The container has no such subcommand.
    UnknownSubcommand {
        /// The container.
        container: &'static str,
        /// What it does not have.
        word: &'a [u8],
    },
    /// Too many or too few arguments for this command.
    Arity(&'static str),
    /// No time at which this command could let a key expire.
    ExpireTime(&'static str),
    /// A text without parts of the request.
    Text(&'static str),
    /// A text around one of the client's words.
    Quote(&'static str, &'a [u8], &'static str),
}

impl CommandError<'_> {
    /// Arguments that fit no form of the command.
    pub const SYNTAX: CommandError<'static> = CommandError::Text("ERR syntax error");
    /// A word that should be a 64-bit integer.
    pub const NOT_AN_INTEGER: CommandError<'static> =
        CommandError::Text("ERR value is not an integer or out of range");

    /// True if the command could not even be queued: MULTI's EXEC will fail for it. All other
    /// errors are answers of the command, within EXEC's.
    pub fn spoils_transaction(&self) -> bool {
        match self {
            CommandError::UnknownCommand(_)
            | CommandError::UnknownSubcommand { .. }
            | CommandError::Arity(_) => true,
            CommandError::ExpireTime(_) | CommandError::Text(_) | CommandError::Quote(..) => false,
        }
    }

    /// Writes it as an error reply.
    pub fn reply(&self, reply: &mut Reply<'_>) {
        if let CommandError::Text(text) = self {
            return reply.error(text);
        }
        // The client's words need not be text: they go back as they came, but on one line.
        let mut line = self.line();
        for byte in line.iter_mut().filter(|byte| matches!(byte, b'\r' | b'\n')) {
            *byte = b' ';
        }
        reply.raw(b"-");
        reply.raw(&line);
        reply.raw(b"\r\n");
    }

    fn line(&self) -> Vec<u8> {
        match *self {
            CommandError::UnknownCommand(args) => unknown_command(args),
            CommandError::UnknownSubcommand { container, word } => {
                let (word, container) = (quotable(word), container.to_ascii_uppercase());
                let end = format!("'. Try {container} HELP.");
                [b"ERR unknown subcommand '", word, end.as_bytes()].concat()
            }
            CommandError::Arity("exec") => b"EXECABORT Transaction discarded because of: \
                  wrong number of arguments for 'exec' command"
                .to_vec(),
            CommandError::Arity(name) => {
                format!("ERR wrong number of arguments for '{name}' command").into_bytes()
            }
            CommandError::ExpireTime(name) => {
                format!("ERR invalid expire time in '{name}' command").into_bytes()
            }
            CommandError::Text(text) => text.as_bytes().to_vec(),
            CommandError::Quote(before, word, after) => {
                [before.as_bytes(), quotable(word), after.as_bytes()].concat()
            }
        }
    }
}

fn unknown_command(args: ArgView<'_>) -> Vec<u8> {
    let mut line = b"ERR unknown command '".to_vec();
    line.extend_from_slice(quotable(args.get(0).unwrap_or_default()));
    line.extend_from_slice(b"', with args beginning with: ");
    let start = line.len();
    for word in args.from(1).iter() {
        let Some(left) = QUOTE_BYTES_MAX
            .checked_sub(line.len() - start)
            .filter(|left| *left > 0)
        else {
            break;
        };
        let word = quotable(word);
        line.push(b'\'');
        line.extend_from_slice(&word[..word.len().min(left)]);
        line.extend_from_slice(b"' ");
    }
    line
}

impl std::fmt::Debug for CommandError<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.line()))
    }
}

/// What an error repeats of a client's word: no more than the bound and, as in Redis, nothing
/// from the first zero byte on.
fn quotable(word: &[u8]) -> &[u8] {
    let end = word
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(word.len());
    &word[..end.min(QUOTE_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::command::parse;
    use crate::protocol::{OwnedArgs, Protocol};

    /// The error that a request is refused with, as bytes, and whether it spoils a transaction.
    fn refuse(words: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut args = OwnedArgs::new();
        words.iter().for_each(|word| args.push(word));
        let error = parse(args.view()).expect_err("a bad request");
        let mut out = Vec::new();
        error.reply(&mut Reply::new(&mut out, Protocol::Resp2));
        (out, error.spoils_transaction())
    }

    #[test]
    fn only_what_could_not_be_queued_spoils_a_transaction() {
        assert!(refuse(&[b"nosuch"]).1);
        assert!(refuse(&[b"get"]).1);
        assert!(refuse(&[b"client", b"nosuch"]).1);
        assert!(
            !refuse(&[b"set", b"k", b"v", b"nosuch"]).1,
            "Redis queues it"
        );
        assert!(!refuse(&[b"incrby", b"k", b"x"]).1, "Redis queues it");
    }

    #[test]
    fn an_error_repeats_what_it_was_given_as_bytes_on_one_line() {
        let unknown = b"-ERR unknown command 'a b', with args beginning with: '\xff  x' \r\n";
        assert_eq!(refuse(&[b"a\nb", b"\xff\r\nx"]).0, unknown);
        assert_eq!(
            refuse(&[b"a\nb\0c", b"\xff\r\nx\0"]).0,
            unknown,
            "nothing after a zero"
        );
    }

    #[test]
    fn an_error_is_short_however_long_the_request() {
        let (word, mut words) = (vec![b'x'; 100_000], Vec::new());
        words.resize(50, &word[..]);
        assert!(refuse(&words).0.len() < 400);
        assert!(refuse(&[b"client", &word]).0.len() < 250);
        assert!(refuse(&[b"expire", b"k", b"1", &word]).0.len() < 250);
    }
}
