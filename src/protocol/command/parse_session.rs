//! The arguments of the commands that need no stored data, given their types.

use super::parse::{Call, Parsed, is, session};
use super::*;
use crate::protocol::number::parse_i64;

const BAD_NAME: CommandError<'static> =
    CommandError::Text("ERR Client names cannot contain spaces, newlines or special characters.");

pub(super) fn ping(call: Call<'_>) -> Parsed<'_> {
    match call.args.len() {
        1 | 2 => session(Session::Ping(call.args.get(1))),
        // Not `Arity`: MULTI queues it.
        _ => Err(CommandError::Text(
            "ERR wrong number of arguments for 'ping' command",
        )),
    }
}

pub(super) fn echo(call: Call<'_>) -> Parsed<'_> {
    session(Session::Echo(call.word(1)))
}

pub(super) fn hello(call: Call<'_>) -> Parsed<'_> {
    let mut hello = Hello {
        protocol: None,
        login: None,
        name: None,
    };
    if let Some(version) = call.args.get(1) {
        hello.protocol = match parse_i64(version) {
            Some(2) => Some(Protocol::Resp2),
            Some(3) => Some(Protocol::Resp3),
            Some(_) => return Err(CommandError::Text("NOPROTO unsupported protocol version")),
            None => {
                return Err(CommandError::Text(
                    "ERR Protocol version is not an integer or out of range",
                ));
            }
        };
    }
    let mut at = 2;
    while let Some(option) = call.args.get(at) {
        let left = call.args.len() - 1 - at;
        if is(option, "AUTH") && left >= 2 {
            hello.login = Some(Login {
                user: Some(call.word(at + 1)),
                password: call.word(at + 2),
            });
            at += 3;
        } else if is(option, "SETNAME") && left >= 1 {
            hello.name = Some(printable(call.word(at + 1)).ok_or(BAD_NAME)?);
            at += 2;
        } else {
            return Err(CommandError::Quote(
                "ERR Syntax error in HELLO option '",
                option,
                "'",
            ));
        }
    }
    session(Session::Hello(hello))
}

pub(super) fn auth(call: Call<'_>) -> Parsed<'_> {
    let login = match call.args.len() {
        2 => Login {
            user: None,
            password: call.word(1),
        },
        3 => Login {
            user: Some(call.word(1)),
            password: call.word(2),
        },
        _ => return Err(CommandError::SYNTAX),
    };
    session(Session::Auth(login))
}

pub(super) fn select(call: Call<'_>) -> Parsed<'_> {
    let index = i32::try_from(call.integer(1)?).map_err(|_| {
        CommandError::Text(
            "ERR value is out of range, value must between -2147483648 and 2147483647",
        )
    })?;
    session(Session::Select(i64::from(index)))
}

pub(super) fn quit(_: Call<'_>) -> Parsed<'_> {
    session(Session::Quit)
}

pub(super) fn reset(_: Call<'_>) -> Parsed<'_> {
    session(Session::Reset)
}

pub(super) fn info(call: Call<'_>) -> Parsed<'_> {
    session(Session::Info(call.args.from(1)))
}

pub(super) fn time(_: Call<'_>) -> Parsed<'_> {
    session(Session::Time)
}

pub(super) fn multi(_: Call<'_>) -> Parsed<'_> {
    session(Session::Multi)
}

pub(super) fn exec(_: Call<'_>) -> Parsed<'_> {
    session(Session::Exec)
}

pub(super) fn discard(_: Call<'_>) -> Parsed<'_> {
    session(Session::Discard)
}

pub(super) fn watch(call: Call<'_>) -> Parsed<'_> {
    session(Session::Watch(call.args.from(1)))
}

pub(super) fn unwatch(_: Call<'_>) -> Parsed<'_> {
    session(Session::Unwatch)
}

/// A container without a subcommand: its arity asks for one, so this is never called.
pub(super) fn container(call: Call<'_>) -> Parsed<'_> {
    Err(CommandError::Arity(call.spec.name))
}

/// HELP of any container.
pub(super) fn help(call: Call<'_>) -> Parsed<'_> {
    let container = Spec::find(call.word(0)).unwrap_or(call.spec);
    session(Session::Describe(Introspection::Help(container)))
}

// CLIENT.

fn client(command: Client<'_>) -> Parsed<'_> {
    session(Session::Client(command))
}

/// Names are seen in lists with blanks between the fields.
fn printable(name: &[u8]) -> Option<&[u8]> {
    name.iter()
        .all(|byte| matches!(byte, b'!'..=b'~'))
        .then_some(name)
}

pub(super) fn client_id(_: Call<'_>) -> Parsed<'_> {
    client(Client::Id)
}

pub(super) fn client_get_name(_: Call<'_>) -> Parsed<'_> {
    client(Client::GetName)
}

pub(super) fn client_set_name(call: Call<'_>) -> Parsed<'_> {
    client(Client::SetName(printable(call.word(2)).ok_or(BAD_NAME)?))
}

pub(super) fn client_set_info(call: Call<'_>) -> Parsed<'_> {
    let option = call.word(2);
    let what = if is(option, "LIB-NAME") {
        ClientInfo::LibName
    } else if is(option, "LIB-VER") {
        ClientInfo::LibVer
    } else {
        return Err(CommandError::Quote(
            "ERR Unrecognized option '",
            option,
            "'",
        ));
    };
    let text = printable(call.word(3)).ok_or(CommandError::Quote(
        "ERR ",
        option,
        " cannot contain spaces, newlines or special characters.",
    ))?;
    client(Client::SetInfo(what, text))
}

pub(super) fn client_info(_: Call<'_>) -> Parsed<'_> {
    client(Client::Info)
}

pub(super) fn client_list(call: Call<'_>) -> Parsed<'_> {
    let (option, length) = (call.word(2), call.args.len());
    let filter = if length == 4 && is(option, "TYPE") {
        let kind = call.word(3);
        if is(kind, "normal") {
            ClientFilter::All
        } else if ["replica", "slave", "master", "pubsub"]
            .into_iter()
            .any(|name| is(kind, name))
        {
            ClientFilter::Nobody
        } else {
            return Err(CommandError::Quote("ERR Unknown client type '", kind, "'"));
        }
    } else if length > 3 && is(option, "ID") {
        let ids = call.args.from(3);
        if ids.iter().any(|id| parse_i64(id).is_none()) {
            return Err(CommandError::Text("ERR Invalid client ID"));
        }
        ClientFilter::Ids(ids)
    } else if length == 2 {
        ClientFilter::All
    } else {
        return Err(CommandError::SYNTAX);
    };
    client(Client::List(filter))
}

pub(super) fn client_no_evict(call: Call<'_>) -> Parsed<'_> {
    on_or_off(call, Client::NoEvict)
}

pub(super) fn client_no_touch(call: Call<'_>) -> Parsed<'_> {
    on_or_off(call, Client::NoTouch)
}

fn on_or_off<'a>(call: Call<'a>, command: Client<'a>) -> Parsed<'a> {
    let word = call.word(2);
    if is(word, "ON") || is(word, "OFF") {
        client(command)
    } else {
        Err(CommandError::SYNTAX)
    }
}

// CONFIG.

fn config(command: Config<'_>) -> Parsed<'_> {
    session(Session::Config(command))
}

pub(super) fn config_get(call: Call<'_>) -> Parsed<'_> {
    config(Config::Get(call.args.from(2)))
}

pub(super) fn config_set(call: Call<'_>) -> Parsed<'_> {
    match call.args.len() % 2 {
        0 => config(Config::Set(call.args.from(2))),
        _ => Err(CommandError::SYNTAX),
    }
}

pub(super) fn config_reset_stat(_: Call<'_>) -> Parsed<'_> {
    config(Config::ResetStat)
}

pub(super) fn config_rewrite(_: Call<'_>) -> Parsed<'_> {
    config(Config::Rewrite)
}

// COMMAND.

fn describe(what: Introspection<'_>) -> Parsed<'_> {
    session(Session::Describe(what))
}

pub(super) fn command(_: Call<'_>) -> Parsed<'_> {
    describe(Introspection::All)
}

pub(super) fn command_count(_: Call<'_>) -> Parsed<'_> {
    describe(Introspection::Count)
}

pub(super) fn command_info(call: Call<'_>) -> Parsed<'_> {
    describe(Introspection::Info(call.args.from(2)))
}

pub(super) fn command_docs(call: Call<'_>) -> Parsed<'_> {
    describe(Introspection::Docs(call.args.from(2)))
}

pub(super) fn command_get_keys(call: Call<'_>) -> Parsed<'_> {
    get_keys(call.args.from(2), Introspection::GetKeys)
}

pub(super) fn command_get_keys_and_flags(call: Call<'_>) -> Parsed<'_> {
    get_keys(call.args.from(2), Introspection::GetKeysAndFlags)
}

fn get_keys<'a>(
    args: ArgView<'a>,
    form: fn(&'static Spec, ArgView<'a>) -> Introspection<'a>,
) -> Parsed<'a> {
    let spec = match Spec::of(args) {
        Err(CommandError::UnknownCommand(_) | CommandError::UnknownSubcommand { .. }) => {
            return Err(CommandError::Text("ERR Invalid command specified"));
        }
        Err(CommandError::Arity(name)) if takes_no_key(name) => return Err(NO_KEYS),
        Err(_) => {
            return Err(CommandError::Text(
                "ERR Invalid number of arguments specified for command",
            ));
        }
        Ok(spec) => spec,
    };
    if spec.keys.first == 0 {
        Err(NO_KEYS)
    } else {
        describe(form(spec, args))
    }
}

const NO_KEYS: CommandError<'static> = CommandError::Text("ERR The command has no key arguments");

fn takes_no_key(name: &str) -> bool {
    Spec::find_full(name.as_bytes()).is_none_or(|spec| spec.keys.first == 0)
}

pub(super) fn command_list(call: Call<'_>) -> Parsed<'_> {
    let filter = match call.args.len() {
        2 => CommandFilter::All,
        5 if is(call.word(2), "FILTERBY") => {
            let (kind, word) = (call.word(3), call.word(4));
            if is(kind, "MODULE") {
                CommandFilter::Module
            } else if is(kind, "ACLCAT") {
                CommandFilter::Category(word)
            } else if is(kind, "PATTERN") {
                CommandFilter::Pattern(word)
            } else {
                return Err(CommandError::SYNTAX);
            }
        }
        _ => return Err(CommandError::SYNTAX),
    };
    describe(Introspection::List(filter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OwnedArgs;
    use crate::protocol::command::parse;

    /// What `line` is parsed to, as its debug form; errors as their text.
    fn read(line: &str) -> String {
        let mut args = OwnedArgs::new();
        line.split(' ').for_each(|word| args.push(word.as_bytes()));
        match parse(args.view()) {
            Ok(Command::Session(command)) => format!("{command:?}"),
            Ok(other) => panic!("{line}: {other:?}"),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn hello_takes_its_options_in_any_order() {
        for line in ["hello 3 auth u p setname n", "HELLO 3 SETNAME n AUTH u p"] {
            let mut args = OwnedArgs::new();
            line.split(' ').for_each(|word| args.push(word.as_bytes()));
            let Ok(Command::Session(Session::Hello(hello))) = parse(args.view()) else {
                panic!("{line} is a greeting");
            };
            assert_eq!(hello.protocol, Some(Protocol::Resp3));
            assert_eq!(hello.name, Some(&b"n"[..]));
            let login = hello.login.expect("there is one");
            assert_eq!((login.user, login.password), (Some(&b"u"[..]), &b"p"[..]));
        }
        let plain = "Hello(Hello { protocol: None, login: None, name: None })";
        assert_eq!(read("hello"), plain);
        assert_eq!(
            read("hello 4"),
            "NOPROTO unsupported protocol version",
            "lettuce looks for it"
        );
        assert_eq!(
            read("hello 2 auth u"),
            "ERR Syntax error in HELLO option 'auth'"
        );
    }

    #[test]
    fn a_password_is_not_shown() {
        for line in ["auth secret", "auth u secret", "hello 2 auth u secret"] {
            assert!(!read(line).contains("secret"), "{}", read(line));
        }
    }

    #[test]
    fn client_list_is_filtered_by_kind_or_number() {
        assert_eq!(read("client list"), "Client(List(All))");
        assert_eq!(read("client list type NORMAL"), "Client(List(All))");
        assert_eq!(read("client list type pubsub"), "Client(List(Nobody))");
        assert_eq!(
            read("client list id 1 2"),
            "Client(List(Ids([\"1\", \"2\"])))"
        );
        assert_eq!(read("client list id 1 x"), "ERR Invalid client ID");
        assert_eq!(read("client list id"), "ERR syntax error");
    }

    #[test]
    fn client_setinfo_is_as_in_redis_7_2() {
        assert_eq!(
            read("client setinfo lib-name a").split('(').nth(1),
            Some("SetInfo")
        );
        assert_eq!(
            read("client setinfo nosuch a"),
            "ERR Unrecognized option 'nosuch'"
        );
        assert_eq!(
            read("client setinfo LIB-VER a\nb"),
            "ERR LIB-VER cannot contain spaces, newlines or special characters."
        );
        let name = read("client setname a\tb");
        assert_eq!(
            name,
            "ERR Client names cannot contain spaces, newlines or special characters."
        );
    }

    #[test]
    fn config_set_takes_pairs() {
        assert_eq!(
            read("config set a 1 b 2"),
            "Config(Set([\"a\", \"1\", \"b\", \"2\"]))"
        );
        assert_eq!(read("config set a 1 b"), "ERR syntax error");
    }
}
